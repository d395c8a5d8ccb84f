"""IRT: training Vision Transformers for image retrieval (El-Nouby, Neverova, Laptev, Jegou 2021, arXiv 2102.05644).

A Siamese ViT learns unit-length descriptors with a contrastive loss against the batch and a cross-batch memory, while a
differential-entropy regulariser (KoLeo) keeps each descriptor away from its nearest neighbour:

    L_contr = 1/N sum_i ( sum_{j: y_j = y_i} [1 - z_i.z_j] + sum_{j: y_j != y_i} [z_i.z_j - beta]_+ )     (1)
    L_KoLeo = -1/N sum_i log min_{j != i} ||z_i - z_j||_2                                                  (2)
    L       = L_contr + lambda L_KoLeo                                                                     (3)

The paper's ladder: IRT_O is the frozen backbone, IRT_L is lambda = 0, IRT_R is lambda > 0.

The cross-batch memory is Wang et al. 2020 (arXiv 1912.06798): the batch is enqueued first, equation 1 is taken once over the batch
and once over the memory, and the two are added.

Departs:
    - a pair of a descriptor with its own entry in the memory is dropped by position; the published memory drops positives with
      a similarity above 1 - 1e-5, which also drops true pairs of duplicate images;
    - the memory is a ring; the published one, where a batch does not fit at its end, shifts the batch back over its newest entries;
    - the negative term subtracts beta as equation 1 does; the published memory adds z_i.z_j itself (same gradient, other value).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from sightline.contracts import Batch, LossTerms
from sightline.errors import RecipeError
from sightline.methods.base import Method, encoder_groups
from sightline.nn.collectives import gather
from sightline.nn.encoder import Encoder
from sightline.recipe import AugmentSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec

Reduction = Literal["sum_over_n", "mean_nonzero"]

KOLEO_FLOOR = 1e-6
"""Nearest-neighbour distances are clamped here: exact duplicates get no gradient instead of one of 1e8 in an arbitrary direction."""


@dataclass(frozen=True, kw_only=True)
class IRTRecipe(Recipe):
    """What IRT adds to a run."""

    margin: float = 0.5  # beta of eq. 1
    koleo_weight: float = 0.7  # lambda of eq. 3; tied to the reduction: under mean_nonzero the same value weighs far more
    reduction: Reduction = "sum_over_n"  # eq. 1 as printed; mean_nonzero averages the positive and the negative pairs that still cost
    memory: float = 1.0  # size of the cross-batch memory as a share of the training set; 0 is none
    memory_start: int = 1_000  # first step that learns from the memory (the published memory's value; the paper does not say)
    momentum: float = 0.0  # decay of the momentum encoder that fills the memory; 0 stores the learner's own descriptors

    def __post_init__(self) -> None:
        if not (
            -1 <= self.margin <= 1 and self.koleo_weight >= 0 and self.memory >= 0 and self.memory_start >= 0 and 0 <= self.momentum < 1
        ):
            raise RecipeError(
                "margin is a cosine in [-1, 1], koleo_weight, memory and memory_start are not negative, momentum is in [0, 1)"
            )


# --- named recipes --------------------------------------------------------------------------------------------------------------


def sop() -> IRTRecipe:
    """Stanford Online Products: DeiT-S/16, 224 px, AdamW 3e-5, batch 64, 35,000 steps."""
    return IRTRecipe(
        name="irt/sop",
        model=ModelSpec(backbone="deit_small_patch16_224", weights="hub"),
        image=ImageSpec(image_px=224, resize_px=256),
        augment=AugmentSpec(augment="square", flip=0.5),
        data=DataSpec(dataset="sop", classes_per_batch=16, images_per_class=4),
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
    """Your own class folders or manifest: IRT's settings, shorter, with a warm-up, a cosine and an early memory."""
    base = sop()
    return replace(
        base,
        name="irt/folder",
        memory_start=200,
        data=replace(base.data, dataset="auto"),
        train=replace(base.train, steps=2_000, warmup_steps=100, schedule="cosine", validate_every=200, save_every=200),
    )


def small() -> IRTRecipe:
    """From scratch on small images and few of them, on a CPU: a shallow ViT at 64 px, a higher rate, stronger variation, no memory.

    Random weights move too fast for a memory of old descriptors: validation fell from the step it began (docs/results.md, "From
    scratch: memory and reduction").
    """
    return replace(
        folder(),
        name="irt/small",
        memory=0.0,
        reduction="mean_nonzero",
        koleo_weight=0.3,
        model=ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 6)), weights="random", pooling="mean"),
        image=ImageSpec(image_px=64),
        augment=AugmentSpec(augment="random_resized", min_area=0.4, jitter=0.3, rotate_deg=15.0),
        data=DataSpec(classes_per_batch=16, images_per_class=4, validation=0.15),
        train=TrainSpec(
            steps=600, lr=3e-4, weight_decay=0.05, warmup_steps=50, schedule="cosine", clip_norm=1.0, validate_every=100, save_every=100
        ),
    )


