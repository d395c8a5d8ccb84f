"""What the ways to segment share: images and masks as a stream, patch features, classes at an image's own size, and what is shown of them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from sightline.data.images import BadFiles, BadImage, decode
from sightline.data.segments import nearest_size
from sightline.data.sets.segmentation import VOID, Layout, Mask, Pair, SegmentationSet, read, require_several_classes, spread
from sightline.data.transforms import eval_transform
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.base import DenseProtocol
from sightline.evaluation.dense.miou import Confusion
from sightline.evaluation.evaluation import Evaluation
from sightline.html import Picture
from sightline.nn.encoder import Encoder, evaluating
from sightline.progress import Bar
from sightline.runtime import Precision, num_cpus

BAND_BYTES = 2**26
"""One band of class scores at full size: all of ADE20K's largest image would be gigabytes."""


T = TypeVar("T")

Labeller = Callable[[Sequence[Image.Image]], list[Mask]]
"""From images to the class of each of their pixels."""


@dataclass(frozen=True)
class Fitted:
    """What a protocol made of the training images: how it labels others, on how many it stands, and what it chose."""

    label: Labeller
    num_train: int
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bench:
    """What a protocol works with: the frozen encoder, the data, where bad files are noted."""

    encoder: Encoder
    data: SegmentationSet
    bad_files: BadFiles
    precision: Precision

    @property
    def device(self) -> str:
        """Where exact search runs: on the encoder's GPU or on the processor."""
        return self.encoder.device.type if self.encoder.device.type == "cuda" else "cpu"

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return patch features float32 ``[B, N, D]`` after the last norm, and their grid, of uint8 images ``[B, 3, H, W]``."""
        images = eval_transform(self.encoder.image).normalise(pixels).to(self.encoder.device)
        with evaluating(self.encoder, self.precision):
            tokens = self.encoder.tokens(images)
        return tokens.patches.float(), tokens.grid

    def stream(self, pairs: Sequence[Pair], prepare: Callable[[int, Image.Image, Mask], T]) -> Iterator[T]:
        """Yield ``prepare(place, image, mask)`` of every pair that can be read, in order; others are noted. Decoding runs ahead, in threads."""

        def one(place: int) -> T | None:
            pair = pairs[place]
            reading = pair.image
            try:
                image = decode(pair.image)
                reading = pair.mask
                mask = self.data.mask(pair.mask, image.size)
            except BadImage as error:
                self.bad_files.add(reading, error)
                return None
            return prepare(place, image, mask)

        waiting: deque[Future[T | None]] = deque()
        with ThreadPoolExecutor(num_cpus(), "segment") as pool:
            for place in range(len(pairs)):
                waiting.append(pool.submit(one, place))
                if len(waiting) > 2 * num_cpus() and (first := waiting.popleft().result()) is not None:
                    yield first
            while waiting:
                if (first := waiting.popleft().result()) is not None:
                    yield first


@dataclass(frozen=True, kw_only=True)
class Segmentation(DenseProtocol):
    """A way to segment, measured by mIoU at each mask's own size."""

    learns: ClassVar[bool] = True

    layout: Layout = "auto"
    part: Literal["auto", "val", "test"] = "val"  # which part is measured; auto is test where there is one, else val
    max_train: int = 0  # training images at most, evenly spaced over the set; 0 is all
    max_images: int = 0  # the same of the measured ones
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_train, self.max_images, self.seed) < 0 or self.batch < 1:
            raise UsageError("max_train, max_images and seed are 0 or more, and batch is 1 or more")

    @property
    @abstractmethod
    def name(self) -> str:
        """What the catalog calls it."""

    @abstractmethod
    def fit(self, bench: Bench, train: Sequence[Pair]) -> Fitted:
        """Return what labels images, made from the training images.

        Raises:
            DataError: none of them can be read.
        """

    def train_pairs(self, data: SegmentationSet) -> tuple[Pair, ...]:
        """Return what there is to fit on."""
        return data.part("train")

    def run(
        self,
        encoder: Encoder,
        root: Path,
        bad_files: BadFiles,
        *,
        train_root: Path | None = None,
        precision: Precision = "auto",
        num_shown: int = 0,
    ) -> Evaluation:
        """See ``DenseProtocol.run``: ``miou`` and ``pixel_accuracy``, with each class among ``groups``."""
        data = read(root, self.layout)
        taught = data if train_root is None else read(train_root, self.layout)
        if taught.class_names != data.class_names:
            raise DataError(f"the classes of {train_root} (train) and {root} differ: take two parts of one set")
        part = self.part if self.part != "auto" else "test" if data.test else "val"
        train, measured = spread(self.train_pairs(taught), self.max_train), spread(data.part(part), self.max_images)
        for name, pairs, source in (("train", train, taught), (part, measured, data)):
            require_several_classes(source, pairs, name)
        for path, reason in {**dict(taught.unpaired), **dict(data.unpaired)}.items():
            bad_files.add(path, reason)
        bench = Bench(encoder, data, bad_files, precision)
        fitted = self.fit(bench, train)
        shown = _Shown(data.class_names, len(measured), num_shown)
        confusion, num_measured = count(bench, fitted.label, measured, self.batch, shown.add)
        if not confusion.counts.sum():
            raise DataError(f"no image of '{part}' in {root} can be read with a labelled pixel: {bad_files.summary() or 'all is void'}")
        return Evaluation(
            protocol=self.name,
            metrics={"miou": confusion.miou, "pixel_accuracy": confusion.pixel_accuracy},
            groups=confusion.groups(data.class_names),
            counts={**({"training images": fitted.num_train} if fitted.num_train else {}), "images": num_measured},
            settings={**dataclasses.asdict(self), "part": part, "layout": data.layout, **fitted.chosen},
            shown=tuple(shown.rows),
            colours=shown.colours(),
        )


