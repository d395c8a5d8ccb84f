"""From annotated images to batches for a detector: resized, mirrored, padded, with boxes and masks that follow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sightline.contracts import BoolArray, DetectionBatch, Instances, IntArray
from sightline.data.images import BadFiles, BadImage, decode
from sightline.data.loading import sample_seed
from sightline.data.samplers import ShuffleSampler
from sightline.data.sets.coco import Annotated, Mask, Polygons, Runs, decode_runs, unpack_lengths
from sightline.data.transforms import EvalTransform, to_pixels
from sightline.errors import DataError, UsageError
from sightline.recipe import ImageSpec

T = TypeVar("T")
MAX_ASPECT = 16
"""An image longer than this many times its short side is resized by its long side: a strip would otherwise fill the memory."""


def mask_tools() -> Any:
    """Return pycocotools' mask module.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError("detection needs pycocotools, which is not installed: pip install 'sightline[detect]'") from error
    return mask


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """To which size images are brought: ``short`` keeps the aspect (short side ``image_px``, long side at most ``long_px``), ``square`` does not.

    In training the short side is drawn evenly from ``least_px`` to ``image_px`` (0: always ``image_px``).
    """

    image_px: int
    long_px: int = 0  # 0 is no limit
    least_px: int = 0
    resize: Literal["short", "square"] = "short"

    def size(self, width: int, height: int, random: Random | None = None) -> tuple[int, int]:
        """Return (height, width) in pixels of an image that is ``width`` x ``height``; with ``random`` one of training."""
        short = self.image_px if random is None or not self.least_px else random.randint(self.least_px, self.image_px)
        if self.resize == "square":
            return short, short
        limit = self.long_px or MAX_ASPECT * short
        scale = min(short / min(width, height), limit / max(width, height))
        return max(1, round(height * scale)), max(1, round(width * scale))


