"""Looking at single answers: classes taken for each other, near-duplicates between two sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.evaluation.ranks import Truth
from sightline.search.neighbours import similarity_blocks


@dataclass(frozen=True)
class Confusion:
    """How often the closest answer to a query of class ``label`` was of class ``mistaken_for``, and one such (query, answer)."""

    label: int
    mistaken_for: int
    count: int
    query: int
    answer: int


def confusions(query_labels: IntArray, gallery_labels: IntArray, first: IntArray, *, most: int = 20) -> list[Confusion]:
    """Return the classes most often taken for another at rank 1, most frequent first; ``first`` ``[Q]`` is the closest gallery row."""
    asked = np.flatnonzero(first >= 0)
    wrong = asked[query_labels[asked] != gallery_labels[first[asked]]]
    pairs = list(zip(query_labels[wrong].tolist(), gallery_labels[first[wrong]].tolist(), strict=True))
    example = dict(zip(reversed(pairs), reversed(wrong.tolist()), strict=True))
    ordered = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))[:most]
    return [Confusion(label, other, count, example[label, other], int(first[example[label, other]])) for (label, other), count in ordered]


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of rows of two sets at ``threshold`` or above, most similar first: the ``num_found`` pairs' best, at most as many as asked."""

    rows: IntArray
    other_rows: IntArray
    similarity: FloatArray
    num_found: int
    threshold: float


def near_duplicates(
    vectors: FloatArray, others: FloatArray, *, threshold: float = 0.95, most: int = 100, device: str = "cpu"
) -> NearDuplicates:
    """Return the pairs of rows, one of each set, whose inner product is at least ``threshold``; memory is bounded however many."""
    kept = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    num_found = 0
    block_rows = max(8, 2**23 // max(1, len(others)))  # in a collapsed model every pair is found: 8 million at a time, then
    for block in similarity_blocks(vectors, others, np.arange(len(vectors)), block_rows=block_rows, device=device):
        similarity = block.similarity.cpu().numpy()
        places, columns = np.nonzero(similarity >= threshold)
        num_found += len(places)
        pairs = (
            np.concatenate([kept[0], block.rows[places]]),
            np.concatenate([kept[1], columns]),
            np.concatenate([kept[2], similarity[places, columns]]),
        )
        best = np.lexsort((pairs[1], pairs[0], -pairs[2]))[:most]
        kept = (pairs[0][best], pairs[1][best], pairs[2][best])
    return NearDuplicates(*kept, num_found, threshold)


@dataclass(frozen=True, eq=False)
class Separation:
    """Similarities float32 of sampled queries to all their positives, and to the most similar negative of each."""

    positives: FloatArray
    best_negatives: FloatArray


def separation(
    queries: FloatArray,
    gallery: FloatArray,
    truth: Truth,
    self_rows: IntArray | None = None,
    *,
    sample: int = 2000,
    device: str = "cpu",
) -> Separation:
    """Return how similar positives and the hardest negatives are, from at most ``sample`` evenly spaced queries; junk is neither.

    A threshold that tells "the same" from "not in the collection" exists as far as the two do not overlap.
    """
    chosen = np.unique(np.linspace(0, len(queries) - 1, min(sample, len(queries))).astype(np.int64)) if len(queries) else np.arange(0)
    all_positives, all_junk = truth.positives, truth.junk
    positives: list[FloatArray] = []
    negatives: list[float] = []
    for block in similarity_blocks(queries, gallery, chosen, device=device):
        if self_rows is not None:
            block.hide(self_rows[block.rows])
        for query, row in zip(block.rows, block.similarity.cpu().numpy(), strict=True):
            positives.append(row[all_positives[query]])
            row[all_positives[query]] = row[all_junk[query]] = -np.inf
            best = float(row.max())
            if np.isfinite(best):
                negatives.append(best)
    return Separation(np.concatenate(positives) if positives else np.empty(0, np.float32), np.array(negatives, np.float32))
