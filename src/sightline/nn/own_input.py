"""What images a backbone's weights were made for: size, crop share, interpolation, mean and standard deviation, from where they are told."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import timm

from sightline.errors import ModelError
from sightline.nn import which_backbone
from sightline.nn.checkpoints import layout_of
from sightline.recipe import IMAGENET_MEAN, IMAGENET_STD, ImageSpec, ModelSpec
from sightline.settings import from_plain

DEFAULT_SHARE = 0.875
"""What ``resize_px=0`` means: ImageNet's 224 of 256 px."""

PIL_BILINEAR = 2
"""What transformers calls bilinear, after Pillow; 3 is bicubic."""

OF_IMAGENET = ("torchvision", "dino")
"""Layouts whose authors normalise by ImageNet's colours whatever the backbone is called here."""

TOLD = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
"""What the ``config.json`` of a folder as timm uploads it tells of the input."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnInput:
    """The input of a backbone's own weights; ``share`` is the part of the resized side that the crop keeps."""

    image_px: int = 224
    share: float = DEFAULT_SHARE
    resize: Literal["short", "square"] = "short"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def resize_px(self, image_px: int) -> int:
        """Return ``ImageSpec.resize_px`` for images of ``image_px``: 0 where that means the same."""
        resized = max(image_px, math.floor(image_px / self.share + 1e-6))  # floor, as timm rounds
        return 0 if resized == ImageSpec(image_px=image_px).resized_px else resized


def resolved(image: ImageSpec, model: ModelSpec) -> ImageSpec:
    """Return ``image`` with every value that it leaves to the backbone filled from ``own_input(model)``; values that are set stay."""
    if image.is_resolved:
        return image
    own = own_input(model)
    image_px = image.image_px or own.image_px
    return replace(
        image,
        image_px=image_px,
        resize=own.resize if image.resize == "backbone" else image.resize,
        resize_px=own.resize_px(image_px) if image.resize_px == -1 else image.resize_px,
        interpolation=own.interpolation if image.interpolation == "backbone" else image.interpolation,
        mean=own.mean if image.mean == "backbone" else image.mean,
        std=own.std if image.std == "backbone" else image.std,
    )


def own_input(model: ModelSpec) -> OwnInput:
    """Return the input that the weights of ``model`` were made for.

    A model folder tells its own, else timm's configuration of the backbone counts (that of its tag, where the name has one). A start from
    random weights has none: it takes ImageNet's mean and standard deviation, as it always did.
    """
    file = _file(model)
    if file is not None:
        config = which_backbone.facts_beside(file, "config.json")
        if config.get("format"):
            return _of_folder(file / "config.json", config)
        told = which_backbone.facts_beside(file, "preprocessor_config.json")
        if told:
            return _of_transformers(told)
    configured = timm.get_pretrained_cfg(model.backbone) if timm.is_model(model.backbone) else None
    if configured is None:
        return OwnInput()
    if model.weights == "random":
        return OwnInput(image_px=int(configured.input_size[-1]))
    own = _of_timm(model.backbone, configured.to_dict())
    if file is None:
        return own
    if layout_of(file) in OF_IMAGENET:
        return replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    beside = config.get("pretrained_cfg")
    if isinstance(beside, dict):
        return _of_timm(model.backbone, configured.to_dict() | {name: beside[name] for name in TOLD if beside.get(name) is not None})
    _tell_of_another_tag(model, configured.mean)
    return own


def _file(model: ModelSpec) -> Path | None:
    """Return where the weights lie, None for a download and for random ones."""
    if model.weights in ("hub", "auto"):
        return which_backbone.local_weights(model.backbone)
    return None if model.weights in ("random", "") else Path(model.weights)


def of_untrained(backbone: str) -> OwnInput:
    """Return the input of ``random:NAME``: the size, mean and deviation of timm's configuration, and ImageNet's share and interpolation."""
    configured = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    if configured is None:
        return OwnInput()
    return OwnInput(image_px=int(configured.input_size[-1]), mean=_colour(configured.mean), std=_colour(configured.std))


def _tell_of_another_tag(model: ModelSpec, mean: Any) -> None:
    """Warn where the file's name speaks of weights that timm keeps under a tag of the backbone, and those take other colours."""
    base, _, tag = model.backbone.partition(".")
    if tag:
        return
    words = set(re.split(r"[^a-z0-9]+", Path(model.weights).stem.lower()))
    for name in timm.list_pretrained(f"{base}.*"):
        kind = re.split(r"[_.]", name.removeprefix(f"{base}."))[0]
        told = timm.get_pretrained_cfg(name)
        if any(word.startswith(kind) for word in words) and told is not None and tuple(told.mean) != tuple(mean):
            log.warning(
                "'%s' is given images as %s was; if it is one of %s, set backbone=%s for that one's mean and std",
                model.weights,
                base,
                kind,
                name,
            )
            return


def _of_timm(name: str, told: Mapping[str, Any]) -> OwnInput:
    _, height, width = told["input_size"]
    if height != width or told.get("crop_mode") == "border" or told["crop_pct"] > 1:
        log.warning(
            "%s was made for images of %d x %d px with borders or of another shape than a square: squares without borders are given",
            name,
            width,
            height,
        )
    return OwnInput(
        image_px=int(max(height, width)),
        share=min(1.0, float(told["crop_pct"])),
        resize="square" if told.get("crop_mode") == "squash" else "short",
        interpolation="bilinear" if told["interpolation"] == "bilinear" else "bicubic",
        mean=_colour(told["mean"]),
        std=_colour(told["std"]),
    )


def _of_transformers(written: Mapping[str, Any]) -> OwnInput:
    """Return what transformers' image processors tell in ``preprocessor_config.json``: one size, or a short side and a crop within it.

    The fast ones write null for what they leave to their defaults (DINOv3's ``crop_size``, SigLIP 2's ``do_center_crop``).
    """
    told = {name: value for name, value in written.items() if value is not None}
    size, crop = _sides(told.get("size", 224)), _sides(told.get("crop_size", told.get("size", 224)))
    kind = str(told.get("image_processor_type", told.get("feature_extractor_type", "")))
    of_number = (
        bool(told.get("do_center_crop", False)) and "DeiT" not in kind
    )  # a number alone is DeiT's and ViT's square, CLIP's short side
    is_short = "shortest_edge" in told["size"] if isinstance(told.get("size"), dict) else of_number
    image_px = crop if told.get("do_center_crop", is_short) else size
    return OwnInput(
        image_px=image_px,
        share=image_px / max(size, image_px),
        resize="short" if is_short else "square",
        interpolation="bilinear" if told.get("resample", 3) == PIL_BILINEAR else "bicubic",
        mean=_colour(told.get("image_mean", IMAGENET_MEAN)),
        std=_colour(told.get("image_std", IMAGENET_STD)),
    )


def _sides(told: Any) -> int:
    return int(told.get("shortest_edge") or told.get("height") or told.get("width") or 224) if isinstance(told, dict) else int(told)


def _of_folder(config: Path, told: Mapping[str, Any]) -> OwnInput:
    try:
        image = from_plain(ImageSpec, told["image"])
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"'{config}' does not tell how images enter the model: give a Sightline model folder, or a weights file"
        ) from error
    assert image.resize != "backbone"
    assert image.interpolation != "backbone"
    return OwnInput(
        image.image_px, image.image_px / image.resized_px, image.resize, image.interpolation, _colour(image.mean), _colour(image.std)
    )


def _colour(values: Any) -> tuple[float, float, float]:
    return cast("tuple[float, float, float]", tuple(float(value) for value in values))
