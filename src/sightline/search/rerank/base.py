"""The contract of a re-ranker: from a ranking to a ranking of the same candidates, in an order that the whole collection has a say in.

A re-ranker says how similar each candidate of a query is; the contract does the rest, so that it holds by construction: the candidates
are those that came in, of equally similar ones the earlier stays before the later, and padding stays last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.search.neighbours import similarity_blocks


class Reranker(ABC):
    """A way to re-rank; its settings are the fields of a frozen, keyword-only dataclass, all with defaults."""

    def __call__(
        self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None = None, *, device: str = "cpu"
    ) -> Ranking:
        """Return each query's K candidates, re-ranked, with the re-ranker's own ``similarity``: falling, and comparable within one query only.

        ``queries`` ``[Q, D]`` and ``gallery`` ``[G, D]`` are float32 of unit length. Neighbourhoods and graphs are made from all of the
        gallery, whatever the K. ``self_rows`` int64 ``[Q]`` (leave-one-out): the gallery row that each query is; the query's vector then
        stands in that row's place, and the row is neither an answer nor counted twice. ``device`` does the large products.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        num_queries, k = ranking.rows.shape
        if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or len(queries) != num_queries:
            raise ValueError(f"a ranking {ranking.rows.shape} does not fit queries {queries.shape} and a gallery {gallery.shape}")
        if self_rows is not None and (self_rows.shape != (num_queries,) or len(np.unique(self_rows)) < num_queries):
            raise ValueError(f"self_rows must be [{num_queries}], a row of its own for each query")
        if k and ranking.rows.size and ranking.rows.max() >= len(gallery):
            raise ValueError(f"the ranking names row {ranking.rows.max()} of a gallery of {len(gallery)}")
        if not ranking.rows.size:
            return ranking
        gallery = stand_in(queries, gallery, self_rows)
        return reorder(ranking, self.similarity(ranking, queries, gallery, self_rows, device))

    @abstractmethod
    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """Return how similar each candidate is: a new float32 ``[Q, K]`` in the ranking's present order, whatever where the padding is."""


class Refiner(Reranker):
    """A re-ranker that changes vectors and then takes their inner products; what follows it in a chain works with the changed vectors."""

    @abstractmethod
    def refine(
        self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str
    ) -> tuple[FloatArray, FloatArray]:
        """Return the queries ``[Q, D]`` and the gallery ``[G, D]`` to compare instead, of unit length."""

    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """See ``Reranker.similarity``: the cosine of the refined vectors."""
        return candidate_similarity(ranking, *self.refine(ranking, queries, gallery, self_rows, device), device)


@dataclass(frozen=True)
class Chain(Reranker):
    """Re-rankers one after the other."""

    stages: tuple[Reranker, ...]

    def __call__(
        self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None = None, *, device: str = "cpu"
    ) -> Ranking:
        """See ``Reranker.__call__``; the similarity is the last one's."""
        for stage in self.stages:
            gallery = stand_in(queries, gallery, self_rows)
            if isinstance(stage, Refiner):
                queries, gallery = stage.refine(ranking, queries, gallery, self_rows, device)
                ranking = reorder(ranking, candidate_similarity(ranking, queries, gallery, device))
            else:
                ranking = stage(ranking, queries, gallery, self_rows, device=device)
        return ranking

    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """See ``Reranker.similarity``."""
        raise AssertionError("a chain re-ranks stage by stage")


def reorder(ranking: Ranking, similarity: FloatArray) -> Ranking:
    """Return the ranking in the order of a new ``similarity`` ``[Q, K]`` of its candidates, ties in their present order, padding last.

    The memory of ``similarity`` becomes the answer's: a ranking of the whole gallery is the largest thing there is here.
    """
    rows = np.empty_like(ranking.rows)
    for query, (candidates, values) in enumerate(zip(ranking.rows, similarity, strict=True)):
        values[candidates < 0] = -np.inf
        order = np.argsort(-values, kind="stable")
        rows[query], values[:] = candidates.take(order), values.take(order)
    return Ranking(rows, similarity)


def candidate_similarity(ranking: Ranking, queries: FloatArray, gallery: FloatArray, device: str = "cpu") -> FloatArray:
    """Return the inner product of each query with each of its candidates, float32 ``[Q, K]``.

    All of the gallery is multiplied: reading K scattered rows a query costs as much as the product with forty times as many.
    """
    found = np.empty(ranking.rows.shape, np.float32)
    for block in similarity_blocks(queries, gallery, np.arange(len(queries)), device=device):
        for query, values in zip(block.rows, block.similarity.cpu().numpy(), strict=True):
            found[query] = values.take(ranking.rows[query])
    return found


def stand_in(queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None) -> FloatArray:
    """Return the gallery with each query in its own row's place; without ``self_rows``, the gallery."""
    if self_rows is None or np.array_equal(gallery[self_rows], queries):
        return gallery
    changed = gallery.copy()
    changed[self_rows] = queries
    return changed


def with_tail(ranking: Ranking, head: FloatArray) -> FloatArray:
    """Return ``head`` ``[Q, T]``, the new similarity of each query's first T candidates, and the others' behind it in their present order, ``[Q, K]``."""
    present = np.where(ranking.rows < 0, 0, ranking.similarity)
    lowest = np.where(ranking.rows[:, : head.shape[1]] < 0, np.inf, head).min(axis=1, keepdims=True, initial=np.inf)
    start = head.shape[1]
    below = np.nextafter(lowest.astype(np.float32), np.float32(-np.inf))  # a measure that counts ties against us must see none here
    return np.concatenate([head, below + (present[:, start:] - present[:, start : start + 1])], axis=1, dtype=np.float32)


def unit(vectors: FloatArray) -> FloatArray:
    """Return the vectors at unit length; a vector of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors))
    scaled: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return scaled
