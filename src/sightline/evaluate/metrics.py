"""Retrieval metrics, exact, as small pure functions of one thing: the rank of every positive of every query.

The tie rule, everywhere: **a tie counts against you**. A negative as similar as a positive is ranked before it, so a collapsed model
measures 0 and not 1. With it the i-th best positive of a query has the rank

    r_i = i + number of negatives with similarity >= s_i

and one blockwise pass of counting gives all ranks: no [Q, G] matrix, no sort of the gallery. A query is never its own answer: in
leave-one-out it is dropped by its row, not by its similarity. A query without any positive cannot be answered: it is skipped, its
measures are NaN, and ``num_skipped`` counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.evaluate.counting import count_at_least
from sightline.search.neighbours import similarity_blocks

DoubleArray = npt.NDArray[np.float64]

TIE_RULE = "pessimistic: a negative that ties with a positive is ranked before it"
USUAL_KS = (1, 2, 4, 8, 10, 100, 1000)


@dataclass(frozen=True)
class PositiveRanks:
    """The 1-based ranks of every query's positives, ascending: those of query q are ``ranks[offsets[q]:offsets[q + 1]]``.

    ``offsets`` int64 ``[Q + 1]``, ``ranks`` int32 (all queries one after the other), ``num_gallery`` the rows that were ranked.
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
    """Return the ranks of every query's positives by inner product, exactly, in memory bounded by one block.

    ``queries`` ``[Q, D]`` and ``gallery`` ``[G, D]`` are float32 and unit length where the similarity is to be the cosine. Without a
    gallery the protocol is leave-one-out: every other query is the gallery. ``block_rows`` queries are multiplied at once (None: as
    many as fill 128 MB); the result does not depend on it.

    Raises:
        ValueError: shapes that do not fit each other, or a vector that is not finite.
    """
    leave_one_out = gallery is None
    if gallery is None or gallery_labels is None:
        if gallery is not None or gallery_labels is not None:
            raise ValueError("give the gallery's vectors and its labels, or neither for leave-one-out")
        gallery, gallery_labels = queries, query_labels
    _check(queries, query_labels, "query")
    _check(gallery, gallery_labels, "gallery")
    by_label = np.argsort(gallery_labels, kind="stable")
    start = np.searchsorted(gallery_labels[by_label], query_labels, side="left")
    stop = np.searchsorted(gallery_labels[by_label], query_labels, side="right")
    num_positives = stop - start - int(leave_one_out)
    offsets = np.concatenate([[0], np.cumsum(num_positives)]).astype(np.int64)
    ranks = np.empty(offsets[-1], np.int32)
    # Neighbours in this order have as many positives as each other, so a block pads little; queries without any are left out.
    todo = np.argsort(num_positives, kind="stable")[int((num_positives == 0).sum()) :]

    for block in similarity_blocks(queries, gallery, todo, block_rows=block_rows, device=device):
        columns = [by_label[start[query] : stop[query]] for query in block.rows]
        if leave_one_out:
            columns = [positives[positives != query] for positives, query in zip(columns, block.rows, strict=True)]
            block.hide(block.rows)
        for query, (positives, num_reaching) in zip(block.rows, count_at_least(block, columns), strict=True):
            ranks[offsets[query] : offsets[query + 1]] = _ranks_of(positives, num_reaching)
    return PositiveRanks(offsets, ranks, len(gallery) - int(leave_one_out))


def _ranks_of(positives: FloatArray, num_reaching: IntArray) -> IntArray:
    # The count of rows that reach a positive has positives in it; without them it is the negatives, ties with them included.
    num_positives_reaching = np.searchsorted(-positives, -positives, side="right")
    ranks: IntArray = num_reaching - num_positives_reaching + np.arange(1, len(positives) + 1)
    return ranks


def _check(vectors: FloatArray, labels: IntArray, whose: str) -> None:
    if vectors.ndim != 2 or labels.shape != (len(vectors),):
        raise ValueError(f"{whose} vectors [M, D] and labels [M] do not fit: {vectors.shape} and {labels.shape}")
    if not np.isfinite(vectors.sum(dtype=np.float64)):
        raise ValueError(f"a {whose} vector holds NaN or infinity: no ranking of it means anything")


def _mean_over_positives(ranks: PositiveRanks, values: DoubleArray) -> DoubleArray:
    total = np.bincount(ranks.owner, weights=values, minlength=len(ranks))
    answerable = ranks.answerable
    mean = np.full(len(ranks), np.nan)
    mean[answerable] = total[answerable] / ranks.num_positives[answerable]
    return mean


def first_rank(ranks: PositiveRanks) -> DoubleArray:
    """Return the rank of each query's best positive ``[Q]``, NaN where it has none."""
    best = np.full(len(ranks), np.nan)
    best[ranks.answerable] = ranks.ranks[ranks.offsets[:-1][ranks.answerable]]
    return best


def recall_at(ranks: PositiveRanks, k: int) -> DoubleArray:
    """Return 1 where one of the K closest is right, else 0 ``[Q]``: the Recall@K of metric learning, also called CMC@K or hit rate.

    Source: Jegou, Douze & Schmid 2011 as used by Song et al. 2016, arXiv 1511.06452, section 6.
    """
    best = first_rank(ranks)
    return np.where(np.isnan(best), np.nan, best <= k)


