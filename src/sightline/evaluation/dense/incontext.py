"""In-context segmentation: nothing is trained; a patch takes the labels of the patches that look most like it.

Source: Balazevic, Steiner, Parthasarathy, Arandjelovic & Henaff 2023, arXiv 2306.01667 (Hummingbird), section 3; numbers not told there
are those of open-hummingbird-eval 2.0.0 (Pariza, Salehi & Asano).

Departs: void counts for no class in a patch's labels, where that code makes it class 0, and patches of void alone are not remembered; of
ADE20K, "other" is void. IoU is measured at each mask's own size, class by class as they are, over the classes that are shown: that code
measures at the input's size and first matches predicted to true classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as changes

from sightline.contracts import FloatArray, IntArray
from sightline.data.loading import sample_seed
from sightline.data.segments import nearest_size
from sightline.data.sets.segmentation import VOID, Mask, Pair, spread
from sightline.data.transforms import random_area, resize
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.segmenting import Bench, Fitted, Segmentation, batched, classes_at, patches_of
from sightline.progress import Bar
from sightline.recipe import ImageSpec
from sightline.search.neighbours import nearest

MIN_AREA = 0.5
"""Training crops take from half of an image to all of it. The code asks for 0.5 to 2 times its area, and what is larger never fits."""

JITTER = 0.1
"""Brightness, contrast and saturation change by up to this factor, hue by this share of its circle, each in half of the crops."""

LABEL_BYTES = 2**26
"""The neighbours' labels that are gathered at a time."""


