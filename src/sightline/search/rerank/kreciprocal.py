"""k-reciprocal re-ranking: two images are alike when the images that choose each other around them are the same.

Zhong et al. describe it with matrices of all against all, 35 GB each for the 93,820 images of MSMT17. Nothing of that is needed: a
row of the encoding has about a hundred entries, so it is kept as sparse rows, and the distances are looked at in blocks, once.

Source: Zhong, Zheng, Cao & Li 2017, arXiv 1701.08398.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.errors import UsageError
from sightline.search.neighbours import closest, similarity_blocks
from sightline.search.rerank.base import Reranker
from sightline.search.rerank.sparse import SparseRows, chunks, mutual, offsets_of

NO_DISTANCE = 8 * np.finfo(np.float32).eps
"""Squared distances below it are rounding: where all vectors are the same, none is far from another."""


@dataclass(frozen=True, kw_only=True)
class KReciprocal(Reranker):
    """k-reciprocal encoding: ``similarity = 1 - ((1 - weight) * Jaccard distance + weight * distance)``, 0 to 1.

    The distance is squared Euclidean, divided by the largest one of the query's row. ``weight=1`` keeps the ranking as it is.
    The neighbourhoods are those of queries and gallery together, so the answer to a query depends on which others are asked with it.

    Departs: a neighbour's own set is taken over where *more than* two thirds of it are shared, as in the authors' code and so in every
    published number; section 3.2 has "at least".
    """

    k1: int = 20  # size of a neighbourhood
    k2: int = 6  # neighbours, itself among them, whose encodings are averaged (section 3.4); 1 does not average
    weight: float = 0.3  # lambda
    power: Literal["d2", "d4"] = "d2"  # d4 squares the squared distance again: only to compare with code that does so by mistake

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise UsageError(f"k1 and k2 must be 1 or more and weight in 0..1, got k1={self.k1}, k2={self.k2}, weight={self.weight}")

    def similarity(self, ranking: Ranking, queries: FloatArray, gallery: FloatArray, self_rows: IntArray | None, device: str) -> FloatArray:
        """See ``Reranker.similarity``."""
        vectors = gallery if self_rows is not None else np.concatenate([gallery, queries])
        own = self_rows if self_rows is not None else np.arange(len(gallery), len(vectors))
        near, largest, similarity = self._look_around(vectors, own, ranking.rows, device)
        encoding = self._encode(vectors, near, largest) if self.weight < 1 else None
        holders = encoding.transposed(len(encoding)) if encoding is not None else None
        for query, row in enumerate(own):
            distance = self._distance(similarity[query], largest[row])
            if encoding is not None and holders is not None:
                jaccard = jaccard_distance(encoding, holders, row)[ranking.rows[query]]
                distance = (1 - self.weight) * jaccard + self.weight * distance
            similarity[query] = 1 - distance
        return similarity

    def _distance(self, similarity: FloatArray, largest: FloatArray | np.float32) -> FloatArray:
        """Return distances in 0..1 from cosines, given the largest squared distance of their row."""
        distance: FloatArray = np.clip((2 - 2 * similarity) / largest, 0, 1)
        return distance if self.power == "d2" else distance**2

    def _look_around(self, vectors: FloatArray, own: IntArray, rows: IntArray, device: str) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return each row's neighbours ``[N, k]``, itself first, its largest squared distance ``[N]``, and each query's similarities ``[Q, K]``."""
        num = len(vectors)
        near = np.empty((num, min(num, max(self.k1 + 1, self.k2))), np.int64)
        largest = np.empty(num, np.float32)
        to_candidates = np.empty(rows.shape, np.float32)
        query_of = np.full(num, -1)
        query_of[own] = np.arange(len(own))
        for block in similarity_blocks(vectors, vectors, np.arange(num), device=device):
            for row, values in zip(block.rows, block.similarity.cpu().numpy(), strict=True):
                largest[row] = 2 - 2 * values.min()
                if query_of[row] >= 0:
                    to_candidates[query_of[row]] = values.take(rows[query_of[row]])
                values[row] = np.inf  # before its duplicates, or a row might not be its own neighbour
                near[row] = closest(values, near.shape[1])
        return near, np.maximum(largest, NO_DISTANCE), to_candidates

    def _encode(self, vectors: FloatArray, near: IntArray, largest: FloatArray) -> SparseRows:
        """Return the encoding of every row, whose values sum to 1: sections 3.2 to 3.4."""
        sets = expanded_sets(near[:, : self.k1 + 1], near[:, : round(self.k1 / 2) + 1])
        owner = sets.owners()
        weight = np.empty(len(owner), np.float32)
        for part in chunks(len(owner), vectors.shape[1]):
            rows, columns = owner[part], sets.columns[part]
            similarity = np.einsum("pd,pd->p", vectors[rows], vectors[columns])
            similarity[rows == columns] = 1
            weight[part] = np.exp(-self._distance(similarity, largest[rows]))
        weight /= np.repeat(np.add.reduceat(weight, sets.offsets[:-1]), sets.lengths)
        encoding = SparseRows(sets.offsets, sets.columns, weight)
        return encoding if self.k2 == 1 else averaged(encoding, near[:, : self.k2])


