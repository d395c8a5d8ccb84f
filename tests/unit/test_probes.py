"""Probes against cases worked by hand, brute force, and the conditions that a minimum has to meet."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sightline.data.division import images_to_hold_out, share_of_images
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.evaluation import probes
from sightline.workflows.transferring import divide


def blobs(num: int, num_classes: int = 4, dim: int = 6, noise: float = 1.0, seed: int = 0):
    """Unit vectors float32 [num, dim] in loose classes, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, num - num_classes)])
    vectors = np.random.default_rng(99).normal(size=(num_classes, dim))[labels] + noise * random.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


# --- nearest neighbours ---------------------------------------------------------------------------------------------------------


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_two_far_neighbours_outvote_a_close_one_only_at_a_high_temperature() -> None:
    train, labels = np.array([at(10), at(30), at(-30), at(180)], np.float32), np.array([0, 1, 1, 2])
    query = np.array([at(0)], np.float32)
    # votes: exp(0.9848 / t) against 2 exp(0.8660 / t); equal at t = 0.1188 / log 2 = 0.171
    assert probes.knn(train, labels, query, k=3, temperature=0.17).tolist() == [0]
    assert probes.knn(train, labels, query, k=3, temperature=0.18).tolist() == [1]
    assert probes.knn(train, labels, query, k=1, temperature=9.0).tolist() == [0]
    assert probes.knn(train, labels, query, k=99, temperature=1e-3).tolist() == [0]  # exp(985) is no float: votes are relative


def test_equal_votes_go_to_the_class_of_the_lower_row() -> None:
    train = np.array([at(10), at(10), at(-10)], np.float32)
    assert probes.knn(train, np.array([2, 1, 0]), np.array([at(0)], np.float32), k=2).tolist() == [2]


def test_votes_are_those_of_a_loop() -> None:
    (train, labels), (test, _) = blobs(90), blobs(40, seed=1)
    wanted = []
    for query in test:
        similarity = train.astype(np.float64) @ query
        votes = np.zeros(4)
        for row in np.argsort(-similarity, kind="stable")[:20]:
            votes[labels[row]] += math.exp(similarity[row] / 0.07)
        wanted.append(int(votes.argmax()))
    assert probes.knn(train, labels, test).tolist() == wanted


# --- few shots ------------------------------------------------------------------------------------------------------------------


def test_ridge_of_one_feature_by_hand() -> None:
    # Features -1 and 1 (mean 0, deviation 1 + 1e-5 = d), bias 100, penalty 1, targets of class 0: 1, -1.
    # Normal equations: (2 / d^2 + 1) w = (-1 - 1) / d and (20,000 + 1) b = 0.
    found = probes.ridge(np.array([[-1.0], [1.0]], np.float32), np.array([0, 1]), 2, l2=1.0)
    d = 1 + 1e-5
    w = -2 / d / (2 / d**2 + 1)
    np.testing.assert_allclose(found.weight, [[w / d, -w / d]], rtol=1e-12)
    np.testing.assert_allclose(found.bias, [0, 0], atol=1e-12)
    assert found.predict(np.array([[-0.2], [0.3]], np.float32)).tolist() == [0, 1]


@pytest.mark.parametrize("num", [5, 40])
def test_ridge_is_the_least_penalised_squared_error(num: int) -> None:
    x, y = blobs(num)
    found = probes.ridge(x, y, 4, l2=3.0)
    scaling = probes.Scaling.of(x)
    standard, targets = scaling(x), np.where(y[:, None] == np.arange(4), 1.0, -1.0)
    weight = found.weight * scaling.deviation[:, None]
    bias = found.bias + scaling.mean @ found.weight
    error = standard @ weight + bias - targets
    # The gradient of |error|^2 + l2 (|w|^2 + (b / 100)^2) vanishes, in both forms of the solution.
    np.testing.assert_allclose(standard.T @ error + 3.0 * weight, 0, atol=1e-9)
    np.testing.assert_allclose(error.sum(axis=0) + 3.0 * bias / 100**2, 0, atol=1e-9)


def test_shots_are_so_many_of_each_class_and_all_of_a_small_one() -> None:
    labels = np.array([2, 0, 0, 1, 0, 2, 2, 0])
    rows = probes.draw_shots(labels, 2, seed=5)
    assert labels[rows].tolist() == [0, 0, 1, 2, 2]
    assert len(set(rows.tolist())) == 5
    assert rows.tolist() == probes.draw_shots(labels, 2, seed=5).tolist() != probes.draw_shots(labels, 2, seed=6).tolist()


# --- the linear probe -----------------------------------------------------------------------------------------------------------


def test_the_logistic_regression_stands_at_its_minimum_also_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(120)
    whole = probes.logistic(x, y, 4, l2=0.05)
    monkeypatch.setattr(probes, "BLOCK_BYTES", 8 * 6 * 17)  # 17 rows at a time
    blocks = probes.logistic(x, y, 4, l2=0.05)
    np.testing.assert_allclose(blocks.weight, whole.weight, atol=1e-6)
    scaling = probes.Scaling.of(x)
    weight, bias = whole.weight * scaling.deviation[:, None], whole.bias + scaling.mean @ whole.weight
    logits = scaling(x) @ weight + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = p / p.sum(axis=1, keepdims=True) - (y[:, None] == np.arange(4))
    assert np.abs(scaling(x).T @ residual / len(x) + 0.05 * weight).max() < 2e-6
    assert np.abs(residual.mean(axis=0)).max() < 2e-6


