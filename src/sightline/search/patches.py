"""The patches of many files: decoding overlaps the model's work, pictures of one size go together, bad files are skipped and named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from sightline.contracts import Box, IntArray, PatchFeatures
from sightline.data.images import BadFiles, BadImage, decode, own_size, read_bytes
from sightline.data.loading import open_image
from sightline.data.records import Records
from sightline.data.transforms import WholeTransform
from sightline.nn.encoder import Encoder
from sightline.progress import Bar, Meter
from sightline.runtime import Precision, num_cpus

PICTURES_AT_ONCE = 32
"""Pictures that are decoded while those before them go through the network, and that are acknowledged together."""

BATCH_SIZE = 16

Decoded = tuple[torch.Tensor, Box]


def patch_stream(
    encoder: Encoder,
    records: Records,
    bad_files: BadFiles,
    *,
    short_px: int = 0,
    precision: Precision = "auto",
    show: bool = True,
    what: str = "patches",
) -> Iterator[tuple[IntArray, list[PatchFeatures]]]:
    """Yield (rows int64 ``[B]``, their patches) in the records' order; bad files are left out and recorded.

    ``B`` is at most ``PICTURES_AT_ONCE``. Of a record with a box the grid covers the box, in the pixels of its file.

    Raises:
        ModelError: the network does not take the size that an image comes to.
    """
    transform = encoder.whole(short_px)
    meter = Meter()
    pool = ThreadPoolExecutor(num_cpus(), thread_name_prefix="decode")

    def ahead(start: int) -> list[Future[Decoded | BadImage]]:
        return [pool.submit(_decode, records, row, transform) for row in range(start, min(start + PICTURES_AT_ONCE, len(records)))]

    try:
        with Bar(what, len(records), show=show and len(records) > PICTURES_AT_ONCE) as bar:
            waiting = ahead(0)
            for start in range(0, len(records), PICTURES_AT_ONCE):
                now, waiting = waiting, ahead(start + PICTURES_AT_ONCE)
                good: dict[int, Decoded] = {}
                for row, future in enumerate(now, start):
                    outcome = future.result()
                    if isinstance(outcome, BadImage):
                        bad_files.add(records.file(row), outcome)
                    else:
                        good[row] = outcome
                found = _through(encoder, transform, good, precision)
                meter.num_images += len(good)
                bar.update(start + len(now), f"{meter.num_images / meter.elapsed_s:.1f} images/s")
                if found:
                    yield np.array(list(good), dtype=np.int64), [found[row] for row in good]
    finally:
        pool.shutdown(cancel_futures=True)


def _through(encoder: Encoder, transform: WholeTransform, good: dict[int, Decoded], precision: Precision) -> dict[int, PatchFeatures]:
    of_size: dict[torch.Size, list[int]] = defaultdict(list)
    for row, (pixels, _) in good.items():
        of_size[pixels.shape].append(row)
    found: dict[int, PatchFeatures] = {}
    for rows in of_size.values():
        for start in range(0, len(rows), BATCH_SIZE):
            part = rows[start : start + BATCH_SIZE]
            images = transform.normalise(torch.stack([good[row][0] for row in part]))
            vectors, grid = encoder.patch_batch(images, precision=precision)
            found |= {row: PatchFeatures(mine, grid, good[row][1]) for row, mine in zip(part, vectors, strict=True)}
    return found


def _decode(records: Records, row: int, transform: WholeTransform) -> Decoded | BadImage:
    try:
        if records.boxes is not None and not np.isnan(records.boxes[row]).any():
            image = open_image(records, row)
            left, top = (max(0, round(float(side))) for side in records.boxes[row][:2])
            frame = (left, top, left + image.width, top + image.height)
        else:
            content = read_bytes(records.file(row))
            image = decode(content, short_px=transform.short_px, deep=records.deep)
            frame = (0, 0, *own_size(content, image))
    except BadImage as error:
        return error
    return transform.pixels(image), (float(frame[0]), float(frame[1]), float(frame[2]), float(frame[3]))
