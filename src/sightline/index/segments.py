"""Sealed segments: immutable vectors on disk, memory-mapped, with the ids of their rows beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.errors import IndexStoreError
from sightline.index.base import SegmentInfo, check_vectors
from sightline.index.header import sync_folder
from sightline.index.store import SegmentRow

FOLDER = "segments"
BLOCK_BYTES = 1 << 22
FLOAT32, FLOAT16 = "<f4", "<f2"
SPOT_CHECKS = 64
"""Rows read when a segment is opened: enough to notice a file of zeros; ``verify`` reads them all."""


def vectors_file(folder: Path, number: int) -> Path:
    """Return where the vectors of a segment are: a ``.npy`` ``[M, D]``, float32 or, of patches, float16."""
    return folder / FOLDER / f"{number:06d}.vectors.npy"


def ids_file(folder: Path, number: int) -> Path:
    """Return where the ids of a segment's rows are: an int64 ``.npy`` ``[M]``, ascending."""
    return folder / FOLDER / f"{number:06d}.ids.npy"


def ann_file(folder: Path, number: int) -> Path:
    """Return where the derived search structure of a segment is."""
    return folder / FOLDER / f"{number:06d}.faiss"


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment as one generation sees it: ``ids`` ``[M]`` ascending, ``vectors`` ``[M, D]`` on disk, ``live`` ``[M]``."""

    row: SegmentRow
    ids: IntArray
    vectors: FloatArray
    live: BoolArray
    file: Path
    num_live: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_live", int(self.live.sum()))

    def rows_of(self, ids: IntArray, bits: int = 0) -> IntArray:
        """Return the living rows that hold ``ids`` (ascending), ascending; ids that are not here are left out.

        With ``bits`` they are the rows of whole items: all whose number, without its last ``bits`` bits, is among ``ids``.
        """
        if bits:
            start, end = np.searchsorted(self.ids, ids << bits), np.searchsorted(self.ids, (ids + 1) << bits)
            of_items = concat_ranges(start, end - start)
            living: IntArray = of_items[self.live[of_items]]
            return living
        rows = np.searchsorted(self.ids, ids)
        rows = rows[self.ids[np.minimum(rows, len(self.ids) - 1)] == ids]
        found: IntArray = rows[self.live[rows]]
        return found


def concat_ranges(start: IntArray, num: IntArray) -> IntArray:
    """Return the numbers ``start, start + 1, ...``, ``num`` of them, of each pair, one run after the other."""
    before = np.cumsum(num) - num
    counted: IntArray = np.arange(int(num.sum())) + np.repeat(start - before, num)
    return counted


def describe(segment: Segment, sound: bool) -> SegmentInfo:
    """Return what is told of a segment, whose search structure is ``sound`` or is not used."""
    row = segment.row
    kind = row.ann_kind if sound and row.ann_kind else "exact"
    dead = row.rows - segment.num_live
    if kind == "exact":
        return SegmentInfo(row.rows, dead, kind, None, 1.0, None, 1.0)
    return SegmentInfo(row.rows, dead, kind, row.parameter, row.recall_at_10 or 0.0, row.calibrated, row.recall_filtered, row.depth)


def write_segment(
    folder: Path, number: int, dim: int, parts: Iterable[tuple[IntArray, FloatArray]], num_rows: int, dtype: str = FLOAT32
) -> SegmentRow:
    """Write (ids, vectors) parts, ascending by id and ``num_rows`` in all, as durable files, and return what to publish.

    Nothing points at the files yet: killed before ``Store.publish``, they are litter that the next writer sweeps.
    """
    ids_parts: list[IntArray] = []

    def blocks() -> Iterator[bytes]:
        for ids, vectors in parts:
            ids_parts.append(ids)
            yield np.ascontiguousarray(vectors, dtype=dtype).tobytes()

    vectors_sha256 = _write_npy(vectors_file(folder, number), dtype, (num_rows, dim), blocks())
    ids = np.concatenate(ids_parts)
    if len(ids) != num_rows or np.any(np.diff(ids) <= 0):
        raise AssertionError("a segment's ids must ascend and be as many as announced")
    ids_sha256 = _write_npy(ids_file(folder, number), "<i8", (num_rows,), iter([ids.astype("<i8").tobytes()]))
    sync_folder(folder / FOLDER)
    return SegmentRow(number, num_rows, vectors_sha256, ids_sha256)


def _write_npy(file: Path, dtype: str, shape: tuple[int, ...], blocks: Iterator[bytes]) -> str:
    draft = file.with_name(file.name + ".tmp")
    with draft.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
        out.flush()
        digest = hashlib.sha256(draft.read_bytes())
        for block in blocks:
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return digest.hexdigest()


def open_segment(folder: Path, row: SegmentRow, dim: int, dead_rows: IntArray) -> Segment:
    """Return a published segment, its vectors mapped, not read.

    Raises:
        DamagedError: a file is missing or not what was published; see ``snapshot.current`` for the innocent reason.
    """
    ids = _map(ids_file(folder, row.number), ("<i8",), (row.rows,))
    file = vectors_file(folder, row.number)
    vectors = _map(file, (FLOAT32, FLOAT16), (row.rows, dim))
    try:
        check_vectors(np.asarray(vectors[:: max(1, row.rows // SPOT_CHECKS)], np.float32), dim)
    except IndexStoreError as error:
        raise damaged(file) from error
    live = np.ones(row.rows, dtype=np.bool_)
    live[dead_rows] = False
    return Segment(row, np.array(ids), vectors, live, file)


def _map(file: Path, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise damaged(file) from error
    if found.dtype not in [np.dtype(dtype) for dtype in dtypes] or found.shape != shape:
        raise damaged(file)
    return np.asarray(found)  # a plain view of the mapping: np.memmap's own bookkeeping costs more than a small product


class DamagedError(IndexStoreError):
    """A file of a segment is missing or is not what was published, and cannot be rebuilt."""


def damaged(file: Path) -> DamagedError:
    """Return the error for a file that cannot be rebuilt."""
    return DamagedError(f"'{file}' is damaged: restore it from a copy, or forget its images with Index.repair() and index them again")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def problems(folder: Path, segment: Segment) -> list[str]:
    """Return what is wrong with a segment's files, one line each."""
    row = segment.row
    found = []
    for file, sha256 in ((vectors_file(folder, row.number), row.vectors_sha256), (ids_file(folder, row.number), row.ids_sha256)):
        if sha256_of(file) != sha256:
            found.append(f"{FOLDER}/{file.name}: its content is not what was published (SHA-256 differs)")
    try:
        for start in range(0, row.rows, 65_536):
            check_vectors(np.asarray(segment.vectors[start : start + 65_536], np.float32), segment.vectors.shape[1])
    except IndexStoreError:
        found.append(f"{FOLDER}/{vectors_file(folder, row.number).name}: a vector does not have unit length")
    return found


def sweep(folder: Path, published: Iterable[int]) -> None:
    """Delete files that no published segment owns: what a killed writer left (writers only)."""
    kept = {f"{number:06d}" for number in published}
    for file in sorted((folder / FOLDER).iterdir()):
        if file.name.partition(".")[0] not in kept or file.suffix == ".tmp":
            file.unlink()