def rasterise(masks: list[Mask], size: tuple[int, int], scale: tuple[float, float]) -> torch.Tensor:
    """Return masks as uint8 ``[K, H, W]`` of ``size`` (height, width), their pixels multiplied by ``scale`` (x, y); outlines are scaled before they are filled."""
    tools = mask_tools()
    found = np.zeros((len(masks), *size), np.uint8)
    for place, mask in enumerate(masks):
        if isinstance(mask, Polygons):
            outlines = [(outline * np.array(scale, np.float32)).reshape(-1).astype(np.float64) for outline in mask.outlines]
            found[place] = unpacked(tools.merge(tools.frPyObjects(outlines, *size)))
        else:
            whole = decode_runs(mask).astype(np.uint8)
            found[place] = np.asarray(Image.fromarray(whole).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return torch.from_numpy(found)


def packed(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask of an image of ``size`` (height, width) as pycocotools keeps it."""
    tools = mask_tools()
    if isinstance(mask, Polygons):
        outlines = [outline.reshape(-1).astype(np.float64) for outline in mask.outlines]
        return dict(tools.merge(tools.frPyObjects(outlines, *size)))
    return dict(tools.encode(np.asfortranarray(decode_runs(mask).astype(np.uint8))))


def unpacked(mask: Mapping[str, Any]) -> BoolArray:
    """Return the mask ``[H, W]`` that pycocotools packed. (Its own decoding is a deprecated use of NumPy, which warns of it.)"""
    height, width = mask["size"]
    return decode_runs(Runs(unpack_lengths(mask["counts"].decode("ascii")), (height, width)))


def open_annotated(data: Annotated, row: int) -> Image.Image:
    """Return an image at full size.

    Raises:
        BadImage: the file gives none, or one of another size than was annotated.
    """
    image = decode(data.file(row))
    expected = tuple(int(side) for side in data.sizes[row])
    if image.size != expected:
        raise BadImage(
            "other size", f"it is {image.width} x {image.height} pixels, and its objects are given for {expected[0]} x {expected[1]}"
        )
    return image


@dataclass(frozen=True)
class _Prepared:
    """One image: uint8 ``[3, h, w]`` and the objects in it."""

    row: int
    pixels: torch.Tensor
    instances: Instances


def _prepare(
    data: Annotated, row: int, sizing: Sizing, spec: ImageSpec, *, with_masks: bool, random: Random | None, flip: float
) -> _Prepared:
    image = open_annotated(data, row)
    height, width = sizing.size(*image.size, random)
    pixels = torch.nn.functional.interpolate(to_pixels(image)[None], (height, width), mode=spec.interpolation, antialias=True)[0]
    scale = width / image.width, height / image.height
    among = np.arange(len(data.labels))[data.objects(row)]
    among = among[~data.is_crowd[among]]  # a crowd is no example of one object
    boxes = torch.from_numpy(data.boxes[among] * np.tile(np.array(scale, np.float32), 2))
    masks = rasterise([mask for place in among if (mask := data.masks[place]) is not None], (height, width), scale) if with_masks else None
    if random is not None and random.random() < flip:
        pixels = pixels.flip(2)
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        masks = None if masks is None else masks.flip(2)
    return _Prepared(row, pixels, Instances(boxes, torch.from_numpy(data.labels[among]), masks))


def collate(items: list[_Prepared], spec: ImageSpec, multiple_px: int) -> DetectionBatch:
    """Return the batch of some images, padded at the right and below with the mean colour to one size, a multiple of ``multiple_px``."""
    sizes = tuple((int(item.pixels.shape[1]), int(item.pixels.shape[2])) for item in items)
    height, width = (math.ceil(max(side) / multiple_px) * multiple_px for side in zip(*sizes, strict=True))
    colour = np.array(spec.mean_colour, np.uint8).reshape(3, 1, 1)
    canvas: npt.NDArray[np.uint8] = np.broadcast_to(colour, (len(items), 3, height, width)).copy()
    for place, item in enumerate(items):
        canvas[place, :, : sizes[place][0], : sizes[place][1]] = item.pixels.numpy()
    images = EvalTransform(spec).normalise(torch.from_numpy(canvas))
    instances = tuple(_padded(item.instances, height, width) for item in items)
    rows = torch.tensor([item.row for item in items])
    return DetectionBatch(images, torch.zeros_like(rows), rows, sizes=sizes, instances=instances)


def _padded(instances: Instances, height: int, width: int) -> Instances:
    if instances.masks is None:
        return instances
    missing = (0, width - instances.masks.shape[2], 0, height - instances.masks.shape[1])
    return Instances(instances.boxes, instances.labels, torch.nn.functional.pad(instances.masks, missing))


def training_batches(
    data: Annotated,
    sizing: Sizing,
    spec: ImageSpec,
    *,
    batch: int,
    first_step: int,
    num_steps: int,
    seed: int,
    flip: float,
    with_masks: bool,
    multiple_px: int,
    num_threads: int,
    bad_files: BadFiles,
) -> Iterator[DetectionBatch]:
    """Yield the batches of steps ``first_step`` on: shuffled passes over the images that show an object; a bad file gives way to the next image.

    Raises:
        DataError: no image shows an object, or none can be read.
    """
    showing = np.unique(data.image_of[~data.is_crowd])
    if not len(showing):
        raise DataError(f"no image in {data.root} shows an object to learn from: get the annotations again")
    sampler = ShuffleSampler(len(showing), batch, seed)

    def sample(number: int) -> _Prepared:
        step, position = divmod(number, batch)
        start, reason = int(sampler.batch(step)[position]), ""
        for row in np.roll(showing, -start):
            random = Random(sample_seed(seed, step, position))
            try:
                return _prepare(data, int(row), sizing, spec, with_masks=with_masks, random=random, flip=flip)
            except BadImage as error:
                reason = f"{data.file(int(row))}: {error}"
                bad_files.add(data.file(int(row)), error)
        raise DataError(f"none of the {len(showing):,} training images can be read (last: {reason})")

    items: list[_Prepared] = []
    for item in in_threads(sample, np.arange(first_step * batch, (first_step + num_steps) * batch), num_threads, 2 * batch):
        items.append(item)
        if len(items) == batch:
            yield collate(items, spec, multiple_px)
            items = []


def evaluation_batches(
    data: Annotated, sizing: Sizing, spec: ImageSpec, *, batch: int, multiple_px: int, num_threads: int, bad_files: BadFiles
) -> Iterator[DetectionBatch]:
    """Yield every image once, in order; bad files are left out and noted, and ``rows`` tell which came."""

    def sample(row: int) -> _Prepared | None:
        try:
            return _prepare(data, row, sizing, spec, with_masks=False, random=None, flip=0.0)
        except BadImage as error:
            bad_files.add(data.file(row), error)
            return None

    items: list[_Prepared] = []
    for item in in_threads(sample, np.arange(len(data)), num_threads, 2 * batch):
        items += [item] if item is not None else []
        if len(items) == batch:
            yield collate(items, spec, multiple_px)
            items = []
    if items:
        yield collate(items, spec, multiple_px)


def in_threads(read: Callable[[int], T], numbers: IntArray, num_threads: int, ahead: int) -> Iterator[T]:
    """Yield ``read`` of each number in order, done in threads up to ``ahead`` before it is asked for."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for number in numbers:
            waiting.append(pool.submit(read, int(number)))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
