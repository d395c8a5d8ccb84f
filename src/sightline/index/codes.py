"""Exact search through a graph's bytes: a quarter of what the vectors take to read, and a proof that no other row is closer.

A row's bytes are its vector, turned, spread, cut off at the ends of a byte's range and rounded. Cutting off brings no two points farther apart, and
rounding moves each a little at most. So the distance of the bytes bounds the cosine from above: where the k-th best of the rows whose bytes
are closest is above the bound of all others, it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.contracts import UNIT_LENGTH_TOLERANCE, BoolArray, FloatArray, IntArray
from sightline.index.scan import ROUNDING, merge, similarities_of

FIRST_FEW, MOST = (4, 100), 1_024
"""Rows whose bytes are closest that are compared exactly at first, for each answer and besides, and at last before the vectors are scanned."""

TIMES_MORE = 4
ROUNDED_BY = 0.51
"""How far a number lies from its byte at most, and a little for the rounding of the turn itself."""


@dataclass(frozen=True, eq=False)
class Turn:
    """The map of vectors to numbers around a byte's middle: FAISS's linear ``transform``, a rotation times ``scale`` and a shift."""

    transform: Any
    scale: float

    @classmethod
    def of(cls, transform: Any) -> Turn:
        """Return the turn that a FAISS linear transform makes."""
        import faiss

        matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
        return cls(transform, float(np.linalg.norm(matrix[0])))

    def as_bytes(self, vectors: FloatArray) -> FloatArray:
        """Return the numbers ``[Q, D]`` from 0 to 255 whose whole parts are the bytes.

        FAISS multiplies, because its threads walk next: NumPy's wait in a loop for more work and kept one of two cores from the walk
        (1,024 queries in 200,000 rows 384 wide on two threads: 5,400 a second, and 8,600 so).
        """
        turned: FloatArray = self.transform.apply(vectors)
        np.maximum(turned, 0, out=turned)
        return np.minimum(turned, 255, out=turned)


@dataclass(frozen=True, eq=False)
class Codes:
    """The bytes of every row in ``storage``, a FAISS index that ``owner`` keeps alive."""

    owner: Any
    storage: Any
    turn: Turn

    def top(
        self, queries: FloatArray, vectors: FloatArray, k: int, mask: BoolArray, selection: Any
    ) -> tuple[IntArray, FloatArray, BoolArray]:
        """Return (rows ``[Q, K]``, similarity ``[Q, K]``, whether that is proven ``[Q]``) of the ``k`` closest allowed rows.

        ``selection`` is ``mask`` in FAISS's words, None where every row is allowed.
        """
        rows, similarity = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        proven, num, rest = np.zeros(len(queries), np.bool_), FIRST_FEW[0] * k + FIRST_FEW[1], np.arange(len(queries))
        while len(rest) and num <= MOST and k <= len(mask):
            rows[rest], similarity[rest], proven[rest] = self._top(queries[rest], vectors, k, num, mask, selection)
            rest, num = rest[~proven[rest]], TIMES_MORE * num
        return rows, similarity, proven

    def _top(
        self, queries: FloatArray, vectors: FloatArray, k: int, num: int, mask: BoolArray, selection: Any
    ) -> tuple[IntArray, FloatArray, BoolArray]:
        turned = self.turn.as_bytes(queries)
        asked = np.floor(turned)
        distance, rows = self.storage.search(asked, min(num, len(mask)), params=selection)
        bound = self.bound(queries, asked - turned + np.float32(0.5), distance[:, -1])  # -inf where every allowed row is among these
        similarity = similarities_of(queries, np.asarray(vectors[rows], np.float32))  # a pad takes any
        similarity[rows < 0] = -np.inf
        rows, similarity = merge([rows], [similarity], k)
        return rows, similarity, similarity[:, -1] - ROUNDING > bound

    def bound(self, queries: FloatArray, rounded: FloatArray, farthest: FloatArray) -> FloatArray:
        """Return what no row's cosine exceeds ``[Q]`` whose bytes are at least ``farthest`` (squared ``[Q]``) from the query's.

        ``rounded`` ``[Q, D]`` is by what rounding moved the query.
        """
        away = np.sqrt(farthest) - np.linalg.norm(rounded, axis=1) - ROUNDED_BY * queries.shape[1] ** 0.5
        lengths = (queries * queries).sum(axis=1) + (1 + UNIT_LENGTH_TOLERANCE) ** 2
        bound: FloatArray = (lengths - (np.maximum(away, 0) / self.turn.scale) ** 2) / 2
        return bound
