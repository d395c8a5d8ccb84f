"""Diffusion: a query's similarity walks along the graph of mutual neighbours, and so reaches what is like what is like it.

Source: Iscen, Tolias, Avrithis, Furon & Chum 2017, arXiv 1611.05113; it truncates to the candidates too, which is the point of
Yang, Hinami, Matsui, Ly & Satoh 2019, arXiv 1811.10907, who do it ahead of the queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.errors import UsageError
from sightline.search.neighbours import nearest
from sightline.search.rerank.base import Reranker, candidate_similarity, with_tail
from sightline.search.rerank.sparse import SparseRows, mutual, offsets_of

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Diffusion(Reranker):
    """Diffusion over a query's first ``truncate`` candidates: ``similarity = f`` where ``(I - alpha * S) f = y``.

    ``S = D^-1/2 W D^-1/2`` normalises ``W``, the graph of the candidates that are among each other's ``k`` nearest of the whole gallery,
    with edges ``max(x_i . x_j, 0)^gamma``; ``y`` holds ``max(q . x_i, 0)^gamma`` of the ``kq`` candidates closest to the query. What the
    walk does not reach follows by its cosine, less 1, and then the other candidates in the order they had. ``alpha=0`` keeps the ranking.
    """

    k: int = 50  # neighbours of a vector in the graph, itself among them
    kq: int = 10  # candidates that the query is tied to
    alpha: float = 0.99
    gamma: float = 3.0
    truncate: int = 1_000  # candidates that make the graph; 0 takes all. Departs: 10,000 regions in the paper; 1,000 images in Yang et al.
    iterations: int = 20  # of conjugate gradients, at most
    tolerance: float = 1e-6  # of the residual, as a share of y; the iterations end below it

    def __post_init__(self) -> None:
        if self.k < 1 or self.kq < 1 or self.truncate < 0 or self.iterations < 1:
            raise UsageError("k, kq and iterations of diffusion must be 1 or more, and truncate 0 or more")
        if not 0 <= self.alpha < 1 or self.gamma < 0 or self.tolerance <= 0:
            raise UsageError("alpha of diffusion must be at least 0 and below 1, gamma not negative, tolerance above 0")

    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """See ``Reranker.similarity``."""
        num_nodes = min(self.truncate or ranking.rows.shape[1], ranking.rows.shape[1])
        nodes = ranking.rows[:, :num_nodes]
        to_nodes = candidate_similarity(Ranking(nodes, ranking.similarity[:, :num_nodes]), queries, gallery, device)
        members = np.unique(nodes[nodes >= 0])  # only what is a candidate of some query is a node of some graph
        graph = mutual_graph(gallery, members, self.k, self.gamma, device)
        reached = np.zeros(nodes.shape, np.float32)
        place = np.full(len(members), -1)
        for query, rows in enumerate(nodes):
            real = rows >= 0
            own = np.searchsorted(members, rows[real])
            place[own] = np.arange(len(own))
            f = self._spread(graph, own, place, to_nodes[query, real])
            reached[query, real] = np.where(f == 0, to_nodes[query, real] - 1, f)
            place[own] = -1
        return with_tail(ranking, reached)

    def _spread(self, graph: SparseRows, own: IntArray, place: IntArray, similarity: FloatArray) -> DoubleArray:
        """Return f ``[T]`` of one query: the nodes ``own`` of the graph, each node's ``place`` among them (-1 outside), cosines ``[T]``."""
        entries = graph.entries(own)
        targets = place[graph.columns[entries]]
        sources = np.repeat(np.arange(len(own)), graph.lengths[own])
        inside = targets >= 0
        sources, targets, weight = sources[inside], targets[inside], graph.values[entries[inside]].astype(np.float64)
        degree = np.bincount(sources, weight, len(own))
        walk = self.alpha * weight / np.sqrt(degree[sources] * degree[targets])

        def apply(f: DoubleArray) -> DoubleArray:
            spread: DoubleArray = f - np.bincount(sources, walk * f[targets], len(own))
            return spread

        y = np.zeros(len(own))
        closest = np.argsort(-similarity, kind="stable")[: self.kq]
        y[closest] = np.maximum(similarity[closest], 0).astype(np.float64) ** self.gamma
        return conjugate_gradients(apply, y, self.iterations, self.tolerance)


def mutual_graph(gallery: FloatArray, members: IntArray, k: int, gamma: float, device: str) -> SparseRows:
    """Return the edges between ``members``, gallery rows ascending ``[M]``, as rows over them: mutual among the ``k`` nearest of the gallery.

    A vector counts as its own nearest and has no edge to itself. Values are ``max(similarity, 0)^gamma``; edges of weight 0 are left out.
    """
    found = nearest(gallery[members], gallery, k, device=device)
    place = np.full(len(gallery), -1)
    place[members] = np.arange(len(members))
    near = place[found.rows]
    weight = np.maximum(found.similarity, 0) ** np.float32(gamma)
    edges = mutual(near) & (near != np.arange(len(members))[:, None]) & (weight > 0)
    return SparseRows(offsets_of(edges.sum(axis=1)), near[edges], weight[edges])


def conjugate_gradients(apply: Callable[[DoubleArray], DoubleArray], y: DoubleArray, iterations: int, tolerance: float) -> DoubleArray:
    """Return f with ``apply(f) = y``, ``apply`` symmetric and positive definite, begun at 0 and ended where the residual is small.

    Source: Hestenes & Stiefel 1952.
    """
    f = np.zeros_like(y)
    residual, direction = y.copy(), y.copy()
    squared = residual @ residual
    enough = tolerance**2 * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        applied = apply(direction)
        step = squared / (direction @ applied)
        f += step * direction
        residual -= step * applied
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return f