# --- losses ---------------------------------------------------------------------------------------------------------------------


def contrastive_loss(
    z: torch.Tensor,
    labels: torch.Tensor,
    keys: torch.Tensor | None = None,
    key_labels: torch.Tensor | None = None,
    *,
    margin: float,
    reduction: Reduction = "sum_over_n",
    self_columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return equation 1 of anchors ``z`` ``[N, D]`` against ``keys`` ``[M, D]`` (by default the anchors), a scalar.

    ``self_columns`` ``[N]`` is the column of ``keys`` that is the anchor itself and forms no pair with it; keys labelled -1 are empty.
    ``sum_over_n`` sums over all pairs and divides by N alone, as printed; ``mean_nonzero`` averages the positive pairs and, apart,
    the negative pairs that still cost something (the usual reading of libraries).

    Source: El-Nouby et al. 2021, arXiv 2102.05644, eq. 1.
    """
    if keys is None or key_labels is None:
        keys, key_labels, self_columns = z, labels, torch.arange(len(z), device=z.device)
    similarity = z @ keys.T  # [N, M]
    is_positive = labels[:, None] == key_labels[None, :]
    is_pair = (key_labels >= 0).expand_as(is_positive)
    if self_columns is not None:
        is_pair = is_pair.scatter(1, self_columns[:, None], False)
    cost = torch.where(is_positive, 1.0 - similarity, F.relu(similarity - margin)) * is_pair
    if reduction == "sum_over_n":
        return cost.sum() / len(z)
    return _mean_nonzero(cost, is_positive) + _mean_nonzero(cost, ~is_positive)


def _mean_nonzero(cost: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    counted = among & (cost > 0)
    return (cost * counted).sum() / counted.sum().clamp_min(1)


def koleo_loss(z: torch.Tensor) -> torch.Tensor:
    """Return equation 2 of unit-length descriptors ``[N, D]``, a scalar that falls as neighbours part; 0 for fewer than two.

    Source: El-Nouby et al. 2021, arXiv 2102.05644, eq. 2; Sablayrolles et al. 2019, arXiv 1806.03198, eq. 3.
    """
    if len(z) < 2:
        return z.sum() * 0.0
    with torch.no_grad():  # for unit vectors the nearest is the most similar
        nearest = (z @ z.T).fill_diagonal_(-math.inf).argmax(dim=1)
    squared_distance = (z - z[nearest]).square().sum(dim=1)  # [N]
    return -0.5 * squared_distance.clamp_min(KOLEO_FLOOR**2).log().mean()


# --- the method -----------------------------------------------------------------------------------------------------------------


class IRT(Method):
    """The encoder, its memory, and the two losses."""

    memory_vectors: torch.Tensor
    memory_labels: torch.Tensor
    memory_next: torch.Tensor

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, *, num_images: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.learner = encoder
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False) if recipe.momentum else None
        size = max(math.ceil(recipe.memory * num_images), recipe.data.batch) if recipe.memory else 0
        self.register_buffer("memory_vectors", torch.zeros(size, encoder.dim))
        self.register_buffer("memory_labels", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("memory_next", torch.zeros((), dtype=torch.long))

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return equation 3 over the batch of all ranks and, from ``memory_start``, over the memory."""
        recipe = self.recipe
        z = gather(self.learner(batch.images).float())  # [N, D]: all ranks' rows in one order
        labels = gather(batch.labels)
        with torch.autocast(z.device.type, enabled=False):
            contrastive = contrastive_loss(z, labels, margin=recipe.margin, reduction=recipe.reduction)
            terms = {"contrastive": contrastive}
            total = contrastive
            if recipe.memory:
                columns = self._enqueue(self._keys(batch, z), labels)
                if step >= recipe.memory_start:
                    terms["memory"] = contrastive_loss(
                        z,
                        labels,
                        self.memory_vectors,
                        self.memory_labels,
                        margin=recipe.margin,
                        reduction=recipe.reduction,
                        self_columns=columns,
                    )
                    total = total + terms["memory"]
            if recipe.koleo_weight:
                terms["koleo"] = koleo_loss(z)
                total = total + recipe.koleo_weight * terms["koleo"]
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def _keys(self, batch: Batch, z: torch.Tensor) -> torch.Tensor:
        if self.key_encoder is None:
            return z.detach()
        return gather(self.key_encoder.eval()(batch.images).float())  # eval: a key has no drop path

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        columns = (self.memory_next + torch.arange(len(keys), device=keys.device)) % len(self.memory_vectors)
        self.memory_vectors.index_copy_(0, columns, keys)
        self.memory_labels.index_copy_(0, columns, labels)
        self.memory_next.add_(len(keys)).remainder_(len(self.memory_vectors))
        return columns

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the momentum encoder towards the learner."""
        if self.key_encoder is not None:
            for slow, fast in zip(self.key_encoder.parameters(), self.learner.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - self.recipe.momentum)

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups."""
        return encoder_groups(self.learner, spec)

    def encoder(self) -> Encoder:
        """Return the learner."""
        return self.learner
