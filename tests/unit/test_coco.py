"""COCO-format sets: both layouts, outlines and run lengths, crowds, what is clipped, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as tools

from sightline.data.instances import packed, rasterise, unpacked
from sightline.data.sets import coco
from sightline.data.sets.coco import Polygons, Runs, decode_runs
from sightline.errors import DataError

SQUARE = [[2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]]


def content(**change: Any) -> dict[str, Any]:
    found = {
        "images": [{"id": 7, "file_name": "b.jpg", "width": 10, "height": 8}, {"id": 3, "file_name": "a.jpg", "width": 20, "height": 8}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [15, 2, 10, 4], "area": 17.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "segmentation": SQUARE},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [1, 1, 0, 5]},
        ],
    }
    return found | change


def write(root: Path, split: str = "train", where: str = "images/train2017", name: str = "instances_train2017", **change: Any) -> Path:
    for path in ("a.jpg", "b.jpg"):
        (root / where).mkdir(parents=True, exist_ok=True)
        (root / where / path).touch()
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content(**change)), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("images/train2017", "instances_train2017"),
        ("train2014", "instances_train2014"),
        ("JPEGImages", "train"),
        (".", "instances_train"),
    ],
)
def test_both_layouts_are_read_and_categories_become_1_to_c(tmp_path, where, name):
    found = coco.read(write(tmp_path, where=where, name=name), "train")
    assert found.paths == ("b.jpg", "a.jpg")
    assert found.root == tmp_path / where
    assert found.class_names == ("dog", "cat")
    assert found.image_of.tolist() == [0, 1]
    assert found.labels.tolist() == [1, 2]
    assert found.boxes.tolist() == [[2, 1, 6, 5], [15, 2, 20, 6]]  # from the outline; clipped
    assert found.areas.tolist() == [16.0, 17.5]
    assert found.objects(1) == slice(1, 2)
    assert not found.has_masks


def test_a_prefix_chooses_among_annotation_files(tmp_path):
    write(tmp_path)
    write(tmp_path, name="instances_seg_train2017", annotations=[content()["annotations"][1]])
    assert len(coco.read(tmp_path, "train").labels) == 2
    assert coco.read(tmp_path, "train", annotations="instances_seg").has_masks


def test_run_lengths_packed_or_not_give_the_mask_and_its_box(tmp_path):
    truth = np.zeros((8, 10), np.uint8)
    truth[2:5, 3:9] = 1
    truth[6, 4] = 1
    text = tools.encode(np.asfortranarray(truth))["counts"].decode()
    flat = truth.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *changes, len(flat)]).tolist()
    objects = [
        {"id": number, "image_id": 7, "category_id": 4, "iscrowd": 1, "segmentation": {"size": [8, 10], "counts": counts}}
        for number, counts in enumerate((text, lengths))
    ]
    found = coco.read(write(tmp_path, annotations=objects), "train")
    assert found.is_crowd.all()
    assert found.boxes.tolist() == [[3, 2, 9, 7]] * 2
    for mask in found.masks:
        assert isinstance(mask, Runs)
        np.testing.assert_array_equal(decode_runs(mask), truth)
        np.testing.assert_array_equal(unpacked(packed(mask, (8, 10))), truth)


def test_long_packed_masks_unpack_as_pycocotools_has_them():
    noise = (np.random.default_rng(0).random((90, 70)) < np.linspace(0.001, 0.9, 70)).astype(np.uint8)
    text = tools.encode(np.asfortranarray(noise))["counts"].decode()
    np.testing.assert_array_equal(decode_runs(Runs(coco.unpack_lengths(text), (90, 70))), noise)


def test_masks_follow_the_image_to_another_size():
    square = np.array(SQUARE, np.float32).reshape(-1, 2)
    runs = Runs(np.array([8 * 2 + 1, 4, 4, 4, 4, 4, 4, 4, 8 * 4 + 3]), (8, 10))
    found = rasterise([Polygons((square,)), runs], (16, 20), (2.0, 2.0)).numpy()
    expected = np.zeros((16, 20), np.uint8)
    expected[2:10, 4:12] = 1
    np.testing.assert_array_equal(found, [expected, expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"images": [{"id": 1}]}, "an image without file_name"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 0, "height": 3}]}, "an image of no extent"),
        ({"images": content()["images"] * 2}, "gives the id 7 to more than one"),
        (
            {"annotations": [{"id": 5, "image_id": 99, "category_id": 4}]},
            "annotation 5 of .* an image or a category that the file does not list",
        ),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 4}]}, "neither bbox nor segmentation"),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 4, "bbox": [1, 2, "x", 4]}]}, "no box or mask that can be read"),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 4, "bbox": [1, 2, float("nan"), 4]}]}, "no finite number"),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 4, "segmentation": {"size": [8, 10], "counts": [3, 99]}}]},
            "do not fill the image",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 4, "segmentation": {"size": [9, 9], "counts": [81]}}]},
            "a mask of 9 x 9 pixels in an image of 10 x 8",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 4, "segmentation": {"size": [8, 10], "counts": "ooooooooooooo"}}]},
            "packed run lengths are damaged",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        coco.read(write(tmp_path, **change), "train")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_its_place(tmp_path):
    with pytest.raises(DataError, match=r"instances_val2017\.json or val\.json is missing in .*annotations"):
        coco.read(write(tmp_path), "val")
    (tmp_path / "images/train2017/b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images .* are missing .*first: b\.jpg"):
        coco.read(tmp_path, "train")
    assert len(coco.read(tmp_path, "train", verify=False)) == 2
    (tmp_path / "images/train2017/a.jpg").unlink()
    with pytest.raises(DataError, match=r"holds none of the images .*such as b\.jpg.*JPEGImages"):
        coco.read(tmp_path, "train")
    write(tmp_path, name="instances_train2014")
    with pytest.raises(DataError, match=r"instances_train2014\.json and instances_train2017\.json: leave the one"):
        coco.read(tmp_path, "train")
    (tmp_path / "annotations/instances_train2014.json").unlink()
    (tmp_path / "annotations/instances_train2017.json").write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        coco.read(tmp_path, "train")
