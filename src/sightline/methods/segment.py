"""Segment: fine-tuning for semantic segmentation, Semantic FPN or UPerNet over a pre-trained backbone's maps, all of it learning.

Every pixel of a training crop is classified; the loss is softmax cross-entropy at the crop's own size, of logits that are brought there by
bilinear interpolation. Void pixels and padding cost nothing and count in the mean, as in mmsegmentation:

    loss = 1/(B H W) sum over pixels that have a class of -log softmax(logits)_class  +  aux_weight * the same of a side head (UPerNet)

Images are brought to a short side of ``image.resized_px`` times 0.5 to 2, crops of ``image.image_px`` are cut from them. The descriptor of
search is still the backbone's: what no head reads of it (a last norm, a projection) stays as it was.

Source: Kirillov et al. 2019, arXiv 1901.02446; Xiao et al. 2018, arXiv 1807.10221. The ADE20K recipes are those of SelfPatch's authors (Semantic
FPN, Yun et al. 2022, arXiv 2206.07990) and of iBOT's (UPerNet, Zhou et al. 2022, arXiv 2111.07832, after BEiT's), ViT-S/16 both.

Departs:
    - SelfPatch's released backbone gives its four blocks at one stride, 16, to a pyramid whose levels are called 4 to 32; here they are
      brought to those strides as iBOT, BEiT and XCiT bring them;
    - positions are learned at the crop's grid and follow an image of another size by timm's resampling;
    - images are resized with antialiasing;
    - weight decay spares biases beside norms, positions and tokens, all of the head's among them; theirs decays biases too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch, LossTerms, SegmentationBatch
from sightline.data.records import Records
from sightline.data.segments import Cutting
from sightline.data.sets.segmentation import VOID
from sightline.errors import RecipeError
from sightline.methods.base import LearnsFrom, Method, encoder_groups
from sightline.nn.collectives import mean_over_ranks, with_mean_value
from sightline.nn.encoder import Encoder, evaluating, headless
from sightline.nn.segmenter import Segmenter, SegmenterSpec, classification, convolution
from sightline.recipe import AugmentSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec

AUX_CHANNELS, AUX_LEVEL = 256, 2
"""The side head: one convolution of so many channels on the third level (stride 16), and one layer."""


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(Recipe):
    """What segmentation adds to a run."""

    segmenter: SegmenterSpec = field(default_factory=SegmenterSpec)
    aux_weight: float = 0.0  # of the side head's loss, which learns and is then left behind; 0 is none
    min_scale: float = 0.5  # a training image's short side is image.resized_px times this
    max_scale: float = 2.0  # to this
    distort: bool = True  # brightness, contrast, saturation and hue of training crops vary
    most_of_one: float = 0.75  # a crop is drawn anew (10 times at most) while one class fills more than this of it

    def __post_init__(self) -> None:
        if not (self.aux_weight >= 0 and 0 < self.min_scale <= self.max_scale and 0 < self.most_of_one <= 1):
            raise RecipeError("aux_weight is not negative, min_scale positive and at most max_scale, most_of_one in (0, 1]")
        if self.data.sampling != "shuffle" or self.data.images_per_batch < 2:
            raise RecipeError(
                "segmentation learns from shuffled passes over all images: set sampling=shuffle, and images_per_batch to 2 or more, such as 16"
            )
        if self.model != headless(self.model) or self.model.projection:
            raise RecipeError("projection, pca, whiten and scales are for descriptors: put them on afterwards, with sightline reduce")
        if replace(self.augment, flip=AugmentSpec.flip) != AugmentSpec():
            raise RecipeError("of augment only flip is for segmentation: crops vary by min_scale, max_scale and distort")

    @property
    def cutting(self) -> Cutting:
        """How training crops are cut."""
        return Cutting(
            crop_px=self.image.image_px,
            short_px=self.image.resized_px,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            flip=self.augment.flip,
            distort=self.distort,
            most_of_one=self.most_of_one,
            interpolation=self.image.interpolation,
        )


# --- named recipes --------------------------------------------------------------------------------------------------------------


def fpn() -> SegmentRecipe:
    """ADE20K, Semantic FPN over ViT-S/16 of DINO at 512 px, as SelfPatch's authors: AdamW 6e-5, weight decay 0.01, batch 16, 40,000 steps."""
    return SegmentRecipe(
        name="segment/fpn",
        segmenter=SegmenterSpec(head="fpn", taps="even", pyramid_channels=256, head_channels=128, dropout=0.1),
        model=ModelSpec(backbone="vit_small_patch16_224.dino", weights="hub", drop_path=0.1),
        image=replace(ImageSpec.of_backbone(image_px=512, resize="short", resize_px=512), interpolation="bilinear"),
        data=DataSpec(sampling="shuffle", images_per_batch=16, validation=0.0),
        train=TrainSpec(
            steps=40_000,
            lr=6e-5,
            weight_decay=0.01,
            warmup_steps=1_500,
            schedule="linear",
            log_every=50,
            validate_every=4_000,
            save_every=2_000,
        ),
    )


