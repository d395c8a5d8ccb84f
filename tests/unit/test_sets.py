"""The readers of public data sets, on small sets in their layouts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from sightline import catalog
from sightline.data.sets import cub, inshop, sfm, sop
from sightline.errors import DataError


def write(root: Path, lists: dict[str, list[str]], images: list[str]) -> Path:
    for name, lines in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def small_cub(root: Path) -> Path:
    files = [f"{number:03}.Bird_{number}/{row}.jpg" for number in range(1, 5) for row in range(2)]
    lists = {
        "images.txt": [f"{image} {file}" for image, file in enumerate(files, 1)],
        "image_class_labels.txt": [f"{image} {int(file[:3])}" for image, file in enumerate(files, 1)],
    }
    return write(root, lists, [f"images/{file}" for file in files])


def test_cub_splits_by_halves_of_the_classes(tmp_path: Path) -> None:
    small_cub(tmp_path / "CUB_200_2011")
    records = cub.read(tmp_path, verify=False)
    assert records.class_names == ("001.Bird_1", "002.Bird_2", "003.Bird_3", "004.Bird_4")
    assert records.labels is not None
    assert records.split("train").labels.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    assert records.split("test").labels.tolist() == [2, 2, 3, 3]  # type: ignore[union-attr]
    assert all(records.file(row).is_file() for row in range(len(records)))


def test_verifying_says_exactly_what_is_missing(tmp_path: Path) -> None:
    root = small_cub(tmp_path)
    (root / "images/003.Bird_3/1.jpg").unlink()
    with pytest.raises(DataError) as caught:
        cub.read(root)
    assert str(caught.value) == (
        f"{root} is not the whole of CUB-200-2011: train lists 4 images, expected 5,864; train lists 2 classes, expected 100; "
        "test lists 4 images, expected 5,924; test lists 2 classes, expected 100; "
        "1 listed images are missing (first: images/003.Bird_3/1.jpg). "
        "Complete it, or use what is there under another name: --no-verify (train: verify=false)"
    )


def test_cub_lists_must_agree(tmp_path: Path) -> None:
    root = small_cub(tmp_path)
    (root / "image_class_labels.txt").write_text("1 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="do not list the same images"):
        cub.read(root, verify=False)


def test_a_line_with_the_wrong_number_of_words_is_named(tmp_path: Path) -> None:
    root = small_cub(tmp_path)
    (root / "images.txt").write_text("1 a/b.jpg\n2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"images.txt line 2 has 1 words, not 2 \('2'\)"):
        cub.read(root, verify=False)


def test_sop_takes_its_two_lists(tmp_path: Path) -> None:
    header = "image_id class_id super_class_id path"
    lists = {
        "Ebay_train.txt": [header, "1 1 1 bicycle_final/1_0.JPG", "2 1 1 bicycle_final/1_1.JPG"],
        "Ebay_test.txt": [header, "3 11319 1 chair_final/2_0.JPG"],
    }
    records = sop.read(write(tmp_path, lists, []), verify=False)
    assert records.class_names == ("1", "11319")
    assert records.split("test").paths == ("chair_final/2_0.JPG",)
    with pytest.raises(DataError, match=r"train lists 2 images, expected 59,551.*3 listed images are missing"):
        sop.read(tmp_path)
    (tmp_path / "Ebay_test.txt").unlink()
    with pytest.raises(DataError, match=r"Ebay_test.txt is missing"):
        sop.read(tmp_path, verify=False)


@pytest.mark.parametrize(("holder", "images"), [(".", "."), ("Eval", "."), ("Eval", "Img")])
def test_inshop_finds_its_images_in_every_usual_layout(tmp_path: Path, holder: str, images: str) -> None:
    lines = ["3", "image_name item_id evaluation_status", "img/a.jpg id_1 train", "img/b.jpg id_2 query", "img/c.jpg id_2 gallery"]
    write(tmp_path, {f"{holder}/list_eval_partition.txt": lines}, [f"{images}/img/{name}.jpg" for name in "abc"])
    records = inshop.read(tmp_path, verify=False)
    assert records.splits == ("train", "query", "gallery")
    assert records.split("query").labels.tolist() == records.split("gallery").labels.tolist() == [1]  # type: ignore[union-attr]
    assert all(records.file(row).is_file() for row in range(3))


@pytest.mark.parametrize("name", sorted({*catalog.names("datasets")} - {"first-folder", "last-folder"}))
def test_another_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing \(looked in") as caught:
        catalog.find("datasets", name)(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_official_counts_add_up() -> None:
    assert sum(size.num_images for size in cub.SPLITS.values()) == 11_788
    assert sum(size.num_images for size in sop.SPLITS.values()) == 120_053
    assert sum(size.num_classes for size in sop.SPLITS.values()) == 22_634
    assert sum(size.num_images for size in inshop.SPLITS.values()) == 52_712
    assert inshop.SPLITS["train"].num_classes + inshop.SPLITS["query"].num_classes == 7_982


def small_sfm(root: Path, **changes: object) -> Path:
    train = {"cids": ["00aabbcc", "00ddeeff", "00aabbc1"], "cluster": [4, 4, 9], "qidxs": [0, 1], "pidxs": [1, 0]}
    val = {"cids": ["00112233", "00112244"], "cluster": np.array([4, 4]), "qidxs": np.array([1]), "pidxs": np.array([0])}
    root.mkdir(parents=True, exist_ok=True)
    (root / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps({"train": train | changes, "val": val}, protocol=2))
    return root


@pytest.mark.parametrize("inside", [".", "train/retrieval-SfM-120k"])
def test_sfm_finds_an_image_by_the_last_letters_of_its_name(tmp_path: Path, inside: str) -> None:
    folder = small_sfm(tmp_path / inside)
    records = sfm.read(tmp_path, verify=False)
    assert records.root == folder
    assert records.paths[:2] == ("ims/cc/bb/aa/00aabbcc", "ims/ff/ee/dd/00ddeeff")
    assert records.splits == ("train", "train", "train", "val", "val")
    assert records.positives is not None
    assert records.positives.tolist() == [[0, 1], [1, 0], [4, 3]]
    validation = records.split("val")  # its cluster 4 is another one than training's
    assert [validation.class_names[label] for label in validation.labels] == ["val/4", "val/4"]  # type: ignore[union-attr]
    assert validation.positives.tolist() == [[1, 0]]  # type: ignore[union-attr]


def test_sfm_says_what_is_missing(tmp_path: Path) -> None:
    small_sfm(tmp_path)
    with pytest.raises(
        DataError, match=r"train lists 3 images, expected 91,642; val lists 2 images, expected 6,403; 5 listed images are missing"
    ):
        sfm.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"cluster": None}, r"is not the list of retrieval-SfM-120k \(a column of object\): download it again"),
        ({"cluster": [4, 4]}, "columns of 'train' in .* do not fit each other"),
        ({"pidxs": [1, 3]}, "columns of 'train' in .* do not fit each other"),
        ({"pidxs": [1, 2]}, "the positive of ims/ff/ee/dd/00ddeeff is ims/c1/bb/aa/00aabbc1: give another image of the same cluster"),
    ],
)
def test_a_list_that_does_not_hold_together_is_one_line(tmp_path: Path, changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(DataError, match=wanted) as caught:
        sfm.read(small_sfm(tmp_path, **changes), verify=False)
    assert "\n" not in str(caught.value)
