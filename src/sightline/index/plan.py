"""Answering a search: which rows may answer, whether a structure or plain arithmetic finds them sooner, and the one merged answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray, Ranking
from sightline.index.ann import HNSW, Ann
from sightline.index.scan import exact_top, merge
from sightline.index.segments import Segment, damaged
from sightline.index.snapshot import Log, Snapshot
from sightline.index.writer import Limits

EXACT_SHARE = 0.03
"""A filter that leaves no more than this share of a segment is answered exactly."""

WALK_ROWS = 16
MANY_QUERIES = 64
WALK_ROWS_OF_MANY = 64
"""Rows that a scan gets through while a graph walk takes one unit of ``efSearch``: few for one query, more for many, whose
similarities are one matrix product. 200,000 rows, a filter that leaves 20 %: the walk answered 310 queries a second."""

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
    parts = [_from_log(snapshot.log, allowed.log, queries, k)]
    for segment in snapshot.segments:
        mask = allowed.segments[segment.row.number]
        num = int(mask.sum())
        if num:
            ann = None if exact or num <= limits.exact_rows else ann_of(segment)
            parts.append(_from_segment(segment, mask, num, queries, k, ann))
    rows, similarity = merge([ids for ids, _ in parts], [found for _, found in parts], k)
    return Ranking(rows, similarity)


def _from_log(log: Log, mask: BoolArray, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    rows, similarity = exact_top(queries, log.vectors, k, mask)
    return _ids(log.ids, rows), similarity


def _from_segment(segment: Segment, mask: BoolArray, num: int, queries: FloatArray, k: int, ann: Ann | None) -> tuple[IntArray, FloatArray]:
    allowed = None if num == len(mask) else mask
    effort = _effort(ann, k, num) if ann is not None else 0
    if ann is None or is_exact_sooner(ann, effort, num, len(queries)):
        rows, similarity = exact_top(queries, segment.vectors, k, allowed)
    else:
        rows, similarity = ann.top(queries, segment.vectors, k, parameter=effort, allowed=allowed)
        # A graph may run dry among forbidden rows; the answer may not.
        short = np.flatnonzero((rows >= 0).sum(axis=1) < min(k, num))
        if len(short):
            rows[short], similarity[short] = exact_top(queries[short], segment.vectors, k, allowed)
    if not np.all((similarity <= MOST_SIMILAR) & ((similarity >= -MOST_SIMILAR) | (rows < 0))):
        raise damaged(segment.file)
    return _ids(segment.ids, rows), similarity


def _effort(ann: Ann, k: int, num: int) -> int:
    """Return the calibrated parameter, raised for more answers than it was calibrated with and for rows a filter hides on the way."""
    more_answers = max(1.0, k / 10)
    hidden = ann.rows / num
    return int(ann.parameter * more_answers**0.5 * hidden)


def is_exact_sooner(ann: Ann, effort: int, num: int, num_queries: int) -> bool:
    """Return True where scanning the ``num`` allowed rows is less work than walking the structure with ``effort``.

    Rows read in order cost a fraction of rows met on a walk, so the rule errs towards the scan, which is also exact.
    """
    walk_rows = WALK_ROWS_OF_MANY if num_queries >= MANY_QUERIES else WALK_ROWS
    return num <= EXACT_SHARE * ann.rows or (ann.kind == HNSW and num <= walk_rows * effort)


def _ids(ids: IntArray, rows: IntArray) -> IntArray:
    found: IntArray = np.where(rows >= 0, ids[np.maximum(rows, 0)], -1) if len(ids) else rows
    return found
