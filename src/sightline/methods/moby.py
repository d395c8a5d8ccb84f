"""MoBY: learning without labels by telling an image from others (Xie et al. 2021, arXiv 2105.04553), on ViT and Swin; and SelfPatch on it.

Two crops of an image go through an online branch (encoder, projector, predictor: p) and a key branch (encoder, projector: k), whose weights
follow the online ones by an exponential average. A crop's p is to find the other crop's k among keys of earlier batches, kept in two queues:

    L_image = CE([p1 . k2, p1 . Q2] / T)  +  CE([p2 . k1, p2 . Q1] / T),   the positive first, all of unit length          (1)

With ``patch_weight`` patches learn too. The key branch sums up what lies around each patch i of a crop, the k neighbours in a window that
resemble it most, by class attention (`nn/class_attention.py`); the online branch's own patch i of the same crop predicts it:

    L_patch = mean over crops, patches i of  2 - 2 cos(p'(i), k'(agg(i)))                                                   (2)
    L       = L_image + lambda L_patch

With ``patch_negatives`` equation 2 is a cross-entropy as equation 1 is, against a queue of such summaries. Class attention then stands in the
place of mean or class token. With ``patch_weight=0`` there is no patch head, and what is left is MoBY.

Equation 1 is held number for number to SwinTransformer/Transformer-SSL over whole training steps (tests/parity).

Departs:
    - equation 2 is our variant: of SelfPatch (Yun et al. 2022, arXiv 2206.07990) on MoBY no code was released. MoBY has no prototypes, so a
      patch predicts the summary itself. A Swin keeps its own last norm before class attention's;
    - a batch need not divide the queue: it is a ring, whose oldest keys are replaced wherever they lie;
    - keys move at the end of a step by the next one's momentum, for at its beginning: the same weights at every forward pass, for at the
      first step keys are the online weights and have nowhere to move; a step of several batches then moves them once;
    - the rate of a step is its own (in the reference that of the step before), warms up from lr / warmup_steps, and the cosine begins
      where the warm-up ends; bfloat16 where there is mixed precision, but unit lengths and losses in float32 always.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch, LossTerms
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
from sightline.nn.collectives import gather, mean_over_ranks, with_mean_value, world_size
from sightline.nn.encoder import Encoder
from sightline.nn.projection import as_float32, contrast_mlp
from sightline.recipe import CropSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec
from sightline.sweep import Sweep, Variant


def two_crops(side_px: int, min_area: float = 0.08) -> CropSpec:
    """Return two crops of one size, with BYOL's chances."""
    return CropSpec(crop_px=(side_px,), num_crops=(2,), crop_min_area=(min_area,), crop_max_area=(1.0,))


@dataclass(frozen=True, kw_only=True)
class MobyRecipe(Recipe):
    """What MoBY, and SelfPatch on it, add to a run."""

    crops: CropSpec = field(default_factory=lambda: two_crops(224))
    projector_hidden: int = 4_096  # of projectors and predictors
    projector_out: int = 256
    temperature: float = 0.2  # T
    queue_length: int = 4_096  # keys of earlier batches, in each of the two queues
    key_momentum: float = 0.99  # of the keys' weights; rises to 1 by a cosine
    patch_weight: float = 0.0  # lambda; 0 is MoBY
    window: int = 3  # neighbours lie in a square of this many patches a side
    num_neighbours: int = 4  # k, the most alike of them
    wrap: Wrap = "clip"  # what lies beyond the border: nothing, or (torus) the opposite one
    patch_negatives: bool = False  # a patch's summary is told from those of other patches, in place of equation 2
    patch_temperature: float = 0.2  # T of patches
    patch_queue_length: int = 4_096  # summaries of earlier batches
    patch_keys: int = 256  # of each crop of a batch, this many of all its summaries join them
    watch_from: int = 500  # step from which a collapse ends the run

    def __post_init__(self) -> None:
        require_for_crops(self)
        if self.crops.num_crops != (2,):
            raise RecipeError(
                "MoBY sees two crops of one size: set one value each, such as num_crops=2 crop_px=224 crop_min_area=0.08 crop_max_area=1"
            )
        if self.crops.crop_px[0] != self.image.image_px:
            raise RecipeError(
                f"the crops are what the network is made for: set crop_px={self.image.image_px} or image_px={self.crops.crop_px[0]}"
            )
        if min(self.temperature, self.patch_temperature) <= 0 or not 0 <= self.key_momentum <= 1 or self.patch_weight < 0:
            raise RecipeError("temperature and patch_temperature must be positive, key_momentum is in [0, 1], patch_weight is not negative")
        sizes = (
            self.projector_hidden,
            self.projector_out,
            self.queue_length,
            self.patch_queue_length,
            self.patch_keys,
            self.num_neighbours,
        )
        if min(sizes) <= 0:
            raise RecipeError(
                "projector_hidden, projector_out, queue_length, patch_queue_length, patch_keys and num_neighbours must be positive"
            )
        if self.watch_from < 0:
            raise RecipeError("watch_from is a step, not negative")
        if self.window < 3 or self.window % 2 == 0:
            raise RecipeError("window is an odd number of patches from 3 on: the patch lies in its middle")
        if self.patch_weight and self.model.pooling != "class_attention":
            raise RecipeError("patches learn through class attention: set pooling=class_attention, or patch_weight=0 for MoBY")


