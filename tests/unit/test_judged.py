"""Judged collections are checked once, at birth, and take distractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.data.judged import Judged, Judgements, with_distractors
from sightline.data.records import Records
from sightline.errors import DataError


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def judged(root: Path = Path("pictures")) -> Judged:
    records = Records(root, ("q.jpg", "a.jpg", "b.jpg"), boxes=np.array([[0, 0, 5, 5], [np.nan] * 4, [np.nan] * 4], np.float32))
    return Judged("mine", records, rows(0), rows(1, 2), {"": Judgements((rows(0),), (rows(1),))}, ("map",))


@pytest.mark.parametrize(
    ("positives", "junk", "message"),
    [
        ((rows(0),), (), "one array of junk a query"),
        ((rows(3, 1),), (rows(),), "positives of query 0 must be ascending"),
        ((rows(),), (rows(2, 2),), "junk of query 0 must be ascending"),
        ((rows(-1),), (rows(),), "positives of query 0"),
        ((rows(1).astype(np.int32),), (rows(),), "int64"),
        ((rows(1, 2),), (rows(2),), "positive that is junk too"),
    ],
)
def test_judgements_that_mean_nothing_are_refused(positives, junk, message):
    with pytest.raises(ValueError, match=message):
        Judgements(positives, junk)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_rows": rows(3)}, "query_rows must be"),
        ({"gallery_rows": rows(1, 1)}, "in the gallery twice"),
        ({"gallery_rows": rows(1)}, "judges 1 queries in 2 images"),
        ({"settings": {}}, "at least one setting"),
        ({"query_rows": rows()}, "judges 1 queries"),
    ],
)
def test_a_collection_must_hold_what_it_judges(change, message):
    whole = judged()
    parts = {name: getattr(whole, name) for name in ("name", "records", "query_rows", "gallery_rows", "settings", "metrics")}
    with pytest.raises(ValueError, match=message):
        Judged(**parts | change)


def test_distractors_come_last_keep_their_place_and_are_told_of(tmp_path):
    more = with_distractors(judged(), Records(tmp_path, ("x.jpg", "y.jpg")))
    assert more.name == "mine +2 distractors"
    assert more.gallery_rows.tolist() == [1, 2, 3, 4]
    assert more.records.file(3) == tmp_path / "x.jpg"
    assert more.records.file(1) == Path("pictures/a.jpg")
    assert more.settings[""].positives[0].tolist() == [0]
    assert np.isnan(more.records.boxes[3]).all()
    assert more.records.boxes[0].tolist() == [0, 0, 5, 5]


def test_an_image_of_the_collection_is_no_distractor(tmp_path):
    with pytest.raises(DataError, match=r"b\.jpg is among what is measured"):
        with_distractors(judged(tmp_path), Records(tmp_path.parent, (f"{tmp_path.name}/b.jpg",)))
