"""Protocols choose rows; measuring says what was measured; confusions and near-duplicates against slow definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.contracts import Descriptors
from sightline.data.judged import Judged, Judgements
from sightline.data.records import Records
from sightline.errors import DataError, UsageError
from sightline.evaluation import protocols, run, trials
from sightline.evaluation.measured import Measured, measure
from sightline.evaluation.protocol import parse
from sightline.evaluation.ranks import SameLabel


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


def measured(descriptors: Descriptors, records: Records, protocol: protocols.Rows, **more) -> Measured:
    return measure(trials.label_trial(descriptors, records, protocol), **more)


def test_auto_chooses_by_the_splits():
    assert protocols.auto_rows(records_of([0, 0, 1])).name == "leave-one-out"
    chosen = protocols.auto_rows(records_of([0, 0, 1, 1], ["query", "gallery", "gallery", "query"]))
    assert chosen.name == "query-gallery"
    assert chosen.query_rows.tolist() == [0, 3]
    assert chosen.gallery_rows.tolist() == [1, 2]
    assert protocols.auto_rows(records_of([0, 0, 1], ["train", "test", "test"])).name == "leave-one-out"


@pytest.mark.parametrize(
    ("records", "name", "message"),
    [
        (records_of(None, num=3), "auto", "has no labels"),
        (records_of([0, 1, 2]), "leave-one-out", "no class of pictures has two images"),
        (records_of([0, 0]), "query-gallery", "no 'query' split"),
        (records_of([0, 0, 1], ["query", "gallery", "gallery"]), "cross-camera", "has no cameras: .*--protocol query-gallery"),
        (records_of([0, 1], ["query", "gallery"]), "auto", "no query of pictures has an image of its class"),
        (records_of([0, 0]), "leave-one", "did you mean 'leave-one-out'"),
    ],
)
def test_unsuitable_records_are_refused_in_one_line(records, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(name).rows(records)
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


# --- what does not count, and what cannot be wrong


@pytest.mark.parametrize("records", [records_of([0, 0]), records_of([0, 0, 0, 1], ["query", "gallery", "gallery", "query"])])
def test_a_gallery_of_one_class_is_refused_and_distractors_are_a_remedy(records):
    protocol = protocols.auto_rows(records)
    with pytest.raises(
        DataError, match=r"shows one class \('class 0'\), so nothing can be wrong and every measure would be 1: .*--distractors"
    ):
        protocols.require_several(records, protocol)
    more, protocol = protocols.add_distractors(records, protocol, records_of(None, num=9).select([8]))
    protocols.require_several(more, protocol)


def with_cameras(labels: list[int], splits: list[str], cameras: list[int]) -> Records:
    names = tuple(f"camera {number}" for number in range(max(cameras) + 1))
    return replace(records_of(labels, splits), cameras=np.array(cameras, np.int64), camera_names=names)


def test_auto_drops_the_same_class_by_the_same_camera_and_says_so():
    # By similarity the query's answers are: itself by its own camera, another class, its class by another camera.
    records = with_cameras([0, 0, 1, 0], ["query", "gallery", "gallery", "gallery"], [0, 0, 0, 1])
    descriptors = Descriptors(unit(np.array([[1, 0], [1, 0.1], [1, 0.3], [1, 0.6]], np.float32)), np.arange(4))
    found = measured(descriptors, records, protocols.auto_rows(records), num_resamples=10)
    assert (found.protocol, found.left_out) == ("cross-camera", "the query's class by the query's own camera")
    assert found.ranks[""].ranks.tolist() == [2]  # the other class stays, whatever its camera
    assert found.to_json()["left_out"] == found.left_out
    plain = measured(descriptors, records, protocols.query_gallery(records), num_resamples=10)
    assert (plain.ranks[""].ranks.tolist(), "left_out" in plain.to_json()) == ([1, 3], False)


def test_cameras_that_leave_nothing_to_find_are_refused_and_the_remedy_works():
    records = with_cameras([0, 0, 1], ["query", "gallery", "gallery"], [0, 0, 1])
    with pytest.raises(DataError, match=r"by another camera: .*--protocol query-gallery"):
        protocols.auto_rows(records)
    assert protocols.query_gallery(records).sources is None


def test_distractors_are_never_of_a_querys_source():
    records = with_cameras([0, 0, 1, 0], ["query", "gallery", "gallery", "gallery"], [0, 0, 0, 1])
    more, protocol = protocols.add_distractors(records, protocols.auto_rows(records), records_of(None, num=9).select([8]))
    assert protocol.sources is not None
    assert len(protocol.sources) == len(more) == 5


def in_pictures(paths: list[str], labels: list[int], splits: list[str] | None = None) -> Records:
    boxes = np.array([[row, 0, row + 5, 5] for row in range(len(paths))], np.float32)
    return replace(records_of(labels, splits), paths=tuple(paths), boxes=boxes)


def test_other_boxes_of_the_querys_own_picture_do_not_answer_it():
    # Two things of class 0 in a.jpg are as like as can be; in b.jpg there is one more, and class 1.
    records = in_pictures(["a.jpg", "./a.jpg", "b.jpg", "b.jpg", "c.jpg"], [0, 0, 0, 1, 1])
    vectors = unit(np.array([[1, 0], [1, 0], [1, 0.5], [1, 0.2], [0, 1]], np.float32))
    found = measured(Descriptors(vectors, np.arange(5)), records, protocols.leave_one_out(records), num_resamples=10)
    assert found.left_out == "the query's class in the query's own picture"
    ranks = found.ranks[""]
    assert ranks.num_positives.tolist() == [1, 1, 2, 1, 1]
    assert ranks.ranks.tolist() == [2, 2, 2, 3, 4, 2]
    assert protocols.leave_one_out(in_pictures(["a.jpg", "b.jpg", "c.jpg"], [0, 0, 1])).left_out == ""


def test_a_query_that_is_in_the_gallery_too_does_not_find_itself(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    records = replace(records_of([0, 0, 0, 1], ["query", "gallery", "gallery", "gallery"]), root=tmp_path)
    records = replace(records, paths=("a.jpg", "link.jpg", "b.jpg", "c.jpg"))
    vectors = unit(np.array([[1, 0], [1, 0], [1, 0.5], [1, 0.2]], np.float32))
    found = measured(Descriptors(vectors, np.arange(4)), records, protocols.auto_rows(records), num_resamples=10)
    assert found.ranks[""].ranks.tolist() == [2]
    assert protocols.auto_rows(replace(records, paths=("a.jpg", "x.jpg", "b.jpg", "c.jpg"))).left_out == ""


def test_a_trial_in_which_nothing_can_be_wrong_is_refused():
    records = records_of([0, 0, 1, 1], ["query", "gallery", "gallery", "query"])
    vectors = unit(np.ones((4, 2)))
    with pytest.raises(DataError, match="right or left out, so nothing can be wrong"):  # the other class could not be read
        measured(Descriptors(vectors[:2], np.array([0, 1])), records, protocols.query_gallery(records))
    assert measured(Descriptors(vectors, np.arange(4)), records, protocols.query_gallery(records)).metrics["map"] == 0.5


def test_a_setting_of_a_benchmark_in_which_nothing_can_be_wrong_has_no_number():
    nobody = np.empty(0, np.int64)
    easy, hard = Judgements((np.array([0, 1]),), (np.array([2]),)), Judgements((np.array([1]),), (nobody,))
    judged = Judged("b", records_of([0] * 4), np.array([3]), np.arange(3), {"easy": easy, "hard": hard}, ("map",))
    descriptors = Descriptors(unit(np.array([[1, 0], [1, 0.1], [1, 0.5], [1, 0]], np.float32)), np.arange(4))
    found = measure(trials.judged_trial(descriptors, judged), num_resamples=10)
    assert np.isnan(found.metrics["map/easy"])
    assert found.metrics["map/hard"] < 1
    assert found.to_json()["metrics"]["map/easy"] is None
    with pytest.raises(DataError, match="nothing can be wrong"):
        measure(trials.judged_trial(descriptors, replace(judged, settings={"": easy})))
