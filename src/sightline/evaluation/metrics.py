"""Retrieval metrics as small pure functions of one thing: the rank of every positive of every query (`ranks`).

A query without any positive cannot be answered: it is skipped, its measures are NaN, and ``num_skipped`` counts it. A positive that a
cut-off ranking does not hold (``NOT_FOUND``) adds nothing to any measure and still counts among its query's positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sightline.contracts import IntArray
from sightline.evaluation.ranks import NOT_FOUND, DoubleArray, PositiveRanks
from sightline.evaluation.ranks import positive_ranks as positive_ranks  # where people look for it

USUAL_KS = (1, 2, 4, 8, 10, 100, 1000)


def _mean_over_positives(ranks: PositiveRanks, values: DoubleArray) -> DoubleArray:
    total = np.bincount(ranks.owner, weights=values, minlength=len(ranks))
    answerable = ranks.answerable
    mean = np.full(len(ranks), np.nan)
    mean[answerable] = total[answerable] / ranks.num_positives[answerable]
    return mean


def _precision_at_positives(ranks: PositiveRanks) -> DoubleArray:
    # i / r_i: the precision of the list that ends with the i-th positive.
    return np.where(ranks.ranks == NOT_FOUND, 0.0, ranks.order / ranks.ranks)


def first_rank(ranks: PositiveRanks) -> DoubleArray:
    """Return the rank of each query's best positive ``[Q]``: NaN where it has none, infinity where none was found."""
    best = np.full(len(ranks), np.nan)
    best[ranks.answerable] = ranks.ranks[ranks.offsets[:-1][ranks.answerable]]
    best[best == NOT_FOUND] = np.inf
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
    return _mean_over_positives(ranks, np.where(within, _precision_at_positives(ranks), 0.0))


def r_precision(ranks: PositiveRanks) -> DoubleArray:
    """Return the share of positives among the R closest, R the query's number of positives, in 0..1 ``[Q]``."""
    return _mean_over_positives(ranks, (ranks.ranks <= ranks.num_positives[ranks.owner]).astype(np.float64))


def average_precision(ranks: PositiveRanks) -> DoubleArray:
    """Return the average precision over the whole gallery in 0..1 ``[Q]``: ``(1/R) * sum of i / r_i``.

    Departs: ROxford's, RParis', Holidays' and Copydays' AP is a trapezoid and slightly lower; this is the usual step sum.
    """
    return _mean_over_positives(ranks, _precision_at_positives(ranks))


def average_precision_at(ranks: PositiveRanks, k: int) -> DoubleArray:
    """Return the average precision of the K closest in 0..1 ``[Q]``: the sum of ``i / r_i`` over positives up to K, by ``min(R, K)``.

    Source: Weyand et al. 2020, arXiv 2004.01804 (mAP@100 of Google Landmarks v2), as their evaluator computes it.
    """
    within = ranks.ranks <= k
    share = _mean_over_positives(ranks, np.where(within, _precision_at_positives(ranks), 0.0))
    return share * ranks.num_positives / np.minimum(np.maximum(ranks.num_positives, 1), k)


def trapezoid_average_precision(ranks: PositiveRanks) -> DoubleArray:
    """Return the area under precision over recall by trapezoids, in 0..1 ``[Q]``: the AP of ROxford, RParis, Holidays and Copydays.

    Each positive adds the mean of the precision just before it, ``(i - 1) / (r_i - 1)`` (1 at the first place), and with it, ``i / r_i``.

    Source: Radenovic et al. 2018, arXiv 1803.11285, as their evaluator computes it (revisitop ``compute_ap``).
    """
    before = np.where(ranks.ranks > 1, (ranks.order - 1) / np.maximum(ranks.ranks - 1, 1), 1.0)
    before[ranks.ranks == NOT_FOUND] = 0.0
    return _mean_over_positives(ranks, (before + _precision_at_positives(ranks)) / 2)


def precision_at(ranks: PositiveRanks, k: int) -> DoubleArray:
    """Return the share of positives among the K closest in 0..1 ``[Q]``, K no more than the rank of the query's last positive found.

    With fewer than K positives a perfect answer is then 1. Where none was found it is 0.

    Source: Radenovic et al. 2018, arXiv 1803.11285, as their evaluator computes it (revisitop ``compute_map``).

    Departs: their evaluator stops with an error where a query has positives and a cut-off ranking holds none of them.
    """
    found = ranks.ranks != NOT_FOUND
    last = np.zeros(len(ranks), np.int64)
    np.maximum.at(last, ranks.owner[found], ranks.ranks[found])
    cut = np.minimum(np.maximum(last, 1), k)
    num_right = np.bincount(ranks.owner[ranks.ranks <= cut[ranks.owner]], minlength=len(ranks))
    return np.where(ranks.answerable, num_right / cut, np.nan)


def reciprocal_rank(ranks: PositiveRanks) -> DoubleArray:
    """Return one over the rank of the best positive, in 0..1 ``[Q]``."""
    return 1.0 / first_rank(ranks)


def precision_at_recall(ranks: PositiveRanks, levels: DoubleArray) -> DoubleArray:
    """Return the interpolated precision at each recall level in 0..1, averaged over the queries.

    Interpolated: the best precision at that recall or a higher one.
    """
    num_positives = ranks.num_positives[ranks.answerable]
    total = np.zeros(len(levels))
    precision = _precision_at_positives(ranks)
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


def by_name(ranks: PositiveRanks, names: Sequence[str]) -> dict[str, DoubleArray]:
    """Return the measures that a judged benchmark is told in, of every query ``[Q]``, by their usual names.

    ``map`` is the trapezoid one, ``map@K`` cut off, ``mp@K`` and ``recall@K``.

    Raises:
        ValueError: no such measure.
    """
    values = {}
    for name in names:
        kind, _, k = name.partition("@")
        if name == "map":
            values[name] = trapezoid_average_precision(ranks)
        elif kind in AT_K and k.isdecimal():
            values[name] = AT_K[kind](ranks, int(k))
        else:
            raise ValueError(f"there is no measure '{name}': map, or {', '.join(f'{kind}@K' for kind in AT_K)}")
    return values


AT_K = {"map": average_precision_at, "mp": precision_at, "recall": recall_at}


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
    """Return the means and 95 % intervals of every metric; ``labels`` ``[Q]`` are the queries' classes.

    Where no query has anything wrong to find (all is of one class) every mean is NaN: it would be 1 whatever the model.
    """
    values = per_query(ranks, ks)
    if not ranks.fallible.any():
        return Summary(dict.fromkeys(values, float("nan")), {})
    return Summary(means(values), bootstrap_intervals(values, labels, num_resamples=num_resamples, seed=seed))
