"""What folders mean: splits by any of their names, folders beside them, and first folders that are no classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sightline.data.images import BadFiles
from sightline.data.layout import split_named
from sightline.data.reading import read_data
from sightline.data.records import Records, read_records
from sightline.errors import DataError
from sightline.evaluation.protocols import leave_one_out, require_several


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_records(root, require_labels=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def classes(records: Records) -> list[str]:
    assert records.labels is not None
    return [records.class_names[label] for label in records.labels]


def measured(records: Records) -> None:
    require_several(records, leave_one_out(records))


@pytest.mark.parametrize(
    ("name", "split"),
    [("training", "train"), ("Testing", "test"), ("Train ", "train"), ("test_set", "test"), ("val2017", "val"), ("TRAIN-IMAGES", "train")]
    + [("queries", "query"), ("bounding_box_test", "gallery"), ("validation", "val"), ("tests", "test")]
    + [(name, None) for name in ("test1", "trainer", "testicle", "eval", "unlabelled", "train_extra", "", "gallery of art")],
)
def test_splits_are_known_by_the_names_that_people_give_them(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_training_and_testing_are_splits_and_their_classes_are_one_table(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "training/a/1.jpg", "Testing/a/2.jpg", "Testing/b/3.jpg"))
    assert records.splits == ("test", "test", "train")
    assert records.class_names == ("a", "b")
    assert records.notes == ()


@pytest.mark.parametrize("third", ["unlabelled/new/5.jpg", "extra/a/5.jpg"])
def test_a_folder_beside_splits_is_a_split_of_its_name_and_told(third: str, tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/b/4.jpg", third), require_labels=True)
    own = third.partition("/")[0]
    assert set(records.splits or ()) == {"train", "test", own}
    assert classes(records.split("test")) == ["a", "b"]
    assert records.notes == (f"{tmp_path} holds the splits test, train and beside them {own} (1 images), taken for a split of that name",)
    assert records.split(own).paths == (third,)


def test_one_split_is_known_by_the_folders_that_it_shares(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "holdout/a/3.jpg", "holdout/b/4.jpg"))
    assert set(records.splits or ()) == {"train", "holdout"}


def test_one_folder_named_like_a_split_is_asked_about_where_it_holds_folders(tmp_path: Path) -> None:
    told = refused(tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "other/3.jpg"))
    assert "train/, which has the name of a split and holds the folders a, b, beside other" in told
    assert "--dataset first-folder" in told
    assert classes(read_data(tmp_path, BadFiles(), dataset="first-folder")) == ["other", "train", "train"]  # the remedy that it names
    assert classes(read_records(tmp_path)) == ["other", "train", "train"]  # who needs no classes is not asked


def test_images_beside_splits_are_of_none(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "cover.jpg"))
    assert records.splits == ("none", "test", "train")
    assert "1 images in no folder" in records.notes[0]
    records = read_records(tmp_path, require_labels=True)
    assert (records.paths, classes(records)) == (("test/a/2.jpg", "train/a/1.jpg"), ["a", "a"])
    assert "1 images beside the splits are in no class folder (such as cover.jpg) and are left out" in records.notes[-1]


def test_unlabelled_images_beside_splits_are_left_out_where_classes_are_needed(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "unlabelled/3.jpg")
    assert read_records(tmp_path, require_labels=True).splits == ("test", "train")
    assert read_records(tmp_path).splits == ("test", "train", "unlabelled")
    tree(tmp_path, "train/4.jpg")
    assert "1 of 3 images in no class folder (such as train/4.jpg)" in refused(tmp_path)


def test_two_folders_of_one_split_are_told(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "training/a/2.jpg"))
    assert records.splits == ("train", "train")
    assert "several are one split: train is train, training is train" in records.notes[0]


# --- the level of the class


def test_parts_of_a_data_set_are_no_classes_and_each_remedy_works(tmp_path: Path) -> None:
    tree(tmp_path, "images/apple/1.jpg", "images/pear/2.jpg", "iconic/apple/3.jpg", "iconic/pear/4.jpg")
    told = refused(tmp_path)
    assert "(iconic, images) look like parts of a data set, not like its classes" in told
    for remedy in (f"--data {tmp_path / 'iconic'}", "--dataset last-folder", "--set dataset=last-folder", "--dataset first-folder"):
        assert remedy in told
    assert read_records(tmp_path / "images", require_labels=True).class_names == ("apple", "pear")
    last = read_data(tmp_path, BadFiles(), dataset="last-folder")
    assert last.class_names == ("iconic/apple", "iconic/pear", "images/apple", "images/pear")
    assert read_data(tmp_path, BadFiles(), dataset="first-folder").class_names == ("iconic", "images")
    assert read_records(tmp_path).notes == ()  # an index needs no classes


@pytest.mark.parametrize(
    "paths",
    [("images/a/1.jpg", "images/b/2.jpg", "iconic/3.jpg"), ("jpg/1.jpg", "png/2.png"), ("Images/a/1.jpg", "Images/b/2.jpg", "x/3.jpg")],
)
def test_a_part_of_a_data_set_is_known_beside_flat_folders_too(paths: tuple[str, ...], tmp_path: Path) -> None:
    assert "look like parts of a data set" in refused(tree(tmp_path, *paths))


def test_a_class_may_have_such_a_name_among_others(tmp_path: Path) -> None:
    assert read_records(tree(tmp_path, "photo/1.jpg", "painting/2.jpg"), require_labels=True).class_names == ("painting", "photo")


def test_deeper_folders_are_told_for_what_they_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, "Greek/character01/1.png", "Greek/character02/1.png", "Latin/character01/1.png")
    records = read_data(tmp_path, BadFiles(), require_labels=True)
    assert records.class_names == ("Greek", "Latin")
    told = capsys.readouterr().err
    assert "(Greek, Latin), in 3 folders: the 2 first are taken for the classes; add --dataset last-folder" in told
    assert read_data(tmp_path, BadFiles(), dataset="last-folder").num_classes == 3
    tree(tmp_path, "Latin/2.png")  # one image right in its class folder: the first folder it is
    assert read_records(tmp_path, require_labels=True).notes == ()


def test_below_splits_the_last_folder_is_meant_too(tmp_path: Path) -> None:
    tree(tmp_path, "train/Greek/character01/1.png", "test/Latin/character01/1.png", "test/Latin/character02/1.png")
    records = read_data(tmp_path, BadFiles(), dataset="last-folder")
    assert classes(records.split("test")) == ["Latin/character01", "Latin/character02"]


def test_one_class_is_told_with_the_level_below_it_and_the_remedy_works(tmp_path: Path) -> None:
    tree(tmp_path, *(f"images/{label}/{row}.jpg" for label in "ab" for row in range(2)))
    with pytest.raises(
        DataError, match=r"shows one class \('images'\).* the 2 folders in it \(a, b\) look like the classes: give --data (.*)$"
    ) as caught:
        measured(read_records(tmp_path, require_labels=True))
    inside = str(caught.value).rpartition("--data ")[2]
    measured(read_records(inside, require_labels=True))


def test_one_class_in_a_split_is_told_with_the_split(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/a/4.jpg"), require_labels=True)
    with pytest.raises(DataError, match=r"^the split test of .* shows one class \('a'\)"):
        measured(records.split("test"))


def test_market_names_are_recognised(tmp_path: Path) -> None:
    tree(tmp_path, "query/0002_c1s1_000451_03.jpg", "bounding_box_test/0002_c2s1_000001_01.jpg", "bounding_box_train/0007_c1s1_1.jpg")
    assert "as in Market-1501 (such as bounding_box_test/0002_c2s1_000001_01.jpg): give a manifest" in refused(tmp_path)
    assert read_records(tmp_path).splits == ("gallery", "train", "query")


# --- class names


def test_names_that_differ_by_unicode_form_are_one_class_and_other_twins_are_told(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{unicodedata.normalize(form, 'café')}/{form}.jpg" for form in ("NFC", "NFD")), "Cup/1.jpg", "cup /2.jpg")
    records = read_records(tmp_path)
    assert records.class_names == ("Cup", "café", "cup ")
    assert all(records.file(row).exists() for row in range(4))
    assert records.notes == ("1 class name come in several spellings ('Cup' and 'cup ') and count as several classes",)