def transreid() -> KReciprocal:
    """k-reciprocal as TransReID, CLIP-ReID and PersonViT call it: 50 and 15 neighbours, which lifts their published numbers.

    Departs: theirs keeps the encoding in float16.
    """
    return KReciprocal(k1=50, k2=15)


def torchreid() -> KReciprocal:
    """k-reciprocal as torchreid and layumi's baseline compute it: the distance they square is squared already."""
    return KReciprocal(power="d4")


def expanded_sets(near: IntArray, near_half: IntArray) -> SparseRows:
    """Return each row's k-reciprocal neighbours and those that its neighbours bring along (section 3.2), all with value 1.

    ``near`` ``[N, k1 + 1]`` and ``near_half`` ``[N, k1 / 2 + 1]`` are the closest rows, each row itself first.
    """
    num = len(near)
    reciprocal, reciprocal_half = mutual(near), mutual(near_half)
    lengths, columns = [], []
    parts = list(chunks(num, num // 8))
    is_member = np.zeros((parts[0].stop, num), np.bool_)
    for part in parts:
        members, chosen = near[part], reciprocal[part]  # [B, k]
        others, are_others = near_half[members], reciprocal_half[members]  # [B, k, h]
        at = np.arange(len(members))[:, None]
        where, _ = np.nonzero(chosen)
        is_member[where, members[chosen]] = True
        shared = (is_member[at[:, :, None], others] & are_others).sum(axis=2)
        is_member[where, members[chosen]] = False
        brought = are_others & (chosen & (3 * shared > 2 * are_others.sum(axis=2)))[:, :, None]
        found = np.unique(np.concatenate([(at * num + members)[chosen], (at[:, :, None] * num + others)[brought]]))
        lengths.append(np.bincount(found // num, minlength=len(members)))
        columns.append(found % num)
    joined = np.concatenate(columns)
    return SparseRows(offsets_of(np.concatenate(lengths)), joined, np.ones(len(joined), np.float32))


def averaged(encoding: SparseRows, near: IntArray) -> SparseRows:
    """Return each row's mean over the rows ``near`` ``[N, k2]``: local query expansion, section 3.4."""
    num, k2 = near.shape
    lengths, columns, values = [], [], []
    for part in chunks(num, 1 + k2 * len(encoding.columns) // num):
        sources = near[part].ravel()
        places = encoding.entries(sources)
        owner = np.repeat(np.repeat(np.arange(part.stop - part.start), k2), encoding.lengths[sources])
        keys = owner * num + encoding.columns[places]
        order = np.argsort(keys)
        keys = keys[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        lengths.append(np.bincount(keys[first] // num, minlength=part.stop - part.start))
        columns.append(keys[first] % num)
        values.append(np.add.reduceat(encoding.values[places[order]], first) / np.float32(k2))
    return SparseRows(offsets_of(np.concatenate(lengths)), np.concatenate(columns), np.concatenate(values))


def jaccard_distance(encoding: SparseRows, holders: SparseRows, row: int) -> FloatArray:
    """Return the Jaccard distance (0 to 1) of one row to all, ``[N]``, ``holders`` being the encoding transposed: section 3.3.

    Rows sum to 1, so the sum of maxima is 2 less the sum of minima, and the minima are nonzero in shared columns alone.
    """
    held = slice(encoding.offsets[row], encoding.offsets[row + 1])
    columns = encoding.columns[held]
    places = holders.entries(columns)
    smaller = np.minimum(np.repeat(encoding.values[held], holders.lengths[columns]), holders.values[places])
    shared = np.bincount(holders.columns[places], smaller, minlength=len(encoding))
    return (1 - shared / (2 - shared)).astype(np.float32)
