"""The pictures of a folder or manifest as an index knows them: each under its real path and box, with what its row says and its file is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.contracts import Box
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.data.spelling import Spelling
from sightline.index.filters import Value
from sightline.index.items import Brought, Item, Key, is_key, is_text

MAX_DIGITS = 19
"""Digits of a camera's number that 64 bits hold."""

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileState:
    """What tells a changed file from an unchanged one, and the device that it is on."""

    size_bytes: int
    mtime_ns: int
    device: int


@dataclass(frozen=True)
class Listed:
    """A row of the records: the key of its item, its name among them, and its file's state (None: it cannot be looked at)."""

    row: int
    key: Key
    name: str
    state: FileState | None


class Listing:
    """The rows of records by key: a picture that several rows name, through links or by another spelling, is there once.

    ``twice`` counts the rows beyond the first of their key. Of these the one that names the file by its real path stays, else the last.
    """

    def __init__(self, source: Path, records: Records, bad_files: BadFiles) -> None:
        self.records = records
        self.spelling = Spelling()
        self.place = place_of(source)
        self.root = self.spelling.folder(str(records.root))
        self.by_key: dict[Key, Listed] = {}
        self.twice = 0
        self._hashes: dict[str, str | None] = {}
        device = _state(self.root)
        self.device = None if device is None else device.device
        named_by_real_path: set[Key] = set()
        for listed, is_real in self._rows(bad_files):
            self.twice += listed.key in self.by_key
            if is_real or listed.key not in named_by_real_path:
                self.by_key[listed.key] = listed
            if is_real:
                named_by_real_path.add(listed.key)
        self.paths = {path for path, _ in self.by_key}

    def _rows(self, bad_files: BadFiles) -> Iterator[tuple[Listed, bool]]:
        base = os.path.abspath(self.records.root)
        for row in range(len(self.records)):
            spelled = os.path.join(base, self.records.paths[row])
            path = self.spelling.file(spelled)
            if not is_text(path):
                bad_files.add(spelled, "name not UTF-8: an index keeps paths as text; rename the file")
                continue
            yield (
                Listed(row, (path, self._box(row)), os.path.normpath(self.records.paths[row]), _state(path)),
                path == os.path.normpath(spelled),
            )

    def _box(self, row: int) -> Box | None:
        if self.records.boxes is None or np.isnan(self.records.boxes[row]).any():
            return None
        left, top, right, bottom = (float(str(side)) + 0.0 for side in self.records.boxes[row])  # 0.1, not 0.10000000149
        return left, top, right, bottom

    def item(self, listed: Listed, metadata: Mapping[str, Value], *, sha256: str | None) -> Item:
        """Return the item of a row, of whose picture ``metadata`` are known."""
        size_bytes, mtime_ns = (None, None) if listed.state is None else (listed.state.size_bytes, listed.state.mtime_ns)
        return Item(listed.key[0], metadata, size_bytes, mtime_ns, sha256, listed.key[1])

    def sha256(self, path: str) -> str | None:
        """Return the hash of a file's content, None where it cannot be read."""
        if path not in self._hashes:
            self._hashes[path] = _sha256(path)
        return self._hashes[path]

    def brought(self, listed: Listed) -> Brought:
        """Return how this source names the item of a row."""
        own_device = listed.state is not None and listed.state.device == self.device
        return Brought(listed.name, own_device, json.dumps(facts(self.records, listed.row), ensure_ascii=False))


def place_of(source: Path) -> str:
    """Return what a source is known by: its own name in its folder's real path, so that a link which is switched stays one source."""
    folder, name = os.path.split(os.path.abspath(source))
    spelling = Spelling()
    own = spelling.folder(folder)
    return os.path.join(own, name) if os.path.islink(source) else spelling.file(os.path.join(own, name))


def facts(records: Records, row: int) -> dict[str, Value]:
    """Return what an index keeps of a row beside its path and box: label, split, camera, caption, and a manifest's other columns."""
    metadata: dict[str, Value] = {name: values[row] for name, values in records.extras.items() if values[row] is not None and is_key(name)}
    if records.labels is not None:
        metadata["label"] = records.class_names[records.labels[row]]
    if records.splits is not None:
        metadata["split"] = records.splits[row]
    if records.cameras is not None:
        metadata["camera"] = _camera(records.camera_names[records.cameras[row]])
    if records.captions is not None:
        metadata["caption"] = records.captions[row]
    return metadata


def unused_columns(records: Records) -> list[str]:
    """Return one line for each column of a manifest that an index cannot keep."""
    lines = [f"the column '{name}' is left out: it {why}" for name, why in records.unused.items()]
    for name in records.extras:
        if not is_key(name):
            why = "an index numbers its items itself" if name == "id" else "a filter could not write its name"
            lines.append(f"the column '{name}' is left out: {why}; rename it to keep it")
    return lines


def _camera(name: str) -> Value:
    is_number = name.isascii() and name.isdigit() and len(name) < MAX_DIGITS and str(int(name)) == name  # 007 is a name, 7 is a number
    return int(name) if is_number else name


def _state(path: str) -> FileState | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None  # decoding will name the reason
    return FileState(found.st_size, found.st_mtime_ns, found.st_dev)


def _sha256(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
