"""Descriptor health against hand-worked cases and slow definitions over every pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.lens import embedding
from sightline.lens.embedding import PairSimilarity

seeds = st.integers(0, 2**32 - 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_unit(seed: int, num: int, width: int = 5) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num, width)))


# --- dimensions -------------------------------------------------------------------------------------------------------------------


def test_effective_rank_counts_even_directions() -> None:
    assert embedding.effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert embedding.effective_rank(np.array([5.0, 0.0])) == pytest.approx(1.0)
    assert embedding.effective_rank(np.array([3.0, 1.0])) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))
    assert embedding.effective_rank(np.zeros(4)) == 0.0


def test_energy_of_a_cross_is_even() -> None:
    axes = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    variances = embedding.spectrum(axes)
    np.testing.assert_allclose(variances, [1 / 3] * 3)
    np.testing.assert_allclose(embedding.energy(variances), [1 / 3, 2 / 3, 1.0])
    assert [embedding.num_directions(embedding.energy(variances), least) for least in (1 / 3, 0.5, 0.9, 1.0)] == [1, 2, 3, 3]


def test_one_point_has_no_energy() -> None:
    same = np.ones((4, 1), np.float32)
    assert embedding.energy(embedding.spectrum(same)).tolist() == [0.0]
    assert embedding.num_directions(np.zeros(3), 0.9) == 0


def test_spectrum_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_unit(0, 50)
    whole = embedding.spectrum(vectors)
    monkeypatch.setattr(embedding, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(embedding.spectrum(vectors), whole, atol=1e-12)
    np.testing.assert_allclose(whole, np.sort(np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64), bias=True)))[::-1], atol=1e-9)


def test_the_map_keeps_the_largest_variances_and_its_signs() -> None:
    vectors = random_unit(1, 40)
    places = embedding.principal_map(vectors)
    np.testing.assert_allclose(places.var(axis=0), embedding.spectrum(vectors)[:2], rtol=1e-5)
    np.testing.assert_array_equal(places, embedding.principal_map(vectors))


# --- pairs ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(2, 20), st.integers(1, 5))
def test_pair_measures_equal_loops_over_every_pair(seed: int, num: int, num_classes: int) -> None:
    vectors = random_unit(seed, num)
    labels = np.random.default_rng(seed).integers(0, num_classes, num)
    pairs = list(itertools.combinations(range(num), 2))
    squared = {(i, j): float(((vectors[i].astype(float) - vectors[j]) ** 2).sum()) for i, j in pairs}
    positive = [squared[i, j] for i, j in pairs if labels[i] == labels[j]]

    found = embedding.alignment(vectors, labels)
    assert found == pytest.approx(np.mean(positive), abs=1e-5) if positive else math.isnan(found)
    assert embedding.uniformity(vectors) == pytest.approx(math.log(np.mean([math.exp(-2 * value) for value in squared.values()])), abs=1e-4)
    assert embedding.mean_similarity(vectors) == pytest.approx(1 - np.mean(list(squared.values())) / 2, abs=1e-5)

    kinds = embedding.similarity_by_class(vectors, labels)
    np.testing.assert_allclose(np.sort(kinds.positive), np.sort([1 - value / 2 for value in positive]), atol=1e-5)
    assert len(kinds.positive) + len(kinds.negative) == len(pairs)


def test_sampled_pairs_are_near_the_exact_answer_and_repeat() -> None:
    vectors = random_unit(2, 400)
    labels = np.random.default_rng(2).integers(0, 7, 400)
    exact, sampled = (embedding.similarity_by_class(vectors, labels, num_pairs=num) for num in (100_000, 20_000))
    assert len(sampled.positive) == 20_000
    assert sampled.positive.mean() == pytest.approx(exact.positive.mean(), abs=0.02)
    assert sampled.negative.mean() == pytest.approx(exact.negative.mean(), abs=0.02)
    assert embedding.uniformity(vectors, num_pairs=20_000) == pytest.approx(embedding.uniformity(vectors), abs=0.05)
    assert embedding.uniformity(vectors, num_pairs=20_000) == embedding.uniformity(vectors, num_pairs=20_000)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(2, 50))
def test_a_sampled_pair_is_never_a_row_with_itself(seed: int, num: int) -> None:
    left, right = embedding.sample_pairs(num, 0, seed)
    left, right = embedding.sample_pairs(num, num * (num - 1) // 2 - 1, seed) if num > 2 else (left, right)
    assert (left != right).all()
    labels = np.random.default_rng(seed).integers(0, 4, num)
    left, right = embedding._positive_pairs(labels, 64, seed)
    assert (left != right).all()
    assert (labels[left] == labels[right]).all()


def test_too_few_vectors_have_no_pairs() -> None:
    one, labels = random_unit(0, 1), np.zeros(1, np.int64)
    assert math.isnan(embedding.uniformity(one))
    assert math.isnan(embedding.mean_similarity(one))
    assert math.isnan(embedding.alignment(one, labels))
    assert math.isnan(embedding.pair_auc(embedding.similarity_by_class(one, labels)))


def test_pair_auc_counts_ties_half() -> None:
    def auc(positive: list[float], negative: list[float]) -> float:
        return embedding.pair_auc(PairSimilarity(np.array(positive, np.float32), np.array(negative, np.float32)))

    assert auc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert auc([0.1], [0.1]) == 0.5
    assert auc([0.5, 0.1], [0.5, 0.3]) == (0.5 + 1 + 0 + 0) / 4


def test_histograms_share_their_edges_and_sum_to_one() -> None:
    one = PairSimilarity(np.array([0.5, 1.0], np.float32), np.array([-1.0, 0.0, 0.0], np.float32))
    other = PairSimilarity(np.zeros(0, np.float32), np.array([0.25], np.float32))
    edges, shares = embedding.histogram([one, other], num_bins=4)
    np.testing.assert_allclose(edges, [-1.0, -0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(shares[0], [[0, 0, 0, 1], [1 / 3, 0, 2 / 3, 0]])
    np.testing.assert_allclose(shares[1], [[0, 0, 0, 0], [0, 0, 1, 0]])
    assert np.isfinite(embedding.histogram([PairSimilarity(other.positive, other.positive)])[0]).all()


def test_hubness_of_a_star_is_skewed_and_of_a_ring_is_not() -> None:
    star = np.array([[1]] + [[0]] * 9)
    ring = np.roll(np.arange(10), 1)[:, None]
    assert embedding.hubness(ring, 10) == 0.0
    counts = np.array([9, 1] + [0] * 8)
    assert embedding.hubness(star, 10) == pytest.approx((((counts - 1) / counts.std()) ** 3).mean())
    assert embedding.hubness(np.full((3, 2), -1), 3) == 0.0