def upernet() -> SegmentRecipe:
    """ADE20K, UPerNet over ViT-S/16 at 512 px, as iBOT's authors: AdamW 3e-5, weight decay 0.05, layer decay 0.9, batch 16, 160,000 steps."""
    base = fpn()
    return replace(
        base,
        name="segment/upernet",
        segmenter=SegmenterSpec(head="upernet", taps="late", head_channels=384, dropout=0.1, slide_px=341),
        aux_weight=0.4,
        train=replace(base.train, steps=160_000, lr=3e-5, weight_decay=0.05, layer_decay=0.9),
    )


def small() -> SegmentRecipe:
    """Your own images and masks on a CPU: Semantic FPN at 160 px, group norms, a higher rate; the best on held-out images is kept.

    Start from weights that have learnt: weights=FILE backbone=NAME, or weights=runs/mine backbone=auto. A network that has batch norms
    and starts from random weights needs them to follow its images: frozen=[].
    """
    base = fpn()
    return replace(
        base,
        name="segment/small",
        segmenter=replace(base.segmenter, pyramid_channels=64, head_channels=64, head_norm="group"),
        model=ModelSpec(backbone="vit_tiny_patch16_224", weights="auto", frozen=("batch_norm",)),
        image=replace(base.image, image_px=160, resize_px=160),
        data=replace(base.data, images_per_batch=8, validation=0.1),
        train=replace(
            base.train,
            steps=400,
            lr=3e-4,
            layer_decay=0.8,
            warmup_steps=40,
            clip_norm=1.0,
            log_every=10,
            validate_every=100,
            save_every=100,
        ),
    )


# --- losses ---------------------------------------------------------------------------------------------------------------------


def pixel_cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean over all pixels of ``masks`` int64 ``[B, H, W]`` of the cross-entropy of ``logits`` ``[B, C, h, w]``; void costs 0."""
    full = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, masks, ignore_index=VOID, reduction="sum") / masks.numel()


# --- the method -----------------------------------------------------------------------------------------------------------------


class Segment(Method):
    """The encoder with a segmenter on it, and the side head that only training has."""

    learns_from: ClassVar[LearnsFrom] = "masks"

    def __init__(self, recipe: SegmentRecipe, encoder: Encoder, records: Records) -> None:
        """``records.class_names`` ``[C]`` are the classes of the masks; logit c is of the c-th."""
        super().__init__()
        classes = records.class_names
        self.recipe, self.learner = recipe, encoder
        encoder.segmenter = segmenter = Segmenter(encoder, recipe.segmenter, classes)
        self.side: nn.Module = nn.Identity()
        if recipe.aux_weight:
            widths = [recipe.segmenter.pyramid_channels] * len(segmenter.levels.widths) if segmenter.neck else segmenter.levels.widths
            self.side = nn.Sequential(
                convolution(widths[AUX_LEVEL], AUX_CHANNELS, 3, segmenter.norm),
                *classification(AUX_CHANNELS, len(classes), recipe.segmenter.dropout),
            )
        _freeze_what_is_not_read(encoder)

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return the mean cross-entropy of the pixels of this rank's crops, whose value is that of all ranks."""
        masks, segmenter = cast(SegmentationBatch, batch).masks, cast(Segmenter, self.learner.segmenter)
        maps = segmenter.maps(self.learner, batch.images)
        logits = segmenter.head(maps)
        with torch.autocast(logits.device.type, enabled=False):
            total = cost = pixel_cross_entropy(logits, masks)
        terms = {"cross_entropy": mean_over_ranks(cost)}
        if self.recipe.aux_weight:
            side = self.side(maps[AUX_LEVEL])
            with torch.autocast(logits.device.type, enabled=False):
                aside = pixel_cross_entropy(side, masks)
            total, terms = cost + self.recipe.aux_weight * aside, {**terms, "side": mean_over_ranks(aside)}
        return LossTerms(with_mean_value(total), terms)

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups, its segmenter at the full rate among them, and the side head's."""
        side = [parameter for parameter in self.side.parameters() if parameter.requires_grad]
        matrices, vectors = ([one for one in side if (one.ndim > 1) == wanted] for wanted in (True, False))
        return [
            *encoder_groups(self.learner, spec),
            *([{"params": matrices, "lr": spec.lr, "weight_decay": spec.weight_decay}] if matrices else []),
            *([{"params": vectors, "lr": spec.lr, "weight_decay": 0.0}] if vectors else []),
        ]

    def encoder(self) -> Encoder:
        """Return the learner, segmenter and all."""
        return self.learner


def _freeze_what_is_not_read(encoder: Encoder) -> None:
    """Stop what no logit depends on from learning (a last norm, a projection): several processes would wait for its gradient."""
    side = encoder.image.image_px
    images = torch.zeros(1, 3, side, side, device=encoder.device)
    with evaluating(encoder), torch.enable_grad():
        encoder.segmentation(images).sum().backward()
    for parameter in encoder.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
