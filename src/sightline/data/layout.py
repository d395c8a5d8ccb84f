"""What the folders of a collection mean: which are splits, which are classes, and where that is not what they look like.

A folder tree says nothing of itself, so it is looked at once, here: splits by the names that people give them, a further folder beside
them, and first folders that look like the parts of a data set (``images/``, ``iconic/``) and not like its classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sightline.errors import DataError

if TYPE_CHECKING:
    from sightline.data.records import Records

Level = Literal["auto", "first", "last"]

_SPLITS = {
    "train": ("train", "training", "bounding_box_train"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "tests", "testing"),
    "query": ("query", "queries", "probe", "probes"),
    "gallery": ("gallery", "bounding_box_test"),
}
SPLIT_NAMES = {name: split for split, names in _SPLITS.items() for name in names}
_ADDED = re.compile(r"[ _-]?(?:set|data|split|images?|imgs?|photos?)|[ _-]?(?:19|20)\d\d")
"""What may stand behind a split's name: test_set, val images, train2017; test1 and test2 are two names of somebody's own."""

TO_LAST = "--dataset last-folder (in training --set dataset=last-folder)"
TO_FIRST = "--dataset first-folder (in training --set dataset=first-folder)"

PARTS = frozenset(
    (
        *("image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "png", "pngs", "jpegimages", "photo", "photos", "picture", "pictures"),
        *("pic", "pics", "frames", "data", "dataset", "raw", "original", "originals", "iconic", "masks", "annotations", "labels", "rgb"),
    )
)
"""Names, in lower case, of parts of a data set and hardly of a class."""

_MARKET = re.compile(r"(?:.*/)?-?\d+_c\d+.*")
NUM_NAMED = 4


@dataclass(frozen=True)
class Layout:
    """The split and the class name of each path (None: there are none), with lines on what was found odd."""

    splits: tuple[str, ...] | None
    classes: list[str] | None
    notes: tuple[str, ...] = ()


@cache
def split_named(name: str) -> str | None:
    """Return the split (train, val, test, query, gallery) that people mean by ``name``, whatever its capitals and blanks; None for others."""
    plain = name.strip().lower()
    for known in sorted(SPLIT_NAMES, key=len, reverse=True):
        if plain == known or (plain.startswith(known) and _ADDED.fullmatch(plain[len(known) :])):
            return SPLIT_NAMES[known]
    return None


def lay_out(root: Path, paths: Sequence[str], level: Level | None = None) -> Layout:
    """Return what the folders of ``paths`` (POSIX, relative to ``root``) say.

    First folders are splits where all have the name of one; or where some do and the folders beside them hold the same folders, or two
    splits stand beside others, which then are splits of their own names. Below them the first folder is the class (or, with ``level``
    last, the whole way to the image). None is for who does not need classes: then nothing is asked of them.

    Raises:
        DataError: with ``level`` auto, for first folders that look like parts of a data set and not like classes.
    """
    parts = [path.split("/") for path in paths]
    splits, notes = _splits(root, parts, level)
    if splits is not None:
        parts = [part[1:] for part in parts]
    if any(len(part) < 2 for part in parts):
        return Layout(splits, None, tuple(notes))
    if level == "last":
        return Layout(splits, ["/".join(part[:-1]) for part in parts], tuple(notes))
    if level == "auto":
        notes += _levels(root, parts, splits)
    return Layout(splits, [part[0] for part in parts], tuple(notes))


def names_tell(paths: Sequence[str]) -> bool:
    """Return whether all files are named as in Market-1501: the identity, then ``_c`` and the camera."""
    return all(_MARKET.fullmatch(path) for path in paths)


def one_class(records: Records, label: int) -> str:
    """Return the error that all that is searched is of one class, with what to do: where its folders lie deeper, to go there."""
    name = records.class_names[label]
    start = 0 if records.splits is None else 1
    below = {part[start + 1] for part in (path.split("/") for path in records.paths) if len(part) > start + 2 and part[start] == name}
    remedy = "add images of other classes, or search some with --distractors FOLDER"
    if len(below) > 1:
        where = f"give --data {records.root / name}" if not start else f"add {TO_LAST}"
        remedy = f"the {len(below):,} folders in it ({_named(below)}) look like the classes: {where}"
    split = f"the split {records.splits[0]} of " if records.splits is not None and len(set(records.splits)) == 1 else ""
    return f"{split}{records.root} shows one class ('{name}'), so nothing can be wrong and every measure would be 1: {remedy}"


def _splits(root: Path, parts: Sequence[Sequence[str]], level: Level | None) -> tuple[tuple[str, ...] | None, list[str]]:
    num_in = Counter(part[0] for part in parts if len(part) > 1)
    named = {first: split for first in num_in if (split := split_named(first)) is not None}
    others, num_loose = sorted(num_in.keys() - named.keys()), len(parts) - num_in.total()
    if not named:
        return None, []
    below: dict[str, set[str]] = {first: set() for first in num_in}
    for part in parts:
        if len(part) > 2:
            below[part[0]].add(part[1])
    beside = set().union(*(below[other] for other in others))
    if (others or num_loose) and len(set(named.values())) < 2 and not any(below[first] & beside for first in named):
        nested = [first for first in named if len(below[first]) > 1]
        if nested and others and level == "auto":
            raise DataError(
                f"{root} holds {nested[0]}/, which has the name of a split and holds the folders {_named(below[nested[0]])}, beside {_named(others)}: "
                f"put those into another split such as test/, or add {TO_FIRST} if all are classes"
            )
        return None, []
    there = f"{root} holds the splits {_named(named)}"
    notes = []
    if others:
        num = sum(num_in[other] for other in others)
        taken = "a split of that name" if len(others) == 1 else "splits of those names"
        notes.append(f"{there} and beside them {_named(others)} ({num:,} images), taken for {taken}")
    if num_loose:
        notes.append(f"{there} and beside them {num_loose:,} images in no folder, taken for a split 'none'")
    if len(named) > len(set(named.values())):
        notes.append(
            f"{there}, of which several are one split: {', '.join(f'{first} is {split}' for first, split in sorted(named.items()))}"
        )
    return tuple("none" if len(part) == 1 else named.get(part[0], part[0]) for part in parts), notes


def _levels(root: Path, parts: Sequence[Sequence[str]], splits: Sequence[str] | None) -> list[str]:
    """Return the line to tell of first folders that may not be the classes, since every image lies deeper.

    Raises:
        DataError: one of them is named like a part of a data set and holds folders, or all are named so.
    """
    below: dict[str, set[str]] = {}
    for part in parts:
        below.setdefault(part[0], set()).update(["/".join(part[1:-1])] if len(part) > 2 else ())
    structural = sorted(name for name in below if name.lower() in PARTS)
    nested = [name for name in structural if len(below[name]) > 1]
    if len(below) > 1 and (nested or len(structural) == len(below)):
        to_last = f"add {TO_LAST} if the classes are the folders that images lie in"
        to_inner = f"give --data {root / nested[0]} for the {len(below[nested[0]]):,} folders in it, " if nested and splits is None else ""
        raise DataError(
            f"the first folders in {root} ({_named(below)}) look like parts of a data set, not like its classes: {to_inner}{to_last}, "
            f"or {TO_FIRST} if they are the classes"
        )
    num_last = sum(len(folders) for folders in below.values())
    if any(len(part) < 3 for part in parts) or num_last == len(below):
        return []
    where = f"in {root} every image lies deeper than the first folder{'' if len(below) == 1 else 's'} ({_named(below)}), in {num_last:,} folders"
    taken = "is taken for the class" if len(below) == 1 else "are taken for the classes"
    return [f"{where}: the {len(below):,} first {taken}; add {TO_LAST} if the others are"]


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:NUM_NAMED]) + (", ..." if len(listed) > NUM_NAMED else "")