@dataclass(frozen=True, kw_only=True)
class InContext(Segmentation):
    """A memory of patches with their labels; each patch of another image takes the labels of its K nearest, by softmax(cosine / temperature)."""

    k: int = 30
    temperature: float = 0.02
    memory: int = 102_400  # patches remembered at most, the smallest published size (the largest is 10,240,000)
    image_px: int = 0  # images are squeezed to this square; 0 is the model's own size
    crops: Literal["random", "none"] = "random"  # training images: random crops with jittered colours, or whole
    epochs: int = 1  # passes over the training images, each with crops of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.k, self.memory, self.epochs) < 1 or self.image_px < 0 or not self.temperature > 0:
            raise UsageError("k, memory and epochs are 1 or more, image_px is 0 or more, and temperature is positive")

    @property
    def name(self) -> str:
        """See ``Segmentation.name``."""
        return "in-context"

    def fit(self, bench: Bench, train: Sequence[Pair]) -> Fitted:
        """See ``Segmentation.fit``: fill the memory."""
        spec = square(bench, self.image_px)
        vectors, labels, num_train = self.remember(bench, spread(train, max(1, self.memory // self.epochs)), spec)

        def label(images: Sequence[Image.Image]) -> list[Mask]:
            features, grid = bench.features(torch.stack([resize(image, spec, "square") for image in images]))
            queries = F.normalize(features, dim=-1).flatten(0, 1).cpu().numpy()
            found = transfer(queries, vectors, labels, k=self.k, temperature=self.temperature, device=bench.device)
            scores = torch.from_numpy(found).reshape(len(images), *grid, -1).permute(0, 3, 1, 2).to(bench.encoder.device)
            return [classes_at(one, image.height, image.width) for one, image in zip(scores, images, strict=True)]

        return Fitted(label, num_train, {"image_px": spec.image_px, "patches": len(vectors)})

    def remember(self, bench: Bench, train: Sequence[Pair], spec: ImageSpec) -> tuple[FloatArray, FloatArray, int]:
        """Return the memory: unit-length features float32 ``[M, D]``, label shares float32 ``[M, C]``, and how many images it is of.

        Raises:
            DataError: no training image can be read with a labelled pixel.
        """
        num_each = max(1, self.memory // (self.epochs * len(train)))
        vectors: list[FloatArray] = []
        labels: list[FloatArray] = []
        seen: set[int] = set()
        with Bar("remembering", self.epochs * len(train), show=self.epochs * len(train) > self.batch) as bar:
            for epoch in range(self.epochs):

                def prepare(place: int, image: Image.Image, mask: Mask, epoch: int = epoch) -> tuple[int, torch.Tensor, Mask]:
                    random = Random(sample_seed(self.seed, epoch, place))
                    return (place, *(crop(random, image, mask, spec) if self.crops == "random" else squeezed(image, mask, spec)))

                for batch in batched(bench.stream(train, prepare), self.batch):
                    features, grid = bench.features(torch.stack([pixels for _, pixels, _ in batch]))
                    unit = F.normalize(features, dim=-1).cpu().numpy()
                    shares = label_shares(patches_of(np.stack([mask for _, _, mask in batch]), grid), bench.data.num_classes)
                    for row, (place, _, _) in enumerate(batch):
                        chance = np.random.default_rng([self.seed, epoch, place]).random(len(shares[row]), np.float32)
                        kept = rare_first(shares[row], num_each, chance)
                        vectors.append(unit[row, kept])
                        labels.append(shares[row, kept])
                        seen.add(place)
                    bar.update(epoch * len(train) + batch[-1][0] + 1)
        if not sum(map(len, vectors)):
            raise DataError(f"no training image in {bench.data.root} can be read with a labelled pixel: {bench.bad_files.summary()}")
        return np.concatenate(vectors), np.concatenate(labels), len(seen)


def square(bench: Bench, image_px: int) -> ImageSpec:
    """Return how images are squeezed to ``image_px`` squared, 0 being the model's own size: its interpolation and its mean colour."""
    own = bench.encoder.image
    side = image_px or own.image_px
    return ImageSpec(image_px=side, resize="square", resize_px=side, interpolation=own.interpolation, mean=own.mean, std=own.std)


def squeezed(image: Image.Image, mask: Mask, spec: ImageSpec) -> tuple[torch.Tensor, Mask]:
    """Return the whole image as uint8 ``[3, H, W]`` and its mask, both at the square of ``spec``."""
    return resize(image, spec, "square"), nearest_size(mask, spec.image_px, spec.image_px)


def crop(random: Random, image: Image.Image, mask: Mask, spec: ImageSpec) -> tuple[torch.Tensor, Mask]:
    """Return a random part of both, squeezed, the colours jittered: half to all of the area, 3:4 to 4:3."""
    left, top, right, bottom = random_area(random, image.size, MIN_AREA)
    pixels, cut = squeezed(image.crop((left, top, right, bottom)), mask[top:bottom, left:right], spec)
    for change in (changes.adjust_brightness, changes.adjust_contrast, changes.adjust_saturation):
        if random.random() < 0.5:
            pixels = change(pixels, random.uniform(1 - JITTER, 1 + JITTER))
    if random.random() < 0.5:
        pixels = changes.adjust_hue(pixels, random.uniform(-JITTER, JITTER))
    return pixels, cut


def label_shares(patches: Mask, num_classes: int) -> FloatArray:
    """Return the share of each class in each patch's pixels, float32 ``[B, N, C]``, of their classes ``[B, N, pixels]``; void is no class."""
    num, num_patches, num_pixels = patches.shape
    owner = np.arange(num * num_patches)[:, None] * (num_classes + 1)
    counts = np.bincount((owner + patches.reshape(-1, num_pixels) - VOID).ravel(), minlength=num * num_patches * (num_classes + 1))
    shares: FloatArray = (counts.reshape(num, num_patches, -1)[..., 1:] / num_pixels).astype(np.float32)
    return shares


def rare_first(shares: FloatArray, num: int, chance: FloatArray) -> IntArray:
    """Return the patches of one image to remember, ``num`` at most, those of rare classes first.

    A patch scores the sum, over its classes, of how many of the image's patches show that class, times its ``chance`` in 0..1; the lowest
    are taken. Patches without a label are not.
    """
    shown = shares > 0  # [N, C]
    score = (shown @ shown.sum(axis=0)) * chance
    labelled = np.flatnonzero(shown.any(axis=1))
    rows: IntArray = labelled[np.argsort(score[labelled], kind="stable")][:num]
    return rows


def transfer(queries: FloatArray, memory: FloatArray, labels: FloatArray, *, k: int, temperature: float, device: str = "cpu") -> FloatArray:
    """Return class scores float32 ``[Q, C]``: the labels ``[M, C]`` of the K nearest in memory, by softmax(cosine / temperature).

    ``queries`` ``[Q, D]`` and ``memory`` ``[M, D]`` have unit length; neighbours are exact.
    """
    found = nearest(queries, memory, k, device=device)
    weight = np.exp((found.similarity - found.similarity[:, :1]).astype(np.float64) / temperature)
    weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)[:, None]  # [Q, 1, K]
    scores = np.empty((len(queries), labels.shape[1]), np.float32)
    num_rows = max(1, LABEL_BYTES // (4 * found.rows.shape[1] * labels.shape[1]))
    for first in range(0, len(queries), num_rows):
        part = slice(first, first + num_rows)
        scores[part] = np.matmul(weight[part], labels[found.rows[part]])[:, 0]
    return scores
