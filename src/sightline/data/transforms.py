"""Transforms: from a decoded image to a model's input, in two halves.

``pixels`` makes uint8 ``[3, H, W]`` in a loader thread or process; ``normalise`` makes float32 of a whole batch where the model is.
Between the two a batch is a quarter of its float32 size.

Images are resized as uint8 tensors, antialiased: the definition is that of torchvision's transforms v2 on tensors. Against the same
transforms on PIL images a few values in a thousand differ (bilinear: in a hundred), by one level of 255, and it takes a third of the
time (500 x 375 to 256: 0.8 ms for 2.2 ms, on one core with AVX-512).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from sightline.errors import ModelError
from sightline.imports import compiler_later
from sightline.recipe import AugmentSpec, ImageSpec

with compiler_later():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import RandAugment, RandomErasing
    from torchvision.transforms.v2 import functional as F

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width over height of a random area, as in Inception-style crops everywhere."""

MAX_ASPECT = 16
"""A strip of 1 x 60,000 pixels brought to a short side of 256 would fill 12 GB: beyond this aspect the ends of an image are left out."""

Pixels = torch.Tensor | tuple[torch.Tensor, ...]
"""What a transform makes of an image: uint8 ``[3, H, W]``, or of crops ``[V, 3, h, w]`` for each size."""


class Transform(Protocol):
    """What the loaders ask of a transform that makes one image of each."""

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


class CropTransform(Protocol):
    """What the training loader asks of a transform that makes several crops of each image."""

    @property
    def short_px(self) -> int | None:
        """The short side that a decoded image must keep; None keeps all."""
        ...

    def pixels(self, image: Image.Image, seed: int) -> tuple[torch.Tensor, ...]:
        """Return uint8 ``[V, 3, h, w]`` for each size, the global crops first; chance comes from ``seed`` alone."""
        ...

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 for uint8 ``[..., 3, h, w]``, on the same device."""
        ...


@dataclass(frozen=True)
class Normalises:
    """The second half of every transform."""

    image: ImageSpec

    def __post_init__(self) -> None:
        if not self.image.is_resolved:
            raise ModelError(
                "these image settings leave values to the backbone: fill them with sightline.nn.own_input.resolved(image, model)"
            )

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(pixels / 255 - mean) / std`` as float32."""
        mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (self.image.mean, self.image.std))
        scale, shift = 1 / (255 * std), mean / std
        if pixels.device.type == "cpu":
            # In NumPy, on one core: torch's threads would wait for cores that are decoding, at four times the whole stream's cost.
            floats = pixels.numpy() * scale
            floats -= shift
            return torch.from_numpy(floats)
        return pixels.to(torch.float32).mul_(torch.from_numpy(scale).to(pixels.device)).sub_(torch.from_numpy(shift).to(pixels.device))


