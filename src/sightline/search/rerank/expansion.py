"""Query expansion and database-side augmentation: a vector becomes the weighted mean of its neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.errors import UsageError
from sightline.search.neighbours import nearest
from sightline.search.rerank.base import Refiner, unit

GATHERED_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class QueryExpansion(Refiner):
    """Alpha query expansion: the query plus its ``num`` first candidates, each weighted by its similarity to the power ``alpha``.

    ``q' = normalise(q + sum over i <= num of max(q . x_i, 0)^alpha x_i)``; the query itself weighs 1. ``alpha=0`` is the plain average.

    Source: Radenovic, Tolias & Chum 2018, arXiv 1711.02512 (alpha-weighted query expansion); the average: Chum et al. 2007.
    """

    num: int = (
        10  # candidates beside the query. Departs: 50 in the paper, for landmarks of hundreds of photographs; small classes have fewer
    )
    alpha: float = 3.0

    def __post_init__(self) -> None:
        _check(self.num, self.alpha)

    def refine(
        self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str
    ) -> tuple[FloatArray, FloatArray]:
        """Return the expanded queries, and the gallery as it is."""
        if not self.num:
            return queries, gallery
        return expand(queries, ranking.rows[:, : self.num], gallery, self.alpha), gallery


@dataclass(frozen=True, kw_only=True)
class DatabaseAugmentation(Refiner):
    """Database-side augmentation: every gallery vector plus its ``num`` nearest others, weighted as in query expansion.

    In leave-one-out the queries are rows of the gallery, and are augmented with it.

    Source: Arandjelovic & Zisserman 2012 (database-side feature augmentation). Departs: neighbours weigh similarity^alpha as in alpha query expansion; Gordo et al.
    2017, arXiv 1610.07940, let the weight fall with the rank.
    """

    num: int = 10  # neighbours beside the vector itself
    alpha: float = 3.0

    def __post_init__(self) -> None:
        _check(self.num, self.alpha)

    def refine(
        self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str
    ) -> tuple[FloatArray, FloatArray]:
        """Return the queries and the augmented gallery."""
        if not self.num:
            return queries, gallery
        near = nearest(gallery, gallery, self.num, np.arange(len(gallery)), device=device).rows
        augmented = expand(gallery, near, gallery, self.alpha)
        return queries if self_rows is None else augmented[self_rows], augmented


def expand(vectors: FloatArray, rows: IntArray, gallery: FloatArray, alpha: float) -> FloatArray:
    """Return ``vectors`` ``[M, D]`` plus their neighbours ``gallery[rows]`` weighted by similarity^alpha, at unit length; rows ``[M, n]``, -1 is none."""
    expanded = np.empty_like(vectors)
    num_at_once = max(1, GATHERED_BYTES // (4 * vectors.shape[1] * max(1, rows.shape[1])))
    for first in range(0, len(vectors), num_at_once):
        part, near = vectors[first : first + num_at_once], rows[first : first + num_at_once]
        neighbours = gallery[near]  # [B, n, D]
        similarity = np.einsum("bd,bnd->bn", part, neighbours)
        weight = np.where(near < 0, 0, np.maximum(similarity, 0) ** alpha).astype(np.float32)
        expanded[first : first + num_at_once] = unit(part + np.einsum("bn,bnd->bd", weight, neighbours))
    return expanded


def _check(num: int, alpha: float) -> None:
    if num < 0 or alpha < 0:
        raise UsageError(f"num and alpha of an expansion cannot be negative, got num={num}, alpha={alpha}")
