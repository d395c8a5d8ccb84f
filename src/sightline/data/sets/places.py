"""Particular places: frames of one journey ask for the same places in another, recall at N within a tolerance of frames.

Source: the measure of Zaffar et al. 2021, arXiv 2005.08135 (VPR-Bench).
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sightline.data.judged import Judged, Judgements, absent, check_complete
from sightline.data.listing import find_images
from sightline.data.records import Records
from sightline.errors import DataError

METRICS = tuple(f"recall@{k}" for k in (1, 5, 10, 20, 25))


def read(root: Path, *, verify: bool = True, frames: int = 0) -> Judged:
    """Return the benchmark of a folder with ``query/``, ``reference/`` and ``gt.csv`` (columns query, positive: paths below the folder).

    A query may have several rows. Right are the references named for it and those up to ``frames`` before and after each, in the order
    of their names.

    Args:
        root: the folder.
        verify: check that every image is there.
        frames: the tolerance; neighbouring frames of a slow journey show the same place.

    Raises:
        DataError: something is missing, or gt.csv names an image that is not there.
    """
    table = root / "gt.csv"
    if not table.is_file() or not (root / "query").is_dir() or not (root / "reference").is_dir():
        parts = {"gt.csv": "columns query, positive", "query/": "the frames that ask", "reference/": "the frames to find"}
        raise absent(root, "places", {part: what for part, what in parts.items() if not (root / part).exists()})
    queries, references = ([f"{name}/{path}" for path in find_images(root / name)] for name in ("query", "reference"))
    place = {path: row for row, path in enumerate(references)}
    right: dict[str, set[int]] = {path: set() for path in queries}
    for line, (query, positive) in enumerate(_rows(table), 2):
        if query not in right or positive not in place:
            raise DataError(f"{table} line {line}: {query if query not in right else positive} is not below {root}: correct or complete it")
        right[query].update(range(max(0, place[positive] - frames), min(len(references), place[positive] + frames + 1)))
    judgements = Judgements(tuple(np.array(sorted(rows), np.int64) for rows in right.values()), (np.empty(0, np.int64),) * len(queries))
    judged = Judged(
        name=f"places {root.resolve().name}" + (f", {frames} frames' tolerance" if frames else ""),
        records=Records(root, (*queries, *references)),
        query_rows=np.arange(len(queries)),
        gallery_rows=np.arange(len(queries), len(queries) + len(references)),
        settings={"": judgements},
        metrics=METRICS,
    )
    if verify:
        check_complete(judged)
    return judged


def _rows(table: Path) -> list[tuple[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read ({error}): save it as UTF-8 text") from error
    if not rows or any(not row.get("query") or not row.get("positive") for row in rows):
        raise DataError(f"{table} needs the columns query and positive, both filled in every row")
    return [(row["query"], row["positive"]) for row in rows]
