"""The health of a set of descriptors, as pure functions: nothing here needs a model, an image or an M x M matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline.contracts import FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]

BLOCK_ROWS = 4_096
"""Rows converted to float64 at a time: memory above the descriptors stays a few tens of MB."""

NUM_PAIRS = 200_000
"""Pairs sampled where there are more: a mean over them is then known to about 0.002 standard deviations."""


# --- how many dimensions are in use -----------------------------------------------------------------------------------------------


def spectrum(vectors: FloatArray) -> Float64Array:
    """Return the variances along the principal directions of ``[M, D]``, float64 ``[D]``, falling: the covariance's eigenvalues."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(vectors), BLOCK_ROWS):
        centred = vectors[start : start + BLOCK_ROWS].astype(np.float64) - mean
        covariance += centred.T @ centred
    variances = np.linalg.eigvalsh(covariance / max(1, len(vectors)))[::-1]
    return np.clip(variances, 0.0, None)


def energy(variances: Float64Array) -> Float64Array:
    """Return the share of all variance in the first 1, 2, ... D directions, ``[D]``, rising to 1; zeros where nothing varies."""
    total = variances.sum()
    return np.cumsum(variances) / total if total > 0 else np.zeros_like(variances)


def num_directions(shares: Float64Array, least: float) -> int:
    """Return how many directions together hold at least the share ``least`` of the variance; 0 where nothing varies."""
    return int((shares < least - 1e-12).sum()) + 1 if shares[-1] > 0 else 0


