"""The rank of every positive of every query: all that the metrics need, without a [Q, G] matrix and without sorting the gallery.

The tie rule, everywhere: **a tie counts against you**. A negative as similar as a positive is ranked before it, so a collapsed model
measures 0 and not 1. With it the i-th best positive of a query has the rank

    r_i = i + number of negatives with similarity >= s_i

and one blockwise pass of counting gives all ranks, of several sets of judgements at once. In leave-one-out a query is never its own
answer: it is dropped by its row, not by its similarity. Junk is neither positive nor negative: what lies behind it moves up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sightline.contracts import BoolArray, FloatArray, IntArray, Ranking
from sightline.evaluation.counting import count_at_least, values_at
from sightline.search.neighbours import similarity_blocks

DoubleArray = npt.NDArray[np.float64]

TIE_RULE = "pessimistic: a negative that ties with a positive is ranked before it"
NOT_FOUND = int(np.iinfo(np.int32).max)
"""The rank of a positive that a cut-off ranking does not hold."""


class Truth(Protocol):
    """What is right for each query and what is junk, by the query's place: gallery positions, int64, each once. ``Judgements`` is one."""

    @property
    def positives(self) -> Sequence[IntArray]:
        """The right answers of each of the Q queries."""

    @property
    def junk(self) -> Sequence[IntArray]:
        """What is taken out of each query's ranking."""


@dataclass(frozen=True, eq=False)
class SameLabel:
    """The truth that labels name: right is what has the query's label, ``self_rows`` (the gallery row that each query is) left out.

    With ``sources`` int64 (of the queries ``[Q]``, of the gallery ``[G]``), such as cameras, what has the query's label *and* source is junk.
    """

    query_labels: IntArray
    gallery_labels: IntArray
    self_rows: IntArray | None = None
    sources: tuple[IntArray, IntArray] | None = None

    @property
    def positives(self) -> Sequence[IntArray]:
        """See ``Truth``; made when asked for, since written out they would be as many as all pairs of a class."""
        return _SameLabelRows(self, of_own_source=False)

    @property
    def junk(self) -> Sequence[IntArray]:
        """See ``Truth``."""
        return [np.empty(0, np.int64)] * len(self.query_labels) if self.sources is None else _SameLabelRows(self, of_own_source=True)


class _SameLabelRows(Sequence[IntArray]):
    def __init__(self, truth: SameLabel, *, of_own_source: bool) -> None:
        self.by_label = np.argsort(truth.gallery_labels, kind="stable")
        in_order = truth.gallery_labels[self.by_label]
        self.start = np.searchsorted(in_order, truth.query_labels, side="left")
        self.stop = np.searchsorted(in_order, truth.query_labels, side="right")
        self.self_rows, self.sources, self.of_own_source = truth.self_rows, truth.sources, of_own_source

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, query: int) -> IntArray:  # type: ignore[override]  # no slices: nobody takes any
        rows = self.by_label[self.start[query] : self.stop[query]]
        if self.sources is not None:
            rows = rows[(self.sources[1][rows] == self.sources[0][query]) == self.of_own_source]
        return rows if self.self_rows is None else rows[rows != self.self_rows[query]]


