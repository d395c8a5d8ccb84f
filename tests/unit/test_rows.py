"""What a run remembers of its rows, and what it says of rows that are not as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.data.records import Records
from sightline.training.rows import changes, digest, rows_of


@pytest.fixture
def records(tmp_path: Path) -> Records:
    names = ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")
    for place, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * (place + 1))
    boxes = np.array([[0, 0, 5, 5], [0, 0, 6, 6], [np.nan] * 4, [np.nan] * 4, [0, 0, 7, 7]], np.float32)
    return Records(tmp_path, names, np.array([0, 0, 1, 1, 1]), ("a", "b"), ("train", "train", "train", "train", "val"), boxes=boxes)


def boxed(records: Records, row: int, *box: float) -> Records:
    assert records.boxes is not None
    boxes = records.boxes.copy()
    boxes[row] = box
    return replace(records, boxes=boxes)


CASES: list[tuple[Callable[[Records], Records], str]] = [
    (lambda r: r, ""),
    (lambda r: replace(r, captions=("", "x", "y", "z", "w")), ""),  # nobody learns from them
    (lambda r: r.select([0, 1, 2, 3]), "1 image gone (1 of 'b')"),
    (lambda r: r.select([2, 3, 4]), "2 images gone (2 of 'a')"),
    (lambda r: replace(r, class_names=("c", "b")), "1 class gone ('a'), 1 class new ('c'), 2 images of another class ('a/0.png', 'a/1.png')"),
    (lambda r: replace(r, labels=np.array([0, 1, 1, 1, 1])), "1 image of another class ('a/1.png')"),
    (lambda r: replace(r, class_names=("a", "b", "z")), "1 class new ('z')"),  # of the test split: labels may have moved
    (lambda r: replace(r, splits=("train",) * 5), "1 image in another split ('b/2.png')"),
    (lambda r: replace(r, paths=("a/9.png", *r.paths[1:])), "1 image new ('a/9.png'), 1 image gone (1 of 'a')"),
    (lambda r: boxed(r, 0, 0, 0, 4, 5), "1 image new ('a/0.png'), 1 image gone (1 of 'a')"),
    (lambda r: r.select([1, 0, 2, 3, 4]), "the rows stand in another order, or are paired in another way"),
    (lambda r: replace(r, positives=np.array([[0, 1]])), "the rows stand in another order, or are paired in another way"),
    (lambda r: r.without_labels(), "2 classes gone ('a', 'b'), 5 images of another class ('a/0.png', 'a/1.png', 'b/0.png' and 2 more)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CASES)
def test_what_changed_is_said(records: Records, change: Callable[[Records], Records], said: str) -> None:
    before, changed = rows_of(records), change(records)
    assert changes(before, rows_of(changed), changed) == said
    assert (digest(before) == digest(rows_of(changed))) == (not said)


def test_a_file_with_other_contents_or_gone_is_said(records: Records) -> None:
    before = rows_of(records)
    records.file(0).write_bytes(b"longer than it was")
    records.file(3).unlink()
    assert changes(before, rows_of(records), records) == "2 images with other contents ('a/0.png', 'b/1.png')"


def test_what_is_remembered_is_plain_data_and_the_same_after_a_move(records: Records, tmp_path: Path) -> None:
    before = rows_of(records)
    torch.save(before, tmp_path / "rows.pt")
    held = torch.load(tmp_path / "rows.pt", weights_only=True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder).rename(moved / folder)
    there = replace(records, root=moved)
    assert changes(held, rows_of(there), there) == ""
    assert digest(held) == digest(rows_of(there))
