"""Records: which images there are and what is known of each; read from a class-folder tree or a manifest."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.data.deep import DeepRange
from sightline.data.layout import Level, lay_out, names_tell, split_named
from sightline.data.listing import DECODABLE_SUFFIXES, OnBad, list_images
from sightline.data.manifest import MANIFEST_SUFFIXES, Columns, Value, read_columns, unread_box
from sightline.data.spelling import Spelling
from sightline.errors import DataError, nearest


@dataclass(frozen=True, eq=False)
class Records:
    """The M images of a collection and what is known of each; a column that is not known is None.

    ``paths`` are POSIX, relative to ``root`` or absolute. ``labels`` and ``cameras`` int64 ``[M]`` are positions in ``class_names`` and
    ``camera_names``; a selection keeps these tables whole, so a label means the same in every part of a collection. ``boxes`` float32
    ``[M, 4]`` are x0 y0 x1 y1 in pixels of the upright image, NaN where a row has none; an image with a box is cropped to it before
    anything else. ``extras`` are a manifest's other columns; ``unused`` says why a column is none. ``notes`` are lines on what reading
    left out or found odd.
    ``positives`` int64 ``[num pairs, 2]`` are rows of two images that show the same thing, the query first; a query may have many.
    """

    root: Path
    paths: tuple[str, ...]
    labels: IntArray | None = None
    class_names: tuple[str, ...] = ()
    splits: tuple[str, ...] | None = None
    cameras: IntArray | None = None
    captions: tuple[str, ...] | None = None
    boxes: FloatArray | None = None
    positives: IntArray | None = None
    camera_names: tuple[str, ...] = ()
    extras: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    deep: DeepRange | None = None
    """What of deep greys (16 bits) becomes black and white, the same in every part of the collection; None goes by each picture alone."""

    def __post_init__(self) -> None:
        num = len(self.paths)
        own = {name: getattr(self, name) for name in ("labels", "splits", "cameras", "captions", "boxes")}
        for name, column in {**self.extras, **own}.items():
            if column is not None and len(column) != num:
                raise ValueError(f"Records need one value a row: {num} paths, {len(column)} {name}")
        for name, dtype in (("labels", np.int64), ("cameras", np.int64), ("boxes", np.float32)):
            column = getattr(self, name)
            if column is not None and (column.dtype != dtype or column.shape[1:] != ((4,) if name == "boxes" else ())):
                raise ValueError(f"Records need {name} of type {np.dtype(dtype)}, got {column.dtype} {column.shape}")
        for name, table in (("labels", "class_names"), ("cameras", "camera_names")):
            column = getattr(self, name)
            if column is not None and num and (column.min() < 0 or column.max() >= len(getattr(self, table))):
                raise ValueError(f"Records need {name} that are positions in {table}")
        if self.boxes is not None:
            _check_boxes(self.boxes, self.paths)
        if self.positives is not None:
            _check_positives(self.positives, self.labels, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path:
        """Return where the image of a row lies."""
        return self.root / self.paths[row]

    def real_files(self) -> list[str]:
        """Return the path of each row's file with links resolved and spelled as on the disk: one and the same for all rows of one picture."""
        spelling = Spelling()
        return [spelling.file(os.path.join(self.root, path)) for path in self.paths]

    def select(self, rows: IntArray | BoolArray | Sequence[int]) -> Records:
        """Return the given rows (or those where a mask is True), in the given order, with the same class table.

        Of the positive pairs those stay whose two images are both chosen.
        """
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)

        def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in chosen)

        return replace(
            self,
            paths=pick(self.paths),
            labels=None if self.labels is None else self.labels[chosen],
            splits=None if self.splits is None else pick(self.splits),
            cameras=None if self.cameras is None else self.cameras[chosen],
            captions=None if self.captions is None else pick(self.captions),
            boxes=None if self.boxes is None else self.boxes[chosen],
            extras={name: pick(values) for name, values in self.extras.items()},
            positives=None if self.positives is None else _moved_pairs(self.positives, chosen, len(self)),
        )

    def without_labels(self) -> Records:
        """Return the same rows without classes: for learning that needs none, where a folder of one image must not count as a class."""
        return replace(self, labels=None, class_names=())

    def split(self, name: str) -> Records:
        """Return the rows of one split.

        Raises:
            DataError: there are no splits, or none of that name; the message says which exist.
        """
        if self.splits is None:
            raise DataError(f"{self.root} has no splits, so no '{name}': add a split column, or folders {name}/CLASS/")
        if name not in self.splits:
            raise DataError(f"{self.root} has no split '{name}'{nearest(name, self.splits)}")
        return self.select(np.array([split == name for split in self.splits], dtype=np.bool_))

    @property
    def num_classes(self) -> int:
        """The number of classes that have at least one image here."""
        return int(np.count_nonzero(self.class_counts()))

    def class_counts(self) -> IntArray:
        """Return the number of images of each class, int64 ``[C]`` along ``class_names``; empty without labels."""
        if self.labels is None:
            return np.zeros(0, dtype=np.int64)
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)


