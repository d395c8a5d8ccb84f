"""Dividing records: what a run needs of them, what is held out of it, and a share of them."""

from __future__ import annotations

import numpy as np

from sightline.contracts import BoolArray, IntArray
from sightline.data.records import Records
from sightline.errors import DataError, counted


def training_split(records: Records) -> Records:
    """Return the split called train, or everything where there are no splits."""
    return records.split("train") if records.splits is not None else records


def require_classes(records: Records, minimum: int = 2) -> None:
    """Return if at least ``minimum`` classes have images.

    Raises:
        DataError: there are fewer.
    """
    if records.num_classes < minimum:
        only = f" ('{records.class_names[int(np.argmax(records.class_counts()))]}')" if records.num_classes == 1 else ""
        found = f"{counted(records.num_classes, 'class', 'classes')}{only}"
        raise DataError(f"{records.root} has {found}, {minimum} are needed: put the images of each class into a folder of its own")


def require_per_class(records: Records, num_per_class: int) -> None:
    """Return if every class present has at least ``num_per_class`` images.

    Raises:
        DataError: some have fewer; the message says how many, names one, and what to do.
    """
    counts = records.class_counts()
    few = np.flatnonzero((counts > 0) & (counts < num_per_class))
    if len(few):
        example, least = f"'{records.class_names[few[0]]}' has {counts[few[0]]}", int(counts[few].min())
        raise DataError(
            f"{len(few):,} of {records.num_classes:,} classes have fewer than {num_per_class} images ({example}): "
            f"add images{f', leave those classes out, or lower images_per_class to {least}' if least > 1 else ' or leave those classes out'}"
        )


def hold_out_classes(records: Records, fraction: float, seed: int) -> tuple[Records, Records] | None:
    """Return (training, validation) records that share no class: about ``fraction`` of the classes and at least two, by ``seed`` alone.

    Only classes of two images or more are held out: a single one has nothing to be found. None where one of the two would have fewer
    than two classes: with one class every answer is right, whatever the model.
    """
    counts = records.class_counts()
    eligible = np.flatnonzero(counts >= 2)
    num_held_out = min(max(2, round(fraction * records.num_classes)), len(eligible), records.num_classes - 2)
    if num_held_out < 2:
        return None
    assert records.labels is not None
    held_out = np.random.default_rng([seed, 0x5917]).permutation(eligible)[:num_held_out]
    is_held_out = np.isin(records.labels, held_out)
    return records.select(~is_held_out), records.select(is_held_out)


def images_to_hold_out(records: Records, fraction: float, seed: int, *, keep: int = 1) -> BoolArray:
    """Return which images to hold out of training, bool ``[M]``: about ``fraction`` of each class and at least one, by ``seed`` alone.

    At least ``keep`` images of each class stay in training, and those of a class that has no more all do.

    Raises:
        DataError: there are no labels, or no class has more than ``keep`` images.
    """
    require_classes(records, 1)
    counts = records.class_counts()
    if counts.max() <= keep:
        lower = f"lower images_per_class to {counts.max() - 1}, or " if counts.max() > 2 else ""  # a pair takes two that stay
        raise DataError(
            f"no class of {records.root} has more than {counted(keep, 'image')}, so none can be held out: add images, or a split to "
            f"measure on (in training {lower}keep the last model with validation=0)"
        )
    num_held_out = np.minimum(np.maximum(1, np.round(fraction * counts)), np.maximum(0, counts - keep))
    assert records.labels is not None
    is_held_out: BoolArray = _turn_in_class(records.labels, seed) < num_held_out[records.labels]
    return is_held_out


def share_of_images(records: Records, share: float) -> Records:
    """Return a random ``share`` of each class's images, at least one of each; a smaller share is a part of every larger one.

    Raises:
        DataError: there are no labels.
    """
    require_classes(records, 1)
    assert records.labels is not None
    num_kept = np.ceil(share * records.class_counts() - 1e-9)  # 0.1 * 30 is a rounding above 3
    return records.select(_turn_in_class(records.labels, 0) < num_kept[records.labels])


def _turn_in_class(labels: IntArray, seed: int) -> IntArray:
    """Return each row's place, from 0, in a random order of its class, int64 ``[M]``."""
    order = np.lexsort((np.random.default_rng([seed, 0x51A2]).random(len(labels)), labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])[:-1]
    turn = np.empty(len(labels), np.int64)
    turn[order] = np.arange(len(labels)) - starts[labels[order]]
    return turn
