"""Linear segmentation: one linear layer over frozen patch features, trained on random crops, asked through a sliding window.

Source: Simeoni et al. 2025, arXiv 2508.10104 (DINOv3), section on dense linear probing, with the settings of its ADE20K configuration:
the last layer after its norm, dropout, batch norm, a 1 x 1 convolution; AdamW; short side 512 varied by 0.5 to 2, crops of 512, mirrors,
photometric distortion; a window of 512 moved by 341 at evaluation.

Departs: without a GPU the default number of steps is 400; where the images are smaller than 512, so are the crop and the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sightline.data.images import BadImage
from sightline.data.loading import sample_seed
from sightline.data.segments import Cutting, padded, resized_short
from sightline.data.sets.segmentation import VOID, Mask, Pair, read_mask, spread
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.segmenting import Bench, Fitted, Segmentation, batched, classes_at
from sightline.progress import Bar

CROP_PX, STRIDE = 512, 2 / 3
"""The published crop, and how far the window moves: 341 of 512 pixels."""

GPU_STEPS, CPU_STEPS = 40_000, 400

WARM_UP, WARM_UP_FROM = 1_500 / 40_000, 1e-6
"""The share of the steps in which the rate rises, and the share of the rate that it rises from."""

NUM_MEASURED = 32
"""Training images whose size is looked at to choose the crop."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""From uint8 images ``[B, 3, H, W]`` to logits ``[B, C, h, w]``."""


