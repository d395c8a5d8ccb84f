"""Which part of a collection is measured, what is said of it, and data sets whose folders are no classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.data.records import Records
from sightline.errors import UsageError
from sightline.evaluation.parts import part_to_measure
from sightline.evaluation.retrieval import _FILES_OF, require_class_folders


@pytest.mark.parametrize("pattern", sorted(_FILES_OF))
def test_a_data_set_in_its_own_layout_is_not_taken_for_class_folders(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "jpg").mkdir()
    require_class_folders(tmp_path)
    file = tmp_path / pattern.replace("*", "x")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="looks like a data set in its own layout: give --") as told:
        require_class_folders(tmp_path)
    assert _FILES_OF[pattern].format(tmp_path) in str(told.value)
    assert "or --protocol leave-one-out if its folders are classes" in str(told.value)


def records_of(splits: list[str]) -> Records:
    """Two images of each of the classes a and b in every split."""
    rows = [(split, label) for split in splits for label in (0, 0, 1, 1)]
    paths = tuple(f"{number}.png" for number in range(len(rows)))
    return Records(Path("photos"), paths, np.array([label for _, label in rows]), ("a", "b"), tuple(split for split, _ in rows))


@pytest.mark.parametrize(
    ("splits", "learnt", "words"),
    [
        (["train", "test"], ["a", "b"], "split test (training learnt from all of these classes: no measure of how it does on others)"),
        (["train", "test"], ["a"], "split test (training learnt from 1 of these 2 classes)"),
        (["train", "test"], ["c"], "split test"),
        (["query", "gallery"], ["a"], "splits query and gallery (training learnt from 1 of these 2 classes)"),
        (["train", "val"], ["c"], "split val"),
    ],
)
def test_what_is_measured_says_whether_training_learnt_from_it(splits: list[str], learnt: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"training_classes": learnt, "validation_classes": []}))
    part = part_to_measure(records_of(splits), str(tmp_path), "auto")
    assert part.words == words
    assert set(part.records.splits or ()) == set(splits) - {"train"}


def test_validation_images_that_chose_the_model_are_said_to_have(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"training_classes": ["c"], "validation_classes": ["a", "b"]}))
    assert (
        part_to_measure(records_of(["train", "val"]), str(tmp_path), "auto").words
        == "split val (where it chose the model: slightly optimistic)"
    )


def test_several_splits_beside_train_are_asked_about() -> None:
    records = records_of(["train", "dev", "held"])
    with pytest.raises(UsageError, match="say which to measure with --split dev, or --split all"):
        part_to_measure(records, "timm:x", "auto")
    assert part_to_measure(records, "timm:x", "dev").words == "split dev"
