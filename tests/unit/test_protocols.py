"""Protocols choose rows; measuring says what was measured; confusions and near-duplicates against slow definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.contracts import Descriptors
from sightline.data.records import Records
from sightline.errors import DataError, UsageError
from sightline.evaluate import protocols, run, trials
from sightline.evaluate.measured import Measured, measure
from sightline.evaluate.ranks import SameLabel


def records_of(labels: list[int] | None, splits: list[str] | None = None, num: int | None = None) -> Records:
    num = num or len(labels or ())
    return Records(
        root=Path("pictures"),
        paths=tuple(f"{row}.jpg" for row in range(num)),
        labels=None if labels is None else np.array(labels, np.int64),
        class_names=() if labels is None else tuple(f"class {label}" for label in range(max(labels) + 1)),
        splits=None if splits is None else tuple(splits),
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def measured(descriptors: Descriptors, records: Records, protocol: protocols.Protocol, **more) -> Measured:
    return measure(trials.label_trial(descriptors, records, protocol), **more)


def test_auto_chooses_by_the_splits():
    assert protocols.choose_protocol(records_of([0, 0, 1])).name == "leave-one-out"
    chosen = protocols.choose_protocol(records_of([0, 0, 1, 1], ["query", "gallery", "gallery", "query"]))
    assert chosen.name == "query-gallery"
    assert chosen.query_rows.tolist() == [0, 3]
    assert chosen.gallery_rows.tolist() == [1, 2]
    assert protocols.choose_protocol(records_of([0, 0], ["train", "test"])).name == "leave-one-out"


@pytest.mark.parametrize(
    ("records", "name", "message"),
    [
        (records_of(None, num=3), "auto", "has no labels"),
        (records_of([0, 1, 2]), "leave-one-out", "no class of pictures has two images"),
        (records_of([0, 0]), "query-gallery", "no 'query' split"),
        (records_of([0, 1], ["query", "gallery"]), "auto", "no query of pictures has an image of its class"),
        (records_of([0, 0]), "leave-one", "did you mean 'leave-one-out'"),
    ],
)
def test_unsuitable_records_are_refused_in_one_line(records, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        protocols.choose_protocol(records, name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_measure_says_what_and_how():
    records = records_of([0, 0, 1, 1, 2])
    vectors = unit(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1]], np.float32))
    found = measured(Descriptors(vectors, np.arange(5)), records, protocols.leave_one_out(records), num_resamples=50)
    assert found.metrics["recall@1"] == 1.0
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (told["num_queries"], told["num_gallery"], told["num_skipped"], told["num_classes"]) == (5, 4, 1, 3)
    assert told["metrics"]["map@r"] == 1.0
    assert told["intervals"]["recall@1"] == [1.0, 1.0]
    assert "negative that ties" in told["tie_rule"]


def test_measure_in_query_gallery_with_an_unreadable_image():
    records = records_of([0, 1, 0, 1, 0], ["query", "query", "gallery", "gallery", "gallery"])
    # Row 2 could not be read, so it has no descriptor; the rows of the others come in another order.
    rows = np.array([4, 3, 1, 0])
    vectors = unit(np.array([[0, 1], [1, 0], [1, 0.2], [1, 0.1]], np.float32))
    found = measured(Descriptors(vectors, rows), records, protocols.query_gallery(records), num_resamples=10)
    assert found.num_gallery == 2
    assert found.ranks[""].ranks.tolist() == [2, 1]


def test_nothing_measurable_is_an_error():
    records = records_of([0, 0, 1])
    with pytest.raises(DataError, match="nothing can be measured"):
        measured(Descriptors(unit(np.ones((2, 2))), np.array([0, 2])), records, protocols.leave_one_out(records))


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def test_confusions_count_first_answers_only():
    query_labels, gallery_labels = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2])
    found = run.confusions(query_labels, gallery_labels, np.array([1, 1, 0, 2, 2]))
    assert [(one.label, one.mistaken_for, one.count, one.query, one.answer) for one in found] == [(0, 1, 2, 0, 1), (1, 2, 1, 3, 2)]


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 12))
def test_near_duplicates_are_the_best_pairs(generator, most):
    one, other = (generator.integers(-2, 3, (num, 3)).astype(np.float32) for num in (13, 9))
    found = run.near_duplicates(one, other, threshold=2.0, most=most)
    similarity = one @ other.T
    pairs = sorted((-similarity[row, column], row, column) for row, column in np.argwhere(similarity >= 2.0))
    assert found.num_found == len(pairs)
    assert list(zip(-found.similarity, found.rows, found.other_rows, strict=True)) == pairs[:most]


def test_separation_tells_positives_from_the_hardest_negative():
    vectors, labels = unit(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)), np.array([0, 0, 1, 1])
    found = run.separation(vectors, vectors, SameLabel(labels, labels, np.arange(4)), np.arange(4))
    assert found.positives.tolist() == [1, 1, 1, 1]
    assert found.best_negatives.tolist() == [0, 0, 0, 0]
