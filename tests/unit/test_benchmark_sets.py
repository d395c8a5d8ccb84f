"""Each judged benchmark is read in its own layout, from a small copy made here, and says what it misses."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline import catalog
from sightline.data.judged import read_benchmark
from sightline.data.sets import copydays, gldv2, places, revisited
from sightline.errors import DataError, UsageError

TRUTH: dict[str, Any] = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q0", "q1"],
    "gnd": [
        {"bbx": [1.5, 2, 30, 40], "easy": [0], "hard": [3], "junk": [1]},
        {"bbx": [-3, 0, 5, 6], "easy": [2, 1], "hard": [], "junk": []},
    ],
}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_truth(root: Path, name: str, truth: Any = TRUTH) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    if name.endswith(".pkl"):
        (root / name).write_bytes(pickle.dumps(truth, 2))
    else:
        (root / name).write_text(json.dumps(truth), encoding="utf-8")
    return root


def lists(found: Any) -> list[list[int]]:
    return [rows.tolist() for rows in found]


@pytest.mark.parametrize("name", ["gnd_mine.pkl", "gnd_mine.json"])
def test_a_revisited_ground_truth_gives_three_settings(tmp_path, name):
    root = touch(write_truth(tmp_path, name), *(f"jpg/{image}.jpg" for image in ("a", "b", "c", "d", "q0", "q1")))
    judged = read_benchmark("revisited", root)
    assert judged.name == "revisited gnd_mine"
    assert [judged.records.paths[row] for row in judged.query_rows] == ["jpg/q0.jpg", "jpg/q1.jpg"]
    assert [judged.records.paths[row] for row in judged.gallery_rows] == [f"jpg/{image}.jpg" for image in "abcd"]
    assert judged.records.boxes[:2].tolist() == [[1.5, 2, 30, 40], [0, 0, 5, 6]]
    assert np.isnan(judged.records.boxes[2:]).all()
    assert {key: (lists(one.positives), lists(one.junk)) for key, one in judged.settings.items()} == {
        "easy": ([[0], [1, 2]], [[1, 3], []]),
        "medium": ([[0, 3], [1, 2]], [[1], []]),
        "hard": ([[3], []], [[0, 1], [1, 2]]),
    }
    assert judged.metrics == ("map", "mp@1", "mp@5", "mp@10")


def test_arrays_in_the_pickle_are_read_too(tmp_path):
    truth = TRUTH | {"gnd": [{key: np.array(value) for key, value in one.items() if key != "hard"} | {"hard": []} for one in TRUTH["gnd"]]}
    judged = revisited.read(write_truth(tmp_path, "gnd_mine.pkl", truth), verify=False)
    assert lists(judged.settings["easy"].positives) == [[0], [1, 2]]


@pytest.mark.parametrize("place", [".", "roxford5k"])
def test_the_official_sets_are_held_to_their_counts(tmp_path, place):
    write_truth(tmp_path / place, "gnd_roxford5k.pkl")
    with pytest.raises(
        DataError, match=r"2 queries where there are 70; 4 images to search where there are 4,993; 6 listed images are missing"
    ):
        revisited.roxford5k(tmp_path)
    assert revisited.roxford5k(tmp_path, verify=False).name == "roxford5k (not verified)"


def changed(**change: Any) -> dict[str, Any]:
    return TRUTH | {"gnd": [TRUTH["gnd"][0] | change, TRUTH["gnd"][1]]}


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([], "holds no imlist"),
        ({"imlist": ["a"]}, "no list 'qimlist'"),
        (TRUTH | {"gnd": TRUTH["gnd"][:1]}, "2 queries in qimlist and judges 1"),
        (TRUTH | {"gnd": [1, 2]}, "no easy, hard and junk for query 0"),
        (changed(easy="x"), "no list of whole numbers 'easy'"),
        (changed(hard=[0.5]), "no list of whole numbers 'hard'"),
        (changed(junk=[4]), "names image 4 of 4"),
        (changed(junk=[-1]), "names image -1 of 4"),
        (changed(easy=[1]), "judges an image twice"),
        (changed(easy=[0, 0]), "judges an image twice"),
        (changed(bbx=[1, 2, 3]), "a bbx that is not x0 y0 x1 y1"),
    ],
)
def test_a_wrong_ground_truth_is_one_line(tmp_path, truth, message):
    with pytest.raises(DataError, match=message) as caught:
        revisited.read(write_truth(tmp_path, "gnd_mine.json", truth), verify=False)
    assert "\n" not in str(caught.value)


def test_one_ground_truth_a_folder(tmp_path):
    write_truth(tmp_path, "gnd_one.json")
    write_truth(tmp_path, "gnd_one.pkl", {})
    assert len(revisited.read(tmp_path, verify=False).query_rows) == 2  # JSON, where there are both
    write_truth(tmp_path, "gnd_other.json")
    with pytest.raises(DataError, match="several ground truths"):
        revisited.read(tmp_path)


@pytest.mark.parametrize("name", catalog.BENCHMARKS)
def test_what_is_absent_is_named_with_its_place(tmp_path, name):
    with pytest.raises(DataError, match=r"is not there\. Needed: ") as caught:
        read_benchmark(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


GLDV2 = {
    "index.csv": ["id", "0123", "1123", "2123"],
    "retrieval_solution_v2.1.csv": ["id,images,Usage", "abcd,0123 2123,Public", "bbcd,1123,Private", "cbcd,None,Ignored"],
}


@pytest.mark.parametrize("nested", [False, True])
def test_gldv2_leaves_ignored_queries_out_and_keeps_its_two_sets_apart(tmp_path, nested):
    for name, lines in GLDV2.items():
        file = tmp_path / (("index" if name == "index.csv" else "test") if nested else "") / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = gldv2.read(tmp_path, verify=False)
    assert judged.records.paths == (
        "test/a/b/c/abcd.jpg",
        "test/b/b/c/bbcd.jpg",
        "index/0/1/2/0123.jpg",
        "index/1/1/2/1123.jpg",
        "index/2/1/2/2123.jpg",
    )
    assert {key: lists(one.positives) for key, one in judged.settings.items()} == {"public": [[0, 2], []], "private": [[], [1]]}
    assert judged.metrics == ("map@100",)
    with pytest.raises(DataError, match="2 queries where there are 1,129; 3 images to search where there are 761,757"):
        gldv2.read(tmp_path)


def test_gldv2_with_an_unknown_image_is_one_line(tmp_path):
    for name, lines in GLDV2.items():
        (tmp_path / name).write_text("\n".join(lines).replace("1123,P", "9123,P") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"names 9123 for query bbcd, which is not in index\.csv"):
        gldv2.read(tmp_path, verify=False)


def test_copydays_asks_by_kind_among_the_originals(tmp_path):
    touch(tmp_path, "original/200000.jpg", "original/200100.jpg", "strong/200001.jpg", "strong/200002.jpg", "strong/200101.jpg")
    touch(tmp_path, "crops/50/200000.jpg", "crops/50/200100.jpg")
    judged = copydays.read(tmp_path, verify=False)
    assert {key: lists(one.positives) for key, one in judged.settings.items()} == {
        "strong": [[0], [0], [1], [], []],
        "crops/50": [[], [], [], [0], [1]],
    }
    assert [judged.records.paths[row] for row in judged.gallery_rows] == ["original/200000.jpg", "original/200100.jpg"]
    touch(tmp_path, "strong/200301.jpg")
    with pytest.raises(DataError, match=r"200301\.jpg has no original"):
        copydays.read(tmp_path, verify=False)
    with pytest.raises(DataError, match=r"jpegqual.*crops"):
        copydays.read(tmp_path)
    assert copydays.NUM_QUERIES == 157 * 18 + 229


def place_set(root: Path) -> Path:
    touch(root, *(f"{side}/{frame:02}.jpg" for side in ("query", "reference") for frame in range(5)))
    lines = ["query,positive", *(f"query/{frame:02}.jpg,reference/{frame:02}.jpg" for frame in range(4)), "query/01.jpg,reference/04.jpg"]
    (root / "gt.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_places_take_neighbouring_frames_within_the_tolerance(tmp_path):
    judged = read_benchmark("places", place_set(tmp_path))
    assert lists(judged.settings[""].positives) == [[0], [1, 4], [2], [3], []]
    judged = read_benchmark("places,frames=1", tmp_path)
    assert lists(judged.settings[""].positives) == [[0, 1], [0, 1, 2, 3, 4], [1, 2, 3], [2, 3, 4], []]
    assert "1 frames' tolerance" in judged.name
    (tmp_path / "gt.csv").write_text("query,positive\nquery/00.jpg,reference/09.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"gt\.csv line 2: reference/09\.jpg is not below"):
        places.read(tmp_path)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("places,frame=1", "did you mean 'frames'"),
        ("places,frames=one", "whole number"),
        ("places,frames", "whole number"),
        ("roxford", "did you mean 'roxford5k'"),
        ("roxford5k,frames=1", "has no setting 'frames'"),
    ],
)
def test_an_unknown_benchmark_or_setting_is_one_line(tmp_path, protocol, message):
    with pytest.raises(UsageError, match=message):
        read_benchmark(protocol, tmp_path)