@dataclass(frozen=True, kw_only=True)
class SegmentLinear(Segmentation):
    """A linear classifier of patches; its mIoU is what a frozen backbone's features say of a pixel's class."""

    crop_px: int = 0  # side of crop and window, and short side of the images; 0 is 512, or less where the images are smaller
    steps: int = 0  # 0 is 40,000 on a GPU and 400 on a processor
    lr: float = 1e-3
    weight_decay: float = 1e-3
    dropout: float = 0.1
    flip: float = 0.5  # probability of a mirror
    distort: bool = True  # brightness, contrast, saturation and hue of the training crops vary

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.crop_px, self.steps) < 0 or self.lr <= 0 or self.weight_decay < 0:
            raise UsageError("crop_px, steps and weight_decay are 0 or more, and lr is positive")
        if self.batch < 2:
            raise UsageError("batch is 2 or more: batch norm takes its statistics over it")
        if not (0 <= self.dropout < 1 and 0 <= self.flip <= 1):
            raise UsageError("dropout is from 0 to below 1, flip from 0 to 1")

    @property
    def name(self) -> str:
        """See ``Segmentation.name``."""
        return "segment-linear"

    def fit(self, bench: Bench, train: Sequence[Pair]) -> Fitted:
        """See ``Segmentation.fit``: train the head."""
        crop_px = self.crop_px or fitting_crop(bench, train)
        steps = self.steps or (GPU_STEPS if bench.encoder.device.type == "cuda" else CPU_STEPS)
        with torch.random.fork_rng(devices=[bench.encoder.device] if bench.encoder.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            head, num_seen = self.train(bench, train, crop_px, steps)
        head.eval()

        @torch.inference_mode()
        def logits(pixels: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = head(as_maps(*bench.features(pixels)))
            return scores

        stride = max(1, int(crop_px * STRIDE))

        def label(images: Sequence[Image.Image]) -> list[Mask]:
            resized = (resized_short(image, crop_px) for image in images)
            scores = (slide(logits, pixels, crop_px, stride, self.batch) for pixels in resized)
            return [classes_at(one, image.height, image.width) for one, image in zip(scores, images, strict=True)]

        return Fitted(label, num_seen, {"crop_px": crop_px, "stride_px": stride, "steps": steps})

    def train(self, bench: Bench, train: Sequence[Pair], crop_px: int, steps: int) -> tuple[nn.Sequential, int]:
        """Return the trained head, and of how many images it saw a crop.

        Raises:
            DataError: no training image can be read.
        """
        head = linear_head(bench.encoder.backbone.width, bench.data.num_classes, self.dropout).to(bench.encoder.device).train()
        optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        cutting = Cutting(crop_px=crop_px, short_px=crop_px, flip=self.flip, distort=self.distort)
        drawn, seen, step = Shuffled(len(train), self.seed), set[int](), 0
        with Bar("training the head", steps, show=steps > self.batch) as bar:
            while step < steps:  # once, unless files are bad: then what they leave of the steps is drawn anew
                places = drawn.next((steps - step) * self.batch)
                before = step

                def prepare(at: int, image: Image.Image, mask: Mask, places: Sequence[int] = places, before: int = before) -> Crop:
                    return Crop(places[at], *cutting.cut(Random(sample_seed(self.seed, before, at)), image, mask))

                for batch in batched(bench.stream([train[place] for place in places], prepare), self.batch):
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr * rate(step, steps)
                    loss = learn(head, optimizer, bench, batch, crop_px)
                    seen.update(one.place for one in batch)
                    step += 1
                    bar.update(step, f"loss {loss:.3f}")
                if step == before:
                    raise DataError(f"no training image in {bench.data.root} can be read: {bench.bad_files.summary()}")
        return head, len(seen)


@dataclass(frozen=True, eq=False)
class Crop:
    """A training crop: the image it is of, its pixels uint8 ``[3, h, w]``, its classes int16 ``[h, w]``."""

    place: int
    pixels: torch.Tensor
    mask: Mask


class Shuffled:
    """Passes over ``num`` places, each in an order of its own, cut into batches without regard to where a pass ends."""

    def __init__(self, num: int, seed: int) -> None:
        self.num, self.random, self.left = num, np.random.default_rng(seed), list[int]()

    def next(self, size: int) -> list[int]:
        """Return the next ``size`` places."""
        while len(self.left) < size:
            self.left += self.random.permutation(self.num).tolist()
        batch, self.left = self.left[:size], self.left[size:]
        return batch


# --- training ---------------------------------------------------------------------------------------------------------------------


def linear_head(width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return dropout of whole channels, batch norm and a 1 x 1 convolution: maps ``[B, D, h, w]`` -> logits ``[B, C, h, w]``."""
    classify = nn.Conv2d(width, num_classes, kernel_size=1)
    nn.init.normal_(classify.weight, std=0.01)
    assert classify.bias is not None
    nn.init.zeros_(classify.bias)
    return nn.Sequential(nn.Dropout2d(dropout), nn.BatchNorm2d(width), classify)


def rate(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a share of the largest: a linear rise on a linear fall, then the rest of a cosine to 0."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return (1 - (1 - step / warm_up) * (1 - WARM_UP_FROM)) * (1 - step / steps)
    return (1 + math.cos(math.pi * (step + 1) / steps)) / 2


def learn(head: nn.Sequential, optimizer: torch.optim.Optimizer, bench: Bench, batch: Sequence[Crop], side: int) -> float:
    """Take one step on a batch and return its loss: cross-entropy at the pixels, void and padding adding nothing to a mean over all."""
    images = torch.stack([padded(one.pixels, side, side, bench.encoder.image) for one in batch])
    wanted = np.full((len(batch), side, side), VOID, np.int64)
    for row, one in enumerate(batch):
        wanted[row, : one.mask.shape[0], : one.mask.shape[1]] = one.mask
    maps = as_maps(*bench.features(images))
    logits = F.interpolate(head(maps.clone()), (side, side), mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, torch.from_numpy(wanted).to(bench.encoder.device), ignore_index=VOID, reduction="sum") / wanted.size
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


# --- sizes and windows ------------------------------------------------------------------------------------------------------------


def fitting_crop(bench: Bench, train: Sequence[Pair]) -> int:
    """Return the published crop, or the median short side of the training images where that is less, in whole patches.

    Raises:
        DataError: no mask among those looked at can be read.
    """
    sides = []
    for pair in spread(train, NUM_MEASURED):
        try:
            sides.append(min(read_mask(pair.mask).shape))
        except BadImage as error:
            bench.bad_files.add(pair.mask, error)
    if not sides:
        raise DataError(f"no training mask in {bench.data.root} can be read: {bench.bad_files.summary()}")
    multiple = bench.encoder.backbone.multiple_px
    return max(multiple, min(CROP_PX, int(np.median(sides))) // multiple * multiple)


def as_maps(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return patch features ``[B, N, D]`` as maps ``[B, D, rows, columns]``."""
    return patches.transpose(1, 2).reshape(len(patches), patches.shape[2], *grid)


def starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side: every ``stride``, the last one moved back to end with the side."""
    num = max(0, math.ceil((side - window) / stride)) + 1
    return [max(0, min(number * stride, side - window)) for number in range(num)]


def slide(logits: Logits, pixels: torch.Tensor, window: int, stride: int, batch: int) -> torch.Tensor:
    """Return logits ``[C, H, W]`` of an image uint8 ``[3, H, W]``: the mean over the windows that cover each pixel, ``batch`` at a time."""
    height, width = pixels.shape[1:]
    places = [(top, left) for top in starts(height, window, stride) for left in starts(width, window, stride)]
    total, counts = None, torch.zeros(height, width)
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        found = logits(torch.stack([pixels[:, top : top + window, left : left + window] for top, left in some]))
        full = F.interpolate(found, (min(window, height), min(window, width)), mode="bilinear", align_corners=False)
        total = full.new_zeros(full.shape[1], height, width) if total is None else total
        for (top, left), own in zip(some, full, strict=True):
            total[:, top : top + window, left : left + window] += own
            counts[top : top + window, left : left + window] += 1
    assert total is not None
    return total / counts.to(total.device)
