"""Transforms: from a decoded image to a model's input, in two halves.

``pixels`` makes uint8 ``[3, H, W]`` in a loader thread or process; ``normalise`` makes float32 of a whole batch where the model is.
Between the two a batch is a quarter of its float32 size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Protocol, cast

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 (torchvision's own documentation calls it F)

from sightline.recipe import AugmentSpec, ImageSpec

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width over height of a random area, as in Inception-style crops everywhere."""


class Transform(Protocol):
    """What the loaders ask of a transform."""

    @property
    def short_px(self) -> int | None:
        """The short side that a decoded image must keep; None keeps all."""
        ...

    def pixels(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``; chance comes from ``seed`` alone."""
        ...

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, 3, H, W]`` for uint8 ``[B, 3, H, W]``, on the same device."""
        ...


@dataclass(frozen=True)
class _Normalises:
    image: ImageSpec

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(pixels / 255 - mean) / std`` as float32."""
        mean = torch.tensor(self.image.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.image.std, device=pixels.device).view(3, 1, 1)
        return pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)

    def __call__(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return the image as float32 ``[3, H, W]``."""
        return self.normalise(self.pixels(image, seed))

    def pixels(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``."""
        raise TypeError(f"{type(self).__name__} makes no pixels")


@dataclass(frozen=True)
class EvalTransform(_Normalises):
    """Resize, centre crop; the seed is not used."""

    @property
    def short_px(self) -> int:
        """The short side after the resize."""
        return self.image.resized_px

    def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``."""
        side = self.image.image_px
        return to_pixels(F.center_crop(resize(image, self.image, self.image.resize), [side, side]))


@dataclass(frozen=True)
class TrainTransform(_Normalises):
    """The recipe's augmentation: crop, mirror, rotation, colour."""

    augment: AugmentSpec

    @property
    def short_px(self) -> int:
        """The short side from which the smallest crop still has all the pixels that the model is given."""
        if self.augment.augment == "random_resized":
            return math.ceil(self.image.image_px / math.sqrt(self.augment.min_area * ASPECT_RATIOS[0]))
        return self.image.resized_px

    def pixels(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``; the same image and seed give the same pixels in any process."""
        random = Random(seed)
        side = self.image.image_px
        if self.augment.augment == "random_resized":
            left, top, width, height = random_area(random, image.size, self.augment.min_area)
            image = image.resize((side, side), _FILTERS[self.image.interpolation], box=(left, top, left + width, top + height))
        else:
            image = resize(image, self.image, self.augment.augment)
            top, left = random.randint(0, image.height - side), random.randint(0, image.width - side)
            image = image.crop((left, top, left + side, top + side))
        if random.random() < self.augment.flip:
            image = F.horizontal_flip(image)
        if self.augment.rotate_deg:
            angle = random.uniform(-self.augment.rotate_deg, self.augment.rotate_deg)
            image = F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR, fill=_grey(self.image))
        if self.augment.jitter:
            image = jitter(random, image, self.augment.jitter)
        return to_pixels(image)


def eval_transform(image: ImageSpec) -> EvalTransform:
    """Return the transform of evaluation: PIL image -> float32 ``[3, H, W]``, equal to torchvision's Resize, CenterCrop, Normalize."""
    return EvalTransform(image)


def train_transform(augment: AugmentSpec, image: ImageSpec) -> TrainTransform:
    """Return the recipe's augmentation: (PIL image, seed) -> float32 ``[3, H, W]``."""
    return TrainTransform(image, augment)


_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize(image: Image.Image, spec: ImageSpec, how: str) -> Image.Image:
    """Return the image with its short side (``how`` short) or both sides (square) at ``spec.resized_px``, antialiased."""
    size = [spec.resized_px] if how == "short" else [spec.resized_px, spec.resized_px]
    return cast(Image.Image, F.resize(image, size, interpolation=InterpolationMode(spec.interpolation), antialias=True))


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as uint8 ``[3, H, W]``."""
    return cast(torch.Tensor, F.pil_to_tensor(image))


def random_area(random: Random, size: tuple[int, int], min_area: float) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of a random part of an image: its area uniform from ``min_area`` to 1, its aspect log-uniform.

    After ten areas that do not fit, the centre as large as the aspects allow, as torchvision's RandomResizedCrop does.
    """
    full_width, full_height = size
    for _ in range(10):
        area = full_width * full_height * random.uniform(min_area, 1)
        aspect = math.exp(random.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= full_width and 0 < height <= full_height:
            return random.randint(0, full_width - width), random.randint(0, full_height - height), width, height
    width = max(1, min(full_width, round(full_height * ASPECT_RATIOS[1])))
    height = max(1, min(full_height, round(full_width / ASPECT_RATIOS[0])))
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def jitter(random: Random, image: Image.Image, share: float) -> Image.Image:
    """Return the image with brightness, contrast and saturation each changed by a factor within ``share`` of 1, in random order."""
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    random.shuffle(changes)
    for change in changes:
        image = change(image, random.uniform(1 - share, 1 + share))
    return image


def _grey(spec: ImageSpec) -> list[int]:
    return [round(255 * value) for value in spec.mean]
