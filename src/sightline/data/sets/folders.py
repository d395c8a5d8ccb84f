"""Class folders whose class is said to be the first folder, or the last: for trees that could be read either way."""

from __future__ import annotations

from pathlib import Path

from sightline.data.records import Records, read_records


def first_folder(root: Path, *, verify: bool = True) -> Records:
    """Return the records of a tree whose classes are the first folders below its root (or below its splits), however deep the images lie.

    Raises:
        DataError: nothing is there, or an image lies in no folder.
    """
    del verify  # nobody says how many there should be
    return read_records(root, require_labels=True, level="first")


def last_folder(root: Path, *, verify: bool = True) -> Records:
    """Return the records of a tree whose classes are the folders that the images lie in, each named by its whole way: ``alphabet/character``.

    Raises:
        DataError: nothing is there, or an image lies in no folder.
    """
    del verify
    return read_records(root, require_labels=True, level="last")
