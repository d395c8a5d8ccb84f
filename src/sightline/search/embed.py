"""Embedding many files: decoding overlaps the model's work, memory stays flat, bad files are skipped and named."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from sightline.contracts import Descriptors, FloatArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.nn.encoder import Encoder
from sightline.progress import Bar, Meter
from sightline.runtime import Precision, keep_freed_memory, num_cpus

BATCH_SIZE = 64

CPU_BATCH_SIZE = 16
"""Images a core takes at once: of 64 the activations outgrow the caches and the heap (ViT-Ti/16: 31 ms an image on one core for 25)."""

MAX_CPU_BATCHES = 8
"""Batches in work at a time on a CPU; each holds its own activations (19 MB a tensor in ViT-S/16), so of more cores each gets several."""

Batches = Iterator[tuple[IntArray, torch.Tensor]]


def embed_stream(
    encoder: Encoder,
    records: Records,
    bad_files: BadFiles,
    *,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "auto",
    show: bool = True,
    what: str = "embedding",
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield (rows int64 ``[B]``, unit-length descriptors float32 ``[B, D]``) in the records' order; bad files are left out and recorded.

    ``B`` is at most ``batch_size``, and on a CPU at most ``CPU_BATCH_SIZE``.
    """
    on_cpu = encoder.device.type == "cpu"
    keep_freed_memory(encoder.device)
    meter, done = Meter(), 0
    with Bar(what, len(records), show=show and len(records) > batch_size) as bar:
        images_of = decode_stream(
            records,
            eval_transform(encoder.image),
            batch_size=min(batch_size, CPU_BATCH_SIZE) if on_cpu else batch_size,
            num_threads=num_cpus(),
            bad_files=bad_files,
            device=encoder.device,
        )
        for rows, vectors in (_on_cores if on_cpu else _in_turn)(encoder, images_of, precision):
            done = int(rows[-1]) + 1
            meter.num_images += len(rows)
            bar.update(done, f"{meter.num_images / meter.elapsed_s:.1f} images/s")
            yield rows, vectors


def _in_turn(encoder: Encoder, batches: Batches, precision: Precision) -> Iterator[tuple[IntArray, FloatArray]]:
    for rows, images in batches:
        yield rows, encoder.embed_batch(images, precision=precision)


def _on_cores(encoder: Encoder, batches: Batches, precision: Precision) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield the descriptors of each batch, in order, with whole batches beside each other.

    Splitting every operation among the cores makes each wait for the last one hundreds of times a batch, and decoding (or anybody
    else's work) holds that one up. ViT-Ti/16 with 1600 x 1200 photographs, decoding included, on two cores that others used too: 53 ms
    of processor time an image that way, 35 ms this way.
    """
    num_threads, was_training = torch.get_num_threads(), encoder.training
    num_batches = min(num_threads, MAX_CPU_BATCHES)
    encoder.eval()  # here, once: embed_batch would switch the mode under another thread's feet
    waiting: deque[tuple[IntArray, Future[FloatArray]]] = deque()
    pool = ThreadPoolExecutor(num_batches, "embed", initializer=torch.set_num_threads, initargs=(num_threads // num_batches,))
    try:
        for rows, images in batches:
            waiting.append((rows, pool.submit(encoder.embed_batch, images, precision=precision)))
            if len(waiting) > num_batches:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # the matrix library has one number for the whole process
        encoder.train(was_training)


def embed_records(
    encoder: Encoder,
    records: Records,
    bad_files: BadFiles,
    *,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "auto",
    show: bool = True,
    what: str = "embedding",
) -> Descriptors:
    """Return the descriptors of every readable record; ``rows`` says which these are.

    Raises:
        DataError: not one file could be read.
    """
    vectors, rows = np.empty((len(records), encoder.dim), np.float32), np.empty(len(records), np.int64)
    num_done = 0  # filled in place: parts joined at the end would take the memory of a million descriptors twice
    for part, descriptors in embed_stream(encoder, records, bad_files, batch_size=batch_size, precision=precision, show=show, what=what):
        vectors[num_done : num_done + len(part)], rows[num_done : num_done + len(part)] = descriptors, part
        num_done += len(part)
    return Descriptors(vectors[:num_done], rows[:num_done])