def effective_rank(variances: Float64Array) -> float:
    """Return how many directions are in use, from 1 (a line) to D (all alike); 0 where nothing varies.

    It is the exponential of the entropy (in nats) of the covariance's normalised singular values: the effective rank of the covariance. That
    of the centred vectors themselves is larger; a training without labels logs it as ``feature_rank``.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO, section 2.
    """
    total = variances.sum()
    if total <= 0:
        return 0.0
    shares = variances[variances > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def principal_map(vectors: FloatArray, dim: int = 2) -> FloatArray:
    """Return coordinates float32 ``[M, dim]`` along the principal directions; each direction's largest entry is made positive."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    exact = vectors.astype(np.float64) - mean
    directions = np.linalg.eigh(exact.T @ exact)[1][:, ::-1][:, :dim]  # [D, dim]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    places: FloatArray = (exact @ (directions * np.where(largest < 0, -1.0, 1.0))).astype(np.float32)
    return places


# --- pairs ------------------------------------------------------------------------------------------------------------------------


def alignment(vectors: FloatArray, labels: IntArray) -> float:
    """Return the mean squared distance of the pairs of one class, from 0 (each class a point) to 4; NaN where there is no such pair.

    Exact: the similarities within a class sum to (|sum of its vectors|^2 - sum of their |vector|^2) / 2. Every pair counts alike.
    Source: Wang and Isola 2020, arXiv 2005.10242, eq. 5 with alpha = 2; pairs of one class stand for two views of one image.
    """
    class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    num_pairs = (counts * (counts - 1.0) / 2).sum()
    if num_pairs == 0:
        return float("nan")
    order = np.argsort(class_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    within = 0.0
    for start, count in zip(starts, counts, strict=True):
        members = vectors[order[start : start + count]].astype(np.float64)
        total = members.sum(axis=0)
        within += (count * (members * members).sum() - total @ total) if count > 1 else 0.0
    return float(within / num_pairs)


def uniformity(vectors: FloatArray, *, num_pairs: int = NUM_PAIRS, seed: int = 0) -> float:
    """Return the logarithm of the mean Gaussian potential of pairs, from -4 (spread well over the sphere, D large) to 0 (one point).

    Over all pairs where there are at most ``num_pairs``, else over a seeded sample of them. NaN for fewer than two vectors.
    Source: Wang and Isola 2020, arXiv 2005.10242, eq. 6 with t = 2.
    """
    similarity = pair_similarity(vectors, *sample_pairs(len(vectors), num_pairs, seed))
    return float(np.log(np.exp(-4.0 * (1.0 - similarity)).mean())) if len(similarity) else float("nan")


def mean_similarity(vectors: FloatArray) -> float:
    """Return the mean similarity over all pairs, exactly: near 0 where descriptors spread out, near 1 where they have collapsed."""
    num = len(vectors)
    if num < 2:
        return float("nan")
    total = vectors.sum(axis=0, dtype=np.float64)
    own = np.einsum("md,md->", vectors, vectors, dtype=np.float64)
    return float((total @ total - own) / (num * (num - 1.0)))


@dataclass(frozen=True)
class PairSimilarity:
    """Similarities of pairs of one class (``positive``) and of two classes (``negative``), float32, in no order."""

    positive: FloatArray
    negative: FloatArray


def similarity_by_class(vectors: FloatArray, labels: IntArray, *, num_pairs: int = NUM_PAIRS, seed: int = 0) -> PairSimilarity:
    """Return similarities of positive and of negative pairs: all where at most ``num_pairs`` exist, else a seeded sample of each."""
    left, right = sample_pairs(len(vectors), num_pairs, seed)
    same = labels[left] == labels[right]
    negative = pair_similarity(vectors, left[~same], right[~same])
    positive_pairs = (left[same], right[same]) if _num_pairs(len(vectors)) <= num_pairs else _positive_pairs(labels, num_pairs, seed)
    return PairSimilarity(pair_similarity(vectors, *positive_pairs), negative)


def histogram(pairs: Sequence[PairSimilarity], num_bins: int = 60) -> tuple[Float64Array, list[tuple[Float64Array, Float64Array]]]:
    """Return the edges ``[num_bins + 1]`` of bins that hold all similarities, and of each model the share of pairs in every bin.

    The shares ``[num_bins]`` are of the positive and, apart, of the negative pairs; zeros where there are none of a kind.
    """
    kinds = [kind for one in pairs for kind in (one.positive, one.negative) if len(kind)]
    low = min((float(kind.min()) for kind in kinds), default=0.0)
    high = max((float(kind.max()) for kind in kinds), default=1.0)
    edges = np.linspace(low, max(high, low + 1e-3), num_bins + 1)

    def shares(similarity: FloatArray) -> Float64Array:
        return np.histogram(similarity, edges)[0] / max(1, len(similarity))

    return edges, [(shares(one.positive), shares(one.negative)) for one in pairs]


def pair_auc(pairs: PairSimilarity) -> float:
    """Return the probability that a pair of one class is more similar than a pair of two: 0.5 is chance, 1 is perfect; a tie is half.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve", Radiology 143.
    """
    if not len(pairs.positive) or not len(pairs.negative):
        return float("nan")
    negative = np.sort(pairs.negative)
    below = np.searchsorted(negative, pairs.positive, side="left")
    up_to = np.searchsorted(negative, pairs.positive, side="right")
    return float((below + up_to).mean() / (2 * len(negative)))


def sample_pairs(num: int, num_pairs: int, seed: int) -> tuple[IntArray, IntArray]:
    """Return two sides int64 ``[P]`` of pairs of different rows: each once where at most ``num_pairs`` exist, else so many at random."""
    if _num_pairs(num) <= num_pairs:
        left, right = np.triu_indices(num, 1)
        return left.astype(np.int64), right.astype(np.int64)
    random = np.random.default_rng(seed)
    left = random.integers(0, num, num_pairs)
    return left, (left + random.integers(1, num, num_pairs)) % num


def pair_similarity(vectors: FloatArray, left: IntArray, right: IntArray) -> FloatArray:
    """Return the similarity of each pair, float32 ``[P]``."""
    parts = [
        np.einsum("pd,pd->p", vectors[left[start : start + BLOCK_ROWS]], vectors[right[start : start + BLOCK_ROWS]])
        for start in range(0, len(left), BLOCK_ROWS)
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def _positive_pairs(labels: IntArray, num_pairs: int, seed: int) -> tuple[IntArray, IntArray]:
    """Return pairs of one class, each pair as likely as any other: a class is drawn by its number of pairs, then two of its rows."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    counts = np.unique(labels, return_counts=True)[1]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    weights = counts * (counts - 1.0)
    if weights.sum() == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    random = np.random.default_rng([seed, 1])
    drawn = random.choice(len(counts), num_pairs, p=weights / weights.sum())
    first = random.integers(0, counts[drawn])
    second = (first + random.integers(1, counts[drawn])) % counts[drawn]
    return order[starts[drawn] + first], order[starts[drawn] + second]


def _num_pairs(num: int) -> int:
    return num * (num - 1) // 2


# --- neighbours -------------------------------------------------------------------------------------------------------------------


def hubness(neighbours: IntArray, num: int) -> float:
    """Return the skewness of how often each of ``num`` rows is a neighbour of another (``[M, K]``, -1 pads): 0 is even, above 2 hubs rule.

    Source: Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in space", JMLR 11, eq. 1.
    """
    occurrence = np.bincount(neighbours[neighbours >= 0], minlength=num).astype(np.float64)
    spread = occurrence.std()
    return float((((occurrence - occurrence.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0


# --- all together -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number about descriptors, and in one sentence what good looks like."""

    name: str
    value: float
    good: str


def health(
    vectors: FloatArray, labels: IntArray | None, *, variances: Float64Array, pairs: PairSimilarity, neighbours: IntArray, num_searched: int
) -> list[Measure]:
    """Return what there is to say of descriptors ``[M, D]`` in numbers; those about classes only where there are ``labels`` ``[M]``.

    ``variances`` are their ``spectrum``, ``pairs`` their ``similarity_by_class``, ``neighbours`` ``[Q, K]`` rows among ``num_searched``.
    """
    shares = energy(variances)
    found = [
        Measure("effective_rank", effective_rank(variances), "The more of the width in use the better; a few mean collapse."),
        Measure("directions_for_90_percent", float(num_directions(shares, 0.9)), "Far below the width, a PCA to so many costs little."),
        Measure("mean_similarity", mean_similarity(vectors), "Near 0; towards 1 all images look alike to the model."),
        Measure("uniformity", uniformity(vectors), "Lower is better: -4 is spread evenly over the sphere, 0 is a single point."),
        Measure("hubness", hubness(neighbours, num_searched), "Below 1; above 2 a few images are among the answers to everything."),
    ]
    if labels is not None:
        found += [
            Measure("alignment", alignment(vectors, labels), "Lower is better: 0 puts each class on one point; judge it with uniformity."),
            Measure("pair_auc", pair_auc(pairs), "1 when each pair of one class is more similar than each pair of two; 0.5 is chance."),
        ]
    return found
