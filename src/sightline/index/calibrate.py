"""Choosing a segment's search parameter by measuring it against exact search, so that recall is a figure and not a hope."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.index.ann import DOUBTED_SHARE, FILTERED_RANK, HNSW, HNSW_BEFORE, IVF, LADDER, MEASURED_RANK, Ann, Effort
from sightline.index.scan import exact_top

TARGET_RECALL, SPARE_ERRORS = 0.99, 3
"""With two standard errors to spare 200,000 clustered rows were given ef 128, and of 200 queries 0.988 was found, of 1,000 0.994."""

NUM_QUERIES, MOST_QUERIES = 1_024, 4_096
"""Enough that the errors are small: with 256 of them 200,000 clustered rows were given ef 1024 for a recall of 0.999, at a fifth
of the speed of ef 192, which has 0.996. Where so many cannot tell whether a parameter reaches the target, the most are asked."""
K = MEASURED_RANK
STEP = 0.7
"""How far a query is pushed away from a neighbour; see ``held_out_queries``."""


RANKS = (FILTERED_RANK, 100, 300, 1_000)
"""Where a filter's answers may lie among all rows: behind those that it leaves out."""

LAST_FIFTH = 0.8
"""Of the ranks down to each of ``RANKS`` the last fifth is measured: a walk finds the closest first, and a filter may leave just these."""

NUM_DEEP_QUERIES = 256
_GRAPH_GROWTHS = (1 / 64, 1 / 48, 1 / 32, 1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 4, 1 / 2)
GROWTHS = {
    HNSW: _GRAPH_GROWTHS,
    HNSW_BEFORE: _GRAPH_GROWTHS,
    IVF: (1 / 1_024, 1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16),
}
"""How much more effort each rank below the tenth may take, as a share of what the tenth takes."""


@dataclass(frozen=True)
class Calibration:
    """The effort that a search takes, the recall@10 (0 to 1) measured with it, and the least recall at any deeper rank, down to its depth."""

    effort: Effort
    recall_at_10: float
    recall_filtered: float


def calibrate(ann: Ann, vectors: FloatArray, *, seed: int) -> Calibration:
    """Return the least effort whose recall@10 reaches 0.99 with three standard errors to spare.

    A structure that does not reach it with all its effort gets depth 0: it is never asked, and the exact search in its place has recall 1.

    A filter hides rows, so that its answers are farther down the list of all: what it takes to find these is measured in the same way.
    """
    queries, closest = held_out_queries(vectors, seed=seed)
    truth, _ = exact_top(queries, vectors, K)
    doubt = float(np.quantile(closest, DOUBTED_SHARE))
    for parameter in LADDER[ann.kind]:
        for effort in (Effort(parameter, 0.0, K), Effort(parameter, 0.0, K, doubt)):  # a second look takes less than the next parameter
            recall = recalls(ann.top(queries, vectors, K, effort=effort)[0], truth)
            if not _reaches(recall) and recall.mean() >= TARGET_RECALL and len(queries) < min(MOST_QUERIES, len(vectors)):
                queries, _ = held_out_queries(vectors, MOST_QUERIES, seed=seed)
                truth, _ = exact_top(queries, vectors, K)
                recall = recalls(ann.top(queries, vectors, K, effort=effort)[0], truth)
            if _reaches(recall):
                at_10 = float(recall.mean())
                return Calibration(*_deep(ann, vectors, queries[:NUM_DEEP_QUERIES], effort, at_10))
    return Calibration(Effort(parameter, 0.0, 0), 1.0, 1.0)


def _deep(ann: Ann, vectors: FloatArray, queries: FloatArray, effort: Effort, recall_at_10: float) -> tuple[Effort, float, float]:
    """Return the effort with the least growth that reaches 0.99 at every rank, down to where one does, recall@10, and the least recall so far."""
    ranks = [rank for rank in RANKS if 4 * rank <= len(vectors)]
    truth, _ = exact_top(queries, vectors, max(ranks, default=1))
    growths, recall = list(GROWTHS[ann.kind]), recall_at_10
    effort = replace(effort, growth=growths[0])
    for rank in ranks:
        wanted = truth[:, int(LAST_FIFTH * rank) : rank]
        while growths:
            tried = replace(effort, growth=growths[0], depth=rank)
            found = recalls(ann.top(queries, vectors, rank, effort=tried)[0], wanted)
            if _reaches(found):
                break
            growths.pop(0)
        if not growths:
            break
        effort, recall = tried, min(recall, float(found.mean()))
    return effort, recall_at_10, recall


def _reaches(recall: FloatArray) -> bool:
    return bool(recall.mean() - SPARE_ERRORS * recall.std() / len(recall) ** 0.5 >= TARGET_RECALL)


def recalls(found: IntArray, truth: IntArray) -> FloatArray:
    """Return for each query the share (0 to 1) of its true rows ``[Q, K]`` that were found; pads count neither way."""
    real = truth >= 0
    hit = (truth[:, :, None] == found[:, None, :]).any(axis=2) & real
    share: FloatArray = (hit.sum(axis=1) / np.maximum(real.sum(axis=1), 1)).astype(np.float32)
    return share


def held_out_queries(vectors: FloatArray, num: int = NUM_QUERIES, *, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return up to ``num`` unit-length queries ``[Q, D]`` that are as hard as pictures the segment has never seen.

    With them comes how similar each row that they were made from is to the nearest other one ``[Q]``.

    A stored row is too easy a query: the graph was woven around it (60,000 clustered rows, ef 32: recall 0.984 against 0.971 of truly
    held-out ones; the midpoint of two neighbours 0.991). A row pushed away from one of its neighbours stays on the data's
    surface and errs on the safe side (0.961; at ef 96 0.991 against 0.992).
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(vectors), min(num, len(vectors)), replace=False))
    start = np.asarray(vectors[rows], np.float32)
    nearest, similarity = exact_top(start, vectors, K + 1)
    pick = nearest[np.arange(len(rows)), random.integers(1, min(K + 1, len(vectors)), len(rows))]
    away = start + STEP * (start - vectors[pick])
    unit: FloatArray = (away / np.linalg.norm(away, axis=1, keepdims=True)).astype(np.float32)
    return unit, similarity[:, min(1, similarity.shape[1] - 1)]
