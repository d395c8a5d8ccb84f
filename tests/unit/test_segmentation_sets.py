"""Readers of segmentation sets: each layout from a tiny copy made here, and what is said of what is missing or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data.images import BadImage
from sightline.data.sets.segmentation import CAMVID, VOID, Pair, read, read_mask, require_several_classes, spread
from sightline.errors import DataError


def save(file: Path, values: object, dtype: type = np.uint8) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(file)
    return file


def pair(images: Path, masks: Path, name: str, values: list[list[int]], dtype: type = np.uint8) -> None:
    save(images / f"{name}.png", np.zeros((len(values), len(values[0]), 3)))
    save(masks / f"{name}.png", values, dtype)


def classes(found, pair: Pair) -> list[list[int]]:
    with Image.open(pair.image) as image:
        return found.mask(pair.mask, image.size).tolist()


def test_ade20k_leaves_0_out(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        pair(root / "images" / part, root / "annotations" / part, "a", [[0, 1, 150]])
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{number}\t0.1\t1\t1\tname {number}, other\n" for number in range(1, 151))
    )
    found = read(tmp_path)  # the folder above it will do
    assert (found.layout, found.num_classes, found.class_names[0], found.class_names[149]) == ("ade20k", 150, "name 1", "name 150")
    assert classes(found, found.train[0]) == classes(found, found.val[0]) == [[VOID, 0, 149]]
    (root / "objectInfo150.txt").write_text("Idx\n1\n")
    with pytest.raises(DataError, match="does not hold 150 lines"):
        read(root)


def test_without_training_images_it_is_said_where_they_belong(tmp_path: Path) -> None:
    pair(tmp_path / "images/validation", tmp_path / "annotations/validation", "a", [[1]])
    found = read(tmp_path)
    assert found.class_names[0] == "class 1"
    with pytest.raises(DataError, match=r"no image with a mask in 'train'.*images/\{training,validation\}"):
        found.part("train")


def test_camvid_has_void_last(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        pair(tmp_path / part, tmp_path / f"{part}annot", "a", [[0, 10, 11]])
    found = read(tmp_path)
    assert found.class_names == CAMVID[:-1]
    assert classes(found, found.test[0]) == [[0, 10, VOID]]
    (tmp_path / "classes.txt").write_text("0 road\n1 void\n2 sky above\n")
    found = read(tmp_path)
    assert found.class_names == ("road", "sky above")
    assert found.class_of[:3].tolist() == [0, VOID, 1]


def test_coco_has_ids_with_gaps_and_images_without_masks(tmp_path: Path) -> None:
    for part in ("train", "val"):
        pair(tmp_path / f"images/{part}2017", tmp_path / f"semantic/{part}2017", "a", [[0, 7, 200]])
        save(tmp_path / f"images/{part}2017/unlabelled.png", np.zeros((2, 2, 3)))
    listed = tmp_path / "annotations" / "semantic_categories.json"
    with pytest.raises(DataError, match=r"no semantic_categories\.json"):
        read(tmp_path)
    listed.parent.mkdir()
    listed.write_text(json.dumps([{"id": 200, "name": "rug"}, {"id": 7, "name": "train"}]))
    found = read(tmp_path)
    assert (found.layout, found.class_names, len(found.train), found.unpaired) == ("coco", ("train", "rug"), 1, ())
    assert classes(found, found.val[0]) == [[VOID, 0, 1]]
    listed.write_text(json.dumps([{"id": 7}]))
    with pytest.raises(DataError, match="not a list of categories"):
        read(tmp_path)


def test_coco_stuff_is_numbered_from_0(tmp_path: Path) -> None:
    pair(tmp_path / "images/val2017", tmp_path / "stuffthingmaps/val2017", "a", [[0, 181, 255]])
    (tmp_path / "labels.txt").write_text("0: unlabeled\n1: person\n182: wood\n")
    found = read(tmp_path)
    assert (found.class_names[0], found.class_names[1], found.class_names[181]) == ("person", "category 2", "wood")
    assert classes(found, found.val[0]) == [[0, 181, VOID]]


def own(root: Path) -> Path:
    for part in ("train", "val"):
        pair(root / "images" / part, root / "masks" / part, "a", [[0, 1], [255, 1]])
    (root / "classes.txt").write_text("leaf\nstem\n")
    return root


def test_anybodys_own_masks(tmp_path: Path) -> None:
    found = read(own(tmp_path))
    assert (found.layout, found.class_names) == ("folders", ("leaf", "stem"))
    assert classes(found, found.train[0]) == [[0, 1], [VOID, 1]]
    save(tmp_path / "images/train/lone.png", np.zeros((2, 2, 3)))
    save(tmp_path / "masks/train/other.png", [[0]])
    reasons = [(path.name, reason) for path, reason in read(tmp_path).unpaired]
    assert reasons == [("lone.png", "no mask: train/lone.png is missing"), ("other.png", "no image: train/other.jpg is missing")]
    (tmp_path / "classes.txt").write_text("leaf\nleaf\n")
    with pytest.raises(DataError, match="each once"):
        read(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt is missing"):
        read(tmp_path)


def test_what_is_no_set_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no segmentation set"):
        read(tmp_path)
    with pytest.raises(DataError, match="the layout camvid"):
        read(own(tmp_path), "camvid")
    with pytest.raises(DataError, match="is not a folder"):
        read(tmp_path / "nowhere")


def test_a_mask_is_read_as_it_is_stored(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[3, 250]], np.uint8), mode=None).convert("P")
    palette.putdata([3, 250])
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    assert read_mask(tmp_path / "palette.png").tolist() == [[3, 250]]
    assert read_mask(save(tmp_path / "deep.png", [[3, 40_000]], np.uint16)).tolist() == [[3, 40_000]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "zero bytes"), (b"\xff\xd8\xff\xe0", "not a mask: masks are PNG"), (b"\x89PNG\r\n\x1a\n????", "damaged")],
)
def test_a_damaged_mask_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        read_mask(tmp_path / "mask.png")


def test_a_mask_that_does_not_fit_has_a_reason(tmp_path: Path) -> None:
    found = read(own(tmp_path))
    with pytest.raises(BadImage, match="another size: the mask is 2 x 2, its image 2 x 3"):
        found.mask(found.train[0].mask, (2, 3))
    with pytest.raises(BadImage, match="no such class: it holds 2"):
        found.mask(save(tmp_path / "wrong.png", [[0, 2]]), (2, 1))
    with pytest.raises(BadImage, match="it has colours"):
        found.mask(save(tmp_path / "colours.png", np.zeros((1, 1, 3))), (1, 1))
    with pytest.raises(BadImage, match="missing"):
        found.mask(tmp_path / "nowhere.png", (1, 1))


def test_a_subset_is_spread_over_the_whole() -> None:
    pairs = [Pair(Path(str(number)), Path()) for number in range(10)]
    assert [one.image.name for one in spread(pairs, 4)] == ["0", "3", "6", "9"]
    assert spread(pairs, 0) == spread(pairs, 99) == tuple(pairs)


def own_set(root: Path, values: list[list[list[int]]], names: str = "background\nforeground\n") -> Path:
    for part in ("train", "val"):
        for number, mask in enumerate(values):
            pair(root / "images" / part, root / "masks" / part, str(number), mask)
    (root / "classes.txt").write_text(names)
    return root


def test_masks_of_0_and_255_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    found = read(own_set(tmp_path / "white", [[[0, 255]], [[0, 0]]]))
    with pytest.raises(
        DataError, match=r"masks of 'train' in .* show one class \('background'\) and otherwise void.*show 'foreground', write 1 for 255$"
    ):
        require_several_classes(found, found.train, "train")
    ones = read(own_set(tmp_path / "ones", [[[0, 1]], [[0, 0]]]))
    require_several_classes(ones, ones.train, "train")


@pytest.mark.parametrize(
    ("values", "told"),
    [([[[255, 255]]], "show no class"), ([[[1, 1]], [[1, 1]]], r"show one class \('foreground'\) .*label something else in them too")],
)
def test_masks_among_which_nothing_can_be_wrong_are_refused(values: list[list[list[int]]], told: str, tmp_path: Path) -> None:
    found = read(own_set(tmp_path, values))
    with pytest.raises(DataError, match=told):
        require_several_classes(found, found.val, "val")


def test_masks_that_cannot_be_read_are_told_elsewhere(tmp_path: Path) -> None:
    found = read(own_set(tmp_path, [[[0, 1]]]))
    found.train[0].mask.write_bytes(b"")
    require_several_classes(found, found.train, "train")  # a bad file, not one class