def map_at_r(ranks: PositiveRanks) -> DoubleArray:
    """Return MAP@R in 0..1 ``[Q]``: ``(1/R) * sum of i / r_i`` over the positives ranked within R, the query's number of positives.

    Source: Musgrave, Belongie & Lim 2020, arXiv 2003.08505, equation 4.
    """
    within = ranks.ranks <= ranks.num_positives[ranks.owner]
    return _mean_over_positives(ranks, np.where(within, ranks.order / ranks.ranks, 0.0))


def r_precision(ranks: PositiveRanks) -> DoubleArray:
    """Return the share of positives among the R closest, R the query's number of positives, in 0..1 ``[Q]``."""
    return _mean_over_positives(ranks, (ranks.ranks <= ranks.num_positives[ranks.owner]).astype(np.float64))


def average_precision(ranks: PositiveRanks) -> DoubleArray:
    """Return the average precision over the whole gallery in 0..1 ``[Q]``: ``(1/R) * sum of i / r_i``.

    Departs: ROxford's and RParis' AP is a trapezoid and slightly lower; this is the usual step sum.
    """
    return _mean_over_positives(ranks, ranks.order / ranks.ranks)


def reciprocal_rank(ranks: PositiveRanks) -> DoubleArray:
    """Return one over the rank of the best positive, in 0..1 ``[Q]``."""
    return 1.0 / first_rank(ranks)


def precision_at_recall(ranks: PositiveRanks, levels: DoubleArray) -> DoubleArray:
    """Return the interpolated precision at each recall level in 0..1, averaged over the queries.

    Interpolated: the best precision at that recall or a higher one.
    """
    num_positives = ranks.num_positives[ranks.answerable]
    total = np.zeros(len(levels))
    precision = ranks.order / ranks.ranks
    for stop, num in zip(ranks.offsets[1:][ranks.answerable], num_positives, strict=True):
        best_from = np.maximum.accumulate(precision[stop - num : stop][::-1])[::-1]
        total += best_from[np.maximum(np.ceil(levels * num - 1e-9).astype(np.int64) - 1, 0)]
    return total / max(1, len(num_positives))


def per_query(ranks: PositiveRanks, ks: Sequence[int] = USUAL_KS) -> dict[str, DoubleArray]:
    """Return every metric of every query by its usual name: ``recall@1`` ..., ``map@r``, ``r_precision``, ``map``, ``mrr``.

    A K that is not less than the gallery is left out: its recall is 1 whatever the model.
    """
    named = {f"recall@{k}": recall_at(ranks, k) for k in ks if k < max(2, ranks.num_gallery)}
    return named | {
        "map@r": map_at_r(ranks),
        "r_precision": r_precision(ranks),
        "map": average_precision(ranks),
        "mrr": reciprocal_rank(ranks),
    }


def means(values: Mapping[str, DoubleArray]) -> dict[str, float]:
    """Return each metric's mean over the answerable queries (NaN where there is none)."""
    return {name: float(value[~np.isnan(value)].mean()) if (~np.isnan(value)).any() else float("nan") for name, value in values.items()}


def bootstrap_intervals(
    values: Mapping[str, DoubleArray], labels: IntArray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return a percentile confidence interval of each metric's mean, by drawing whole **classes** with replacement.

    Queries of one class share their positives, so drawing single queries would make the interval too narrow. The estimator is a ratio:
    sum over the drawn classes' queries by their number. Empty where fewer than two classes were measured: nothing can be said then.

    Source: Field & Welsh 2007 (the cluster bootstrap).
    """
    stacked = np.stack([*values.values()], axis=1)
    answerable = ~np.isnan(stacked).any(axis=1)
    classes, of_query = np.unique(labels[answerable], return_inverse=True)
    if len(classes) < 2:
        return {}
    sums = np.stack([np.bincount(of_query, weights=column) for column in stacked[answerable].T], axis=1)  # [C, metrics]
    sizes = np.bincount(of_query)
    generator = np.random.default_rng(seed)
    drawn_means = []
    num_at_once = max(1, 2**21 // len(classes))
    for first in range(0, num_resamples, num_at_once):
        num = min(num_at_once, num_resamples - first)
        drawn = generator.integers(0, len(classes), (num, len(classes))) + np.arange(num)[:, None] * len(classes)
        weights = np.bincount(drawn.ravel(), minlength=num * len(classes)).reshape(num, len(classes)).astype(np.float64)
        drawn_means.append((weights @ sums) / (weights @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(drawn_means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[column]), float(high[column])) for column, name in enumerate(values)}


@dataclass(frozen=True)
class Summary:
    """Means over the answerable queries and their confidence intervals, by the metrics' usual names (all in 0..1)."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


def summarise(ranks: PositiveRanks, labels: IntArray, ks: Sequence[int] = USUAL_KS, *, num_resamples: int = 1000, seed: int = 0) -> Summary:
    """Return the means and 95 % intervals of every metric; ``labels`` ``[Q]`` are the queries' classes."""
    values = per_query(ranks, ks)
    return Summary(means(values), bootstrap_intervals(values, labels, num_resamples=num_resamples, seed=seed))
