"""SelfPatch: learning without labels from whole images and from patches (Yun, Lee, Kim and Shin 2022, arXiv 2206.07990), on DINO.

DINO (Caron et al. 2021, arXiv 2104.14294): a student sees several crops of an image, a teacher the global ones alone. The student learns
to answer for each crop as the teacher does for every other; the teacher's weights follow the student's by an exponential average.

    L_image = mean over t global, s != t of  CE( softmax((g'(t) - c) / tau_t),  softmax(g(s) / tau_s) )          (1)
    c <- m c + (1 - m) mean(g'(t))

SelfPatch adds as much for every patch i of every crop: its answer is to be the teacher's for a summary of what lies around it, the k
neighbours in a window that resemble it most, put together by class attention (`nn/class_attention.py`):

    L_patch = mean over crops, patches i of  CE( softmax((g'_p(agg(i)) - c_p) / tau_t),  softmax(g_p(i) / tau_s) )   (2)
    L       = L_image + lambda L_patch

The class token then stands in the class attention's place behind a backbone without one, and the teacher sees the local crops too. With
``patch_weight=0`` there is no patch head, the teacher sees the global crops alone, and what is left is DINO, whatever the model.

Held number for number to facebookresearch/dino and alinlab/SelfPatch over whole training steps (tests/parity).

Departs:
    - neighbours end at the image's border; the published code wraps around to the opposite one (``wrap=torus``);
    - warm-ups go by steps (the teacher's temperature there by whole epochs), and the first step's learning rate is lr / warmup_steps, not 0;
    - bfloat16 where there is mixed precision, for float16 with a scaler; unit lengths, softmax and losses in float32 always.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch, LossTerms, Tokens
from sightline.data.records import Records
from sightline.errors import RecipeError
from sightline.methods.self_supervised import (
    PATCHES_ALONE,
    SelfSupervised,
    cosine_to_one,
    ema_copy,
    ema_update,
    require_for_crops,
    require_grids,
)
from sightline.nn.class_attention import ClassAttention, Wrap, closest_neighbours
from sightline.nn.collapse import CollapseMonitor
from sightline.nn.collectives import mean_over_ranks, with_mean_value
from sightline.nn.dino_checkpoints import load_dino
from sightline.nn.encoder import Encoder
from sightline.nn.projection import PrototypeHead, as_float32
from sightline.recipe import CropSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec
from sightline.sweep import Sweep, Variant, grid

WITH_CLASS_TOKEN = (("class_token", "true"), ("final_norm", "true"), ("global_pool", "token"))
"""The inverse of ``PATCHES_ALONE``, as settings."""

ALONE = ("patch_weight=0", "pooling=cls", *(f"backbone_args.{name}={value}" for name, value in WITH_CLASS_TOKEN))
"""Settings that turn a recipe of SelfPatch into DINO."""

USED_SHARE = 0.1
"""A prototype is dead whose share of the teacher's answers, on average, is below this share of an even one."""


