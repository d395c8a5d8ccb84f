"""Measuring a trial, and saying what was measured and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.errors import DataError
from sightline.evaluation import metrics
from sightline.evaluation.ranks import TIE_RULE, PositiveRanks, Truth, exact_ranks, ranks_in
from sightline.evaluation.trials import Trial
from sightline.search.neighbours import nearest

MAX_RANKED = 2**26
"""Similarities up to which the whole gallery is re-ranked for every query: 0.8 GB of rows and similarities."""

RERANK_TOP = 1000
"""Candidates a query that are re-ranked in a larger trial."""

NUM_KEPT = 10
"""Answers a query that are kept of a re-ranking, to be looked at."""

Rerank = Callable[[Ranking, FloatArray, FloatArray, IntArray | None], Ranking]
"""From (ranking, queries, gallery, self_rows) to the ranking of the same candidates in another order."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, on what and how. ``ranks`` are kept per query, by setting; a single setting is called "".

    ``reranked`` holds each query's first answers where a re-ranker had its say over the ``rerank_top`` closest.

    In ``metrics`` and ``intervals`` a measure of one setting among several is ``NAME/SETTING``, such as ``map/medium``.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    protocol: str
    num_queries: int
    num_gallery: int
    num_groups: int
    by_labels: bool
    ranks: Mapping[str, PositiveRanks]
    rerank_top: int | None = None
    reranked: Ranking | None = None
    left_out: str = ""
    tie_rule: str = TIE_RULE

    @property
    def num_skipped(self) -> Mapping[str, int]:
        """How many queries have no positive and so take no part, by setting."""
        return {setting: ranks.num_skipped for setting, ranks in self.ranks.items()}

    @property
    def setting(self) -> str:
        """The setting to look at single queries in: medium where there is one, else the first."""
        return "medium" if "medium" in self.ranks else next(iter(self.ranks))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``--json``: ``metrics`` by their usual names in 0..1, 95 % ``intervals``, and how they came about."""
        over = "classes" if self.by_labels else "groups of queries that share a positive"
        skipped = self.num_skipped
        return {
            "metrics": {name: None if np.isnan(value) else value for name, value in self.metrics.items()},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_kind": f"95 % percentile bootstrap over {over}",
            "average_precision": "step sum" if self.by_labels else "trapezoid (map), step sum (map@K)",
            "protocol": self.protocol,
            **({"left_out": self.left_out} if self.left_out else {}),
            "tie_rule": self.tie_rule,
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_skipped": skipped[""] if "" in skipped else dict(skipped),
            "num_classes" if self.by_labels else "num_groups": self.num_groups,
            **({} if self.rerank_top is None else {"rerank_top": self.rerank_top}),
        }


def measure(
    trial: Trial,
    *,
    ks: Sequence[int] = metrics.USUAL_KS,
    rerank: Rerank | None = None,
    rerank_top: int | None = None,
    device: str = "cpu",
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measured:
    """Return the metrics of a trial, with ``rerank`` after the ``rerank_top`` closest of each query were put into its order.

    ``rerank_top`` None is the whole gallery, or ``RERANK_TOP`` in a large trial. Positives behind them keep their exact ranks.

    A setting in which no query has anything wrong to find is measured as NaN: every measure would be 1 there, whatever the model.

    Raises:
        DataError: no query that can be answered is left, or in no setting an answer can be wrong.
    """
    ranks = exact_ranks(trial.queries, trial.gallery, trial.truths, self_rows=trial.self_rows, device=device)
    if not any(one.answerable.any() for one in ranks.values()):
        raise DataError(f"no query of {trial.records.root} has a readable image to find: nothing can be measured")
    can_err = {setting: _can_err(found, trial.truths[setting]) for setting, found in ranks.items()}
    if not any(can_err.values()):
        raise DataError(
            f"all that the queries of {trial.records.root} search is right or left out, so nothing can be wrong and every measure would be 1: "
            "search images of other classes too (add them, or give --distractors)"
        )
    top, first = None, None
    if rerank is not None:
        whole = len(trial.queries) * len(trial.gallery) <= MAX_RANKED
        candidates = nearest(
            trial.queries, trial.gallery, rerank_top or (len(trial.gallery) if whole else RERANK_TOP), trial.self_rows, device=device
        )
        top = candidates.rows.shape[1]
        reranked = rerank(candidates, trial.queries, trial.gallery, trial.self_rows)
        ranks = ranks_in(reranked, trial.truths, len(trial.gallery) - (trial.self_rows is not None), before=ranks)
        first = Ranking(reranked.rows[:, :NUM_KEPT].copy(), reranked.similarity[:, :NUM_KEPT].copy())
    means: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for setting, found in ranks.items():
        values = metrics.per_query(found, ks) if trial.metrics is None else metrics.by_name(found, trial.metrics)
        values = values if can_err[setting] else {name: np.full(len(value), np.nan) for name, value in values.items()}
        named = {f"{name}/{setting}" if setting else name: value for name, value in values.items()}
        means |= metrics.means(named)
        intervals |= metrics.bootstrap_intervals(named, trial.groups, num_resamples=num_resamples, seed=seed)
    return Measured(
        metrics=means,
        intervals=intervals,
        protocol=trial.protocol,
        num_queries=len(trial.queries),
        num_gallery=len(trial.gallery) - (trial.self_rows is not None),
        num_groups=len(np.unique(trial.groups)),
        by_labels=trial.labels is not None,
        ranks=ranks,
        rerank_top=top,
        reranked=first,
        left_out=trial.left_out,
    )


def _can_err(ranks: PositiveRanks, truth: Truth) -> bool:
    """Return whether some query that can be answered has something wrong to find, which is neither positive nor junk."""
    junk = truth.junk
    num_junk = np.array([len(junk[query]) for query in range(len(ranks))], np.int64)
    return bool((ranks.answerable & (ranks.num_positives + num_junk < ranks.num_gallery)).any())
