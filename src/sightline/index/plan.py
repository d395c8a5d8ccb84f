"""Answering a search: which rows may answer, whether a structure or plain arithmetic finds them sooner, and the one merged answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray, Ranking
from sightline.index.ann import FILTERED_RANK, MEASURED_RANK, Ann
from sightline.index.scan import exact_top, merge
from sightline.index.segments import Segment, damaged
from sightline.index.snapshot import Log, Snapshot
from sightline.index.writer import Limits

SCAN_ONCE = 10
"""A scan reads its rows from memory once for all queries, and that takes as long as the products of so many queries with them."""

SPREAD = 3
"""Standard deviations by which the rank of the k-th allowed row may exceed what it is where a filter has nothing to do with the vectors."""

DEEPER = 4
"""A query whose answer was not within the rows that were looked at looks at so many times as many, or more, or scans."""

WIDENING_SHARE = 0.25
"""Looking deeper may cost no more than this part of the scan it may spare: in all, a third of one is lost where it spares none."""

EXACT, APPROXIMATE, WIDENED = range(3)
HOW = ("exact", "approximate", "approximate, widened")
"""What an answer says of how it was found: the least certain of its segments."""

MOST_SIMILAR = 1.01
"""No two unit vectors are more similar; a stored vector that is was damaged on the disk."""


@dataclass(frozen=True)
class Allowed:
    """The rows that may answer: a mask over the log ``[M]`` and one over each segment by number."""

    log: BoolArray
    segments: Mapping[int, BoolArray]
    num: int


def allow(snapshot: Snapshot, matching: IntArray | None, bits: int = 0) -> Allowed:
    """Return the living rows, or those of them whose ids, without the last ``bits`` bits, are in ``matching`` (ascending)."""
    assert snapshot.log is not None
    if matching is None:
        log = np.ones(len(snapshot.log.ids), dtype=np.bool_)
        segments = {segment.row.number: segment.live for segment in snapshot.segments}
    else:
        log = np.isin(snapshot.log.ids >> bits, matching, assume_unique=not bits)
        segments = {segment.row.number: _mask(segment, matching, bits) for segment in snapshot.segments}
    return Allowed(log, segments, int(log.sum()) + sum(int(mask.sum()) for mask in segments.values()))


def _mask(segment: Segment, matching: IntArray, bits: int) -> BoolArray:
    mask = np.zeros(len(segment.ids), dtype=np.bool_)
    mask[segment.rows_of(matching, bits)] = True
    return mask


def answer(
    snapshot: Snapshot,
    allowed: Allowed,
    queries: FloatArray,
    k: int,
    *,
    ann_of: Callable[[Segment], Ann | None],
    limits: Limits,
    exact: bool,
) -> Ranking:
    """Return the ``k`` closest allowed items of each query ``[Q, D]``, by id."""
    assert snapshot.log is not None
    if not len(queries):
        return Ranking(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    num_queries = len(queries)
    parts = [(*_from_log(snapshot.log, allowed.log, queries, k), np.full(num_queries, EXACT))]
    for segment in snapshot.segments:
        mask = allowed.segments[segment.row.number]
        num = int(mask.sum())
        if num:
            ann = None if exact or num <= limits.exact_rows else ann_of(segment)
            parts.append(_from_segment(segment, mask, num, queries, k, ann, limits))
    rows, similarity = merge([ids for ids, _, _ in parts], [found for _, found, _ in parts], k)
    return Ranking(rows, similarity, tuple(HOW[least] for least in np.max([how for _, _, how in parts], axis=0)))


def _from_log(log: Log, mask: BoolArray, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    rows, similarity = exact_top(queries, log.vectors, k, mask)
    return _ids(log.ids, rows), similarity


def _from_segment(
    segment: Segment, mask: BoolArray, num: int, queries: FloatArray, k: int, ann: Ann | None, limits: Limits
) -> tuple[IntArray, FloatArray, IntArray]:
    """Return (ids ``[Q, K]``, similarity ``[Q, K]``, how ``[Q]``) of the ``k`` closest of the ``num`` allowed rows.

    The structure is asked for the closest of *all* rows, down to a rank where calibration found its answer to be right. Where ``k`` of
    these are allowed, they are the answer, as true under any filter as without one. Else the filter has to do with this query (it leaves
    out what is around it, say): then the structure is asked for more, as long as that is cheap, and at last the allowed rows are scanned.
    """
    rows, similarity = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    how = np.full(len(queries), EXACT)
    rest, rank, step = np.arange(len(queries)), first_rank(k, num, len(mask)), APPROXIMATE
    while ann is not None and len(rest) and is_worth_asking(ann, rank, num, len(rest), limits, step):
        found, values = _allowed_first(ann.top(queries[rest], segment.vectors, rank), mask, k)
        enough = found[:, -1] >= 0
        answered = rest[enough]
        rows[answered], similarity[answered], how[answered] = found[enough], values[enough], step
        rest, rank, step = rest[~enough], min(DEEPER * rank, max(ann.effort.depth, rank + 1)), WIDENED
    if len(rest):
        rows[rest], similarity[rest] = exact_top(queries[rest], segment.vectors, k, None if num == len(mask) else mask)
    if not np.all((similarity <= MOST_SIMILAR) & ((similarity >= -MOST_SIMILAR) | (rows < 0))):
        raise damaged(segment.file)
    return _ids(segment.ids, rows), similarity, how


def _allowed_first(found: tuple[IntArray, FloatArray], mask: BoolArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return the first ``k`` allowed of ranked rows, padded with -1 and -inf."""
    rows, similarity = found
    hidden = ~mask[rows] | (rows < 0)
    order = np.argsort(hidden, axis=1, kind="stable")[:, :k]
    lost = np.take_along_axis(hidden, order, axis=1)
    return np.where(lost, -1, np.take_along_axis(rows, order, axis=1)), np.where(
        lost, -np.inf, np.take_along_axis(similarity, order, axis=1)
    )


def first_rank(k: int, num: int, num_rows: int) -> int:
    """Return the rank among all rows within which the ``k`` closest of ``num`` allowed ones lie, if the filter is independent of the query.

    It is never less than where recall was measured, under a filter at the deeper ranks themselves.
    """
    return max(
        MEASURED_RANK if num == num_rows else FILTERED_RANK, math.ceil((k + SPREAD * math.sqrt(k * (1 - num / num_rows))) * num_rows / num)
    )


def is_worth_asking(ann: Ann, rank: int, num: int, num_queries: int, limits: Limits, step: int) -> bool:
    """Return True where asking the structure down to ``rank`` is calibrated, and less work than scanning the ``num`` allowed rows."""
    scan = num * (1 + SCAN_ONCE / num_queries)
    share = 1.0 if step == APPROXIMATE else WIDENING_SHARE
    return rank <= ann.effort.depth and limits.walk_cost * ann.num_rows_read(rank) <= share * scan


def _ids(ids: IntArray, rows: IntArray) -> IntArray:
    found: IntArray = np.where(rows >= 0, ids[np.maximum(rows, 0)], -1) if len(ids) else rows
    return found