def of_labels(labels: IntArray, class_names: Sequence[str] = ()) -> Records:
    """Return records of ``labels`` int64 ``[M]`` without files, for a method whose images come from elsewhere."""
    names = tuple(class_names) or tuple(str(label) for label in range(int(labels.max()) + 1))
    return Records(Path(), tuple(map(str, range(len(labels)))), labels.astype(np.int64), names)


def _check_boxes(boxes: FloatArray, paths: Sequence[str]) -> None:
    has_box = ~np.isnan(boxes).all(axis=1)
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (boxes[:, :2] >= 0).all(axis=1)
    wrong = np.flatnonzero(has_box & ~good)
    if len(wrong):
        values = " ".join(f"{value:g}" for value in boxes[wrong[0]])
        raise DataError(f"the box of {paths[wrong[0]]} is '{values}': write x0 y0 x1 y1 in pixels, with x1 > x0 >= 0 and y1 > y0 >= 0")
    shares = np.flatnonzero(has_box & (boxes <= 1).all(axis=1))
    if len(shares):
        values = " ".join(f"{value:g}" for value in boxes[shares[0]])
        raise DataError(
            f"the box of {paths[shares[0]]} is '{values}', which is a share of the picture or less than a pixel of it: write pixels (x times the "
            "picture's width, y times its height)"
        )


def _check_positives(positives: IntArray, labels: IntArray | None, paths: Sequence[str]) -> None:
    if positives.dtype != np.int64 or positives.ndim != 2 or positives.shape[1] != 2:
        raise ValueError(f"Records need positives of type int64 [num pairs, 2], got {positives.dtype} {positives.shape}")
    if len(positives) and (positives.min() < 0 or positives.max() >= len(paths)):
        raise ValueError(f"Records need positives that are rows, below {len(paths)}")
    wrong = positives[:, 0] == positives[:, 1]
    if labels is not None:
        wrong |= labels[positives[:, 0]] != labels[positives[:, 1]]
    if wrong.any():
        query, positive = (paths[row] for row in positives[np.argmax(wrong)])
        raise DataError(f"the positive of {query} is {positive}: give another image of the same cluster")


def _moved_pairs(pairs: IntArray, chosen: IntArray, num_rows: int) -> IntArray:
    place = np.full(num_rows, -1, dtype=np.int64)
    place[chosen[::-1]] = np.arange(len(chosen))[::-1]  # of a row that is chosen twice, the first
    moved = place[pairs]
    return moved[(moved >= 0).all(axis=1)]


# --- reading ----------------------------------------------------------------------------------------------------------------------


