"""Loading: from rows to batches, the same ones whatever the number of processes; a bad file is recorded and never stops a run."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sightline.contracts import Batch, IntArray
from sightline.data.images import BadFiles, BadImage, decode
from sightline.data.records import Records
from sightline.data.samplers import Sampler
from sightline.data.transforms import CropTransform, Pixels, Transform
from sightline.errors import DataError

Source = Records | Sequence[Path | bytes]
"""What can be decoded: records, or files, or the contents of files."""

BATCHES_AHEAD = 2
"""Batches decoded before they are asked for: enough to overlap with compute, few enough to keep memory flat."""


def open_image(records: Records, row: int, short_px: int | None = None) -> Image.Image:
    """Return a row's image, upright RGB, cropped to its box if it has one.

    Raises:
        BadImage: the file gives no image, or the box lies outside it.
    """
    box = None if records.boxes is None or np.isnan(records.boxes[row]).any() else records.boxes[row]
    if box is None:
        return decode(records.file(row), short_px=short_px, deep=records.deep)
    image = decode(records.file(row), deep=records.deep)  # at full size: the box is in the file's own pixels
    left, top = max(0, round(float(box[0]))), max(0, round(float(box[1])))
    right, bottom = min(image.width, round(float(box[2]))), min(image.height, round(float(box[3])))
    if right <= left or bottom <= top:
        raise BadImage("box outside", f"the image is {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


# --- training ---------------------------------------------------------------------------------------------------------------------


class _Loaded(NamedTuple):
    """What a worker hands over: pixels uint8 [B, 3, H, W], or of crops [V, B, 3, h, w] for each size; rows, the bad files met, or the reason to stop."""

    pixels: torch.Tensor | Sequence[torch.Tensor]
    rows: torch.Tensor
    bad: list[tuple[str, str]]
    stop: str = ""


class _Steps(Dataset[Any]):
    """The steps of a run; item ``step`` is this rank's share of the step's batch."""

    def __init__(
        self, records: Records, sampler: Sampler, transform: Transform | CropTransform, seed: int, rank: int, world_size: int
    ) -> None:
        self.records, self.sampler, self.transform = records, sampler, transform
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def __getitem__(self, step: int) -> _Loaded:
        batch = self.sampler.batch(step)
        share = len(batch) // self.world_size
        images: list[Pixels] = []
        rows: list[int] = []
        bad: list[tuple[str, str]] = []
        for position in range(self.rank * share, (self.rank + 1) * share):
            try:
                row, pixels = self._read(batch, position, step, bad)
            except DataError as error:
                # Given as a value: raised here, it would reach the person with a worker's traceback wrapped round it.
                return _Loaded(torch.empty(0), torch.empty(0), bad, str(error))
            images.append(pixels)
            rows.append(row)
        return _Loaded(_stacked(images), torch.tensor(rows), bad)

    def _read(self, batch: IntArray, position: int, step: int, bad: list[tuple[str, str]]) -> tuple[int, Pixels]:
        """Return the image of a position; for a bad file, of the next readable row of its class, so far as possible one not in the batch.

        It depends on the global batch alone, so every split of it among processes makes the same choice.
        """
        for row in self._candidates(batch, int(batch[position])):
            try:
                image = open_image(self.records, row, self.transform.short_px)
            except BadImage as error:
                bad.append((str(self.records.file(row)), str(error)))
                continue
            return row, self.transform.pixels(image, sample_seed(self.seed, step, position))
        name = "" if self.records.labels is None else f" of class '{self.records.class_names[self.records.labels[batch[position]]]}'"
        raise DataError(f"no image{name} can be read (last: {bad[-1][0]}: {bad[-1][1]}): repair its files or leave it out")

    def _candidates(self, batch: IntArray, row: int) -> Iterator[int]:
        yield row
        labels = self.records.labels
        peers = np.arange(len(self.records)) if labels is None else np.flatnonzero(labels == labels[row])
        after = np.roll(peers, -int(np.searchsorted(peers, row)))[1:]
        taken = np.isin(after, batch)
        yield from map(int, after[~taken])
        yield from map(int, after[taken])


def _stacked(images: list[Pixels]) -> Pixels:
    """Return images ``[3, H, W]`` as one batch, or crops ``[V, 3, h, w]`` as one batch for each size."""
    if isinstance(images[0], torch.Tensor):
        return torch.stack([image for image in images if isinstance(image, torch.Tensor)])
    return tuple(torch.stack(crops, dim=1) for crops in zip(*images, strict=True))


def sample_seed(seed: int, step: int, position: int) -> int:
    """Return the seed of one sample's augmentation, from the run's seed, the step and the position in the global batch."""
    return int(np.random.SeedSequence([seed, step, position, 3]).generate_state(1, np.uint64)[0])


def train_batches(
    records: Records,
    sampler: Sampler,
    transform: Transform | CropTransform,
    *,
    start_step: int = 0,
    num_steps: int,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    bad_files: BadFiles | None = None,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield the batches of steps ``start_step`` to ``start_step + num_steps - 1``, float32, on ``device`` (the CPU where None).

    The sampler gives the global batch; rank r takes its r-th contiguous share, and each sample's augmentation is seeded by its
    position in the global batch, so two processes together see what one alone would. A bad file is noted in ``bad_files`` and
    replaced by the next readable image of its class. A transform that makes crops fills ``Batch.crops``.

    Raises:
        DataError: the batch does not divide among the processes, or a class has no readable image.
    """
    if sampler.batch_size % world_size:
        raise DataError(
            f"a batch of {sampler.batch_size} does not divide among {world_size} processes: change classes_per_batch or images_per_class (with tuples: tuples_per_batch)"
        )
    where = device or torch.device("cpu")
    loader = DataLoader(
        _Steps(records, sampler, transform, seed, rank, world_size),
        batch_size=None,
        sampler=range(start_step, start_step + num_steps),
        num_workers=num_workers,
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        pin_memory=where.type == "cuda",
        worker_init_fn=_quiet_interrupt,
    )
    labels = torch.zeros(len(records), dtype=torch.int64) if records.labels is None else torch.from_numpy(records.labels)
    for loaded in loader:
        if bad_files is not None:
            for path, reason in loaded.bad:
                bad_files.add(path, reason)
        if loaded.stop:
            raise DataError(loaded.stop)
        names = labels[loaded.rows].to(where, non_blocking=True)
        if isinstance(loaded.pixels, torch.Tensor):
            yield Batch(transform.normalise(loaded.pixels.to(where, non_blocking=True)), names, loaded.rows)
        else:
            crops = tuple(transform.normalise(pixels.to(where, non_blocking=True)) for pixels in loaded.pixels)
            yield Batch.of_crops(crops, names, loaded.rows)


