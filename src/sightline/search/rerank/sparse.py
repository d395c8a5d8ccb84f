"""What neighbourhoods are made of: who is whose neighbour, and sparse rows of weights. Nothing here is [N, N]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray

CHUNK_ENTRIES = 2**20
"""Entries worked on at once: a few arrays of them stay in a core's cache, and the loop over the chunks costs nothing beside them."""


@dataclass(frozen=True)
class SparseRows:
    """N rows of weights: row i holds ``values[offsets[i]:offsets[i + 1]]`` (float32) at ``columns[...]`` (int64), ascending."""

    offsets: IntArray
    columns: IntArray
    values: FloatArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """How many entries each row has, int64 ``[N]``."""
        return np.diff(self.offsets)

    def entries(self, rows: IntArray) -> IntArray:
        """Return the places in ``columns`` and ``values`` of the entries of ``rows``, one row after the other."""
        lengths = self.lengths[rows]
        shift = self.offsets[rows] - (np.cumsum(lengths) - lengths)
        places: IntArray = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
        return places

    def owners(self) -> IntArray:
        """Return the row of every entry, int64."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def transposed(self, num_columns: int) -> SparseRows:
        """Return the columns as rows: for each of ``num_columns`` the rows that hold it, ascending."""
        order = np.argsort(self.columns, kind="stable")
        return SparseRows(offsets_of(np.bincount(self.columns, minlength=num_columns)), self.owners()[order], self.values[order])


def offsets_of(lengths: IntArray) -> IntArray:
    """Return where each run begins when runs of these lengths follow each other, and where the last ends, int64 ``[N + 1]``."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def chunks(num: int, entries_each: int) -> Iterator[slice]:
    """Yield slices that cover 0 to ``num``, of as many rows as make about ``CHUNK_ENTRIES`` entries of ``entries_each`` a row."""
    step = max(1, CHUNK_ENTRIES // max(1, entries_each))
    yield from (slice(first, min(num, first + step)) for first in range(0, num, step))


def mutual(near: IntArray) -> BoolArray:
    """Return whether row i is also among the neighbours of its j-th neighbour, ``[N, k]`` for ``near`` int64 ``[N, k]`` (-1 is nobody)."""
    found = np.empty(near.shape, np.bool_)
    for part in chunks(len(near), near.shape[1] ** 2):
        rows = np.arange(part.start, part.stop)
        found[part] = (near[near[part]] == rows[:, None, None]).any(axis=2) & (near[part] >= 0)
    return found
