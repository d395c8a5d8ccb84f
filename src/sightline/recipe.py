"""Recipes: what a run is made of, as frozen dataclasses.

A named recipe is a function that derives from another with ``replace``; ``settings`` changes, saves, replays and compares them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from sightline.errors import RecipeError
from sightline.runtime import Precision

Pooling = Literal["cls", "dist", "cls_dist_mean", "cls_dist_concat", "mean", "max", "gem", "cls_gem", "rmac", "class_attention", "map"]
Whiten = Literal["none", "pca", "supervised"]
PositionsResize = Literal["timm", "jax"]
PositionsAt = Literal["timm", "dino"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How an image becomes a model's input: resize, centre crop to ``image_px`` squared, normalise.

    A field may leave its value to the backbone, as all of ``of_backbone()`` do; ``sightline.nn.own_input.resolved`` fills such fields from
    the first of these that tells: the model folder or the ``preprocessor_config.json`` that the weights come from, timm's configuration
    of the backbone (its tag's, where the name has one), ImageNet's values for a start from random weights. A value that is set always wins.
    """

    image_px: int = 224  # 0 is the backbone's own
    resize: Literal["short", "square", "backbone"] = "short"  # short side to resize_px, or both sides to resize_px
    resize_px: int = 0  # 0 is image_px / 0.875, so 256 for 224; -1 is image_px / the backbone's own crop share
    interpolation: Literal["bicubic", "bilinear", "backbone"] = "bicubic"
    mean: tuple[float, float, float] | Literal["backbone"] = IMAGENET_MEAN
    std: tuple[float, float, float] | Literal["backbone"] = IMAGENET_STD

    def __post_init__(self) -> None:
        left_open = self.image_px == 0 or self.resize_px == -1
        _require(left_open or 0 < self.image_px <= self.resized_px, "image_px must be positive and resize_px at least image_px (or 0)")
        _require(
            self.image_px >= 0 and self.resize_px >= -1, "image_px must not be negative, and resize_px at least image_px (or 0, or -1)"
        )
        _require(self.std == "backbone" or min(self.std) > 0, "std must be positive")

    @classmethod
    def of_backbone(
        cls, *, image_px: int = 0, resize: Literal["short", "square", "backbone"] = "backbone", resize_px: int = -1
    ) -> ImageSpec:
        """Return the settings that leave to the backbone what is not given here."""
        return cls(image_px=image_px, resize=resize, resize_px=resize_px, interpolation="backbone", mean="backbone", std="backbone")

    @property
    def is_resolved(self) -> bool:
        """Whether every value is there, and none left to the backbone."""
        named = (self.resize, self.interpolation, self.mean, self.std)
        return self.image_px > 0 and self.resize_px >= 0 and "backbone" not in named

    @property
    def resized_px(self) -> int:
        """The length in pixels that the short side (or both sides) is resized to."""
        return self.resize_px or round(self.image_px / 0.875)

    def at(self, image_px: int) -> ImageSpec:
        """Return the settings for images of another side, of which the crop keeps the same share."""
        return dataclasses.replace(
            self, image_px=image_px, resize_px=self.resize_px and max(image_px, round(image_px * self.resize_px / self.image_px))
        )

    @property
    def mean_colour(self) -> tuple[int, ...]:
        """The mean as levels of 0 to 255, for what lies outside an image."""
        return tuple(round(255 * float(value)) for value in self.mean)

    def __str__(self) -> str:
        """Say it in a line: ``224 x 224 px after the short side at 256 (bicubic), mean 0.5 0.5 0.5, std 0.5 0.5 0.5``."""
        sides = "both sides" if self.resize == "square" else "the short side"
        mean, std = (" ".join(f"{float(value):g}" for value in values) for values in (self.mean, self.std))
        return f"{self.image_px} x {self.image_px} px after {sides} at {self.resized_px} ({self.interpolation}), mean {mean}, std {std}"


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """How a training image varies: ``square`` and ``short`` resize to ``ImageSpec.resized_px`` and crop at random; ``random_resized`` crops a random area."""

    augment: Literal["square", "short", "random_resized"] = "square"
    flip: float = 0.5  # probability of a horizontal mirror
    min_area: float = 0.2  # random_resized only: the smallest share of the image's area
    jitter: float = 0.0  # brightness, contrast and saturation vary by up to this share
    rotate_deg: float = 0.0  # rotation by up to this many degrees
    rand_augment: int = 0  # RandAugment: magnitude of 1 to 30 of the operations drawn for each image; 0 is none
    rand_augment_ops: int = 2  # and how many are drawn
    erase: float = 0.0  # probability that a box (2 to 33 % of the area) takes the mean colour

    def __post_init__(self) -> None:
        _require(0 <= self.flip <= 1 and 0 < self.min_area <= 1 and 0 <= self.jitter < 1, "flip and min_area are shares, jitter is below 1")
        _require(
            0 <= self.rand_augment <= 30 and self.rand_augment_ops > 0 and 0 <= self.erase <= 1,
            "rand_augment is a magnitude from 0 to 30, rand_augment_ops is positive, erase is a probability",
        )


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """How an image becomes several crops, for learning without labels; the defaults are DINO's.

    Tuples run over groups of crops of one size. The first group holds the global crops, which a teacher sees; the others are local.
    """

    crop_px: tuple[int, ...] = (224, 96)
    num_crops: tuple[int, ...] = (2, 8)
    crop_min_area: tuple[float, ...] = (0.4, 0.05)  # shares of the image's area
    crop_max_area: tuple[float, ...] = (1.0, 0.4)
    crop_flip: float = 0.5  # probability of a horizontal mirror
    crop_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation by up to a share; hue in turns
    crop_jitter_p: float = 0.8  # probability that a crop is jittered at all
    crop_gray: float = 0.2  # probability of a grey crop
    crop_blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # probability of a blur: the first global crop, the further ones, local ones
    crop_solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)  # and that all levels from 128 on are inverted

    def __post_init__(self) -> None:
        num = len(self.crop_px)
        _require(
            num > 0 and num == len(self.num_crops) == len(self.crop_min_area) == len(self.crop_max_area),
            "crop_px, num_crops, crop_min_area and crop_max_area need one value for each size of crops, such as crop_px=224,96 num_crops=2,8",
        )
        _require(min(*self.crop_px, *self.num_crops) > 0, "crop_px and num_crops must be positive")
        areas = zip(self.crop_min_area, self.crop_max_area, strict=True)
        _require(all(0 < low <= high <= 1 for low, high in areas), "crop_min_area and crop_max_area are shares of an image, from and to")
        shares = (self.crop_flip, self.crop_jitter_p, self.crop_gray, *self.crop_jitter, *self.crop_blur, *self.crop_solarize)
        _require(
            all(0 <= share <= 1 for share in shares) and self.crop_jitter[3] <= 0.5,
            "crop_flip, crop_jitter_p, crop_gray, crop_blur and crop_solarize are probabilities, crop_jitter shares (its last, hue, at most 0.5)",
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A backbone and its head: what the encoder is, but for the weights."""

    backbone: str = "vit_small_patch16_224"  # a timm name, or auto: that of the model folder in weights
    backbone_args: tuple[tuple[str, int | float | bool | str | tuple[int, ...]], ...] = ()  # further arguments of timm.create_model
    weights: str = "auto"  # hub (pretrained), auto (hub where it can be reached, else random), random, or a local file or model folder
    positions_resize: PositionsResize = "timm"  # how a file's learned positions come to another image size; jax is the ViT authors' own way
    pooling: Pooling = "cls"
    gem_p: float = 3.0
    projection: int = 0  # width of a linear projection after pooling; 0 is none
    pca: int = 0  # directions kept by the reduction fitted on the training split after training; 0 is none, or with whiten all
    whiten: Whiten = "none"  # none is plain PCA, of vectors before they are normalised (IRT); the others take unit-length vectors
    scales: tuple[float, ...] = (1.0,)  # the input is resized by each and the descriptors are combined; training sees 1 alone
    scale_p: float = 1.0  # power of the mean over scales; the published one takes gem_p where GeM is not followed by a learned layer
    positions_at: PositionsAt = "timm"  # how learned positions follow an image of another size than image_px; dino is the DINO code's way
    drop_path: float = 0.0
    checkpoint_gradients: bool = False  # recompute activations in the backward pass: slower, far less memory
    frozen: tuple[str, ...] = ()  # parts that do not learn: embed, blocks.N (all up to block N), backbone, batch_norm

    def __post_init__(self) -> None:
        _require(
            self.gem_p > 0 and self.projection >= 0 and self.pca >= 0 and 0 <= self.drop_path < 1,
            "gem_p must be positive, widths not negative, drop_path in [0, 1)",
        )
        _require(
            bool(self.scales) and min(self.scales) > 0 and self.scale_p > 0,
            "scales are one or more positive factors such as 1,0.707,0.5, and scale_p is positive",
        )
        _require(
            self.positions_resize == "timm" or self.weights not in ("hub", "auto"),
            "positions_resize=jax is for weights of a file or model folder: timm resizes the hub's itself",
        )
        _require(
            self.scale_p == 1 or (self.pooling == "gem" and not self.projection),
            "scale_p other than 1 needs pooling=gem and no projection: a root of a mean of powers is defined for positive entries only",
        )


def only_under(*samplings: str, default: int) -> Any:
    """Return a field that has an effect under these samplings alone; ``settings.override`` refuses it under another."""
    return field(default=default, metadata={"only_under": ("sampling", samplings)})


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The images and the sampling of batches; a setting of another sampling than the recipe's is refused.

    A tuple is an anchor, an image that shows the same thing, and negatives, each of another cluster, mined anew at every epoch.
    """

    dataset: str = "auto"  # a name of the catalog, or auto: a class folder or a manifest
    verify: bool = True  # check the official counts of a named data set
    sampling: str = "pk"  # pk (P classes of K images), shuffle (passes over all images), class-balanced, tuples, or a plug-in's
    classes_per_batch: int = only_under("pk", default=16)  # P
    images_per_class: int = only_under("pk", default=4)  # K; the paper does not say, the official cross-batch memory uses 4
    tuples_per_batch: int = only_under("tuples", default=5)
    images_per_batch: int = only_under("shuffle", "class-balanced", default=64)
    negatives: int = only_under("tuples", default=5)  # negatives a tuple
    query_size: int = only_under("tuples", default=2_000)  # tuples an epoch
    pool_size: int = only_under("tuples", default=22_000)  # images that an epoch's negatives are mined from
    # Fraction held out for model selection: of the classes (at least two); of two or three classes, and in classification, of each one's images.
    validation: float = 0.1
    share: float = 1.0  # of each class's images, to learn from: a smaller share is a part of every larger one
    workers: int = -1  # loader processes; -1 is one per core, at most 8, and none where two cores or fewer do the training too

    def __post_init__(self) -> None:
        _require(
            self.classes_per_batch > 0 and self.images_per_class > 0 and 0 <= self.validation < 1 and 0 < self.share <= 1,
            "classes_per_batch and images_per_class must be positive, validation in [0, 1), share in (0, 1]",
        )
        _require(
            min(self.tuples_per_batch, self.images_per_batch, self.negatives, self.query_size, self.pool_size) > 0,
            "tuples_per_batch, images_per_batch, negatives, query_size and pool_size must be positive",
        )

    @property
    def batch(self) -> int:
        """Images a batch, over all processes."""
        of_tuples, of_classes = self.tuples_per_batch * (2 + self.negatives), self.classes_per_batch * self.images_per_class
        return {"tuples": of_tuples, "pk": of_classes}.get(self.sampling, self.images_per_batch)

    @staticmethod
    def upgraded(plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return plain settings as of today: before samplings had names, a size of 0 left one out."""
        sizes = {name: plain[name] for name in ("images_per_batch", "tuples_per_batch") if name in plain}
        if "sampling" in plain or not sizes:
            return plain
        sampling = "shuffle" if sizes.get("images_per_batch") else "tuples" if sizes.get("tuples_per_batch") else "pk"
        return {**{name: value for name, value in plain.items() if sizes.get(name, 1)}, "sampling": sampling}


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The training loop: how long, how fast, and what is kept."""

    steps: int = 2_000  # 0 keeps the weights that training would start from
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 3e-5
    weight_decay: float = 5e-4
    weight_decay_growth: float = 1.0  # final weight decay / initial weight decay (cosine)
    layer_decay: float = 1.0  # each block's learning rate is this times that of the block above it
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "constant"  # linear falls from step 0 on, under the warm-up too
    final_lr: float = 0.0  # where the cosine or the line ends, as a share of lr
    lr_decay: float = 0.99  # exponential only: the rate is multiplied by this every lr_decay_steps
    lr_decay_steps: int = 400
    clip_norm: float = 0.0  # largest gradient norm; 0 does not clip
    clip_each_norm: float = 0.0  # largest norm of each parameter's gradient by itself; 0 does not clip
    accumulate: int = 1  # batches a step: gradients are averaged; the loss of each sees only its own batch (and the memory)
    ema: float = 0.0  # decay of the averaged weights that are then evaluated and saved; 0 keeps none
    precision: Precision = "auto"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        _require(
            self.steps >= 0 and min(self.accumulate, self.lr_decay_steps, self.log_every, self.validate_every, self.save_every) > 0,
            "steps must not be negative; accumulate, lr_decay_steps, log_every, validate_every and save_every must be positive",
        )
        _require(
            self.lr > 0
            and self.weight_decay >= 0
            and self.weight_decay_growth >= 0
            and 0 < self.layer_decay <= 1
            and 0 < self.lr_decay <= 1
            and 0 <= self.ema < 1,
            "lr must be positive, layer_decay and lr_decay in (0, 1], ema in [0, 1)",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every method's recipe has; a method adds its own fields on top."""

    name: str = ""
    model: ModelSpec = field(default_factory=ModelSpec)
    image: ImageSpec = field(default_factory=partial(ImageSpec.of_backbone, image_px=224))
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)
