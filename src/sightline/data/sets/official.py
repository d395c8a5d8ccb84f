"""What the readers of public data sets share: finding files, reading lists, and checking the official counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sightline.data.records import Records
from sightline.errors import DataError


@dataclass(frozen=True)
class Expected:
    """The official size of a split; where its authors state no number of classes, that is not checked."""

    num_images: int
    num_classes: int | None = None


def existing(root: Path, file: str, *, inside: tuple[str, ...], name: str) -> Path:
    """Return the folder that holds ``file``: the root or one of the folders ``inside`` it.

    Raises:
        DataError: none holds it; the message says where it was looked for.
    """
    places = (root, *(root / folder for folder in inside))
    for place in places:
        if (place / file).is_file():
            return place
    raise DataError(f"{root} is not {name}: {file} is missing (looked in {', '.join(map(str, places))}); give the folder that holds it")


def table(file: Path, num_columns: int, *, skip: int = 0) -> list[tuple[str, ...]]:
    """Return the rows of a list of words separated by spaces, the first ``skip`` lines left out.

    Raises:
        DataError: the file is missing, is not text, or a line has another number of words.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: unpack the data set again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): unpack the data set again") from error
    rows = []
    for number, line in enumerate(lines[skip:], skip + 1):
        words = tuple(line.split())
        if not words:
            continue
        if len(words) != num_columns:
            raise DataError(f"{file} line {number} has {len(words)} words, not {num_columns} ('{line[:60]}'): unpack the data set again")
        rows.append(words)
    return rows


def check(records: Records, name: str, expected: Mapping[str, Expected]) -> None:
    """Return if every split has its official numbers of images and classes and every image is there.

    Raises:
        DataError: with every difference, expected beside found.
    """
    wrong = []
    for split, size in expected.items():
        part = records.split(split) if split in (records.splits or ()) else records.select([])
        if len(part) != size.num_images:
            wrong.append(f"{split} lists {len(part):,} images, expected {size.num_images:,}")
        if size.num_classes is not None and part.num_classes != size.num_classes:
            wrong.append(f"{split} lists {part.num_classes:,} classes, expected {size.num_classes:,}")
    absent = [path for path in records.paths if not (records.root / path).is_file()]
    if absent:
        wrong.append(f"{len(absent):,} listed images are missing (first: {absent[0]})")
    if wrong:
        raise DataError(
            f"{records.root} is not the whole of {name}: {'; '.join(wrong)}. Complete it, or use what is there under another name: --no-verify (train: verify=false)"
        )
