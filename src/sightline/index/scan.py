"""Exact search by plain arithmetic, the truth that everything approximate is corrected by and measured against.

Similarities that a caller sees all come from ``similarities_of``: a matrix product may differ in the last bit with the place of a row
in its block, and then two copies of one picture would not tie.
"""

from __future__ import annotations

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray

BLOCK_ROWS = 16_384
MAX_CELLS = 1 << 24
"""Most similarities held at once (64 MiB): a collection is scanned in blocks, never loaded."""

FEW_QUERIES, GATHERED_SHARE = 8, 1 / 3
"""For so few queries a product with a whole block of the mapping costs less than a copy of its allowed rows, unless these are few."""

ROUNDING = 4e-6
"""More than two summation orders of a unit-length float32 dot product of 4,096 terms were seen to differ (under 1e-6)."""


def exact_top(queries: FloatArray, vectors: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[IntArray, FloatArray]:
    """Return (rows ``[Q, K]``, similarity ``[Q, K]``) of the ``k`` closest of ``vectors`` ``[M, D]``, closest first.

    ``allowed`` ``[M]`` limits the rows. Equal similarities put the lower row first. Pads are -1 and -inf.
    """
    num_queries = max(1, MAX_CELLS // BLOCK_ROWS)
    if 0 < len(queries) <= num_queries:
        return _exact_top(queries, vectors, k, allowed)
    parts = [_exact_top(queries[start : start + num_queries], vectors, k, allowed) for start in range(0, len(queries), num_queries)]
    if not parts:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([similarity for _, similarity in parts])


def _exact_top(queries: FloatArray, vectors: FloatArray, k: int, allowed: BoolArray | None) -> tuple[IntArray, FloatArray]:
    best_rows = np.full((len(queries), k), -1, dtype=np.int64)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        places = None if allowed is None else np.flatnonzero(allowed[start : start + len(block)])
        if places is None or len(places) == len(block):
            _merge_block(queries, np.asarray(block, np.float32), np.arange(start, start + len(block)), best_rows, best)
        elif len(queries) <= FEW_QUERIES and len(places) > GATHERED_SHARE * len(block):
            _merge_block(queries, np.asarray(block, np.float32), places + start, best_rows, best, places)
        elif len(places):
            _merge_block(queries, np.asarray(block[places], np.float32), places + start, best_rows, best)
    return best_rows, best


def _merge_block(
    queries: FloatArray, block: FloatArray, rows: IntArray, best_rows: IntArray, best: FloatArray, places: IntArray | None = None
) -> None:
    """Merge a block into the running top-k, in place; ``places`` are the rows of the block to consider, None for all."""
    k = best.shape[1]
    # For one query a threaded product waits a scheduler's turn for its second thread when the machine is busy: 18 ms for 2,000 rows
    # 384 wide, einsum on one thread 1.3 ms. For many queries the product is far ahead.
    rough = np.einsum("qd,md->qm", queries, block) if len(queries) == 1 else queries @ block.T  # [Q, block]
    if places is not None:
        rough = rough[:, places]
    if np.isnan(rough.max()):  # of a damaged vector, which no comparison below would keep
        np.nan_to_num(rough, copy=False, nan=np.inf)
    floor = best[:, -1]
    if len(rows) > k and floor.min() == -np.inf:
        floor = np.maximum(floor, np.partition(rough, len(rows) - k, axis=1)[:, len(rows) - k])
    # Whatever rounding could lift over the k-th best stays in, so that ties at the edge are settled by row, not by chance.
    is_near = rough >= (floor - ROUNDING)[:, None]
    for query in np.flatnonzero(is_near.any(axis=1)).tolist():
        mine = np.flatnonzero(is_near[query])
        similarity = similarities_of(queries[query : query + 1], block[mine if places is None else places[mine]][None])[0]
        candidates = np.concatenate([best_rows[query], rows[mine]])
        similarity = np.concatenate([best[query], similarity])
        order = np.lexsort((candidates, -similarity))[:k]
        best_rows[query], best[query] = candidates[order], similarity[order]


def similarities_of(queries: FloatArray, candidates: FloatArray) -> FloatArray:
    """Return the dot products ``[Q, K]`` of queries ``[Q, D]`` with their candidates ``[Q, K, D]``, the same for equal rows.

    What is not a number is infinite here: it comes first in every answer, where it is noticed, and is not left out of all.
    """
    found: FloatArray = np.einsum("qkd,qd->qk", candidates, queries)
    found[np.isnan(found)] = np.inf
    return found


def merge(rows: list[IntArray], similarity: list[FloatArray], k: int) -> tuple[IntArray, FloatArray]:
    """Return the ``k`` best of several answers to the same queries, each ``[Q, any]``: closest first, then lower id, pads last."""
    all_rows, all_similarity = (
        (rows[0], similarity[0]) if len(rows) == 1 else (np.concatenate(rows, axis=1), np.concatenate(similarity, axis=1))
    )
    if len(all_rows) == 1:
        first = np.lexsort((all_rows[0], -all_similarity[0]))[:k]
        return all_rows[:, first], all_similarity[:, first]
    order = np.lexsort((all_rows, -all_similarity), axis=1)[:, :k]
    return np.take_along_axis(all_rows, order, axis=1), np.take_along_axis(all_similarity, order, axis=1)
