"""Answering a search: which rows may answer, whether a structure or plain arithmetic finds them sooner, and the one merged answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray, Ranking
from sightline.index.ann import FILTERED_RANK, HNSW, MEASURED_RANK, Ann
from sightline.index.scan import exact_top, merge
from sightline.index.segments import Segment, damaged
from sightline.index.snapshot import Log, Snapshot
from sightline.index.writer import Limits

SCAN_ONCE, BYTES_EACH = 10, 3
"""A scan reads its rows from memory once for all queries, and that takes as long as the products of so many queries with them. A scan of
bytes takes as long for each query as the products of so many."""

SPREAD = 3
"""Standard deviations by which the rank of the k-th allowed row may exceed what it is where a filter has nothing to do with the vectors."""

DEEPER = 4
"""A query whose answer was not within the rows that were looked at looks at so many times as many, or more, or scans."""

WIDENING_SHARE = 0.25
"""Looking deeper may cost no more than this part of the scan it may spare: in all, a third of one is lost where it spares none."""

FEW_BYTES = 1 << 20
"""So few allowed vectors are copied out of the mapping once, and remembered with their filter."""

QUICK_SHARE = 0.5
"""Where bytes are scanned, the first look may cost no more than this part of that: a filter that has to do with the query makes it vain."""

EXACT, APPROXIMATE, WIDENED = range(3)
HOW = ("exact", "approximate", "approximate, widened")
"""What an answer says of how it was found: the least certain of its segments."""

MOST_SIMILAR = 1.01
"""No two unit vectors are more similar; a stored vector that is was damaged on the disk."""


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one segment that may answer, as a ``mask`` ``[M]``, and what follows from it, reckoned once."""

    segment: Segment
    mask: BoolArray

    @cached_property
    def num(self) -> int:
        """How many they are."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def are_all(self) -> bool:
        """Whether no row is left out."""
        return self.num == len(self.mask)

    @cached_property
    def few(self) -> tuple[IntArray, FloatArray] | None:
        """Which they are, ascending, and their vectors; None where that is too much to be remembered."""
        if self.num * self.segment.vectors.shape[1] * np.float32().itemsize > FEW_BYTES:
            return None
        rows = np.flatnonzero(self.mask)
        return rows, np.asarray(self.segment.vectors[rows], np.float32)

    @cached_property
    def selection(self) -> Any:
        """What tells FAISS of them, None where they are all."""
        import faiss

        if self.are_all:
            return None
        return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little")))


@dataclass(frozen=True)
class Allowed:
    """The rows that may answer: a mask over the log ``[M]`` and those of each segment by number."""

    log: BoolArray
    segments: Mapping[int, Part]


def allow(snapshot: Snapshot, matching: IntArray | None, bits: int = 0) -> Allowed:
    """Return the living rows, or those of them whose ids, without the last ``bits`` bits, are in ``matching`` (ascending)."""
    assert snapshot.log is not None
    if matching is None:
        log = np.ones(len(snapshot.log.ids), dtype=np.bool_)
        return Allowed(log, {segment.row.number: Part(segment, segment.live) for segment in snapshot.segments})
    log = np.isin(snapshot.log.ids >> bits, matching, assume_unique=not bits)
    return Allowed(log, {segment.row.number: Part(segment, _mask(segment, matching, bits)) for segment in snapshot.segments})


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
    parts = [(*_from_log(snapshot.log, allowed.log, queries, k), np.full(len(queries), EXACT))] if len(snapshot.log.ids) else []
    for segment in snapshot.segments:
        part = allowed.segments[segment.row.number]
        if part.num:
            ann = None if exact or part.num <= limits.exact_rows else ann_of(segment)
            parts.append(_from_segment(part, queries, k, ann, limits))
    if len(parts) == 1:
        rows, similarity, how = parts[0]
    else:
        parts.append(_nothing(len(queries), k))
        rows, similarity = merge([ids for ids, _, _ in parts], [found for _, found, _ in parts], k)
        how = np.max([how for _, _, how in parts], axis=0)
    return Ranking(rows, similarity, tuple(HOW[least] for least in how.tolist()))


def _nothing(num_queries: int, k: int) -> tuple[IntArray, FloatArray, IntArray]:
    rows, similarity = np.full((num_queries, k), -1, np.int64), np.full((num_queries, k), -np.inf, np.float32)
    return rows, similarity, np.full(num_queries, EXACT)


def _from_log(log: Log, mask: BoolArray, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    rows, similarity = exact_top(queries, log.vectors, k, mask)
    return _ids(log.ids, rows), similarity


def _from_segment(part: Part, queries: FloatArray, k: int, ann: Ann | None, limits: Limits) -> tuple[IntArray, FloatArray, IntArray]:
    """Return (ids ``[Q, K]``, similarity ``[Q, K]``, how ``[Q]``) of the ``k`` closest of the allowed rows.

    The structure is asked for the closest of *all* rows, down to a rank where calibration found its answer to be right. Where ``k`` of
    these are allowed, they are the answer, as true under any filter as without one. Else the filter has to do with this query (it leaves
    out what is around it, say): then the structure is asked for more, as long as that is cheap, and at last the allowed rows are scanned.
    """
    rank = first_rank(k, part.num, len(part.mask))
    if ann is not None and is_worth_asking(ann, rank, part.num, len(queries), limits, APPROXIMATE):
        rows, similarity, how = _walked(part, queries, k, ann, limits, rank)
    else:
        rows, similarity = _scanned(part, queries, k, ann)
        how = np.full(len(queries), EXACT)
    if not np.abs(similarity[rows >= 0]).max(initial=0) <= MOST_SIMILAR:
        raise damaged(part.segment.file)
    return _ids(part.segment.ids, rows), similarity, how


def _walked(part: Part, queries: FloatArray, k: int, ann: Ann, limits: Limits, rank: int) -> tuple[IntArray, FloatArray, IntArray]:
    """Return (rows ``[Q, K]``, similarity ``[Q, K]``, how ``[Q]``), the structure asked down to ``rank`` first."""
    rows, similarity = _asked(part, queries, k, ann, rank)
    how, rest = np.full(len(queries), APPROXIMATE), np.flatnonzero(rows[:, -1] < 0)
    while len(rest):
        rank = min(DEEPER * rank, max(ann.effort.depth, rank + 1))
        if not is_worth_asking(ann, rank, part.num, len(rest), limits, WIDENED):
            rows[rest], similarity[rest] = _scanned(part, queries[rest], k, ann)
            how[rest] = EXACT
            break
        rows[rest], similarity[rest] = _asked(part, queries[rest], k, ann, rank)
        how[rest] = WIDENED
        rest = rest[rows[rest, -1] < 0]
    return rows, similarity, how


def _asked(part: Part, queries: FloatArray, k: int, ann: Ann, rank: int) -> tuple[IntArray, FloatArray]:
    rows, similarity = ann.top(queries, part.segment.vectors, rank)
    return (rows[:, :k], similarity[:, :k]) if part.are_all else _allowed_first(rows, similarity, part.mask, k)


def _scanned(part: Part, queries: FloatArray, k: int, ann: Ann | None) -> tuple[IntArray, FloatArray]:
    """Return the ``k`` closest of all allowed rows: by their bytes where these prove it, else by the vectors themselves."""
    mask, vectors = None if part.are_all else part.mask, part.segment.vectors
    if part.few is not None:
        allowed, few = part.few
        places, similarity = exact_top(queries, few, k)
        return _ids(allowed, places), similarity
    codes = ann.codes if ann is not None and _are_bytes_read(ann, len(queries)) else None
    if codes is None:
        return exact_top(queries, vectors, k, mask)
    rows, similarity, proven = codes.top(queries, vectors, k, part.mask, part.selection)
    if not proven.all():
        rows[~proven], similarity[~proven] = exact_top(queries[~proven], vectors, k, mask)
    return rows, similarity


def _are_bytes_read(ann: Ann, num_queries: int) -> bool:
    """Return True where a scan reads bytes: for few queries, since the products of many are far ahead."""
    return ann.kind == HNSW and 1 + SCAN_ONCE / num_queries > BYTES_EACH


def _allowed_first(rows: IntArray, similarity: FloatArray, mask: BoolArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return the first ``k`` allowed of ranked rows, padded with -1 and -inf."""
    hidden = ~mask[rows] | (rows < 0)
    if len(rows) == 1:
        kept = np.flatnonzero(~hidden[0])[:k]
        if len(kept) == k:
            return rows[:, kept], similarity[:, kept]
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
    quick = _are_bytes_read(ann, num_queries)
    scan = num * (BYTES_EACH if quick else 1 + SCAN_ONCE / num_queries)
    share = WIDENING_SHARE if step == WIDENED else QUICK_SHARE if quick else 1.0
    return rank <= ann.effort.depth and limits.walk_cost * ann.num_rows_read(rank) <= share * scan


def _ids(ids: IntArray, rows: IntArray) -> IntArray:
    found: IntArray = ids[rows]  # a pad takes any
    found[rows < 0] = -1
    return found
