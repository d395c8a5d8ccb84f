"""Neighbours against a stable sort of every similarity."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.search import neighbours

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 30), st.integers(1, 35))
def test_nearest_equals_a_stable_sort(generator, num, k):
    vectors = generator.integers(-2, 3, (num, 3)).astype(np.float32)
    ranking = neighbours.nearest(vectors, vectors, k, self_rows=np.arange(num))
    for row in range(num):
        similarity = vectors @ vectors[row]
        expected = [column for column in np.argsort(-similarity, kind="stable") if column != row][:k]
        assert ranking.rows[row].tolist() == expected
        np.testing.assert_array_equal(ranking.similarity[row], similarity[expected])


def test_nearest_without_a_gallery_is_empty():
    assert neighbours.nearest(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 3, self_rows=np.array([0])).rows.shape == (1, 0)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 4))
def test_nearest_of_other_class_equals_a_stable_sort(generator, num, num_classes):
    vectors = generator.integers(-2, 3, (num, 3)).astype(np.float32)
    labels = generator.integers(0, num_classes, num)
    ranking = neighbours.nearest_of_other_class(vectors, labels)
    for row in range(num):
        similarity = vectors @ vectors[row]
        expected = [column for column in np.argsort(-similarity, kind="stable") if labels[column] != labels[row]][:1] or [-1]
        assert ranking.rows[row].tolist() == expected
        assert ranking.similarity[row, 0] == (similarity[expected[0]] if expected != [-1] else -np.inf)
