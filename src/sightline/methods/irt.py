"""IRT: training Vision Transformers for image retrieval (El-Nouby, Neverova, Laptev, Jegou 2021, arXiv 2102.05644).

A Siamese ViT learns unit-length descriptors with a contrastive loss against the batch and a cross-batch memory, while a
differential-entropy regulariser (KoLeo) keeps each descriptor away from its nearest neighbour:

    L_contr = 1/N sum_i ( sum_{j: y_j = y_i} [1 - z_i.z_j] + sum_{j: y_j != y_i} [z_i.z_j - beta]_+ )     (1)
    L_KoLeo = -1/N sum_i log min_{j != i} ||z_i - z_j||_2                                                  (2)
    L       = L_contr + lambda L_KoLeo                                                                     (3)

The paper's ladder: IRT_O is the frozen backbone, IRT_L is lambda = 0, IRT_R is lambda > 0.

The cross-batch memory is Wang et al. 2020 (arXiv 1912.06798): the batch is enqueued first, equation 1 is taken once over the batch
and once over the memory, and the two are added.

Two other objectives can stand in equation 1's place, as in the paper's Table 4; KoLeo joins any of them. Normalised softmax
(Zhai & Wu 2018, arXiv 1811.12649) tells the classes apart by one learnt unit vector each. SNCA (Wu, Efros & Yu 2018, arXiv 1808.04699)
asks that an image's neighbours among all training images, held in a memory with one entry per image, be of its own class.

Particular objects are learnt from tuples of an anchor, an image of the same thing and hard negatives (section 4.2; Radenovic, Tolias,
Chum 2018, arXiv 1711.02512): only the anchor forms pairs, within its tuple. KoLeo takes the whole batch, as equation 2 is written; the
paper does not say whether its authors took a batch or one tuple, which is what the code they built on descends at a time.

Departs:
    - a pair of a descriptor with its own entry in the memory is dropped by position; the published memory drops positives with
      a similarity above 1 - 1e-5, which also drops true pairs of duplicate images;
    - the memory is a ring; the published one, where a batch does not fit at its end, shifts the batch back over its newest entries;
    - the negative term subtracts beta as equation 1 does; the published memory adds z_i.z_j itself (same gradient, other value);
    - normalised softmax's authors put a layer norm before the unit length and first train the class vectors alone for an epoch; here
      the ViT ends in its own norm, and everything learns from the first step;
    - SNCA's authors raise the memory's momentum late in 130 epochs; here it stays.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch, IntArray, LossTerms
from sightline.data.records import Records
from sightline.errors import RecipeError
from sightline.methods.base import Method, encoder_groups
from sightline.nn.collectives import gather
from sightline.nn.encoder import Encoder
from sightline.nn.losses import (
    Reduction,
    TupleMetric,
    contrastive_loss,
    gradient_noise,
    koleo_loss,
    normalised_softmax_loss,
    snca_loss,
    tuple_loss,
)
from sightline.recipe import AugmentSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec
from sightline.sweep import Sweep, Variant, grid


@dataclass(frozen=True, kw_only=True)
class IRTRecipe(Recipe):
    """What IRT adds to a run."""

    objective: Literal["contrastive", "normalised_softmax", "snca"] = (
        "contrastive"  # of Table 4; margin, reduction, memory* and momentum are contrastive's
    )
    margin: float = 0.5  # beta of eq. 1
    koleo_weight: float = 0.7  # lambda of eq. 3; tied to the reduction: under mean_nonzero the same value weighs far more
    reduction: Reduction = "sum_over_n"  # eq. 1 as printed; mean_nonzero averages the positive and the negative pairs that still cost
    memory: float = 1.0  # size of the cross-batch memory as a share of the training set; 0 is none
    memory_start: int = 1_000  # first step that learns from the memory (the published memory's value; the paper does not say)
    momentum: float = 0.0  # decay of the momentum encoder that fills the memory; 0 stores the learner's own descriptors
    temperature: float = 0.05  # normalised softmax and SNCA: what similarities are divided by (the value of both papers)
    proxy_lr: float = 1.0  # normalised softmax: the class vectors' learning rate as a multiple of train.lr; its authors' is 1
    memory_momentum: float = 0.5  # SNCA: EMA decay of the memory entries; 0 replaces them
    # Tuples only: what the margin measures. The paper trains tuples with beta = 0.85 and "the default hyper-parameters" of the code it
    # builds on, where 0.85 is a Euclidean distance, a cosine of 0.639 between unit vectors; so euclidean is the default. cosine reads
    # 0.85 into equation 1, whose negatives then cost only where they are closer than a distance of 0.55.
    tuple_metric: TupleMetric = "euclidean"

    def __post_init__(self) -> None:
        by_distance = self.data.sampling == "tuples" and self.tuple_metric == "euclidean"
        low, high = (0, 2) if by_distance else (-1, 1)
        if not low <= self.margin <= high:
            raise RecipeError(f"margin is a {'distance' if by_distance else 'cosine'} in [{low}, {high}]")
        if not (self.koleo_weight >= 0 and self.memory >= 0 and self.memory_start >= 0 and 0 <= self.momentum < 1):
            raise RecipeError("koleo_weight, memory and memory_start are not negative, momentum is in [0, 1)")
        if self.data.sampling == "tuples" and self.memory and self.objective == "contrastive":
            raise RecipeError("a tuple forms its pairs within itself: set memory=0")
        data = self.data
        if self.objective == "contrastive" and data.sampling == "pk" and not self.memory:
            if data.images_per_class == 1:
                raise RecipeError(
                    "images_per_class=1 gives the contrastive loss no two images of a class to bring together: take 2 or more, or "
                    "objective=normalised_softmax"
                )
            if data.classes_per_batch == 1:
                raise RecipeError("classes_per_batch=1 gives the contrastive loss no two classes to keep apart: take 2 or more")
        if not (self.temperature > 0 and self.proxy_lr > 0 and 0 <= self.memory_momentum < 1):
            raise RecipeError("temperature and proxy_lr must be positive, memory_momentum is in [0, 1)")


# --- named recipes --------------------------------------------------------------------------------------------------------------


def sop() -> IRTRecipe:
    """Stanford Online Products: DeiT-S/16, 224 px, AdamW 3e-5, batch 64, 35,000 steps."""
    return IRTRecipe(
        name="irt/sop",
        model=ModelSpec(backbone="deit_small_patch16_224", weights="hub"),
        image=ImageSpec.of_backbone(image_px=224, resize_px=256),
        augment=AugmentSpec(augment="square", flip=0.5),
        data=DataSpec(dataset="sop", classes_per_batch=16, images_per_class=4, validation=0.0),  # all training classes, the last step
        train=TrainSpec(steps=35_000, lr=3e-5, weight_decay=5e-4, validate_every=1_000, save_every=1_000),
    )


def cub() -> IRTRecipe:
    """CUB-200-2011: as SOP but 2,000 steps."""
    base = sop()
    return replace(
        base,
        name="irt/cub",
        data=replace(base.data, dataset="cub"),
        train=replace(base.train, steps=2_000, validate_every=200, save_every=200),
    )


def inshop() -> IRTRecipe:
    """In-Shop: as SOP, with a memory of a fifth of the training set that a momentum encoder (0.999) fills."""
    base = sop()
    return replace(base, name="irt/inshop", memory=0.2, momentum=0.999, data=replace(base.data, dataset="inshop"))


def folder() -> IRTRecipe:
    """Your own class folders or manifest, from pretrained weights: averaged pairs, frozen batch norms, a warm-up and a cosine.

    Departs from the paper's settings, under which pretrained networks end below their start in short trainings (docs/results.md, "From
    pretrained weights: what made irt/folder worse than its start"). Their descriptors are all alike, so every negative costs, and summed
    they outweigh the few positives many times over: ``mean_nonzero`` gives either side the same weight. KoLeo pushes a batch's nearest
    neighbours apart, which are of one class. Batch norms that go on counting forget within 40 steps what the weights were trained with.
    """
    base = sop()
    return replace(
        base,
        name="irt/folder",
        reduction="mean_nonzero",
        koleo_weight=0.0,
        memory_start=200,
        model=replace(base.model, frozen=("batch_norm",)),
        data=replace(base.data, dataset="auto", validation=0.1),
        train=replace(base.train, steps=2_000, warmup_steps=100, schedule="cosine", validate_every=200, save_every=200),
    )


def sfm120k_224() -> IRTRecipe:
    """retrieval-SfM-120k: DeiT-S/16, fixed squares of 224 px, tuples, Adam 5e-7, KoLeo 4, 100 epochs of 400 steps."""
    return IRTRecipe(
        name="irt/sfm120k-224",
        margin=0.85,
        koleo_weight=4.0,
        memory=0.0,
        model=ModelSpec(backbone="deit_small_patch16_224", weights="hub"),
        image=ImageSpec.of_backbone(image_px=224, resize="square", resize_px=224),
        augment=AugmentSpec(augment="square", flip=0.0),
        data=DataSpec(dataset="sfm120k", sampling="tuples", tuples_per_batch=5),
        train=TrainSpec(
            steps=40_000,
            optimizer="adam",
            lr=5e-7,
            weight_decay=1e-6,
            schedule="exponential",
            lr_decay=math.exp(-0.01),
            lr_decay_steps=400,  # an epoch
            validate_every=2_000,
            save_every=400,
        ),
    )


def sfm120k_384() -> IRTRecipe:
    """retrieval-SfM-120k at 384 px: the distilled DeiT-B/16, the only ViT of which the paper reports this size."""
    return replace(
        sfm120k_224(),
        name="irt/sfm120k-384",
        model=ModelSpec(backbone="deit_base_distilled_patch16_384", weights="hub"),
        image=ImageSpec.of_backbone(image_px=384, resize="square", resize_px=384),
    )


def small() -> IRTRecipe:
    """From scratch on small images and few of them, on a CPU: a shallow ViT at 64 px, a higher rate, stronger variation, no memory.

    Random weights move too fast for a memory of old descriptors: validation fell from the step it began (docs/results.md, "From
    scratch: memory and reduction"). KoLeo is off: on photographs (grocery_128, three seeds) a weight of 0.3 costs 12.8 points of Recall@1;
    many alike classes of few images gain 1.8 by it (omniglot_small1; the same page, "The ladder O / L / R from scratch").
    """
    return replace(
        folder(),
        name="irt/small",
        memory=0.0,
        model=ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 6)), weights="random", pooling="mean"),
        image=ImageSpec.of_backbone(image_px=64),
        augment=AugmentSpec(augment="random_resized", min_area=0.4, jitter=0.3, rotate_deg=15.0),
        data=DataSpec(classes_per_batch=16, images_per_class=4, validation=0.15),
        train=TrainSpec(
            steps=600, lr=3e-4, weight_decay=0.05, warmup_steps=50, schedule="cosine", clip_norm=1.0, validate_every=100, save_every=100
        ),
    )


def tuples() -> IRTRecipe:
    """Your own places or objects, from scratch on a CPU: as small, on tuples of given pairs and mined negatives.

    The pool is small because from random weights the hardest of many negatives mislead: grocery_128 at 24 px, 200 steps, one seed each,
    MAP@R on unseen classes: untrained 6.6 %, a pool of 2,000 5.6 %, of 100 7.3 %.
    """
    base = small()
    return replace(
        base,
        name="irt/tuples",
        margin=0.85,
        koleo_weight=0.3,  # what it was measured with
        data=DataSpec(sampling="tuples", tuples_per_batch=8, query_size=80, pool_size=100, validation=0.15),
    )


# --- named sweeps ---------------------------------------------------------------------------------------------------------------


def ladder() -> Sweep:
    """The paper's Table 3: the backbone as it comes (O), the contrastive loss alone (L), KoLeo with it (R)."""
    return Sweep(
        "irt/sop", (Variant("IRT_O", ("steps=0",)), Variant("IRT_L", ("koleo_weight=0",)), Variant("IRT_R", ("koleo_weight=0.7",)))
    )


def start() -> Sweep:
    """What takes pretrained weights below their start: the paper's loss and counting batch norms, changed one by one into ``irt/folder``."""
    summed, averaged, still = "reduction=sum_over_n", "reduction=mean_nonzero", "frozen=batch_norm"
    return Sweep(
        "irt/folder",
        (
            Variant("start", ("steps=0",)),
            Variant("sum, KoLeo 0.7, norms count", (summed, "koleo_weight=0.7", "frozen=[]")),
            Variant("sum, KoLeo 0.7", (summed, "koleo_weight=0.7", still)),
            Variant("sum", (summed, "koleo_weight=0", still)),
            Variant("mean, KoLeo 0.1", (averaged, "koleo_weight=0.1", still)),
            Variant("mean", (averaged, "koleo_weight=0", still)),
        ),
    )


def objectives() -> Sweep:
    """The paper's Table 4: three objectives without KoLeo."""
    return Sweep("irt/sop", grid({"koleo_weight": [0], "objective": ["normalised_softmax", "snca", "contrastive"]}))


def margin_koleo() -> Sweep:
    """The paper's Table 5: the weight of KoLeo by the margin."""
    return Sweep("irt/sop", grid({"koleo_weight": [0, 0.3, 0.5, 0.7, 1.0], "margin": [0.1, 0.3, 0.5, 0.7, 0.9]}))


def tuples_koleo() -> Sweep:
    """The paper's Table 6: the weight of KoLeo on tuples."""
    return Sweep("irt/sfm120k-224", grid({"koleo_weight": [0, 1, 2, 3, 4, 5]}))


def poolings() -> Sweep:
    """The paper's Table 9, without KoLeo, and R-MAC beside it."""
    return Sweep("irt/sop", grid({"koleo_weight": [0], "pooling": ["mean", "max", "gem", "cls", "rmac"]}))


# --- objectives -----------------------------------------------------------------------------------------------------------------


class Objective(nn.Module, ABC):
    """An objective in equation 1's place; buffers hold what it remembers from step to step."""

    def __init__(self, recipe: IRTRecipe) -> None:
        super().__init__()
        self.recipe = recipe

    @abstractmethod
    def terms(self, batch: Batch, z: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Return the terms to add up, from this rank's batch and all ranks' descriptors ``z`` ``[N, D]`` and ``labels`` ``[N]``."""

    def after_step(self, learner: Encoder) -> None:
        """Update the memory after the optimiser's step."""

    def groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the optimiser's groups of the objective's own parameters."""
        return []


class Contrastive(Objective):
    """Equation 1 over the batch and, from ``memory_start``, over the cross-batch memory."""

    memory_vectors: torch.Tensor
    memory_labels: torch.Tensor
    memory_next: torch.Tensor

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, labels: IntArray) -> None:
        super().__init__(recipe)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False) if recipe.momentum else None
        size = max(math.ceil(recipe.memory * len(labels)), recipe.data.batch) if recipe.memory else 0
        self.register_buffer("memory_vectors", torch.zeros(size, encoder.dim))
        self.register_buffer("memory_labels", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("memory_next", torch.zeros((), dtype=torch.long))

    def terms(self, batch: Batch, z: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """See ``Objective.terms``."""
        settings: dict[str, Any] = {"margin": self.recipe.margin, "reduction": self.recipe.reduction}
        found = {"contrastive": contrastive_loss(z, labels, **settings)}
        if self.recipe.memory:
            columns = self._enqueue(self._keys(batch, z), labels)  # the batch is in the memory that it is compared with
            if step >= self.recipe.memory_start:
                found["memory"] = contrastive_loss(z, labels, self.memory_vectors, self.memory_labels, self_columns=columns, **settings)
        return found

    @torch.no_grad()
    def _keys(self, batch: Batch, z: torch.Tensor) -> torch.Tensor:
        if self.key_encoder is None:
            return z.detach()
        return gather(self.key_encoder.eval()(batch.images).float())  # eval: a key has no drop path

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Write keys ``[N, D]`` into the ring and return their columns ``[N]``."""
        columns = (self.memory_next + torch.arange(len(keys), device=keys.device)) % len(self.memory_vectors)
        self.memory_vectors.index_copy_(0, columns, keys)
        self.memory_labels.index_copy_(0, columns, labels)
        self.memory_next.add_(len(keys)).remainder_(len(self.memory_vectors))
        return columns

    @torch.no_grad()
    def after_step(self, learner: Encoder) -> None:
        """Move the momentum encoder towards the learner."""
        if self.key_encoder is not None:
            for slow, fast in zip(self.key_encoder.parameters(), learner.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - self.recipe.momentum)


class Tuples(Objective):
    """The contrastive loss within tuples."""

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, labels: IntArray) -> None:
        super().__init__(recipe)

    def terms(self, batch: Batch, z: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """See ``Objective.terms``."""
        return {"contrastive": tuple_loss(z, self.recipe.data.negatives, margin=self.recipe.margin, metric=self.recipe.tuple_metric)}


class NormalisedSoftmax(Objective):
    """Cross-entropy over the classes, one learned vector each; a class that training never sees has none."""

    proxy_of: torch.Tensor

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, labels: IntArray) -> None:
        super().__init__(recipe)
        classes = np.unique(labels)
        self.proxies = nn.Parameter(_random_rows(len(classes), encoder.dim))
        self.register_buffer("proxy_of", torch.from_numpy(np.searchsorted(classes, np.arange(classes[-1] + 1))))

    def terms(self, batch: Batch, z: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """See ``Objective.terms``."""
        return {"softmax": normalised_softmax_loss(z, self.proxy_of[labels], self.proxies, temperature=self.recipe.temperature)}

    def groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """See ``Objective.groups``: the proxies learn at ``proxy_lr`` times the rate."""
        return [{"params": [self.proxies], "lr": spec.lr * self.recipe.proxy_lr, "weight_decay": spec.weight_decay}]


class SNCA(Objective):
    """The neighbours among all training images, held in a memory with one entry each."""

    memory_vectors: torch.Tensor
    memory_labels: torch.Tensor

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, labels: IntArray) -> None:
        super().__init__(recipe)
        self.register_buffer("memory_vectors", _random_rows(len(labels), encoder.dim))
        self.register_buffer("memory_labels", torch.from_numpy(labels.copy()))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # (rows, descriptors) of this step; the memory takes them after it

    def terms(self, batch: Batch, z: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """See ``Objective.terms``."""
        rows, temperature = gather(batch.rows), self.recipe.temperature
        self.seen.append((rows, z.detach()))
        return {"snca": snca_loss(z, labels, self.memory_vectors, self.memory_labels, temperature=temperature, self_columns=rows)}

    @torch.no_grad()
    def after_step(self, learner: Encoder) -> None:
        """Move the memory towards what the step saw."""
        for rows, z in self.seen:
            self.memory_vectors[rows] = F.normalize(torch.lerp(z, self.memory_vectors[rows], self.recipe.memory_momentum), dim=1)
        self.seen.clear()


OBJECTIVES = {"contrastive": Contrastive, "normalised_softmax": NormalisedSoftmax, "snca": SNCA}


def _random_rows(num: int, dim: int) -> torch.Tensor:
    """Return ``[num, dim]`` of length about 1, as the published memory begins; published class vectors do too but for their length."""
    return torch.empty(num, dim).uniform_(-1.0, 1.0) * math.sqrt(3.0 / dim)


# --- the method -----------------------------------------------------------------------------------------------------------------


class IRT(Method):
    """The encoder, the objective and KoLeo."""

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, records: Records) -> None:
        super().__init__()
        assert records.labels is not None
        self.recipe, self.learner = recipe, encoder
        in_tuples = recipe.data.sampling == "tuples" and recipe.objective == "contrastive"
        kind: Any = Tuples if in_tuples else OBJECTIVES[recipe.objective]
        self.objective: Objective = kind(recipe, encoder, records.labels)
        self.register_load_state_dict_pre_hook(_upgrade)

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return equation 3 over the batch of all ranks, with the recipe's objective in equation 1's place."""
        z = gather(self.learner(batch.images).float())  # [N, D]: all ranks' rows in one order
        with torch.autocast(z.device.type, enabled=False):
            terms = self.objective.terms(batch, z, gather(batch.labels), step)
            total = sum(terms.values(), start=z.new_zeros(()))
            if self.recipe.koleo_weight:
                terms["koleo"] = koleo_loss(z)
                total = total + self.recipe.koleo_weight * terms["koleo"]
            if z.requires_grad:
                # Of the batch alone: the memory's backward pass would be taken twice, 1 % of a step against 60,000 rows.
                terms["gradient_noise"], terms["direction_noise"] = gradient_noise(total - terms.get("memory", 0.0), z)
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    def after_step(self, step: int) -> None:
        """Update what the objective remembers."""
        self.objective.after_step(self.learner)

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups and the objective's own."""
        return encoder_groups(self.learner, spec) + self.objective.groups(spec)

    def encoder(self) -> Encoder:
        """Return the learner."""
        return self.learner


def _upgrade(method: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Bring the state of a run up to date that was saved before objectives were parts."""
    present = {name for name, _ in (*method.named_buffers(), *method.named_parameters())}
    for name in [name for name in state if name.startswith(("memory_", "proxies", "proxy_of", "key_encoder."))]:
        value = state.pop(name)
        if f"objective.{name}" in present:
            state[f"objective.{name}"] = value
