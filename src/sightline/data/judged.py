"""Judged collections: benchmarks that say of each query which gallery images are right, and which do not count either way."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline import catalog
from sightline.contracts import FloatArray, IntArray
from sightline.data.records import Records
from sightline.errors import DataError, UsageError, nearest


@dataclass(frozen=True, eq=False)
class Judgements:
    """What is right for each of the Q queries, and what is junk: positions in the gallery, int64, ascending, each at most once.

    Junk is taken out of a query's ranking before anything is measured, so that what lies behind it moves up. A query without positives
    cannot be answered.
    """

    positives: tuple[IntArray, ...]
    junk: tuple[IntArray, ...]

    def __post_init__(self) -> None:
        if len(self.positives) != len(self.junk):
            raise ValueError(f"Judgements need one array of junk a query: {len(self.positives)} queries, {len(self.junk)} arrays")
        for query, (positives, junk) in enumerate(zip(self.positives, self.junk, strict=True)):
            for name, rows in (("positives", positives), ("junk", junk)):
                if rows.dtype != np.int64 or rows.ndim != 1 or (len(rows) and (rows[0] < 0 or (np.diff(rows) <= 0).any())):
                    raise ValueError(f"the {name} of query {query} must be ascending gallery positions, int64, each once")
            if len(np.intersect1d(positives, junk, assume_unique=True)):
                raise ValueError(f"query {query} has a positive that is junk too")

    def __len__(self) -> int:
        return len(self.positives)

    @property
    def num_gallery_needed(self) -> int:
        """The least size of a gallery that has all the positions."""
        return 1 + max((int(rows[-1]) for rows in (*self.positives, *self.junk) if len(rows)), default=-1)


@dataclass(frozen=True, eq=False)
class Judged:
    """A collection with judgements. ``settings`` are several sets of them for the same queries and gallery, or a single one named "".

    ``records`` holds all images, the queries' boxes included; ``query_rows`` ``[Q]`` and ``gallery_rows`` ``[G]`` are int64 positions in
    it, each row in the gallery at most once. ``metrics`` are the measures that the benchmark is told in, by their usual names.
    """

    name: str
    records: Records
    query_rows: IntArray
    gallery_rows: IntArray
    settings: Mapping[str, Judgements]
    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, rows in (("query_rows", self.query_rows), ("gallery_rows", self.gallery_rows)):
            if rows.dtype != np.int64 or rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(self.records)):
                raise ValueError(f"{name} must be int64 positions in the {len(self.records)} records")
        if len(np.unique(self.gallery_rows)) < len(self.gallery_rows):
            raise ValueError("a record is in the gallery twice")
        if not self.settings or not self.metrics:
            raise ValueError("a Judged collection needs at least one setting and one metric")
        for name, judgements in self.settings.items():
            if len(judgements) != len(self.query_rows) or judgements.num_gallery_needed > len(self.gallery_rows):
                raise ValueError(
                    f"the setting '{name}' judges {len(judgements)} queries in {judgements.num_gallery_needed} images or more; "
                    f"there are {len(self.query_rows)} and {len(self.gallery_rows)}"
                )


def with_distractors(judged: Judged, distractors: Records) -> Judged:
    """Return the collection with more images in its gallery, none of them right for any query: ``NAME +N distractors``.

    Raises:
        DataError: an image of the collection is among the distractors.
    """
    added = np.arange(len(judged.records), len(judged.records) + len(distractors))
    return replace(
        judged,
        name=f"{judged.name} +{len(distractors):,} distractors",
        records=records_with(judged.records, distractors),
        gallery_rows=np.concatenate([judged.gallery_rows, added]),
    )


def records_with(records: Records, distractors: Records) -> Records:
    """Return the records and behind them the distractors, labelled (where the records are) as a class of their own.

    Raises:
        DataError: an image of the records is among the distractors.
    """
    own = {os.path.abspath(records.file(row)) for row in range(len(records))}
    added = [os.path.abspath(distractors.file(row)) for row in range(len(distractors))]
    twice = next((path for path in added if path in own), None)
    if twice is not None:
        raise DataError(f"{twice} is among what is measured too: give a folder of distractors that holds none of those images")
    labels = None if records.labels is None else np.append(records.labels, np.full(len(added), len(records.class_names), np.int64))
    class_names = () if labels is None else (*records.class_names, "(distractor)")
    return Records(records.root, (*records.paths, *added), labels, class_names, boxes=_stacked_boxes(records, distractors))


def absent(folder: Path, name: str, parts: Mapping[str, str], where: str = "") -> DataError:
    """Return the error that says what of a benchmark is missing in ``folder`` (``parts``: path -> what it is) and where it goes."""
    missing = "; ".join(f"{folder / part} ({what})" for part, what in parts.items())
    fetch = f" Fetch it yourself: {where}; nothing is downloaded here" if where else ""
    return DataError(f"{name} is not there. Needed: {missing}.{fetch}")


def check_complete(judged: Judged, num_queries: int | None = None, num_gallery: int | None = None) -> None:
    """Return if every image is there, and the official numbers of queries and gallery images where they are given.

    Raises:
        DataError: with every difference, expected beside found.
    """
    wrong = [
        f"{len(rows):,} {what} where there are {expected:,}"
        for what, rows, expected in (("queries", judged.query_rows, num_queries), ("images to search", judged.gallery_rows, num_gallery))
        if expected is not None and len(rows) != expected
    ]
    files = (judged.records.file(row) for row in range(len(judged.records)))
    missing = [file for file in files if not file.is_file()]
    if missing:
        wrong.append(f"{len(missing):,} listed images are missing (first: {missing[0]})")
    if wrong:
        raise DataError(f"{judged.records.root} is not the whole of {judged.name}: {'; '.join(wrong)}. Complete it, or pass --no-verify")


def read_benchmark(protocol: str, root: Path, *, verify: bool = True) -> Judged:
    """Return the judged collection that ``protocol`` names, such as ``roxford5k`` or ``places,frames=3``, from its folder.

    Raises:
        UsageError: no such benchmark or setting, or a setting that is no whole number.
        DataError: something is missing or damaged.
    """
    name, *settings = protocol.split(",")
    reader = catalog.find("benchmarks", name)
    known = [key for key in inspect.signature(reader).parameters if key not in ("root", "verify")]
    values = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known:
            raise UsageError(f"{name} has no setting '{key}'{nearest(key, known)}")
        if not value.isdecimal():
            raise UsageError(f"{name},{setting}: {key} is a whole number, such as {key}=3")
        values[key] = int(value)
    judged: Judged = reader(root, verify=verify, **values)
    return judged


def _stacked_boxes(one: Records, other: Records) -> FloatArray | None:
    if one.boxes is None and other.boxes is None:
        return None
    return np.concatenate([np.full((len(part), 4), np.nan, np.float32) if part.boxes is None else part.boxes for part in (one, other)])