@dataclass(frozen=True)
class PositiveRanks:
    """The 1-based ranks of every query's positives, ascending: those of query q are ``ranks[offsets[q]:offsets[q + 1]]``.

    ``offsets`` int64 ``[Q + 1]``, ``ranks`` int32 (all queries one after the other; ``NOT_FOUND`` in a cut-off ranking), ``num_gallery``
    the rows that were ranked.
    """

    offsets: IntArray
    ranks: npt.NDArray[np.int32]
    num_gallery: int

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.ranks):
            raise ValueError(f"offsets [Q + 1] must run from 0 to the {len(self.ranks)} ranks")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_positives(self) -> IntArray:
        """How many positives each query has, int64 ``[Q]``."""
        return np.diff(self.offsets)

    @property
    def answerable(self) -> BoolArray:
        """True for the queries that have a positive, ``[Q]``."""
        return self.num_positives > 0

    @property
    def fallible(self) -> BoolArray:
        """True for the answerable queries that have something wrong to find, ``[Q]``: where all is right, every measure is 1 whatever the model.

        Junk, which ranks do not tell of, counts as wrong here.
        """
        return self.answerable & (self.num_positives < self.num_gallery)

    @property
    def num_skipped(self) -> int:
        """How many queries have no positive and so take no part in any mean."""
        return int(len(self) - self.answerable.sum())

    @property
    def owner(self) -> IntArray:
        """The query that each entry of ``ranks`` belongs to, int64."""
        return np.repeat(np.arange(len(self)), self.num_positives)

    @property
    def order(self) -> IntArray:
        """The place of each entry of ``ranks`` among its query's positives, from 1, int64."""
        return np.arange(1, len(self.ranks) + 1) - np.repeat(self.offsets[:-1], self.num_positives)


def positive_ranks(
    queries: FloatArray,
    query_labels: IntArray,
    gallery: FloatArray | None = None,
    gallery_labels: IntArray | None = None,
    *,
    block_rows: int | None = None,
    device: str = "cpu",
) -> PositiveRanks:
    """Return the ranks of every query's positives, those of its label, by inner product: ``exact_ranks`` for one set of labels.

    Without a gallery the protocol is leave-one-out: every other query is the gallery.

    Raises:
        ValueError: shapes that do not fit each other, or a vector that is not finite.
    """
    self_rows = None
    queries, query_labels = np.asarray(queries), np.asarray(query_labels)
    if gallery is None or gallery_labels is None:
        if gallery is not None or gallery_labels is not None:
            raise ValueError("give the gallery's vectors and its labels, or neither for leave-one-out")
        gallery, gallery_labels, self_rows = queries, query_labels, np.arange(len(queries))
    gallery, gallery_labels = np.asarray(gallery), np.asarray(gallery_labels)
    for whose, vectors, labels in (("query", queries, query_labels), ("gallery", gallery, gallery_labels)):
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"{whose} labels are whole numbers [M], not {labels.dtype}: numpy.unique(names, return_inverse=True)[1] numbers names"
            )
        if labels.shape != (len(vectors),):
            raise ValueError(f"{whose} vectors [M, D] and labels [M] do not fit: {vectors.shape} and {labels.shape}")
    truth = SameLabel(query_labels, gallery_labels, self_rows)
    return exact_ranks(queries, gallery, {"": truth}, self_rows=self_rows, block_rows=block_rows, device=device)[""]


def exact_ranks(
    queries: FloatArray,
    gallery: FloatArray,
    truths: Mapping[str, Truth],
    *,
    self_rows: IntArray | None = None,
    block_rows: int | None = None,
    device: str = "cpu",
) -> dict[str, PositiveRanks]:
    """Return the ranks of every query's positives under each of the ``truths``, exactly, in memory bounded by one block.

    ``queries`` ``[Q, D]`` and ``gallery`` ``[G, D]`` are float32, unit length where the similarity is to be the cosine, and may be
    memory-mapped: the gallery is read where it lies, once for each block of queries. ``self_rows`` ``[Q]``: the gallery row that each query is and that is left out.
    ``block_rows`` queries are multiplied at once (None: as many as fill 128 MB); the result does not depend on it.

    Raises:
        ValueError: shapes that do not fit each other, or a vector that is not finite.
    """
    for whose, vectors in (("query", queries), ("gallery", gallery)):
        _check(vectors, whose)
    all_positives = {name: truth.positives for name, truth in truths.items()}
    all_junk = {name: truth.junk for name, truth in truths.items()}
    found = {name: _unfilled(positives, len(queries), len(gallery) - (self_rows is not None)) for name, positives in all_positives.items()}

    def wanted(query: int) -> IntArray:
        return reduce(np.union1d, (positives[query] for positives in all_positives.values()))

    # Neighbours in this order have as many positives as each other, so a block pads little; queries without any are left out.
    num_wanted = sum(ranks.num_positives for ranks in found.values())
    todo = np.argsort(num_wanted, kind="stable")[int(np.count_nonzero(num_wanted == 0)) :]
    for block in similarity_blocks(queries, gallery, todo, block_rows=block_rows, device=device):
        if self_rows is not None:
            block.hide(self_rows[block.rows])
        counted = count_at_least(block, [wanted(query) for query in block.rows])
        for place, (query, (values, num_reaching)) in enumerate(zip(block.rows, counted, strict=True)):
            for name, ranks in found.items():
                positives, counts = values, num_reaching
                if len(found) > 1:  # some of the counted ones only
                    positives = -np.sort(-values_at(block, place, all_positives[name][query]))
                    counts = num_reaching[np.searchsorted(-values, -positives)]
                junk = all_junk[name][query]
                if len(junk):
                    counts = counts - _num_reaching(np.sort(-values_at(block, place, junk)), positives)
                ranks.ranks[ranks.offsets[query] : ranks.offsets[query + 1]] = _ranks_of(positives, counts)
    return found