def _quiet_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the group: the parent alone answers it and ends the workers, which would each print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- embedding --------------------------------------------------------------------------------------------------------------------


def decode_stream(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    num_threads: int,
    bad_files: BadFiles | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Yield (rows int64 ``[b]``, images float32 ``[b, 3, H, W]``) in order, decoded in threads ahead of the caller's compute.

    Every batch but the last is full. Bad files are left out and noted in ``bad_files``; ``rows`` tells which images came. At most
    ``BATCHES_AHEAD`` batches are held, so memory does not grow with the collection.

    Raises:
        DataError: not one image could be read.
    """
    where = device or torch.device("cpu")
    rows: list[int] = []
    images: list[torch.Tensor] = []
    num_read, first_reason = 0, ""
    for row, outcome in _in_order(source, transform, num_threads, BATCHES_AHEAD * batch_size):
        if isinstance(outcome, BadImage):
            path = _name(source, row)
            first_reason = first_reason or f"{path}: {outcome}"
            if bad_files is not None:
                bad_files.add(path, outcome)
            continue
        rows.append(row)
        images.append(outcome)
        num_read += 1
        if len(rows) == batch_size:
            yield _finish(rows, images, transform, where)
            rows, images = [], []
    if rows:
        yield _finish(rows, images, transform, where)
    if not num_read and len(source):
        raise DataError(f"none of the {len(source):,} images can be read (first: {first_reason})")


def _in_order(source: Source, transform: Transform, num_threads: int, ahead: int) -> Iterator[tuple[int, torch.Tensor | BadImage]]:
    def read(row: int) -> torch.Tensor | BadImage:
        try:
            if isinstance(source, Records):
                image = open_image(source, row, transform.short_px)
            else:
                image = decode(source[row], short_px=transform.short_px)
        except BadImage as error:
            return error
        return transform.pixels(image, 0)

    waiting: deque[tuple[int, Future[torch.Tensor | BadImage]]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for row in range(len(source)):
            waiting.append((row, pool.submit(read, row)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _name(source: Source, row: int) -> str:
    if isinstance(source, Records):
        return str(source.file(row))
    item = source[row]
    return str(item) if isinstance(item, Path) else f"image {row}"


def _finish(rows: list[int], images: list[torch.Tensor], transform: Transform, where: torch.device) -> tuple[IntArray, torch.Tensor]:
    pixels = torch.from_numpy(np.stack([image.numpy() for image in images]))  # NumPy: see normalise
    pixels = pixels.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else pixels.to(where)
    return np.array(rows, dtype=np.int64), transform.normalise(pixels)