@dataclass(frozen=True, kw_only=True)
class SelfPatchRecipe(Recipe):
    """What DINO and SelfPatch add to a run."""

    crops: CropSpec = field(default_factory=CropSpec)
    num_prototypes: int = 65_536  # K, answers of the image head
    head_hidden: int = 2_048
    head_bottleneck: int = 256
    head_batch_norm: bool = False
    learn_gains: bool = False  # let the last layer's prototypes have lengths of their own (DINO's norm_last_layer=False)
    freeze_last_steps: int = 0  # steps in which the last layers do not learn (DINO: the first epoch)
    student_temp: float = 0.1  # tau_s
    teacher_temp: float = 0.04  # tau_t
    teacher_temp_start: float = 0.04  # from which tau_t rises
    teacher_temp_steps: int = 0  # in this many steps
    center_momentum: float = 0.9  # m of eq. 1
    teacher_momentum: float = 0.996  # of the teacher's weights; rises to 1 by a cosine
    patch_weight: float = 0.1  # lambda; 0 is DINO
    num_patch_prototypes: int = 4_096
    window: int = 3  # neighbours lie in a square of this many patches a side
    num_neighbours: int = 4  # k, the most alike of them
    aggregate: bool = True  # by class attention; otherwise the mean of the neighbours
    wrap: Wrap = "clip"  # what lies beyond the border: nothing, or (torus) the opposite one, as in the published code
    start_from: str = ""  # a full checkpoint of the authors' DINO or SelfPatch (student, teacher, heads, centres) to go on from
    watch_from: int = 500  # step from which a collapse ends the run

    def __post_init__(self) -> None:
        require_for_crops(self)
        if self.crops.crop_px[0] != self.image.image_px:
            raise RecipeError(
                f"the global crops are what the network is made for: set crop_px={self.image.image_px},... or image_px={self.crops.crop_px[0]}"
            )
        if sum(self.crops.num_crops) < 2:
            raise RecipeError("an image needs two crops or more: the student answers for one what the teacher does for another")
        if min(self.student_temp, self.teacher_temp, self.teacher_temp_start) <= 0 or not 0 <= self.center_momentum <= 1:
            raise RecipeError("temperatures must be positive, center_momentum is in [0, 1]")
        if not (0 <= self.teacher_momentum <= 1 and self.patch_weight >= 0 and self.num_neighbours > 0):
            raise RecipeError("teacher_momentum is in [0, 1], patch_weight is not negative, num_neighbours is positive")
        sizes = (self.num_prototypes, self.num_patch_prototypes, self.head_hidden, self.head_bottleneck)
        if min(sizes) <= 0 or min(self.freeze_last_steps, self.teacher_temp_steps, self.watch_from) < 0:
            raise RecipeError(
                "num_prototypes, num_patch_prototypes, head_hidden and head_bottleneck must be positive, "
                "freeze_last_steps, teacher_temp_steps and watch_from not negative"
            )
        if self.window < 3 or self.window % 2 == 0:
            raise RecipeError("window is an odd number of patches from 3 on: the patch lies in its middle")
        if self.patch_weight and self.model.pooling != "class_attention":
            raise RecipeError("patches learn through class attention: set pooling=class_attention, or patch_weight=0 for DINO")


# --- named recipes --------------------------------------------------------------------------------------------------------------


def imagenet() -> SelfPatchRecipe:
    """ImageNet-1k, ViT-S/16, 300 epochs of batch 1,024, as the paper pre-trains (8 GPUs of 128 images each)."""
    return SelfPatchRecipe(
        name="selfpatch/imagenet",
        crops=CropSpec(crop_min_area=(0.25, 0.05), crop_max_area=(1.0, 0.25)),
        freeze_last_steps=1_251,
        model=ModelSpec(
            backbone="vit_small_patch16_224",
            backbone_args=PATCHES_ALONE,
            weights="random",
            pooling="class_attention",
            positions_at="dino",
            drop_path=0.1,
        ),
        image=ImageSpec(),  # ImageNet's mean and deviation, which the authors of DINO and SelfPatch take whatever the backbone
        data=DataSpec(sampling="shuffle", images_per_batch=1_024, validation=0.0),  # all images are learnt from
        train=TrainSpec(
            steps=375_300,
            lr=2e-3,  # 5e-4 for 256 images
            final_lr=5e-4,  # 1e-6
            weight_decay=0.04,
            weight_decay_growth=10.0,
            clip_each_norm=3.0,
            warmup_steps=12_510,
            schedule="cosine",
            validate_every=5_000,
            save_every=1_251,
            log_every=50,
        ),
    )


def coco() -> SelfPatchRecipe:
    """COCO train2017, ViT-Ti/16, 200 epochs of batch 256: the setting of the paper's ablations."""
    base = imagenet()
    return replace(
        base,
        name="selfpatch/coco",
        freeze_last_steps=462,
        model=replace(base.model, backbone="vit_tiny_patch16_224"),
        data=DataSpec(sampling="shuffle", images_per_batch=256, validation=0.0),
        train=replace(base.train, steps=92_400, lr=5e-4, final_lr=2e-3, warmup_steps=4_620, save_every=462, validate_every=2_310),
    )


def dino_imagenet() -> SelfPatchRecipe:
    """DINO on ImageNet-1k, ViT-S/16, 100 epochs of batch 512: its authors' defaults on 8 GPUs."""
    base = imagenet()
    return replace(
        base,
        name="selfpatch/dino-imagenet",
        patch_weight=0.0,
        crops=CropSpec(),
        freeze_last_steps=2_502,
        model=replace(base.model, backbone_args=(), pooling="cls"),
        data=DataSpec(sampling="shuffle", images_per_batch=512, validation=0.0),
        train=replace(base.train, steps=250_200, lr=1e-3, final_lr=1e-3, warmup_steps=25_020, save_every=2_502),
    )


