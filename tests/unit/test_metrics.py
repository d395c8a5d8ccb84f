"""Metrics against hand-worked cases, a slow definition, and properties that hold for any vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.evaluation import counting, metrics
from sightline.evaluation.metrics import PositiveRanks, positive_ranks
from sightline.search.neighbours import RowBlock

LINE = np.array([0.0, 0.1, 0.25, 0.9, 1.1], np.float32)


def on_circle(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def ranks_of(*per_query: list[int], num_gallery: int = 10) -> PositiveRanks:
    offsets = np.cumsum([0, *[len(one) for one in per_query]]).astype(np.int64)
    return PositiveRanks(offsets, np.concatenate([np.array(one, np.int32) for one in per_query]).astype(np.int32), num_gallery)


def slow_ranks(queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, labels: np.ndarray, drop_self: bool) -> list[list[int]]:
    """Sort the whole gallery of each query, negatives before positives where they tie, and read off the positions."""
    answer = []
    for row, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        similarity = gallery @ query
        keep = [column for column in range(len(gallery)) if not (drop_self and column == row)]
        keep.sort(key=lambda column: (-similarity[column], labels[column] == label))
        answer.append([place for place, column in enumerate(keep, 1) if labels[column] == label])
    return answer


def as_lists(ranks: PositiveRanks) -> list[list[int]]:
    return [ranks.ranks[first:last].tolist() for first, last in zip(ranks.offsets[:-1], ranks.offsets[1:], strict=True)]


def test_positive_ranks_of_points_on_a_circle():
    vectors = on_circle(LINE)
    ranks = positive_ranks(vectors, np.array([0, 1, 0, 1, 1]))
    assert as_lists(ranks) == [[2], [3, 4], [2], [1, 3], [1, 3]]
    assert ranks.num_gallery == 4


def test_query_gallery_keeps_a_row_that_equals_the_query():
    vectors = on_circle(LINE[:2])
    ranks = positive_ranks(vectors, np.array([0, 1]), vectors, np.array([0, 1]))
    assert as_lists(ranks) == [[1], [1]]


@pytest.mark.parametrize("num", [2, 3, 5, 64, 257])
def test_a_collapsed_model_measures_nothing_right(num):
    vectors = np.tile(np.random.default_rng(0).standard_normal(48, dtype=np.float32), (2 * num, 1))
    labels = np.repeat(np.arange(num), 2)
    ranks = positive_ranks(vectors, labels, block_rows=7)
    assert metrics.recall_at(ranks, 1).sum() == 0
    assert set(ranks.ranks) == {2 * num - 1}


def test_a_query_without_positives_is_skipped_and_counted():
    ranks = positive_ranks(on_circle(LINE), np.array([0, 0, 1, 2, 2]))
    assert ranks.num_skipped == 1
    assert np.isnan(metrics.recall_at(ranks, 1)[2])
    summary = metrics.summarise(ranks, np.array([0, 0, 1, 2, 2]))
    assert summary.metrics["recall@1"] == 1.0


def test_no_positives_at_all_is_nan_not_an_error():
    ranks = positive_ranks(on_circle(LINE), np.arange(5))
    summary = metrics.summarise(ranks, np.arange(5))
    assert np.isnan(summary.metrics["map"])
    assert summary.intervals == {}


def test_metrics_by_hand():
    ranks = ranks_of([1, 3], [2], [5, 6, 7])
    assert metrics.recall_at(ranks, 1).tolist() == [1, 0, 0]
    assert metrics.recall_at(ranks, 2).tolist() == [1, 1, 0]
    assert metrics.r_precision(ranks).tolist() == [0.5, 0, 0]
    assert metrics.map_at_r(ranks).tolist() == [0.5, 0, 0]
    np.testing.assert_allclose(metrics.average_precision(ranks), [(1 + 2 / 3) / 2, 0.5, (1 / 5 + 2 / 6 + 3 / 7) / 3])
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks), [1, 0.5, 0.2])


def test_map_at_r_of_the_paper_figure():
    """Musgrave et al. 2020, section 2.1: ten results, R = 10, only the first right: R-precision and MAP@R 10 %; first and last: 12 %."""
    positives_beyond = list(range(11, 20))
    assert metrics.map_at_r(ranks_of([1, *positives_beyond])).tolist() == [0.1]
    two = metrics.map_at_r(ranks_of([1, 10, *positives_beyond[:8]]))
    np.testing.assert_allclose(two, [0.12])


def test_precision_at_recall_takes_the_best_precision_from_there_on():
    curve = metrics.precision_at_recall(ranks_of([1, 4, 5]), np.array([0.0, 0.3, 0.5, 1.0]))
    np.testing.assert_allclose(curve, [1.0, 1.0, 0.6, 0.6])


def test_recall_beyond_the_gallery_is_left_out():
    assert "recall@100" not in metrics.per_query(ranks_of([1], num_gallery=50))
    assert "recall@10" in metrics.per_query(ranks_of([1], num_gallery=50))


coarse = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed))


@settings(max_examples=25, deadline=None)
@given(coarse, st.integers(3, 40), st.integers(1, 6), st.integers(1, 9))
def test_equals_the_slow_definition_with_many_ties(generator, num, num_classes, block_rows):
    # Small whole numbers: products are exact, and ties are everywhere.
    vectors = generator.integers(-2, 3, (num, 3)).astype(np.float32)
    labels = generator.integers(0, num_classes, num)
    assert as_lists(positive_ranks(vectors, labels, block_rows=block_rows)) == slow_ranks(vectors, labels, vectors, labels, True)
    gallery, gallery_labels = vectors[: num // 2 + 1], labels[: num // 2 + 1]
    ranks = positive_ranks(vectors, labels, gallery, gallery_labels, block_rows=block_rows)
    assert as_lists(ranks) == slow_ranks(vectors, labels, gallery, gallery_labels, False)


@settings(max_examples=15, deadline=None)
@given(coarse, st.integers(2, 60))
def test_tensor_and_row_counting_agree(generator, num_columns):
    similarity = torch.from_numpy(generator.integers(-3, 4, (5, num_columns)).astype(np.float32))
    columns = [generator.permutation(num_columns)[: generator.integers(1, num_columns + 1)] for _ in range(5)]
    by_row = list(counting.count_at_least(RowBlock(np.arange(5), similarity), columns))
    by_tensor = list(counting.count_in_tensor(similarity, columns))
    for (values, counts), (other_values, other_counts) in zip(by_row, by_tensor, strict=True):
        np.testing.assert_array_equal(values, other_values)
        np.testing.assert_array_equal(counts, other_counts)


@settings(max_examples=10, deadline=None)
@given(coarse)
def test_order_of_rows_and_size_of_blocks_do_not_matter(generator):
    vectors = generator.standard_normal((60, 8), dtype=np.float32)
    labels = generator.integers(0, 12, 60)
    whole = metrics.means(metrics.per_query(positive_ranks(vectors, labels)))
    order = generator.permutation(60)
    shuffled = metrics.means(metrics.per_query(positive_ranks(vectors[order], labels[order], block_rows=11)))
    assert whole == pytest.approx(shuffled, abs=1e-9, nan_ok=True)


@settings(max_examples=10, deadline=None)
@given(coarse)
def test_metrics_stay_in_range_and_in_order(generator):
    vectors = generator.standard_normal((40, 4), dtype=np.float32)
    values = metrics.per_query(positive_ranks(vectors, generator.integers(0, 5, 40)))
    kept = {name: value[~np.isnan(value)] for name, value in values.items()}
    assert all(((value >= 0) & (value <= 1)).all() for value in kept.values())
    assert (kept["recall@1"] <= kept["recall@2"]).all()
    assert (kept["map@r"] <= kept["r_precision"] + 1e-12).all()
    assert (kept["map@r"] <= kept["map"] + 1e-12).all()


def test_more_positives_than_sorting_threshold():
    generator = np.random.default_rng(3)
    vectors = generator.integers(-4, 5, (90, 4)).astype(np.float32)
    labels = generator.integers(0, 2, 90)
    assert min(np.bincount(labels)) > counting.NUM_TO_SORT
    assert as_lists(positive_ranks(vectors, labels)) == slow_ranks(vectors, labels, vectors, labels, True)


def test_intervals_hold_the_mean_and_widen_with_dependence():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 25)
    per_class = generator.random(40)
    dependent = {"m": np.repeat(per_class, 25)}
    independent = {"m": generator.permutation(dependent["m"])}
    low, high = metrics.bootstrap_intervals(dependent, labels)["m"]
    other_low, other_high = metrics.bootstrap_intervals(independent, labels)["m"]
    assert low < per_class.mean() < high
    assert high - low > 3 * (other_high - other_low)
    # The textbook standard error of a mean of 40 independent class means.
    assert (high - low) / 2 == pytest.approx(1.96 * per_class.std() / np.sqrt(40), rel=0.15)


def test_intervals_are_seeded_and_empty_for_one_class():
    values = {"m": np.random.default_rng(1).random(30)}
    labels = np.arange(30) % 6
    assert metrics.bootstrap_intervals(values, labels, seed=5) == metrics.bootstrap_intervals(values, labels, seed=5)
    assert metrics.bootstrap_intervals(values, np.zeros(30, np.int64)) == {}


def test_the_resampled_estimator_is_a_ratio_over_classes_of_any_size():
    generator = np.random.default_rng(4)
    labels = np.repeat(np.arange(6), [1, 40, 3, 25, 2, 9])
    quality = np.array([1.0, 0.1, 0.9, 0.2, 1.0, 0.5])[labels] + 0.05 * generator.random(80)  # the large classes are the hard ones
    drawn = np.random.default_rng(3).integers(0, 6, (400, 6))
    resampled = []
    for classes in drawn:
        queries = np.concatenate([quality[labels == label] for label in classes])
        resampled.append(queries.mean())  # a class drawn twice is there twice, with all of its queries
    expected = np.quantile(resampled, [0.05, 0.95])
    found = metrics.bootstrap_intervals({"m": quality}, labels, num_resamples=400, level=0.9, seed=3)["m"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_unfit_input_is_refused():
    vectors = on_circle(LINE)
    with pytest.raises(ValueError, match="do not fit"):
        positive_ranks(vectors, np.arange(4))
    with pytest.raises(ValueError, match="NaN"):
        positive_ranks(np.where(vectors == vectors[1, 0], np.nan, vectors).astype(np.float32), np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="or neither"):
        positive_ranks(vectors, np.arange(5), vectors)