def ranks_in(
    ranking: Ranking, truths: Mapping[str, Truth], num_gallery: int, before: Mapping[str, PositiveRanks] | None = None
) -> dict[str, PositiveRanks]:
    """Return the ranks of every query's positives in a ranking, whole or cut off, under each of the ``truths``.

    Its order is taken as it is, but for equal similarities, of which negatives come first. A positive that it does not hold has the
    rank that it had ``before`` (a re-ranker only moves the K candidates, so it is still true), else ``NOT_FOUND``.
    """
    found = {name: _unfilled(truth.positives, len(ranking.rows), num_gallery) for name, truth in truths.items()}
    for name, ranks in found.items():
        positives, junk = truths[name].positives, truths[name].junk
        for query in np.flatnonzero(ranks.answerable).tolist():
            first, last = ranks.offsets[query : query + 2]
            listed = _ranks_in_list(ranking.rows[query], ranking.similarity[query], positives[query], junk[query])
            ranks.ranks[first : first + len(listed)] = listed
            if before is not None:
                ranks.ranks[first + len(listed) : last] = before[name].ranks[first + len(listed) : last]
    return found


def _ranks_in_list(rows: IntArray, similarity: FloatArray, positives: IntArray, junk: IntArray) -> IntArray:
    counts = ~np.isin(rows, junk)
    values = similarity[np.isin(rows, positives) & counts]
    num_counted = np.cumsum(counts, dtype=np.int64)
    return _ranks_of(values, num_counted[_num_reaching(-similarity, values) - 1])


def _unfilled(positives: Sequence[IntArray], num_queries: int, num_gallery: int) -> PositiveRanks:
    if len(positives) != num_queries:
        raise ValueError(f"{num_queries} queries do not fit the truth of {len(positives)}")
    offsets = np.concatenate([[0], np.cumsum([len(positives[query]) for query in range(num_queries)])]).astype(np.int64)
    return PositiveRanks(offsets, np.full(offsets[-1], NOT_FOUND, np.int32), num_gallery)


def _ranks_of(positives: FloatArray, num_reaching: IntArray) -> IntArray:
    # The count of rows that reach a positive has positives in it; without them it is the negatives, ties with them included.
    ranks: IntArray = num_reaching - _num_reaching(-positives, positives) + np.arange(1, len(positives) + 1)
    return ranks


def _num_reaching(rising_negated: FloatArray, values: FloatArray) -> IntArray:
    return np.searchsorted(rising_negated, -values, side="right")


def _check(vectors: FloatArray, whose: str) -> None:
    if vectors.ndim != 2:
        raise ValueError(f"{whose} vectors must be [M, D], got {vectors.shape}")
    if not np.isfinite(vectors @ np.ones(vectors.shape[1], np.float32)).all():
        raise ValueError(f"a {whose} vector holds NaN or infinity: no ranking of it means anything")