def small() -> SelfPatchRecipe:
    """1,000 to 100,000 images of 64 px or more, of any kind, on a CPU or one GPU: ViT-Ti/8 at 64 px, heads and schedules of their size."""
    return SelfPatchRecipe(
        name="selfpatch/small",
        crops=CropSpec(crop_px=(64, 32), num_crops=(2, 4), crop_min_area=(0.35, 0.1), crop_max_area=(1.0, 0.35)),
        num_prototypes=1_024,
        num_patch_prototypes=512,
        head_hidden=512,
        head_bottleneck=128,
        freeze_last_steps=50,
        teacher_momentum=0.99,
        model=ModelSpec(
            backbone="vit_tiny_patch8_64",
            backbone_args=(("depth", 6), *PATCHES_ALONE),
            weights="random",
            pooling="class_attention",
            drop_path=0.05,
        ),
        image=ImageSpec(image_px=64),
        data=DataSpec(sampling="shuffle", images_per_batch=64),
        train=TrainSpec(
            steps=5_000,
            lr=2e-4,  # near DINO's 5e-4 for 256 images; at 1e-3 k-NN fell from the start (docs/results.md, "The learning rate of DINO on few images")
            final_lr=0.01,
            weight_decay=0.04,
            weight_decay_growth=10.0,
            clip_each_norm=3.0,
            warmup_steps=200,
            schedule="cosine",
            validate_every=250,
            save_every=250,
        ),
    )


def tiny() -> SelfPatchRecipe:
    """Hundreds of images: as small, with fewer prototypes, a faster teacher and a tenth of the steps."""
    base = small()
    return replace(
        base,
        name="selfpatch/tiny",
        num_prototypes=256,
        num_patch_prototypes=128,
        watch_from=100,
        freeze_last_steps=20,
        teacher_momentum=0.98,
        data=DataSpec(sampling="shuffle", images_per_batch=32),
        train=replace(base.train, steps=500, warmup_steps=50, validate_every=100, save_every=100),
    )


def dino_small() -> SelfPatchRecipe:
    """DINO alone, on what selfpatch/small is for: the same backbone with a class token and a norm of its own."""
    base = small()
    return replace(
        base, name="selfpatch/dino-small", patch_weight=0.0, model=replace(base.model, backbone_args=(("depth", 6),), pooling="cls")
    )


# --- named sweeps ---------------------------------------------------------------------------------------------------------------


def components() -> Sweep:
    """The paper's component analysis: DINO, its class attention without patches, and each part of the patch loss taken away or changed."""
    return Sweep(
        "selfpatch/coco",
        (
            Variant("DINO", ALONE),
            Variant("DINO + class attention", ("patch_weight=0",)),
            Variant("SelfPatch"),
            Variant("without aggregation", ("aggregate=false",)),
            Variant("all 8 neighbours", ("num_neighbours=8",)),
            Variant("window 5", ("window=5",)),
            Variant("as published (torus)", ("wrap=torus",)),
        ),
    )


def neighbours() -> Sweep:
    """The window by the number of neighbours in it."""
    return Sweep("selfpatch/coco", grid({"window": [3, 5, 7], "num_neighbours": [1, 2, 4, 8]}))


def patch_weights() -> Sweep:
    """The weight of the patch loss."""
    return Sweep("selfpatch/coco", grid({"patch_weight": [0, 0.05, 0.1, 0.2, 0.5]}))


def patch_sizes() -> Sweep:
    """DINO and SelfPatch on it, with patches of 16 and of 8 px: four times as many of them, at five times the compute or so."""
    return Sweep(
        "selfpatch/coco",
        tuple(
            Variant(f"{name}/{side}", (f"backbone_args.patch_size={side}", *settings))
            for side in (16, 8)
            for name, settings in (("DINO", ALONE), ("SelfPatch", ()))
        ),
    )


# --- losses ---------------------------------------------------------------------------------------------------------------------


