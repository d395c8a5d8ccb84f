"""The rows that a run learns from, as a checkpoint remembers them: a run that goes on is held to them.

Samplers, memories, mined tuples and the rows of a classifier count images and classes by their place, so on other data a run would go on
with other batches, and what it learnt of one class would go to another, in silence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sightline.data.records import Records
from sightline.errors import counted

NO_FILE = -1
MOST_NAMES = 3
"""Names that a line gives before it counts the rest."""


def rows_of(records: Records) -> dict[str, Any]:
    """Return what is remembered of records, as plain data and tensors: class names, and of each row its image, class, split and file size.

    Paths count relative to the root: a folder that was moved as a whole is the same data. Of a file only its size is asked.
    """
    boxes: Sequence[Any] = [()] * len(records) if records.boxes is None else records.boxes.tolist()
    pairs = np.zeros((0, 2), np.int64) if records.positives is None else records.positives
    return {
        "class_names": list(records.class_names),
        "images": torch.tensor(
            [_number(f"{path}\n{list(box)}") for path, box in zip(records.paths, boxes, strict=True)], dtype=torch.int64
        ),
        "labels": torch.full((len(records),), -1) if records.labels is None else torch.from_numpy(records.labels.copy()),
        "splits": torch.tensor([_number(split) for split in records.splits or [""] * len(records)], dtype=torch.int64),
        "sizes": torch.tensor([_size(records, row) for row in range(len(records))], dtype=torch.int64),
        "pairs": torch.from_numpy(pairs.copy()),
    }


def digest(rows: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name what ``rows_of`` returned."""
    found = hashlib.sha256("\n".join(rows["class_names"]).encode("utf-8", "surrogateescape"))
    for name in ("images", "labels", "splits", "sizes", "pairs"):
        found.update(rows[name].numpy().tobytes())
    return found.hexdigest()[:16]


def changes(old: Mapping[str, Any], new: Mapping[str, Any], records: Records) -> str:
    """Return what is not as it was, in words, or nothing; ``records`` are those that ``new`` was made of and give the names."""
    said = _named("class", "classes", [name for name in old["class_names"] if name not in set(new["class_names"])], "gone")
    said += _named("class", "classes", [name for name in new["class_names"] if name not in set(old["class_names"])], "new")
    row_before = {image: row for row, image in enumerate(old["images"].tolist())}
    row_now = {image: row for row, image in enumerate(new["images"].tolist())}
    said += _named("image", "images", [records.paths[row] for image, row in row_now.items() if image not in row_before], "new")
    gone = Counter(_class(old, row) for image, row in row_before.items() if image not in row_now)
    if gone:
        said.append(f"{counted(gone.total(), 'image', 'images')} gone ({_some([f'{num} of {name!r}' for name, num in gone.items()])})")
    both = [(row_before[image], row) for image, row in row_now.items() if image in row_before]
    relabelled = [records.paths[row] for before, row in both if _class(old, before) != _class(new, row)]
    said += _named("image", "images", relabelled, "of another class")
    for column, how in (("splits", "in another split"), ("sizes", "with other contents")):
        was, now = old[column].tolist(), new[column].tolist()
        said += _named("image", "images", [records.paths[row] for before, row in both if was[before] != now[row]], how)
    if not said and digest(old) != digest(new):
        said.append("the rows stand in another order, or are paired in another way")
    return ", ".join(said)


def _class(rows: Mapping[str, Any], row: int) -> str:
    label = int(rows["labels"][row])
    return "no class" if label < 0 else str(rows["class_names"][label])


def _named(one: str, many: str, names: Sequence[str], what: str) -> list[str]:
    return [f"{counted(len(names), one, many)} {what} ({_some([repr(name) for name in names])})"] if names else []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big", signed=True)


def _size(records: Records, row: int) -> int:
    try:
        return records.file(row).stat().st_size
    except OSError:
        return NO_FILE
