"""What an index keeps: items, the keys that tell them apart, and which folder or manifest brought them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sightline.contracts import Box
from sightline.errors import IndexStoreError
from sightline.index.filters import Value

Key = tuple[str, Box | None]
"""What an item is known by: the real path of its picture and the part of it that was embedded (None: all)."""


@dataclass(frozen=True)
class Item:
    """A picture, or the ``box`` of one, in an index: its path, free metadata, and what tells a changed file from an unchanged one.

    ``box`` is x0 y0 x1 y1 in pixels of the upright picture. An index keeps the real path of a file that is there (``settled``), so that
    a link, ``..`` or a relative path is no second picture; another path stays as it is.
    """

    path: str
    metadata: Mapping[str, Value] = field(default_factory=dict)
    size_bytes: int | None = None
    mtime_ns: int | None = None
    content_sha256: str | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        if not self.path or not is_text(self.path):
            raise IndexStoreError(f"an item needs a path of readable text, not {self.path!r}: rename the file")
        for key, value in self.metadata.items():
            _check_fact(self.path, key, value)
        if self.box is not None:
            object.__setattr__(self, "box", _checked(self.path, self.box))

    @property
    def key(self) -> Key:
        """What the index knows the item by."""
        return self.path, self.box

    @property
    def digest(self) -> str:
        """What tells other metadata from these: a hash of them."""
        return _digest(dict(self.metadata))


def check_items(items: Sequence[Item]) -> None:
    """Pass items.

    Raises:
        IndexStoreError: one of them is something else, such as a path.
    """
    for item in items:
        if not isinstance(item, Item):
            raise IndexStoreError(f"{item!r:.60} is no item: write sightline.Item(path=...), with metadata={{...}} for what to filter by")


def settled(item: Item) -> Item:
    """Return the item under the real path of its file, where that file is there."""
    path = real_path(item.path) if os.path.lexists(item.path) else item.path
    return item if path == item.path or not is_text(path) else replace(item, path=path)


def real_path(path: str) -> str:
    """Return the absolute path of a file, free of links and ``..``."""
    return os.path.realpath(path)


def digest_of(metadata: str) -> str:
    """Return the digest of metadata as JSON, whatever the order of its keys."""
    return _digest(json.loads(metadata))


def _digest(metadata: Mapping[str, Value]) -> str:
    return hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16).hexdigest()


def box_text(box: Box | None) -> str:
    """Return a box as a key holds it, such as ``0 0 20.5 20``; empty for none."""
    return "" if box is None else " ".join(repr(side).removesuffix(".0") for side in box)


def box_of(text: str) -> Box | None:
    """Return the box that ``box_text`` wrote."""
    if not text:
        return None
    left, top, right, bottom = (float(side) for side in text.split(" "))
    return left, top, right, bottom


def is_text(text: str) -> bool:
    """Return whether an index can hold a text.

    Lone surrogates are how Python holds a file name that is not UTF-8; NUL ends a string inside SQLite.
    """
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


def is_key(key: object) -> bool:
    """Return whether metadata may be called so: a text that a filter can write and that is not built in."""
    return isinstance(key, str) and bool(key) and key not in ("id", "path") and "`" not in key and is_text(key)


def _check_fact(path: str, key: object, value: object) -> None:
    if not is_key(key):
        raise IndexStoreError(
            f"'{path}' cannot have metadata called {key!r}: use a text that is not empty, 'id' or 'path' and has no backquote"
        )
    readable = isinstance(value, str) and is_text(value)
    number = (isinstance(value, int) and -(2**63) <= value < 2**63) or (isinstance(value, float) and math.isfinite(value))
    if value is not None and not readable and not number:
        raise IndexStoreError(
            f"'{path}' cannot have the metadata {key} = {value!r}: use text, a finite number of at most 64 bits, true, false or null"
        )


def _checked(path: str, box: Box) -> Box:
    sides = tuple(float(side) + 0.0 for side in box)  # -0.0 would be another key than 0.0
    if len(sides) != 4 or not all(map(math.isfinite, sides)) or not (sides[0] < sides[2] and sides[1] < sides[3]):
        raise IndexStoreError(
            f"'{path}' cannot have the box {box!r}: give left, top, right, bottom in pixels, left below right, top below bottom"
        )
    return sides[0], sides[1], sides[2], sides[3]


@dataclass(frozen=True)
class Known:
    """What an index knows of an item without its metadata: enough to tell whether its file, or what is said of it, has changed."""

    id: int
    size_bytes: int | None
    mtime_ns: int | None
    content_sha256: str | None
    digest: str


@dataclass(frozen=True)
class Brought:
    """How a source names an item.

    ``name`` is its path there, ``own_device`` whether it lay on the device of the source's root (else below a mount or link), ``facts`` what
    the source says of it, as JSON.
    """

    name: str
    own_device: bool = True
    facts: str = "{}"


@dataclass(frozen=True)
class Source:
    """A folder or manifest that brought items: where it is, the folder that names are relative to, and the items by id."""

    place: str
    root: str
    brought: Mapping[int, Brought]


BEFORE = ""
"""The place of the source of what an index held before it kept sources."""