def image_loss(student: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return equation 1, a scalar: the mean over B and over all pairs of a global crop's answer and another crop.

    ``student`` ``[V, B, K]`` are logits divided by their temperature, the global crops first; ``answers`` ``[T, B, K]`` are the teacher's
    probabilities. A cross-entropy is log-sum-exp minus the mean logit under the answer, so no log-softmax of all crops is kept.
    """
    normaliser = torch.logsumexp(student, dim=2)  # [V, B]
    total, total_normaliser = student.sum(dim=0), normaliser.sum(dim=0)
    costs = torch.zeros_like(total_normaliser)
    for crop, answer in enumerate(answers):
        others = total - student[crop]
        costs = costs + (total_normaliser - normaliser[crop]) - torch.linalg.vecdot(answer, others)
    mean: torch.Tensor = costs.mean() / (len(answers) * (len(student) - 1))
    return mean


def patch_loss(student: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of logits (divided by their temperature) against answers, both ``[M, K]``: equation 2 on crops of one size."""
    mean: torch.Tensor = (torch.logsumexp(student, dim=1) - torch.linalg.vecdot(answers, student)).mean()
    return mean


def teacher_answers(logits: torch.Tensor, center: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the teacher's probabilities ``[..., K]``: centred, sharpened, softmax."""
    return F.softmax((logits - center) / temperature, dim=-1)


def linear_ramp(start: float, end: float, step: int, num_steps: int) -> float:
    """Return a line from ``start`` at step 0 to ``end`` at step ``num_steps`` - 1, and ``end`` from there on."""
    return end if step >= num_steps - 1 else start + (end - start) * step / (num_steps - 1)


# --- the method -----------------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """A student or a teacher: an encoder, its image head and, for SelfPatch, its patch head."""

    def __init__(self, encoder: Encoder, recipe: SelfPatchRecipe, *, learn_gains: bool) -> None:
        super().__init__()

        def head(width: int, num: int) -> PrototypeHead:
            return PrototypeHead(
                width,
                num,
                hidden=recipe.head_hidden,
                bottleneck=recipe.head_bottleneck,
                batch_norm=recipe.head_batch_norm,
                learn_gains=learn_gains,
            )

        self.encoder = encoder
        self.image_head = head(encoder.width, recipe.num_prototypes)
        self.patch_head = head(encoder.backbone.width, recipe.num_patch_prototypes) if recipe.patch_weight else None


@dataclass(frozen=True)
class Answers:
    """Outputs of a branch: ``features`` ``[V, B, D]``, ``image`` logits ``[V, B, K]``, ``patches`` logits ``[V B N, K']`` of each size."""

    features: torch.Tensor
    image: torch.Tensor
    patches: tuple[torch.Tensor, ...]


class SelfPatch(SelfSupervised):
    """DINO, and with ``patch_weight`` SelfPatch: a student that learns, a teacher that follows and is what is evaluated."""

    center: torch.Tensor
    patch_center: torch.Tensor
    usage: torch.Tensor

    def __init__(self, recipe: SelfPatchRecipe, encoder: Encoder, records: Records | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        require_grids(encoder, recipe.crops.crop_px, *((recipe.window, recipe.wrap) if recipe.patch_weight else ()))
        self.student = Branch(encoder, recipe, learn_gains=recipe.learn_gains)
        with torch.random.fork_rng(devices=[]):  # heads about to be replaced take no random numbers from anybody
            self.teacher = Branch(ema_copy(encoder), recipe, learn_gains=recipe.learn_gains)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        for branch in (self.student, self.teacher):
            branch.encoder.backbone.take_any_size()
        self.register_buffer("center", torch.zeros(recipe.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(recipe.num_patch_prototypes if recipe.patch_weight else 0))
        self.register_buffer("usage", torch.full((recipe.num_prototypes,), 1.0 / recipe.num_prototypes))
        self.watch = CollapseMonitor(recipe.watch_from, recipe.train.log_every)

    def begin(self) -> None:
        """Take student, teacher, heads and centres of ``start_from``, where the recipe names it.

        Raises:
            ModelError: the file cannot be read, or is of another model.
        """
        if self.recipe.start_from:
            buffers = {"center": self.center, "patch_center": self.patch_center}
            load_dino(Path(self.recipe.start_from), self.student, self.teacher, buffers)

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return equation 1, and with ``patch_weight`` equation 2; the centres then take the teacher's answers in."""
        recipe = self.recipe
        num_global, patchwise = recipe.crops.num_crops[0], recipe.patch_weight > 0
        temperature = linear_ramp(recipe.teacher_temp_start, recipe.teacher_temp, step, recipe.teacher_temp_steps)
        with torch.no_grad():
            teacher = self._answers(self.teacher, batch.crops if patchwise else batch.crops[:1], 1.0, around=True)
        student = self._answers(self.student, batch.crops, recipe.student_temp)
        with torch.autocast(student.image.device.type, enabled=False):
            answers = teacher_answers(teacher.image[:num_global], self.center, temperature)
            image = image_loss(as_float32(student.image), answers)
            terms = {"image_loss": image.detach()}
            total = image
            if patchwise:
                patch = self._patch_loss(student.patches, teacher.patches, temperature)
                terms["patch_loss"] = patch.detach()
                total = image + recipe.patch_weight * patch
            if self.training:
                self._move_centers(teacher, answers)
                terms = {name: mean_over_ranks(value) for name, value in terms.items()}
                if self.watch.is_due(step):
                    terms |= self._measures(teacher, answers, step)
        return LossTerms(with_mean_value(total), terms)

    def _answers(self, branch: Branch, crops: tuple[torch.Tensor, ...], temperature: float, *, around: bool = False) -> Answers:
        """Return the outputs of a branch; with ``around`` each patch is predicted from its aggregated neighbours."""
        features, patches, sizes = [], [], []
        for group in crops:
            tokens = branch.encoder.tokens(group.flatten(0, 1))
            pooling = branch.encoder.class_attention
            if branch.patch_head is None or not isinstance(pooling, ClassAttention):
                pooled = branch.encoder.pool_tokens(tokens)
            else:
                asked = self._around(pooling, tokens) if around else (pooling(tokens.patches), pooling.norm(tokens.patches))
                pooled = branch.encoder.projection(branch.encoder.backbone.norm_pooled(asked[0]))
                patches.append(asked[1].flatten(0, 1))
            features.append(pooled.unflatten(0, group.shape[:2]))
            sizes.append(len(patches[-1]) if patches else 0)
        pooled = torch.cat(features)  # [V, B, D]
        said = branch.patch_head(torch.cat(patches), temperature).split(sizes) if branch.patch_head is not None else ()
        return Answers(pooled, branch.image_head(pooled, temperature), tuple(said))

    def _around(self, pooling: ClassAttention, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images' vectors ``[B, D]`` and a summary of each patch's closest neighbours ``[B, N, D]``."""
        recipe, patches = self.recipe, tokens.patches
        chosen = closest_neighbours(patches, tokens.grid, size=recipe.window, num=recipe.num_neighbours, wrap=recipe.wrap)
        if recipe.aggregate:
            return pooling.with_neighbours(patches, chosen)
        return pooling(patches), pooling.mean_of_neighbours(patches, chosen)

    def _patch_loss(self, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], temperature: float) -> torch.Tensor:
        """Return equation 2: every crop weighs the same, whatever its number of patches."""
        num_crops = self.recipe.crops.num_crops
        groups = zip(num_crops, student, teacher, strict=True)
        costs = [num * patch_loss(as_float32(asked), teacher_answers(said, self.patch_center, temperature)) for num, asked, said in groups]
        return torch.stack(costs).sum() / sum(num_crops)

    @torch.no_grad()
    def _move_centers(self, teacher: Answers, answers: torch.Tensor) -> None:
        keep = self.recipe.center_momentum
        self.center = self.center.lerp(mean_over_ranks(as_float32(teacher.image).mean(dim=(0, 1))), 1.0 - keep)
        if teacher.patches:
            num = sum(len(said) for said in teacher.patches)
            mean = torch.stack([as_float32(said).sum(dim=0) for said in teacher.patches]).sum(dim=0) / num
            self.patch_center = self.patch_center.lerp(mean_over_ranks(mean), 1.0 - keep)
        self.usage = self.usage.lerp(mean_over_ranks(answers.mean(dim=(0, 1))).to(self.usage.dtype), 0.01)

    @torch.no_grad()
    def _measures(self, teacher: Answers, answers: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Return what tells of a collapse: entropies of the teacher's answers in nats, the centre's length, the features' rank and spread."""
        entropy = mean_over_ranks(torch.special.entr(answers).sum(dim=2).mean())
        information = torch.special.entr(mean_over_ranks(answers.mean(dim=(0, 1)))).sum() - entropy
        return {
            "teacher_entropy": entropy,
            "teacher_information": information,
            "center_norm": self.center.norm(),
            "dead_prototypes": (self.usage < USED_SHARE / len(self.usage)).double().mean(),
            **self.watch.look(teacher.features[0], step, information),
        }

    def before_step(self, step: int) -> None:
        """Keep the last layers as they are in the first steps: without a gradient, neither decay nor momentum touch them."""
        if step < self.recipe.freeze_last_steps:
            for head in (self.student.image_head, self.student.patch_head):
                if head is not None:
                    for parameter in head.last_layer.parameters():
                        parameter.grad = None

    def after_step(self, step: int) -> None:
        """Let the teacher follow: every parameter, by a momentum that rises to 1."""
        ema_update(self.teacher, self.student, cosine_to_one(self.recipe.teacher_momentum, step, self.recipe.train.steps))

    def encoder(self) -> Encoder:
        """Return the teacher's: it is the better one all along, and what the authors evaluate."""
        return self.teacher.encoder
