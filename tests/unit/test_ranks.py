"""Ranks under judgements with junk: from vectors, from lists whole and cut off, and after re-ranking, against a slow definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.contracts import Ranking
from sightline.data.judged import Judgements
from sightline.evaluation import metrics
from sightline.evaluation.ranks import NOT_FOUND, PositiveRanks, SameLabel, exact_ranks, ranks_in
from sightline.search.neighbours import nearest

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def as_lists(ranks: PositiveRanks) -> list[list[int]]:
    return [ranks.ranks[first:last].tolist() for first, last in zip(ranks.offsets[:-1], ranks.offsets[1:], strict=True)]


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def ranking(*lists: list[int]) -> Ranking:
    found = np.array(lists, np.int64)
    return Ranking(found, np.where(found < 0, -np.inf, -np.arange(found.shape[1], dtype=np.float32)).astype(np.float32))


def scene(generator: np.random.Generator, num_queries: int, num_gallery: int) -> tuple[np.ndarray, np.ndarray, Judgements]:
    """Small whole numbers: products are exact, and ties are everywhere."""
    queries, gallery = (generator.integers(-2, 3, (num, 3)).astype(np.float32) for num in (num_queries, num_gallery))
    kinds = generator.choice(3, (num_queries, num_gallery), p=[0.6, 0.25, 0.15])
    return queries, gallery, Judgements(*(tuple(np.flatnonzero(row == kind) for row in kinds) for kind in (1, 2)))


def slow(queries: np.ndarray, gallery: np.ndarray, truth: Judgements) -> list[list[int]]:
    """Take the junk out of each list, sort it with negatives before positives where they tie, and read off the positions."""
    answer = []
    for query, positives, junk in zip(queries, truth.positives, truth.junk, strict=True):
        kept = [row for row in range(len(gallery)) if row not in junk]
        kept.sort(key=lambda row, query=query, positives=positives: (-(gallery[row] @ query), row in positives))
        answer.append([place for place, row in enumerate(kept, 1) if row in positives])
    return answer


@pytest.mark.parametrize(
    ("offsets", "num"), [([[0, 2]], 2), ([], 0), ([1, 2], 2), ([0, 1], 2), ([0, 3], 2)], ids=["matrix", "none", "late", "early", "long"]
)
def test_offsets_run_from_0_to_the_last_rank(offsets: list, num: int) -> None:
    with pytest.raises(ValueError, match=rf"offsets \[Q \+ 1\] must run from 0 to the {num} ranks"):
        PositiveRanks(np.array(offsets, np.int64), np.ones(num, np.int32), 5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 70))
def test_vectors_and_whole_lists_give_the_slow_definition(generator, num_queries, num_gallery):
    queries, gallery, truth = scene(generator, num_queries, num_gallery)
    _, _, other = scene(generator, num_queries, num_gallery)
    expected = {"one": slow(queries, gallery, truth), "other": slow(queries, gallery, other)}
    truths = {"one": truth, "other": other}
    exact = exact_ranks(queries, gallery, truths, block_rows=int(generator.integers(1, 5)))
    assert {name: as_lists(ranks) for name, ranks in exact.items()} == expected
    alone = exact_ranks(queries, gallery, {"one": truth})
    assert as_lists(alone["one"]) == expected["one"]
    listed = ranks_in(nearest(queries, gallery, num_gallery), truths, num_gallery)
    assert {name: as_lists(ranks) for name, ranks in listed.items()} == expected


def test_junk_moves_up_what_lies_behind_it():
    truth = Judgements((rows(2, 4),), (rows(1, 3),))
    assert as_lists(ranks_in(ranking([1, 0, 2, 3, 4, 5]), {"": truth}, 6)[""]) == [[2, 3]]


def test_a_positive_that_a_list_does_not_hold_counts_among_the_positives():
    truth = Judgements((rows(0, 1, 7), rows(9), rows()), (rows(), rows(), rows()))
    ranks = ranks_in(ranking([5, 0, -1], [1, 2, 3], [1, 2, 3]), {"": truth}, 10)[""]
    assert as_lists(ranks) == [[2, NOT_FOUND, NOT_FOUND], [NOT_FOUND], []]
    assert ranks.num_skipped == 1
    np.testing.assert_array_equal(metrics.recall_at(ranks, 3), [1, 0, np.nan])
    np.testing.assert_array_equal(metrics.reciprocal_rank(ranks), [0.5, 0, np.nan])
    np.testing.assert_allclose(metrics.average_precision(ranks), [1 / 6, 0, np.nan])
    np.testing.assert_allclose(metrics.trapezoid_average_precision(ranks), [(0 + 1 / 2) / 2 / 3, 0, np.nan])
    np.testing.assert_allclose(metrics.precision_at(ranks, 5), [0.5, 0, np.nan])
    np.testing.assert_allclose(metrics.average_precision_at(ranks, 2), [0.5 / 2, 0, np.nan])


def test_the_published_case_of_the_trapezoid():
    """Zero-based ranks 0, 2, 5 of three positives: 0.67778 by trapezoids, 0.72222 by steps."""
    ranks = PositiveRanks(rows(0, 3), np.array([1, 3, 6], np.int32), 10)
    np.testing.assert_allclose(metrics.trapezoid_average_precision(ranks), [0.677778], atol=1e-6)
    np.testing.assert_allclose(metrics.average_precision(ranks), [0.722222], atol=1e-6)
    # With the last positive at 6 the ten closest are the six closest.
    np.testing.assert_allclose([metrics.precision_at(ranks, k)[0] for k in (1, 5, 10)], [1, 2 / 5, 3 / 6])
    assert metrics.by_name(ranks, ["map", "mp@5", "recall@1"]).keys() == {"map", "mp@5", "recall@1"}
    with pytest.raises(ValueError, match="no measure 'ndcg@5'"):
        metrics.by_name(ranks, ["ndcg@5"])


def test_a_perfect_list_measures_one_however_many_positives():
    for num in (1, 3, 150):
        ranks = PositiveRanks(rows(0, num), np.arange(1, num + 1, dtype=np.int32), 200)
        values = metrics.by_name(ranks, ["map", "map@100", "mp@1", "mp@10", "recall@1"])
        assert [float(value[0]) for value in values.values()] == pytest.approx([1.0] * len(values))


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(2, 40), st.integers(1, 40))
def test_reranking_that_changes_nothing_changes_nothing(generator, num_queries, num_gallery, top):
    # Without ties, since which of equals are among the candidates is nobody's to say.
    queries, gallery = (generator.standard_normal((num, 4), dtype=np.float32) for num in (num_queries, num_gallery))
    _, _, truth = scene(generator, num_queries, num_gallery)
    before = exact_ranks(queries, gallery, {"": truth})
    after = ranks_in(nearest(queries, gallery, top), {"": truth}, num_gallery, before=before)
    assert as_lists(after[""]) == as_lists(before[""])


def test_reranking_moves_the_candidates_and_leaves_the_others():
    queries, gallery = np.array([[1, 0]], np.float32), np.array([[5, 0], [4, 0], [3, 0], [2, 0], [1, 0]], np.float32)
    truth = {"": Judgements((rows(2, 4),), (rows(1),))}
    before = exact_ranks(queries, gallery, truth)
    assert as_lists(before[""]) == [[2, 4]]
    assert as_lists(ranks_in(ranking([2, 0, 1]), truth, 5, before=before)[""]) == [[1, 4]]


def test_leave_one_out_among_distractors():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.95, 0.05]], np.float32)
    labels = np.array([0, 0, 1, 2])  # the last is a distractor
    self_rows = np.arange(3)
    truth = SameLabel(labels[:3], labels, self_rows)
    ranks = exact_ranks(vectors[:3], vectors, {"": truth}, self_rows=self_rows)[""]
    assert as_lists(ranks) == [[2], [1], []]
    assert ranks.num_gallery == 3


def test_a_read_only_memory_mapped_gallery_is_taken_as_it_is(tmp_path):
    generator = np.random.default_rng(0)
    queries, gallery, truth = scene(generator, 5, 40)
    mapped = np.memmap(tmp_path / "v", np.float32, "w+", shape=gallery.shape)
    mapped[:] = gallery
    mapped.flush()
    read_only = np.memmap(tmp_path / "v", np.float32, "r", shape=gallery.shape)
    assert as_lists(exact_ranks(queries, read_only, {"": truth})[""]) == slow(queries, gallery, truth)


def test_a_truth_of_other_queries_is_refused():
    with pytest.raises(ValueError, match="3 queries do not fit the truth of 1"):
        exact_ranks(np.ones((3, 2), np.float32), np.ones((2, 2), np.float32), {"": Judgements((rows(0),), (rows(),))})
