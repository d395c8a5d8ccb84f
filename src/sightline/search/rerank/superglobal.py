"""SuperGlobal's re-ranking: descriptors of a query's first candidates are refined by their neighbours there, and so is the query.

Source: Shao, Chen, Karpur, Cui, Araujo & Cao 2023, arXiv 2308.06954 (its re-ranking alone, not its pooling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.errors import UsageError
from sightline.search.rerank.base import Reranker, with_tail

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SuperGlobal(Reranker):
    """Refinement over the first ``top`` candidates: ``similarity = (q . x' + q' . x') / 2``, the others following in the order they had.

    ``x'`` is the mean of a candidate and its ``num`` nearest other candidates, which weigh ``beta * max(x . x_j, 0)``; ``q'`` is the
    elementwise maximum of the ``num + 1`` refined candidates closest to the query. Neither is normalised. ``top=0`` keeps the ranking.

    Departs: the authors' code does not cut a neighbour's weight at 0, which is felt only where a candidate has fewer than ``num``
    neighbours at an acute angle.
    """

    top: int = 400  # M
    num: int = 9  # K
    beta: float = 0.15

    def __post_init__(self) -> None:
        if self.top < 0 or self.num < 0 or self.beta < 0:
            raise UsageError("top, num and beta of superglobal cannot be negative")

    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """See ``Reranker.similarity``."""
        import torch

        if not self.top:
            return ranking.similarity.copy()
        head = np.zeros(ranking.rows[:, : self.top].shape, np.float32)
        for query, rows in enumerate(ranking.rows[:, : self.top]):
            real = rows >= 0
            if real.any():
                candidates = torch.from_numpy(gallery[rows[real]]).to(device)
                head[query, real] = self._refined(torch.from_numpy(queries[query]).to(device), candidates).cpu().numpy()
        return with_tail(ranking, head)

    def _refined(self, query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Return the similarity ``[T]`` of a query ``[D]`` to its candidates ``[T, D]``."""
        import torch

        between = candidates @ candidates.T  # [T, T]
        between.fill_diagonal_(torch.inf)  # before its duplicates
        closest, which = between.topk(min(self.num + 1, len(candidates)), dim=1)
        weight = torch.zeros_like(between).scatter_(1, which, self.beta * closest.clamp(min=0)).fill_diagonal_(1)
        refined = (weight @ candidates) / weight.sum(dim=1, keepdim=True)
        first = refined @ query
        best = first.topk(min(self.num + 1, len(candidates))).indices
        return (first + refined @ refined[best].amax(dim=0)) / 2
