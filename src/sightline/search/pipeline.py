"""An index of pictures, asked with a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.contracts import FloatArray, Hits, Ranking
from sightline.index.base import Index
from sightline.nn.encoder import Encoder
from sightline.nn.pictures import Picture
from sightline.runtime import Precision
from sightline.search.rerank.base import Reranker

RERANKED = 1_000
"""Items that are fetched for a re-ranker: what is farther from the query than these neither answers nor is anybody's neighbour."""


def search(
    index: Index,
    encoder: Encoder,
    pictures: Sequence[Picture],
    k: int,
    *,
    where: str | None = None,
    exact: bool = False,
    precision: Precision = "auto",
    reranker: Reranker | None = None,
    num_reranked: int = RERANKED,
) -> list[Hits]:
    """Return the ``k`` closest items of each picture, closest first.

    A ``reranker`` orders the ``num_reranked`` closest anew, each picture's on their own, before the first ``k`` answer; a hit's
    similarity stays the cosine.

    Raises:
        DataError: a picture cannot be decoded.
        UsageError: the filter ``where`` cannot be read.
    """
    queries = encoder.embed(pictures, precision=precision)
    if reranker is None:
        return index.hits(index.search(queries, k, where=where, exact=exact))
    found = index.search(queries, max(k, num_reranked), where=where, exact=exact)
    return index.hits(rerank_found(index, queries, found, reranker, k))


def rerank_found(index: Index, queries: FloatArray, found: Ranking, reranker: Reranker, k: int) -> Ranking:
    """Return the first ``k`` ids of each query once what was found for it is re-ranked as a gallery of its own, with their cosines.

    One query does not change what another is answered. Items that were removed since the search are left out.
    """
    ids = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    for query in range(len(queries)):
        present, vectors = index.vectors(found.rows[query][found.rows[query] >= 0])
        kept = np.isin(found.rows[query], present)
        candidates, similarity = found.rows[query][kept], found.similarity[query][kept]
        gallery = vectors[np.searchsorted(present, candidates)]
        ranking = Ranking(np.arange(len(candidates))[None], similarity[None])
        first = reranker(ranking, queries[query : query + 1], gallery).rows[0, :k]
        ids[query, : len(first)], cosines[query, : len(first)] = candidates[first], similarity[first]
    return Ranking(ids, cosines, found.how)
