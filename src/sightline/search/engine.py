"""An index that stays open with its model: pictures, boxes, vectors and items of the index itself as queries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from sightline import runtime
from sightline.contracts import Box, FloatArray, Hits, PatchFeatures, Ranking
from sightline.errors import ModelError, UsageError
from sightline.index.base import Index, as_vectors
from sightline.index.header import read_header
from sightline.index.patches import PatchIndex

if TYPE_CHECKING:
    from sightline.nn.encoder import Encoder
    from sightline.nn.pictures import Picture
    from sightline.search.rerank.base import Reranker

NUM_CANDIDATES = 1_000
"""Closest items that a re-ranker takes; items beyond this rank are neither returned nor used as neighbours."""

POSITIVE_WEIGHT, NEGATIVE_WEIGHT = 0.75, 0.15
"""Weights of the mean of the positives and of the negatives beside the query's own vector.

Source: Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", section 9.1.1 (Rocchio's formula, its usual values).
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """One query: a picture, a vector or an item of the index, or positives alone.

    ``vector`` is float32 ``[D]`` of unit length, ``id`` an item of the index. ``box`` is a region (left, top, right, bottom) in the pixels of
    the picture or item, for an index of patches. ``positives`` and ``negatives`` are ids of the index: results become more like the ones and
    less like the others. No item that the query names is a result.
    """

    picture: Picture | None = None
    vector: FloatArray | None = None
    id: int | None = None
    box: Box | None = None
    positives: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        num = sum(given is not None for given in (self.picture, self.vector, self.id))
        if num > 1 or (not num and not self.positives):
            raise UsageError("a query is one of picture=, vector= and id=, or positives= alone")
        if self.box is not None and self.vector is not None:
            raise UsageError("a box is a part of a picture or item, and the query is a vector: leave out box=")

    @property
    def named(self) -> frozenset[int]:
        """The ids that the query names."""
        return frozenset((*(() if self.id is None else (self.id,)), *self.positives, *self.negatives))


@dataclass(frozen=True)
class Answer:
    """The results of one query, closest first, and the milliseconds that each stage took.

    ``order`` is ``similarity`` or the name of the re-ranker. Queries of one call share their stages, and so their ``timings_ms``.
    """

    hits: Hits
    order: str = "similarity"
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def searched(self) -> str:
        """The way of the search: ``exact``, ``approximate``, or ``approximate, widened``."""
        return self.hits.how


