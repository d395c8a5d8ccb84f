"""Exact neighbours in blocks of similarities: memory is bounded, ties are settled, nothing is approximate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**27
"""One block of similarities: large enough for the BLAS to run at full speed, far below the vectors it came from."""


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
    with warnings.catch_warnings():  # a memory-mapped gallery may be read-only, and is only read here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
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


def nearest(queries: FloatArray, gallery: FloatArray, k: int, self_rows: IntArray | None = None, *, device: str = "cpu") -> Ranking:
    """Return the K closest gallery rows of each query by inner product, exactly; of equally similar rows the lower one comes first.

    ``self_rows`` int64 ``[Q]``: the gallery row that each query is, which is left out. K is cut to the gallery's size.
    """
    num_found = max(0, min(k, len(gallery) - (self_rows is not None)))
    rows = np.full((len(queries), num_found), -1, np.int64)
    similarity = np.full((len(queries), num_found), -np.inf, np.float32)
    if not num_found:
        return Ranking(rows, similarity)
    for block in similarity_blocks(queries, gallery, np.arange(len(queries)), device=device):
        if self_rows is not None:
            block.hide(self_rows[block.rows])
        for query, row in zip(block.rows, block.similarity.cpu().numpy(), strict=True):
            rows[query] = closest(row, num_found)
            similarity[query] = row[rows[query]]
    return Ranking(rows, similarity)


def closest(row: FloatArray, k: int) -> IntArray:
    """Return the columns of the K largest of one row of similarities ``[G]``, largest first, ties by the lower column; K is at most G."""
    # Everything that ties with the K-th stays in until the stable sort, which then keeps the lower rows.
    kth = np.partition(row, len(row) - k)[len(row) - k]
    candidates = np.flatnonzero(row >= kth)
    closest: IntArray = candidates[np.argsort(-row[candidates], kind="stable")][:k]
    return closest


def nearest_of_other_class(vectors: FloatArray, labels: IntArray, *, device: str = "cpu") -> Ranking:
    """Return the one closest row of another class of each row, exactly (K = 1); -1 and -inf where there is only one class."""
    import torch

    rows = np.full((len(vectors), 1), -1, np.int64)
    similarity = np.full((len(vectors), 1), -np.inf, np.float32)
    classes = torch.from_numpy(labels).to(device)
    for block in similarity_blocks(vectors, vectors, np.arange(len(vectors)), device=device):
        same = classes[torch.from_numpy(block.rows).to(device), None] == classes
        found = block.similarity.masked_fill_(same, -torch.inf).cpu().numpy()
        best = found.argmax(axis=1)  # NumPy's is the first of equals
        similarity[block.rows, 0] = found[np.arange(len(best)), best]
        rows[block.rows, 0] = np.where(np.isfinite(similarity[block.rows, 0]), best, -1)
    return Ranking(rows, similarity)