def read_records(source: Path | str, *, require_labels: bool = False, on_bad: OnBad | None = None, level: Level = "auto") -> Records:
    """Return the records of a folder tree or of a manifest (.csv, .tsv, .jsonl, .parquet).

    In a tree the first folder below the root is the class, and first folders named like splits (train, val, test, query, gallery and what
    else these are called) are splits: see ``layout.lay_out``. Where some image lies in no class folder, nothing is labelled. A manifest has
    the columns path, label (or cluster), positive, camera, split, caption, box, all but path optional; its paths are relative to its own
    folder. What was left out or looks odd is told in ``Records.notes``.

    Args:
        source: the folder or manifest.
        require_labels: refuse a collection without labels, or one whose folders do not look like classes.
        on_bad: called with (folder, reason) for each folder below the root that cannot be listed; without it such a folder is an error.
        level: where labels are required, whether the first folder is the class or the last one, in which the image lies; auto takes the
            first, and tells or refuses what looks like the wrong one.

    Raises:
        DataError: nothing is there, no image is in it, a column is wrong, or labels are required and missing.
    """
    where = Path(source)
    if not where.exists():
        raise DataError(f"{where} does not exist: give a folder of images or a manifest (.csv, .jsonl, .parquet)")
    records = _from_folder(where, on_bad, level if require_labels else None) if where.is_dir() else _from_manifest(where)
    if require_labels and records.labels is None:
        raise DataError(_no_labels(where, records))
    return records


def _from_folder(root: Path, on_bad: OnBad | None, level: Level | None) -> Records:
    listing = list_images(root, on_bad=on_bad)
    if not listing.paths:
        left_out = f" ({'; '.join(listing.notes)})" if listing.notes else ""
        raise DataError(
            f"no images in {root}: looked in it and below for {', '.join(DECODABLE_SUFFIXES[:6])}, ...{left_out}; is it the right folder?"
        )
    paths, found, told = listing.paths, lay_out(root, listing.paths, level), tuple[str, ...]()
    if level is not None and found.classes is None and found.splits is not None:
        paths, told = _without_classless(root, paths, found.splits)
        found = lay_out(root, paths, level) if told else found
    labels, class_names = (None, ()) if found.classes is None else index_labels(found.classes)
    notes = (*listing.notes, *found.notes, *told, *_twins(class_names))
    return Records(root, paths, labels, class_names, found.splits, notes=notes)


