"""Samplers are pure functions of (seed, step), and their batches are what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.samplers import ClassBalancedSampler, PKSampler, Sampler, ShuffleSampler, TupleSampler, draw_pairs, rows_by_class
from sightline.errors import DataError

LABELS = np.repeat(np.array([3, 0, 7, 1, 9]), [6, 4, 5, 9, 4]).astype(np.int64)


@settings(max_examples=30, deadline=None)
@given(p=st.integers(1, 5), k=st.integers(1, 4), seed=st.integers(0, 99), step=st.integers(0, 1000))
def test_a_batch_has_p_classes_of_k_different_images(p: int, k: int, seed: int, step: int) -> None:
    rows = PKSampler(LABELS, p, k, seed).batch(step)
    labels = LABELS[rows].reshape(p, k)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0])) == p
    assert len(set(rows)) == p * k


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_an_epoch_visits_every_class(p: int) -> None:
    sampler = PKSampler(LABELS, p, 2)
    for epoch in range(3):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        assert {label for step in steps for label in LABELS[sampler.batch(step)]} == set(LABELS)


def test_other_classes_meet_in_each_epoch() -> None:
    sampler = PKSampler(np.repeat(np.arange(12), 2).astype(np.int64), 3, 2)
    met = [
        {frozenset((sampler.batch(4 * epoch + step) // 2).tolist()) for step in range(4)}  # the classes of each batch
        for epoch in range(5)
    ]
    assert all(sorted(label for classes in one for label in classes) == list(range(12)) for one in met)
    assert all(one != other for one, other in itertools.pairwise(met))


def test_a_small_class_gives_all_its_images_before_it_repeats_one() -> None:
    rows = PKSampler(np.array([0, 0, 0, 1, 1], dtype=np.int64), 2, 5).batch(4)
    counts = np.bincount(rows, minlength=5)
    assert sorted(counts[:3]) == [1, 2, 2]
    assert sorted(counts[3:]) == [2, 3]


def test_too_few_classes_are_told() -> None:
    with pytest.raises(DataError, match="a batch takes 6 classes, but the training part has 5: set classes_per_batch=5 or lower"):
        PKSampler(LABELS, 6, 2)


def samplers(seed: int) -> list[Sampler]:
    return [PKSampler(LABELS, 2, 3, seed), ClassBalancedSampler(LABELS, 6, seed), ShuffleSampler(len(LABELS), 6, seed)]


@pytest.mark.parametrize("which", range(3))
def test_a_batch_depends_on_seed_and_step_alone(which: int) -> None:
    one, again, other = samplers(5)[which], samplers(5)[which], samplers(6)[which]
    forward = [one.batch(step) for step in range(30)]
    backward = [again.batch(step) for step in reversed(range(30))][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert not np.array_equal(forward, [other.batch(step) for step in range(30)])
    assert not np.array_equal(forward[0], forward[one.steps_per_epoch])
    assert all(len(batch) == one.batch_size and batch.dtype == np.int64 for batch in forward)


def test_shuffling_sees_every_row_once_a_pass() -> None:
    sampler = ShuffleSampler(10, 4, 1)
    rows = np.concatenate([sampler.batch(step) for step in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10))


def test_a_batch_may_be_larger_than_the_collection() -> None:
    assert np.bincount(ShuffleSampler(3, 8).batch(0)).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_balanced_batches_even_out_the_classes() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2], dtype=np.int64)
    sampler = ClassBalancedSampler(labels, 6)
    assert np.bincount(labels[np.concatenate([sampler.batch(step) for step in range(10)])]).tolist() == [20, 20, 20]


def test_rows_by_class_leaves_no_gap_for_absent_labels() -> None:
    assert [rows.tolist() for rows in rows_by_class(np.array([5, 2, 5], dtype=np.int64))] == [[1], [0, 2]]


def test_tuples_come_one_after_the_other_and_the_last_partial_batch_is_left_out() -> None:
    sampler = TupleSampler(np.arange(15, dtype=np.int64).reshape(5, 3), 2)
    assert (sampler.batch_size, sampler.steps_per_epoch) == (6, 2)
    assert [sampler.batch(step).tolist() for step in (0, 1, 2)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]]


def test_too_few_tuples_are_told() -> None:
    with pytest.raises(DataError, match="a batch takes 6 tuples, but an epoch has 5: set tuples_per_batch=5 or lower"):
        TupleSampler(np.zeros((5, 7), dtype=np.int64), 6)


@settings(max_examples=30, deadline=None)
@given(num=st.integers(1, 40), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_pairs_of_a_class_are_two_different_images_of_it(num: int, seed: int, epoch: int) -> None:
    labels = np.concatenate([LABELS, [5]]).astype(np.int64)  # class 5 has one image: nothing to pair it with
    pairs = draw_pairs(None, labels, num, seed, epoch)
    assert pairs.shape == (min(num, len(LABELS)), 2)
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(set(pairs[:, 0])) == len(pairs)


def test_every_other_image_of_the_class_may_be_the_positive() -> None:
    labels = np.array([1, 0, 1, 1], dtype=np.int64)
    drawn = {tuple(pair) for epoch in range(40) for pair in draw_pairs(None, labels, 3, 0, epoch).tolist()}
    assert drawn == {(0, 2), (0, 3), (2, 0), (2, 3), (3, 0), (3, 2)}


def test_given_pairs_are_drawn_anew_each_epoch_without_repeats() -> None:
    given_pairs = np.stack([np.arange(50), np.arange(50, 100)], axis=1).astype(np.int64)
    labels = np.zeros(100, dtype=np.int64)
    first, again, next_epoch = (draw_pairs(given_pairs, labels, 20, 3, epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, next_epoch)
    assert len(set(first[:, 0])) == 20
    assert (first[:, 1] == first[:, 0] + 50).all()
    assert len(draw_pairs(given_pairs, labels, 80, 3, 0)) == 50


def test_without_a_class_of_two_images_there_is_no_pair() -> None:
    assert draw_pairs(None, np.arange(4), 9, 0, 0).shape == (0, 2)