def test_two_points_and_one_feature_by_hand() -> None:
    # At the minimum w = (v, -v) with v = p(wrong) / l2 / 2 (mean over two points), p(wrong) = 1 / (1 + exp(2 v)).
    found = probes.logistic(np.array([[1.0], [-1.0]], np.float32), np.array([0, 1]), 2, l2=0.5)
    v = float(found.weight[0, 0] * (1 + 1e-5))
    assert found.weight[0, 1] == pytest.approx(-found.weight[0, 0], abs=1e-6)
    assert 0.5 * v == pytest.approx(1 / (1 + math.exp(2 * v)), abs=1e-4)


def test_it_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(200, noise=1.5)
    ours = probes.logistic(x, y, 4, l2=0.01)
    theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000).fit(probes.Scaling.of(x)(x), y)
    np.testing.assert_allclose(ours.weight * probes.Scaling.of(x).deviation[:, None], theirs.coef_.T, atol=2e-4)


def test_the_penalty_is_the_one_that_does_best_on_validation() -> None:
    x, y = blobs(160, noise=2.0)
    is_validation = np.arange(160) % 4 == 0
    found, l2 = probes.linear_probe(x, y, is_validation, 4, l2s=(10.0, 1e-2, 1e-6))
    by_l2 = {
        one: float((probes.logistic(x[~is_validation], y[~is_validation], 4, l2=one).predict(x[is_validation]) == y[is_validation]).mean())
        for one in (10.0, 1e-2, 1e-6)
    }
    assert by_l2[l2] == max(by_l2.values())
    np.testing.assert_allclose(found.weight, probes.logistic(x, y, 4, l2=l2).weight, atol=1e-3)


# --- accuracy -------------------------------------------------------------------------------------------------------------------


def test_the_bootstrap_spreads_as_the_binomial_does() -> None:
    is_right = (np.arange(400) % 4 > 0)[None]
    found = probes.resampled_accuracy(is_right, num_resamples=4000)
    assert found.mean() == pytest.approx(0.75, abs=0.002)
    assert found.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_fits_that_differ_widen_the_interval_and_equal_ones_do_not() -> None:
    one = np.arange(400) % 4 > 0
    alike, apart = np.stack([one, one, one]), np.stack([one, np.ones(400, bool), np.zeros(400, bool)])
    assert probes.resampled_accuracy(alike).std() == pytest.approx(probes.resampled_accuracy(one[None]).std(), rel=0.1)
    assert probes.resampled_accuracy(apart).std() > 5 * probes.resampled_accuracy(alike).std()


# --- dividing data --------------------------------------------------------------------------------------------------------------


def records(labels: list[int], splits: list[str] | None = None) -> Records:
    names = tuple(f"c{label}" for label in range(max(labels) + 1))
    paths = tuple(f"{row}.jpg" for row in range(len(labels)))
    return Records(Path("photos"), paths, np.array(labels), names, None if splits is None else tuple(splits))


def test_a_share_of_every_class_is_held_out_and_none_is_lost() -> None:
    labels = [0] * 10 + [1] * 5 + [2] * 2 + [3]
    held = images_to_hold_out(records(labels), 0.2, 0)
    assert np.bincount(np.array(labels)[held], minlength=4).tolist() == [2, 1, 1, 0]
    assert (held == images_to_hold_out(records(labels), 0.2, 0)).all()
    assert (held != images_to_hold_out(records(labels), 0.2, 1)).any()
    with pytest.raises(DataError, match="no class of photos has more than 1 image"):
        images_to_hold_out(records([0, 1, 2]), 0.2, 0)


def test_a_smaller_share_of_images_is_a_part_of_a_larger_one() -> None:
    whole = records([0] * 30 + [1] * 7 + [2])
    shares = {share: set(share_of_images(whole, share).paths) for share in (0.01, 0.1, 0.5, 1.0)}
    assert [len(shares[share]) for share in shares] == [3, 3 + 1 + 1, 15 + 4 + 1, 38]
    assert shares[0.01] < shares[0.1] < shares[0.5] < shares[1.0]


def test_data_is_divided_by_its_own_splits() -> None:
    both = ["train", "train", "val", "test"] * 2
    parts = divide(records([0] * 4 + [1] * 4, both), 0)
    assert (len(parts.training), len(parts.test), parts.words) == (6, 2, "splits train and val, tested on test")
    parts = divide(records([0] * 4 + [1] * 4, ["train", "train", "val", "val"] * 2), 0)
    assert (len(parts.training), len(parts.test), parts.words) == (4, 4, "split train, tested on val")
    parts = divide(records([0] * 10 + [1] * 10), 0)
    assert (len(parts.training), len(parts.test)) == (16, 4)
    with pytest.raises(DataError, match="1 classes of the test part of photos have no training image"):
        divide(records([0, 1, 2], ["train", "train", "test"]), 0)
    with pytest.raises(DataError, match="has the splits gallery, query"):
        divide(records([0, 1], ["query", "gallery"]), 0)
