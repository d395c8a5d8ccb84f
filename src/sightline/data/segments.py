"""From images and masks to crops whose every pixel has a class: resized, cut, mirrored, distorted, padded, and the batches of them.

Source: the ADE20K pipeline of mmsegmentation, which DINOv3, SelfPatch, BEiT and iBOT share: the short side varied by 0.5 to 2, a crop that
one class does not fill, a mirror, photometric distortion, the mean colour and void where the image ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as changes

from sightline.contracts import SegmentationBatch
from sightline.data.images import BadFiles, BadImage, decode
from sightline.data.instances import in_threads
from sightline.data.loading import sample_seed
from sightline.data.samplers import ShuffleSampler
from sightline.data.sets.segmentation import VOID, Mask, Pair, SegmentationSet
from sightline.data.transforms import EvalTransform, to_pixels
from sightline.errors import DataError
from sightline.recipe import ImageSpec

MAX_ASPECT = 4
"""An image longer than this many times its short side is resized by its long side: the published 2048 x 512."""

NUM_TRIES = 10
"""A crop that one class fills is drawn anew, so many times at most."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How training crops are cut from images whose short side is brought to ``short_px`` times ``min_scale`` to ``max_scale``."""

    crop_px: int
    short_px: int
    min_scale: float = 0.5
    max_scale: float = 2.0
    flip: float = 0.5  # probability of a mirror
    distort: bool = True  # brightness, contrast, saturation and hue vary
    most_of_one: float = 0.75  # a crop is drawn anew while one class fills more than this of it
    interpolation: str = "bilinear"

    def cut(self, random: Random, image: Image.Image, mask: Mask) -> tuple[torch.Tensor, Mask]:
        """Return a random crop: uint8 ``[3, h, w]`` and its classes, ``crop_px`` a side at most."""
        pixels = resized_short(image, max(1, int(self.short_px * random.uniform(self.min_scale, self.max_scale))), self.interpolation)
        labels = nearest_size(mask, pixels.shape[1], pixels.shape[2])
        for _ in range(1 + NUM_TRIES):
            top = random.randint(0, max(0, pixels.shape[1] - self.crop_px))
            left = random.randint(0, max(0, pixels.shape[2] - self.crop_px))
            own = labels[top : top + self.crop_px, left : left + self.crop_px]
            counts = np.bincount(own[own != VOID].astype(np.int64))
            if np.count_nonzero(counts) > 1 and counts.max() < self.most_of_one * counts.sum():
                break
        part = pixels[:, top : top + self.crop_px, left : left + self.crop_px]
        if random.random() < self.flip:
            part, own = part.flip(2), own[:, ::-1]
        return distorted(random, part) if self.distort else part, own


def nearest_size(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask ``[H, W]`` at another size, each pixel the one under its centre."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.int64)
    resized: Mask = mask[rows[:, None], columns]
    return resized


def resized_short(image: Image.Image, short_px: int, interpolation: str = "bilinear") -> torch.Tensor:
    """Return uint8 ``[3, H, W]`` with the short side at ``short_px`` (the long one at most ``MAX_ASPECT`` times that), antialiased."""
    share = short_px / min(image.size)
    if max(image.size) > MAX_ASPECT * min(image.size):
        share = MAX_ASPECT * short_px / max(image.size)
        height, width = (max(1, int(side * share + 0.5)) for side in (image.height, image.width))
    else:
        height, width = (short_px if side == min(image.size) else int(side * share + 0.5) for side in (image.height, image.width))
    return F.interpolate(to_pixels(image)[None], (height, width), mode=interpolation, antialias=True)[0]


def padded(pixels: torch.Tensor, height: int, width: int, spec: ImageSpec) -> torch.Tensor:
    """Return an image as uint8 ``[3, height, width]``, the mean colour to its right and below it: what is 0 after normalisation."""
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    colour = torch.tensor(spec.mean_colour, dtype=torch.uint8)
    whole = colour[:, None, None].repeat(1, height, width)
    whole[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return whole


def distorted(random: Random, pixels: torch.Tensor) -> torch.Tensor:
    """Return the image with brightness, contrast, saturation and hue changed, each with probability 1/2.

    Contrast comes before or after the colours, by chance. Source: Liu et al. 2016, arXiv 1512.02325 (SSD), section 2.2.
    """

    def scaled(values: torch.Tensor, factor: float, shift: float) -> torch.Tensor:
        return (values.float() * factor + shift).clamp(0, 255).to(torch.uint8)

    def contrast(values: torch.Tensor) -> torch.Tensor:
        return scaled(values, random.uniform(0.5, 1.5), 0) if random.random() < 0.5 else values

    if random.random() < 0.5:
        pixels = scaled(pixels, 1, random.uniform(-32, 32))
    is_early = random.random() < 0.5
    pixels = contrast(pixels) if is_early else pixels
    if random.random() < 0.5:
        pixels = changes.adjust_saturation(pixels, random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        pixels = changes.adjust_hue(pixels, random.uniform(-0.5, 0.5))
    return pixels if is_early else contrast(pixels)


# --- batches ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    row: int
    pixels: torch.Tensor
    mask: Mask


def training_crops(
    data: SegmentationSet,
    pairs: Sequence[Pair],
    cutting: Cutting,
    spec: ImageSpec,
    *,
    batch: int,
    start_step: int,
    num_steps: int,
    seed: int,
    num_threads: int,
    bad_files: BadFiles,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[SegmentationBatch]:
    """Yield this rank's share of the batches of steps ``start_step`` on: shuffled passes over ``pairs``; a bad file gives way to the next.

    What a position of a batch holds depends on the run's seed and the step alone, not on how many processes share it.

    Raises:
        DataError: none can be read.
    """
    sampler, share = ShuffleSampler(len(pairs), batch, seed), batch // world_size

    def sample(number: int) -> _Sample:
        step, position = divmod(number, share)
        position += rank * share
        start, reason = int(sampler.batch(step)[position]), ""
        for row in np.roll(np.arange(len(pairs)), -start).tolist():
            reading = pairs[row].image
            try:
                image = decode(reading)
                reading = pairs[row].mask
                mask = data.mask(reading, image.size)
            except BadImage as error:
                reason = f"{reading}: {error}"
                bad_files.add(reading, error)
                continue
            return _Sample(row, *cutting.cut(Random(sample_seed(seed, step, position)), image, mask))
        raise DataError(f"none of the {len(pairs):,} training images in {data.root} can be read with its mask (last: {reason})")

    items: list[_Sample] = []
    numbers = np.arange(start_step * share, (start_step + num_steps) * share)
    for item in in_threads(sample, numbers, num_threads, 2 * share):
        items.append(item)
        if len(items) == share:
            yield _collated(items, cutting.crop_px, spec)
            items = []


def _collated(items: Sequence[_Sample], side: int, spec: ImageSpec) -> SegmentationBatch:
    masks = np.full((len(items), side, side), VOID, np.int64)
    for place, item in enumerate(items):
        masks[place, : item.mask.shape[0], : item.mask.shape[1]] = item.mask
    images = EvalTransform(spec).normalise(torch.stack([padded(item.pixels, side, side, spec) for item in items]))
    rows = torch.tensor([item.row for item in items])
    return SegmentationBatch(images, torch.zeros_like(rows), rows, masks=torch.from_numpy(masks))