def _without_classless(root: Path, paths: tuple[str, ...], splits: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths without those that lie right in a folder beside the splits, and what there is to say of them."""
    beside = {path for path, split in zip(paths, splits, strict=True) if split_named(split) is None and len(path.split("/")) < 3}
    if not beside:
        return paths, ()
    note = f"{root}: {len(beside):,} images beside the splits are in no class folder (such as {min(beside)}) and are left out where classes are needed"
    return tuple(path for path in paths if path not in beside), (note,)


def _no_labels(where: Path, records: Records) -> str:
    if not where.is_dir():
        return f"{where} has no label column: add one (columns: path, label, positive, camera, split, caption, box)"
    if names_tell(records.paths):
        return (
            f"{where} has file names that tell identity and camera, as in Market-1501 (such as {records.paths[0]}): give a manifest with the columns "
            "path, label, camera and split (studies/manifests.py market writes it)"
        )
    start = 1 if records.splits is not None else 0
    loose = [path for path in records.paths if len(path.split("/")) < 2 + start]
    return (
        f"{where} has {len(loose):,} of {len(records):,} images in no class folder (such as {loose[0]}): "
        "put each into CLASS/, or give a manifest with a label column"
    )


def _from_manifest(where: Path) -> Records:
    if where.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError(f"{where} is neither a folder nor a manifest: give a folder of images or a {', '.join(MANIFEST_SUFFIXES)} file")
    columns: Columns = read_columns(where)
    labels, class_names = (None, ()) if columns.label is None else index_labels(columns.label)
    cameras, camera_names = (None, ()) if columns.camera is None else index_labels(columns.camera)
    splits = None if columns.split is None else tuple(split_named(name) or name.strip() for name in columns.split)
    records = Records(
        root=where.parent,
        paths=tuple(columns.path),
        labels=labels,
        class_names=class_names,
        splits=splits,
        cameras=cameras,
        captions=None if columns.caption is None else tuple(columns.caption),
        boxes=None if columns.box is None else np.array(columns.box, dtype=np.float32).reshape(-1, 4),
        positives=None if columns.positive is None else _index_positives(where, columns.path, columns.positive),
        camera_names=camera_names,
        extras={name: tuple(values) for name, values in columns.extras.items()},
        unused=columns.unused,
    )
    return replace(records, notes=(*_twice(where, records), *_twins(class_names), *unread_box(where, columns)))


def _twice(where: Path, records: Records) -> tuple[str, ...]:
    """Return what there is to say of pictures that are in several splits.

    Raises:
        DataError: two rows name one picture and box in one split: it would answer itself, and be found or missed for that alone.
    """
    by_split: dict[tuple[object, ...], int] = {}
    pictures: dict[tuple[object, ...], int] = {}
    boxes = None if records.boxes is None else [None if math.isnan(box[0]) else tuple(box) for box in records.boxes.tolist()]
    apart = []
    for row, file in enumerate(records.real_files()):
        picture = (file, None if boxes is None else boxes[row])
        before = by_split.setdefault((*picture, None if records.splits is None else records.splits[row]), row)
        if before != row:
            raise DataError(_told_twice(where, records, before, row))
        if pictures.setdefault(picture, row) != row:
            apart.append(row)
    if not apart:
        return ()
    assert records.splits is not None
    return (
        f"{where} names {len(apart):,} pictures in more than one split (such as {records.paths[apart[0]]}, again in {records.splits[apart[0]]})",
    )


def _told_twice(where: Path, records: Records, before: int, row: int) -> str:
    labels = [] if records.labels is None else sorted({records.class_names[records.labels[one]] for one in (before, row)})
    contrary = f", as '{labels[0]}' and as '{labels[1]}'" if len(labels) > 1 else ""
    spelling = "" if records.paths[row] == records.paths[before] else f" (as {records.paths[row]} the second time)"
    several = "; several positives of one picture go into one row of a .jsonl manifest" if records.positives is not None else ""
    return (
        f"{where} names {records.paths[before]} twice, in rows {before + 1} and {row + 1}{spelling}{contrary}: it would answer itself; leave one of the "
        f"rows out, or give each the box of what it shows{several}"
    )


def _index_positives(where: Path, paths: Sequence[str], positives: Sequence[tuple[str, ...]]) -> IntArray:
    row_of: dict[str, int] = {}
    for row, path in enumerate(paths):
        row_of.setdefault(path, row)
    pairs = []
    for query, names in enumerate(positives):
        for name in names:
            if name not in row_of:
                raise DataError(f"{where} row {query + 1}: positive '{name}' is no row's path: list that image too")
            pairs.append((query, row_of[name]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def index_labels(names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Return labels (or cameras) int64 ``[M]`` and the names they point to: in numeric order where all are whole numbers, else sorted.

    Names that differ by their Unicode form alone, as one system and another write an accent, are one: the composed form, NFC.
    """
    names = [unicodedata.normalize("NFC", name) for name in names]
    distinct = _ordered(names)
    position = {name: label for label, name in enumerate(distinct)}
    return np.array([position[name] for name in names], dtype=np.int64), distinct


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def _twins(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return what there is to say of class names that differ in capitals, blanks or letters that cannot be seen alone."""
    alike: dict[str, list[str]] = {}
    for name in class_names:
        seen = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
        alike.setdefault(" ".join(seen.split()).casefold(), []).append(name)
    twins = [names for names in alike.values() if len(names) > 1]
    if not twins:
        return ()
    shown = "' and '".join(name if name.isprintable() else ascii(name)[1:-1] for name in twins[0])
    return (
        f"{len(twins):,} class name{'' if len(twins) == 1 else 's'} come in several spellings ('{shown}') and count as several classes",
    )