Show = Callable[[int, str, Image.Image, Mask, Mask], None]
"""Takes the place, name, image, prediction and truth of what was measured."""


def count(bench: Bench, label: Labeller, measured: Sequence[Pair], batch: int, show: Show | None = None) -> tuple[Confusion, int]:
    """Return the pixels of ``measured`` counted by truth and prediction, and how many images could be read."""
    confusion, num_measured = Confusion(bench.data.num_classes), 0
    with Bar("segmenting", len(measured), show=len(measured) > batch) as bar:
        samples = bench.stream(measured, lambda place, image, mask: (place, image, mask))
        for some in batched(samples, batch):
            for (place, image, mask), predicted in zip(some, label([image for _, image, _ in some]), strict=True):
                confusion.update(mask, predicted)
                if show is not None:
                    show(place, measured[place].image.name, image, predicted, mask)
            num_measured += len(some)
            bar.update(some[-1][0] + 1, f"mIoU {100 * confusion.miou:.1f} %")
    return confusion, num_measured


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# --- sizes ------------------------------------------------------------------------------------------------------------------------


def classes_at(scores: torch.Tensor, height: int, width: int) -> Mask:
    """Return the class with the largest of bilinearly upsampled ``scores`` ``[C, h, w]``, int16 ``[height, width]``, band by band."""
    num_classes, num_rows, _ = scores.shape
    at = ((torch.arange(height, device=scores.device) + 0.5) * num_rows / height - 0.5).clamp(min=0)
    above = at.long()
    below = (above + 1).clamp(max=num_rows - 1)
    share = (at - above)[:, None]
    band = max(1, BAND_BYTES // (4 * num_classes * width))
    found = []
    for first in range(0, height, band):
        part = slice(first, first + band)
        tall = torch.lerp(scores[:, above[part]], scores[:, below[part]], share[part])  # [C, rows, w]
        wide = F.interpolate(tall[None], (tall.shape[1], width), mode="bilinear", align_corners=False)[0]
        found.append(wide.argmax(dim=0).to(torch.int16).cpu())
    return np.asarray(torch.cat(found).numpy())


def patches_of(masks: Mask, grid: tuple[int, int]) -> Mask:
    """Return the classes of each patch's pixels ``[B, N, pixels]`` of masks ``[B, H, W]``, resized where the grid does not divide them."""
    num, height, width = masks.shape
    tall, wide = max(1, height // grid[0]), max(1, width // grid[1])
    if (tall * grid[0], wide * grid[1]) != (height, width):
        masks = np.stack([nearest_size(mask, tall * grid[0], wide * grid[1]) for mask in masks])
    cut = masks.reshape(num, grid[0], tall, grid[1], wide).transpose(0, 1, 3, 2, 4)
    patches: Mask = cut.reshape(num, grid[0] * grid[1], tall * wide)
    return patches


def joined(patches: Mask, grid: tuple[int, int], tall: int) -> Mask:
    """Return the mask ``[H, W]`` that ``patches`` ``[N, pixels]`` of ``tall`` rows each are cut from."""
    cut = patches.reshape(grid[0], grid[1], tall, -1).transpose(0, 2, 1, 3)
    mask: Mask = cut.reshape(grid[0] * tall, -1)
    return mask


# --- what is shown ----------------------------------------------------------------------------------------------------------------


def colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class, the same whatever the number of classes: PASCAL VOC's, which takes the bits of the number in turns."""
    number, rgb = label + 1, [0, 0, 0]  # from 1: VOC's 0 is black
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (number >> channel & 1) << (7 - bit)
        number >>= 3
    return rgb[0], rgb[1], rgb[2]


def painted(image: Image.Image, mask: Mask) -> Image.Image:
    """Return the image in grey with the colour of each pixel's class over it; void stays grey."""
    palette = np.array([colour(label) for label in range(int(mask.max(initial=0)) + 1)], np.float32)
    grey = np.asarray(ImageOps.grayscale(image), np.float32)[..., None].repeat(3, axis=2)
    mixed = np.where((mask == VOID)[..., None], grey, 0.4 * grey + 0.6 * palette[np.maximum(mask, 0)])
    return Image.fromarray(mixed.round().astype(np.uint8))


class _Shown:
    """Rows of image, truth and prediction, for images evenly spaced over the measured ones, and what their colours mean."""

    def __init__(self, class_names: Sequence[str], num_images: int, num_shown: int) -> None:
        self.class_names = class_names
        num = min(num_images, max(0, num_shown // 3))
        self.places = set(np.linspace(0, max(0, num_images - 1), num).round().astype(int).tolist())
        self.rows: list[tuple[Picture, ...]] = []
        self.pixels = np.zeros(len(class_names), np.int64)

    def add(self, place: int, name: str, image: Image.Image, predicted: Mask, truth: Mask) -> None:
        if place not in self.places:
            return
        counted = truth != VOID
        right = float((predicted == truth)[counted].mean()) if counted.any() else 0.0
        self.rows.append(
            (
                Picture(image, name, "image"),
                Picture(painted(image, truth), name, "truth"),
                Picture(painted(image, predicted), name, f"prediction, {100 * right:.0f} % of the pixels right"),
            )
        )
        for mask in (predicted, truth[counted]):
            self.pixels += np.bincount(mask.ravel(), minlength=len(self.pixels))

    def colours(self) -> tuple[tuple[str, str], ...]:
        """Return the classes that are seen, the commonest first, with their colours; void, which stays grey, last."""
        commonest = [int(label) for label in np.argsort(-self.pixels, kind="stable") if self.pixels[label]]
        named = [(self.class_names[label], "#{:02x}{:02x}{:02x}".format(*colour(label))) for label in commonest]
        return (*named, ("not counted", "#808080")) if named else ()