class Searcher:
    """An open index with its model, for any number of queries of any number of threads.

    The model is loaded for the first picture: queries by vector or id need none.
    """

    def __init__(self, index: Index, *, model: str = "", device: str = "auto", encoder: Encoder | None = None) -> None:
        self.index, self._model, self._device = index, model, device
        self._encoder = None if encoder is None else _fitted(encoder, index)
        self._loading = threading.Lock()

    @classmethod
    def open(cls, index: str | Path, *, model: str = "", device: str = "auto") -> Self:
        """Return a searcher of the index at a path; ``model`` is where its model is now, if it has moved.

        Raises:
            IndexStoreError: there is no such index.
            DeviceError: there is no such device.
        """
        if device != "auto":
            runtime.device(device)
        return cls(Index.open(index, read_only=True), model=model, device=device)

    @property
    def encoder(self) -> Encoder:
        """The model of the index, loaded once.

        Raises:
            UsageError: the index does not say which it is, and no ``model`` was given.
            ModelError: it cannot be loaded.
            IndexStoreError: it is not the model of the index.
        """
        with self._loading:
            if self._encoder is None:
                self._encoder = _fitted(encoder_of(self.index.path, self._model, self._device), self.index)
            return self._encoder

    def search(
        self,
        query: Query | Picture,
        k: int = 10,
        *,
        where: str | None = None,
        exact: bool = False,
        rerank: str = "",
        num_candidates: int | None = None,
    ) -> Answer:
        """Return the ``k`` items closest to a query; a picture alone is a query too. See ``search_many``."""
        (answer,) = self.search_many([query], k, where=where, exact=exact, rerank=rerank, num_candidates=num_candidates)
        return answer

    def search_many(
        self,
        queries: Sequence[Query | Picture],
        k: int = 10,
        *,
        where: str | None = None,
        exact: bool = False,
        rerank: str = "",
        num_candidates: int | None = None,
    ) -> list[Answer]:
        """Return the ``k`` items closest to each query, closest first.

        ``where`` filters the items. ``exact`` compares with every vector. ``rerank`` names a re-ranker, which orders the ``num_candidates``
        (1,000) closest of each query anew; the similarity of a hit stays the cosine. In an index of patches the results are regions.

        Raises:
            UsageError: the filter or re-ranker cannot be read, or the query does not suit the index.
            DataError: a picture cannot be decoded.
            IndexStoreError: an item that a query names is not in the index.
        """
        asked = [query if isinstance(query, Query) else Query(picture=query) for query in queries]
        clock = _Clock()
        if isinstance(self.index, PatchIndex):
            if rerank:
                raise UsageError("an index of patches cannot be re-ranked, its regions are compared exactly: leave out the re-ranker")
            found = [self._regions(self.index, query, k, where, exact, clock) for query in asked]
        else:
            found = self._items(asked, k, where, exact, _reranker(rerank), num_candidates or NUM_CANDIDATES, clock)
        return [Answer(hits, rerank or "similarity", clock.timings_ms) for hits in found]

    def note(self, where: str | None = None) -> str:
        """Return one line on a filter that matches nothing, or on values in it that no item has; empty where there are none."""
        if where is None:
            return "" if self.index.count() else "the index is empty"
        if not self.index.count(where):
            return f"nothing matches: {self.index.why_none(where)}"
        return "; ".join(one.told for one in self.index.absent(where))

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        """Return one line: the index, and whether its model is loaded."""
        return f"Searcher({self.index!r}{', model loaded' if self._encoder is not None else ''})"

    # --- an index of pictures ---------------------------------------------------------------------------------------------------

    def _items(
        self,
        queries: Sequence[Query],
        k: int,
        where: str | None,
        exact: bool,
        reranker: Reranker | None,
        num_candidates: int,
        clock: _Clock,
    ) -> list[Hits]:
        if any(query.box is not None for query in queries):
            raise UsageError(
                f"'{self.index.path}' is an index of whole images, and a box asks for regions: make one with sightline index NEW --patches"
            )
        with clock.stage("embed"):
            vectors = self._vectors(queries)  # [Q, D]
        # The items that a query names are found with the others and dropped: a filter of its own would be new for each query.
        num_more = max((len(query.named) for query in queries), default=0)
        with clock.stage("search"):
            ranking = self.index.search(vectors, (k if reranker is None else max(k, num_candidates)) + num_more, where=where, exact=exact)
            ranking = _without([query.named for query in queries], ranking, None if reranker is not None else k)
        if reranker is not None:
            with clock.stage("rerank"):
                ranking = rerank_found(self.index, vectors, ranking, reranker, k)
        with clock.stage("read"):
            return self.index.hits(ranking)

    def _vectors(self, queries: Sequence[Query]) -> FloatArray:
        """Return the vector of each query, unit length ``[Q, D]``."""
        pictures = [query.picture for query in queries if query.picture is not None]
        embedded = iter(self.encoder.embed(pictures) if pictures else ())
        rows = []
        for query in queries:
            own = next(embedded) if query.picture is not None else query.vector if query.id is None else self.index.vector(query.id)
            rows.append(self._moved(own, query))
        return as_vectors(np.stack(rows), self.index.header.dim) if rows else np.empty((0, self.index.header.dim), np.float32)

    def _moved(self, own: FloatArray | None, query: Query) -> FloatArray:
        """Return a query's vector ``[D]``, moved towards its positives and away from its negatives."""
        if not query.positives and not query.negatives:
            assert own is not None
            return np.asarray(own)
        moved = np.zeros(self.index.header.dim, np.float64) if own is None else np.asarray(own, np.float64)
        for ids, weight in ((query.positives, POSITIVE_WEIGHT), (query.negatives, -NEGATIVE_WEIGHT)):
            if ids:
                moved = moved + weight * np.mean([self.index.vector(id) for id in ids], axis=0)
        length = float(np.linalg.norm(moved))
        if length < 1e-6:
            raise UsageError("the positives and negatives cancel each other: name others")
        unit: FloatArray = (moved / length).astype(np.float32)
        return unit

    # --- an index of patches ----------------------------------------------------------------------------------------------------

    def _regions(self, index: PatchIndex, query: Query, k: int, where: str | None, exact: bool, clock: _Clock) -> Hits:
        from sightline.search.regions import query_patches, regions_like

        if query.vector is not None or query.positives or query.negatives:
            raise UsageError("an index of patches is searched with a picture or an id: leave out vector=, positives= and negatives=")
        with clock.stage("embed"):
            patches, shape = query_patches(self._patches(index, query), query.box)
        with clock.stage("search"):
            hits = regions_like(index, patches, shape, k + len(query.named), where=where, exact=exact)
        return Hits(tuple(hit for hit in hits if hit.id not in query.named)[:k], hits.how)

    def _patches(self, index: PatchIndex, query: Query) -> PatchFeatures:
        if query.id is None:
            assert query.picture is not None
            (found,) = self.encoder.patches([query.picture], short_px=index.header.short_px)
            return found
        index.get(query.id)  # whose error says that there is none
        ((_, found),) = index.patches([query.id])
        return found


