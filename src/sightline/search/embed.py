"""Embedding many files: decoding overlaps the model's work, memory stays flat, bad files are skipped and named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sightline.contracts import Descriptors, FloatArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.nn.encoder import Encoder
from sightline.progress import Bar, Meter
from sightline.runtime import Precision, num_cpus

BATCH_SIZE = 64


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
    """Yield (rows int64 ``[B]``, unit-length descriptors float32 ``[B, D]``) in the records' order; bad files are left out and recorded."""
    meter, done = Meter(), 0
    with Bar(what, len(records), show=show and len(records) > batch_size) as bar:
        images_of = decode_stream(
            records,
            eval_transform(encoder.image),
            batch_size=batch_size,
            num_threads=num_cpus(),
            bad_files=bad_files,
            device=encoder.device,
        )
        for rows, images in images_of:
            vectors = encoder.embed_batch(images, precision=precision)
            done = int(rows[-1]) + 1
            meter.num_images += len(rows)
            bar.update(done, f"{meter.num_images / meter.elapsed_s:.1f} images/s")
            yield rows, vectors


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
    parts = list(embed_stream(encoder, records, bad_files, batch_size=batch_size, precision=precision, show=show, what=what))
    return Descriptors(np.concatenate([vectors for _, vectors in parts]), np.concatenate([rows for rows, _ in parts]))