# --- named recipes --------------------------------------------------------------------------------------------------------------


def swin_imagenet() -> MobyRecipe:
    """ImageNet-1k, Swin-T, 300 epochs of batch 512, as its authors pre-train."""
    return MobyRecipe(
        name="moby/swin-imagenet",
        model=ModelSpec(backbone="swin_tiny_patch4_window7_224", weights="random", pooling="mean", drop_path=0.2),
        image=ImageSpec(),  # ImageNet's mean and deviation, as the authors' code has them
        data=DataSpec(sampling="shuffle", images_per_batch=512, validation=0.0),  # all images are learnt from
        train=TrainSpec(
            steps=750_600,
            lr=1e-3,  # for 512 images
            final_lr=0.005,  # 5e-6
            weight_decay=0.05,
            clip_norm=5.0,
            warmup_steps=12_510,
            schedule="cosine",
            validate_every=5_000,
            save_every=2_502,
            log_every=50,
        ),
    )


def vit_imagenet() -> MobyRecipe:
    """The same on DeiT-S."""
    base = swin_imagenet()
    return replace(base, name="moby/vit-imagenet", model=replace(base.model, backbone="deit_small_patch16_224", pooling="cls"))


def selfpatch_imagenet() -> MobyRecipe:
    """The same with patches that learn: ViT-S/16 with class attention, 300 epochs of batch 512, as MoBY's authors pre-train DeiT-S.

    Source, each setting: the image's is that of SwinTransformer/Transformer-SSL (configs/moby_deit_small.yaml over config.py: drop path 0.2, T 0.2,
    queue 4,096, momentum 0.99, lr 1e-3 a batch of 512 down to 5e-6, weight decay 0.05, 5 epochs of warm-up of 300, clip 5, smallest crop 0.08);
    the patches' that of alinlab/SelfPatch (main_selfpatch.py: lambda 0.1, a window of 3 with the 4 nearest, two blocks of class attention).
    Nothing was published at this size: the paper's own MoBY is ViT-Ti/16 on COCO for 200 epochs of batch 256 (backbone=vit_tiny_patch16_224
    steps=92400 images_per_batch=256 lr=5e-4 warmup_steps=2310).
    """
    base = vit_imagenet()
    model = replace(base.model, backbone_args=PATCHES_ALONE, pooling="class_attention")
    return replace(base, name="moby/selfpatch-imagenet", patch_weight=0.1, model=model)


def small() -> MobyRecipe:
    """Thousands of images of 64 px or more, on a CPU or one GPU: ViT-Ti/8 of six blocks at 64 px, heads and queues of their size."""
    return MobyRecipe(
        name="moby/small",
        crops=two_crops(64, 0.2),
        projector_hidden=512,
        projector_out=128,
        queue_length=1_024,
        patch_queue_length=4_096,
        model=ModelSpec(backbone="vit_tiny_patch8_64", backbone_args=(("depth", 6),), weights="random", pooling="cls", drop_path=0.05),
        image=ImageSpec(image_px=64),
        data=DataSpec(sampling="shuffle", images_per_batch=64),
        train=TrainSpec(
            steps=5_000,
            lr=1e-3,
            final_lr=0.005,
            weight_decay=0.05,
            clip_norm=5.0,
            warmup_steps=200,
            schedule="cosine",
            validate_every=250,
            save_every=250,
        ),
    )


def swin_small() -> MobyRecipe:
    """On what moby/small is for: a Swin of windows of four, of twice its compute."""
    base = small()
    return replace(
        base, name="moby/swin-small", model=replace(base.model, backbone="swin_tiny_patch2_window4_64", backbone_args=(), pooling="mean")
    )


def selfpatch_small() -> MobyRecipe:
    """moby/small with patches that learn: class attention in the class token's place, patch_weight 0.1."""
    base = small()
    model = replace(base.model, backbone_args=(("depth", 6), *PATCHES_ALONE), pooling="class_attention")
    return replace(base, name="moby/selfpatch-small", patch_weight=0.1, model=model)