def encoder_of(path: Path, model: str = "", device: str = "auto") -> Encoder:
    """Return the encoder of an index: the one named, else the one that the index was built with.

    Raises:
        IndexStoreError: there is no such index.
        UsageError: neither is known: the index was made in Python by a model from elsewhere.
        ModelError: the model cannot be loaded.
    """
    from sightline.nn import model_folder

    source = model or read_header(path).model
    if not source:
        raise UsageError(
            f"'{path}' does not say where its model is: add --model runs/mine (or timm:NAME); indexing with it notes it for good"
        )
    try:
        return model_folder.load(source, device=runtime.device(device))
    except ModelError as error:
        if model:
            raise
        raise ModelError(f"the model of '{path}' cannot be loaded ({error}): if it has moved, add --model and where it is now") from error


def rerank_found(index: Index, queries: FloatArray, found: Ranking, reranker: Reranker, k: int) -> Ranking:
    """Return the first ``k`` ids of each query after its candidates were re-ranked as a gallery of their own, with their cosines.

    The results of one query do not depend on the others. Items that were removed since the search are left out.
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


def _without(named: Sequence[frozenset[int]], ranking: Ranking, k: int | None) -> Ranking:
    """Return the ranking without the ids that each query names, and the first ``k`` of the rest (None: all)."""
    if not any(named):
        return ranking
    rows, similarity = np.full_like(ranking.rows, -1), np.full_like(ranking.similarity, -np.inf)
    for query, ids in enumerate(named):
        kept = ~np.isin(ranking.rows[query], list(ids))
        rows[query, : kept.sum()], similarity[query, : kept.sum()] = ranking.rows[query][kept], ranking.similarity[query][kept]
    return Ranking(rows[:, :k], similarity[:, :k], ranking.how)


def _fitted(encoder: Encoder, index: Index) -> Encoder:
    """Return the encoder of an index in evaluation mode, reading deep greys as the index does.

    Raises:
        IndexStoreError: the index holds the vectors of another model.
    """
    index.header.require_model(index.path, encoder.fingerprint)
    encoder.deep = index.header.deep
    return encoder.eval()


def _reranker(name: str) -> Reranker | None:
    if not name:
        return None
    from sightline.search.rerank import parse

    return parse(name)


class _Clock:
    """The milliseconds of each stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + 1_000 * (time.perf_counter() - start)
