"""Blocks of similarities, and counting in them: the one hot loop of evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.contracts import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**27
"""One block of similarities: large enough for the BLAS to run at full speed, far below the vectors it came from."""

NUM_TO_SORT = 14
"""From this many thresholds a row is sorted once: it costs as much as 13 countings (60,502 columns, AVX-512 sort of NumPy 2)."""


@dataclass(frozen=True)
class RowBlock:
    """Similarities ``[B, G]`` of the queries ``rows`` (int64 ``[B]``) to the whole gallery, in a buffer that the next block reuses."""

    rows: IntArray
    similarity: torch.Tensor

    def hide(self, columns: IntArray) -> None:
        """Make one gallery row of each query, e.g. itself, less similar than any other."""
        import torch

        where = self.similarity.device
        self.similarity[torch.arange(len(self.rows), device=where), torch.from_numpy(columns).to(where)] = -torch.inf


def similarity_blocks(
    queries: FloatArray, gallery: FloatArray, rows: IntArray, *, block_rows: int | None = None, device: str = "cpu"
) -> Iterator[RowBlock]:
    """Yield the inner products of ``queries[rows]`` with the gallery, block after block, in full float32.

    Blocks are as even as they can be and never a single row: a matrix-vector product sums in another order than a matrix product, and
    equal vectors would then tie in one block and differ by a rounding in the next.
    """
    import torch

    if not len(rows) or not len(gallery):
        return
    num_at_once = block_rows or max(8, BLOCK_BYTES // (4 * len(gallery)))
    where = torch.device(device)
    columns = torch.from_numpy(np.ascontiguousarray(gallery, np.float32)).to(where).T
    parts = np.array_split(rows, -(-len(rows) // num_at_once))
    buffer = torch.empty(max(4, len(parts[0])), len(gallery), device=where)
    precision = torch.get_float32_matmul_precision()
    for part in parts:
        padded = np.resize(part, max(4, len(part)))
        block = torch.from_numpy(np.ascontiguousarray(queries[padded], np.float32)).to(where)
        torch.set_float32_matmul_precision("highest")  # training may have allowed TF32, which keeps 10 bits
        try:
            product = torch.matmul(block, columns, out=buffer[: len(padded)])
        finally:
            torch.set_float32_matmul_precision(precision)
        yield RowBlock(part, product[: len(part)])


def count_at_least(block: RowBlock, columns: Sequence[IntArray]) -> Iterator[tuple[FloatArray, IntArray]]:
    """Yield for each row of the block its similarities at ``columns[row]`` in falling order, and how many of the row reach each of them."""
    if block.similarity.device.type == "cpu":
        # Threads were measured here and did not help: each NumPy call is shorter than the handing over of the interpreter's lock.
        yield from (_count_in_row(row, positives) for row, positives in zip(block.similarity.numpy(), columns, strict=True))
    else:
        yield from count_in_tensor(block.similarity, columns)


def _count_in_row(row: FloatArray, columns: IntArray) -> tuple[FloatArray, IntArray]:
    thresholds = np.sort(row[columns])[::-1]
    reached = row >= thresholds[-1]
    num_reached = np.count_nonzero(reached)
    if num_reached * 8 < len(row):
        row = row[np.flatnonzero(reached)]  # a good model leaves few candidates above its worst positive
    if len(thresholds) >= NUM_TO_SORT:
        return thresholds, len(row) - np.searchsorted(np.sort(row), thresholds, side="left")
    counts = [np.count_nonzero(row >= threshold) for threshold in thresholds[:-1]]
    return thresholds, np.array([*counts, num_reached], np.int64)


def count_in_tensor(similarity: torch.Tensor, columns: Sequence[IntArray]) -> Iterator[tuple[FloatArray, IntArray]]:
    """Yield what ``count_at_least`` promises by whole-block operations, for accelerators."""
    import torch

    sizes = [len(positives) for positives in columns]
    padded = np.stack([np.resize(positives, max(sizes)) for positives in columns])  # repeats itself: harmless, cut off below
    thresholds = similarity.gather(1, torch.from_numpy(padded).to(similarity.device))
    if max(sizes) >= NUM_TO_SORT:
        counts = similarity.shape[1] - torch.searchsorted(similarity.sort(dim=1).values, thresholds.contiguous(), side="left")
    else:
        counts = torch.stack([(similarity >= threshold[:, None]).sum(1) for threshold in thresholds.T], dim=1)
    for size, values, numbers in zip(sizes, thresholds.cpu().numpy(), counts.cpu().numpy(), strict=True):
        falling = np.argsort(-values[:size], kind="stable")
        yield values[falling], numbers[falling]