@dataclass(frozen=True)
class _OneImage(Normalises, ABC):
    def __call__(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return the image as float32 ``[3, H, W]``."""
        return self.normalise(self.pixels(image, seed))

    @abstractmethod
    def pixels(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``."""


@dataclass(frozen=True)
class EvalTransform(_OneImage):
    """Resize, centre crop; the seed is not used."""

    @property
    def short_px(self) -> int:
        """The short side after the resize."""
        return self.image.resized_px

    def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``."""
        side = self.image.image_px
        resized = resize(image, self.image, self.image.resize)
        return _packed(F.center_crop(resized, [side, side]))


@dataclass(frozen=True)
class WholeTransform(_OneImage):
    """All of the picture, its aspect kept: the short side near ``short_px``, both sides multiples of ``multiple_px``; the seed is not used.

    A picture longer than ``MAX_ASPECT`` times its short side is squeezed to that, for nothing is cropped.
    """

    short_px: int
    multiple_px: int

    def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``."""
        width, height = self.size_px(image.size)
        return _packed(_resized(to_pixels(image), height, width, self.image))

    def size_px(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that a picture of ``size`` (width, height) is brought to."""
        scale, longest = self.short_px / min(size), MAX_ASPECT * self.short_px
        width, height = (max(1, round(min(side * scale, longest) / self.multiple_px)) * self.multiple_px for side in size)
        return width, height


@dataclass(frozen=True)
class TrainTransform(_OneImage):
    """The recipe's augmentation: crop, mirror, rotation, colour, RandAugment, an erased box."""

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
            image = image.crop(random_area(random, image.size, self.augment.min_area))
            pixels = _resized(to_pixels(image), side, side, self.image)
        else:
            pixels = resize(image, self.image, self.augment.augment)
            top, left = random.randint(0, pixels.shape[1] - side), random.randint(0, pixels.shape[2] - side)
            pixels = F.crop(pixels, top, left, side, side)
        if random.random() < self.augment.flip:
            pixels = F.horizontal_flip(pixels)
        if self.augment.rotate_deg:
            angle = random.uniform(-self.augment.rotate_deg, self.augment.rotate_deg)
            pixels = F.rotate(pixels, angle, InterpolationMode.BILINEAR, fill=list(self.image.mean_colour))
        if self.augment.jitter:
            pixels = jitter(random, pixels, self.augment.jitter)
        if self.augment.rand_augment or self.augment.erase:
            with _torch_follows(random):
                for change in _torchvision_changes(self.augment, self.image.mean_colour):
                    pixels = change(pixels)
        return _packed(pixels)


@cache
def _torchvision_changes(augment: AugmentSpec, mean_colour: tuple[int, ...]) -> tuple[RandAugment | RandomErasing, ...]:
    colour = list(mean_colour)
    changes: list[RandAugment | RandomErasing] = []
    if augment.rand_augment:
        changes.append(RandAugment(augment.rand_augment_ops, augment.rand_augment, interpolation=InterpolationMode.BILINEAR, fill=colour))
    if augment.erase:
        changes.append(RandomErasing(augment.erase, value=colour))
    return tuple(changes)


@contextmanager
def _torch_follows(random: Random) -> Iterator[None]:
    """Let torch's own chance, which torchvision draws from, come from ``random``; it goes on afterwards as if nothing had been drawn."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(random.getrandbits(63))  # the CPU's alone: torch.manual_seed would seed a GPU's too
    try:
        yield
    finally:
        torch.set_rng_state(before)


def eval_transform(image: ImageSpec) -> EvalTransform:
    """Return the transform of evaluation: PIL image -> float32 ``[3, H, W]``, equal to torchvision's Resize, CenterCrop, Normalize."""
    return EvalTransform(image)


def train_transform(augment: AugmentSpec, image: ImageSpec) -> TrainTransform:
    """Return the recipe's augmentation: (PIL image, seed) -> float32 ``[3, H, W]``."""
    return TrainTransform(image, augment)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as uint8 ``[3, H, W]``, a view with the channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize(image: Image.Image, spec: ImageSpec, how: str) -> torch.Tensor:
    """Return uint8 ``[3, H, W]`` with the short side (``how`` short) or both sides (square) at ``spec.resized_px``, antialiased.

    For ``short``, of an image longer than ``MAX_ASPECT`` times its short side only the middle is taken.
    """
    short = spec.resized_px
    if how == "square":
        return _resized(to_pixels(image), short, short, spec)
    image = _shortened(image)
    if image.width <= image.height:
        return _resized(to_pixels(image), int(short * image.height / image.width), short, spec)
    return _resized(to_pixels(image), short, int(short * image.width / image.height), spec)


def _resized(pixels: torch.Tensor, height: int, width: int, spec: ImageSpec) -> torch.Tensor:
    # torchvision's resize would do the same, but for bilinear goes through float32 wherever the processor has AVX-512.
    return torch.nn.functional.interpolate(pixels[None], (height, width), mode=spec.interpolation, antialias=True)[0]


def _shortened(image: Image.Image) -> Image.Image:
    limit = MAX_ASPECT * min(image.size)
    width, height = min(image.width, limit), min(image.height, limit)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def _packed(pixels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))  # in NumPy for normalise's reason


def random_area(random: Random, size: tuple[int, int], min_area: float, max_area: float = 1.0) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random part of an image.

    Its share of the area is uniform from ``min_area`` to ``max_area``, its aspect log-uniform.

    After ten areas that do not fit, the centre as large as the aspects allow, as torchvision's RandomResizedCrop does.
    """
    full_width, full_height = size
    for _ in range(10):
        area = full_width * full_height * random.uniform(min_area, max_area)
        aspect = math.exp(random.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= full_width and 0 < height <= full_height:
            left, top = random.randint(0, full_width - width), random.randint(0, full_height - height)
            return left, top, left + width, top + height
    width = max(1, min(full_width, round(full_height * ASPECT_RATIOS[1])))
    height = max(1, min(full_height, round(full_width / ASPECT_RATIOS[0])))
    left, top = (full_width - width) // 2, (full_height - height) // 2
    return left, top, left + width, top + height


def jitter(random: Random, pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Return the image with brightness, contrast and saturation each changed by a factor within ``share`` of 1, in random order."""
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    random.shuffle(changes)
    for change in changes:
        pixels = change(pixels, random.uniform(1 - share, 1 + share))
    return pixels