def selfpatch_swin_small() -> MobyRecipe:
    """moby/swin-small with patches that learn, those of the last stage."""
    base = swin_small()
    return replace(base, name="moby/selfpatch-swin-small", patch_weight=0.1, model=replace(base.model, pooling="class_attention"))


def patch_negatives() -> Sweep:
    """Patches with and without negatives, and the backbone without patches that learn; over moby/selfpatch-swin-small too."""
    return Sweep(
        "moby/selfpatch-small",
        (
            Variant("MoBY + class attention", ("patch_weight=0",)),
            Variant("patches, positives alone"),
            Variant("patches against a queue", ("patch_negatives=true",)),
        ),
    )


# --- losses and queues ----------------------------------------------------------------------------------------------------------


def contrastive_loss(queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return one half of equation 1, a scalar: the mean cross-entropy of finding each query's key among its own and the queue's.

    ``queries`` and ``keys`` ``[M, D]`` and ``queue`` ``[K, D]`` are of unit length. The logits of all are never joined in one tensor.
    """
    queries = queries / temperature
    own = torch.linalg.vecdot(queries, keys)  # [M]
    others = torch.logsumexp(queries @ queue.T, dim=1)
    return F.softplus(others - own).mean()


def cosine_distance(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the mean of 2 - 2 cos of unit vectors ``[M, D]``: equation 2."""
    cosines: torch.Tensor = torch.linalg.vecdot(queries, keys)
    return 2.0 - 2.0 * cosines.mean()


def ring_write(queue: torch.Tensor, start: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the queue ``[..., K, D]`` with ``keys`` ``[..., M, D]`` in place of its M oldest from row ``start`` on, and where the next ones go.

    Rows go on at 0 behind the last; of more keys than rows the last K stay. It is a new tensor: the loss keeps the former one.
    """
    length, num = queue.shape[-2], keys.shape[-2]
    kept = min(length, num)
    rows = (start + num - kept + torch.arange(kept, device=queue.device)) % length
    return queue.index_copy(queue.ndim - 2, rows, keys[..., num - kept :, :].to(queue.dtype)), (start + num) % length


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors in unit length, in float32."""
    return F.normalize(as_float32(vectors), dim=-1)


# --- the method -----------------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """What both branches have: an encoder, its projector and, where patches learn, theirs."""

    def __init__(self, encoder: Encoder, projector: nn.Module, patch_projector: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.projector, self.patch_projector = encoder, projector, patch_projector


@dataclass(frozen=True)
class Answer:
    """What a branch says of one crop: ``features`` ``[B, D]``, and of unit length ``image`` ``[B, E]`` and ``patches`` ``[B N, E]`` (or none)."""

    features: torch.Tensor
    image: torch.Tensor
    patches: torch.Tensor | None


class Moby(SelfSupervised):
    """MoBY, and with ``patch_weight`` our SelfPatch on it: an online branch that learns, and is what is evaluated; keys that follow."""

    queue: torch.Tensor
    queue_start: torch.Tensor
    patch_queue: torch.Tensor
    patch_queue_start: torch.Tensor

    def __init__(self, recipe: MobyRecipe, encoder: Encoder, records: Records | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        require_grids(encoder, recipe.crops.crop_px, *((recipe.window, recipe.wrap) if recipe.patch_weight else ()))
        hidden, out = recipe.projector_hidden, recipe.projector_out
        projector, self.predictor = contrast_mlp(encoder.width, hidden, out), contrast_mlp(out, hidden, out)
        self.register_buffer("queue", F.normalize(torch.randn(2, recipe.queue_length, out), dim=2))
        self.register_buffer("queue_start", torch.zeros((), dtype=torch.int64))
        # What patches need is drawn last: whatever patch_weight is, all else begins alike.
        patch_projector = contrast_mlp(encoder.backbone.width, hidden, out) if recipe.patch_weight else None
        self.patch_predictor = contrast_mlp(out, hidden, out) if recipe.patch_weight else None
        length = recipe.patch_queue_length if recipe.patch_weight and recipe.patch_negatives else 0
        self.register_buffer("patch_queue", F.normalize(torch.randn(length, out), dim=1))
        self.register_buffer("patch_queue_start", torch.zeros((), dtype=torch.int64))
        self.online = Branch(encoder, projector, patch_projector)
        self.key = Branch(ema_copy(encoder), copy.deepcopy(projector), copy.deepcopy(patch_projector)).requires_grad_(False)
        self.watch = CollapseMonitor(recipe.watch_from, recipe.train.log_every, "a longer queue_length, a higher temperature, ")

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return equation 1, and with ``patch_weight`` equation 2; the queues then take the keys in."""
        recipe, crops = self.recipe, batch.crops[0]
        # One crop at a time: batch norms see one view's statistics.
        online = [self._online(crop) for crop in crops]
        with torch.no_grad():
            keys = [self._key(crop) for crop in crops]
        with torch.autocast(batch.images.device.type, enabled=False):
            image = contrastive_loss(online[0].image, keys[1].image, self.queue[1], recipe.temperature)
            image = image + contrastive_loss(online[1].image, keys[0].image, self.queue[0], recipe.temperature)
            terms = {"image_loss": image.detach()}
            total = image
            if recipe.patch_weight:
                patch = torch.stack([self._patch_loss(one, key) for one, key in zip(online, keys, strict=True)]).mean()
                terms["patch_loss"] = patch.detach()
                total = image + recipe.patch_weight * patch
            if self.training:
                self._take_in(keys, step)
                terms = {name: mean_over_ranks(value) for name, value in terms.items()}
                if self.watch.is_due(step):
                    terms |= self.watch.look(keys[0].features, step)
        return LossTerms(with_mean_value(total), terms)

    def _online(self, crop: torch.Tensor) -> Answer:
        """Return what the online branch predicts of a crop ``[B, 3, H, W]``: of the image, and of each patch by itself."""
        branch = self.online
        tokens = branch.encoder.tokens(crop)
        features = branch.encoder.pool_tokens(tokens)
        image = unit(self.predictor(branch.projector(features)))
        pooling = branch.encoder.class_attention
        if branch.patch_projector is None or self.patch_predictor is None or not isinstance(pooling, ClassAttention):
            return Answer(features, image, None)
        patches = self.patch_predictor(branch.patch_projector(pooling.norm(tokens.patches).flatten(0, 1)))
        return Answer(features, image, unit(patches))

    def _key(self, crop: torch.Tensor) -> Answer:
        """Return the keys of a crop ``[B, 3, H, W]``: of the image, and of what lies around each patch."""
        recipe, branch = self.recipe, self.key
        encoder, pooling = branch.encoder, branch.encoder.class_attention
        tokens = encoder.tokens(crop)
        if branch.patch_projector is None or not isinstance(pooling, ClassAttention):
            features = encoder.pool_tokens(tokens)
            return Answer(features, unit(branch.projector(features)), None)
        chosen = closest_neighbours(tokens.patches, tokens.grid, size=recipe.window, num=recipe.num_neighbours, wrap=recipe.wrap)
        pooled, summaries = pooling.with_neighbours(tokens.patches, chosen)
        features = encoder.projection(encoder.backbone.norm_pooled(pooled))
        return Answer(features, unit(branch.projector(features)), unit(branch.patch_projector(summaries.flatten(0, 1))))

    def _patch_loss(self, online: Answer, key: Answer) -> torch.Tensor:
        assert online.patches is not None
        assert key.patches is not None
        if self.recipe.patch_negatives:
            return contrastive_loss(online.patches, key.patches, self.patch_queue, self.recipe.patch_temperature)
        return cosine_distance(online.patches, key.patches)

    @torch.no_grad()
    def _take_in(self, keys: list[Answer], step: int) -> None:
        """Let the queues take in the keys of all processes: of images all, of patches some, the same for however many processes."""
        everyones = gather(torch.stack([key.image for key in keys], dim=1)).transpose(0, 1)  # [2, M, E]
        self.queue, self.queue_start = ring_write(self.queue, self.queue_start, everyones)
        patches = [key.patches for key in keys if key.patches is not None]
        if len(self.patch_queue) and patches:
            rows = rotating_stride(len(patches[0]), max(1, self.recipe.patch_keys // world_size()), step).to(patches[0].device)
            some = gather(torch.stack([of_crop[rows] for of_crop in patches], dim=1)).flatten(0, 1)
            self.patch_queue, self.patch_queue_start = ring_write(self.patch_queue, self.patch_queue_start, some)

    def after_step(self, step: int) -> None:
        """Let the keys follow: every parameter, by the momentum of the step that comes."""
        ema_update(self.key, self.online, cosine_to_one(self.recipe.key_momentum, step + 1, self.recipe.train.steps))

    def encoder(self) -> Encoder:
        """Return the online branch's, which is what the authors evaluate."""
        return self.online.encoder


def rotating_stride(num_rows: int, num: int, step: int) -> torch.Tensor:
    """Return ``num`` of the rows 0 to ``num_rows`` - 1 (all, where there are fewer), evenly apart, from a start that turns with ``step``.

    A stride that divides a row of the grid meets some columns alone: as steps go by, the turn brings all patches in.
    """
    num = min(num, num_rows)
    return torch.arange(num) * num_rows // num + step % (num_rows // num)
