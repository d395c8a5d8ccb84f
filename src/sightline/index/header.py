"""The header of an index, which tells what it holds and whose vectors, and writing that a power cut cannot undo."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightline.errors import IndexStoreError

HEADER = "index.json"
FORMAT = 2
"""The version of what is on disk; another one is refused, never guessed at."""
READ_FORMATS = (1, FORMAT)
"""Versions that are read; opened for writing, an index of the first becomes one of the second (boxes, sources)."""


@dataclass(frozen=True)
class Header:
    """What never changes in an index, kept in ``index.json``: its engine, width, and the model whose vectors it takes."""

    dim: int
    fingerprint: str
    engine: str = "local"
    model: str = ""
    created: str = ""
    format: int = FORMAT
    short_px: int = 0
    """Of an index of patches: what the short side of its pictures is brought to. Left out of the file where it is 0."""
    deep: tuple[float, float] | None = None
    """What of its pictures' deep greys (16 bits) is black and white. Left out of the file where there is none."""

    def require_model(self, folder: Path, fingerprint: str) -> None:
        """Pass the model of the index at ``folder``.

        Raises:
            IndexStoreError: it is another one.
        """
        if fingerprint != self.fingerprint:
            made_by = f" ({self.model})" if self.model else ""
            raise IndexStoreError(
                f"'{folder}' holds vectors of model {self.fingerprint[:12]}{made_by}, not of {fingerprint[:12]}: "
                "use that model, or index the images again into a new folder"
            )


def _as_plain(header: Header) -> dict[str, Any]:
    return {name: value for name, value in asdict(header).items() if name not in ("short_px", "deep") or value}


def read_header(folder: Path) -> Header:
    """Return the header of the index at ``folder``.

    Raises:
        IndexStoreError: there is none, it cannot be read, or it is of another format version.
    """
    try:
        plain = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        is_other, images = (", a folder of other things", folder) if folder.is_dir() else ("", "FOLDER")
        place = folder.with_name(f"{folder.name}.index") if is_other else folder
        raise IndexStoreError(
            f"no index at '{folder}'{is_other}: make one with sightline index {place} --model MODEL --images {images}"
        ) from error
    except (OSError, ValueError) as error:
        raise IndexStoreError(f"'{folder / HEADER}' cannot be read ({error}): restore it from a copy, or index again") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if version not in READ_FORMATS:
        raise IndexStoreError(
            f"'{folder}' has index format {version}, this Sightline reads {' and '.join(map(str, READ_FORMATS))}: use the Sightline that made it, or index again"
        )
    try:
        deep = plain.pop("deep", None)
        return Header(**plain, deep=None if deep is None else (float(deep[0]), float(deep[1])))
    except (TypeError, ValueError, IndexError) as error:
        raise IndexStoreError(f"'{folder / HEADER}' is not the header of an index: restore it from a copy, or index again") from error


def write_header(folder: Path, header: Header) -> None:
    """Write the header of an index, durably."""
    write_durably(folder / HEADER, json.dumps(_as_plain(header), indent=2).encode() + b"\n")


def write_durably(file: Path, content: bytes) -> None:
    """Write ``content`` so that after a power cut ``file`` holds all of it or is as before."""
    draft = file.with_name(file.name + ".tmp")
    with draft.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: without it a power cut may undo a rename whose content is safe."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
