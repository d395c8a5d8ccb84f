"""What a run needs of its records, and what is held out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.division import hold_out_classes, images_to_hold_out, require_classes, require_per_class
from sightline.data.records import Records
from sightline.errors import DataError


def labelled(*labels: int) -> Records:
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    return Records(Path("there"), tuple(f"{row}.jpg" for row in range(len(labels))), np.array(labels, dtype=np.int64), names)


def test_too_few_classes_or_images_are_told_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"has 1 class \('class 0'\), 2 are needed"):
        require_classes(labelled(0, 0))
    with pytest.raises(DataError, match=r"1 of 2 classes have fewer than 3 images \('class 1' has 2\).* lower images_per_class to 2"):
        require_per_class(labelled(0, 0, 0, 1, 1), 3)
    require_per_class(labelled(0, 0, 0, 1, 1), 2)  # the remedy that it names
    with pytest.raises(DataError, match=r"\('class 1' has 1\): add images or leave those classes out$"):  # one of a class makes no pair
        require_per_class(labelled(0, 0, 1), 2)


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=40), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_held_out_classes_are_whole_classes_two_at_least_and_leave_two(labels: list[int], fraction: float, seed: int) -> None:
    records = labelled(*labels)
    parts = hold_out_classes(records, fraction, seed)
    several = (records.class_counts() >= 2).sum()
    if several < 2 or records.num_classes < 4:
        assert parts is None
        return
    assert parts is not None
    train, val = parts
    assert sorted(train.paths + val.paths) == sorted(records.paths)
    assert train.num_classes + val.num_classes == records.num_classes
    assert train.num_classes >= 2
    assert val.num_classes >= 2  # in one class nothing can be wrong
    assert val.class_counts()[val.class_counts() > 0].min() >= 2
    again = hold_out_classes(records, fraction, seed)
    assert again is not None
    assert again[1].paths == val.paths


@pytest.mark.parametrize("num_classes", range(2, 16))
def test_a_tenth_of_few_classes_is_two_classes_or_none(num_classes: int) -> None:
    records = labelled(*[label for label in range(num_classes) for _ in range(3)])
    parts = hold_out_classes(records, 0.1, 0)
    assert (parts is None) == (num_classes < 4)
    assert parts is None or (parts[0].num_classes, parts[1].num_classes) == (num_classes - 2, 2)


def test_enough_images_of_each_class_stay() -> None:
    records = labelled(0, 0, 0, 0, 0, 1, 1, 1, 2)
    assert np.bincount(records.labels[images_to_hold_out(records, 0.4, 0)], minlength=3).tolist() == [2, 1, 0]  # type: ignore[index]
    assert np.bincount(records.labels[images_to_hold_out(records, 0.4, 0, keep=3)], minlength=3).tolist() == [2, 0, 0]  # type: ignore[index]
    with pytest.raises(
        DataError,
        match=r"no class of there has more than 5 images, so none can be held out: .*lower images_per_class to 4, or .*validation=0",
    ):
        images_to_hold_out(records, 0.4, 0, keep=5)
    assert images_to_hold_out(records, 0.4, 0, keep=4).any()  # the remedy that it names
    with pytest.raises(DataError, match=r"a split to measure on \(in training keep the last model"):  # of two images none can be spared
        images_to_hold_out(labelled(0, 0, 1, 1), 0.4, 0, keep=2)
