"""The readers of public data sets, on small sets in their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline import catalog
from sightline.data.sets import cub, inshop, sop
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


@pytest.mark.parametrize("name", catalog.names("datasets"))
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
