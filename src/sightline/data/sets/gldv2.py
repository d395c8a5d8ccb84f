"""Google Landmarks v2, retrieval: 1,129 queries in 761,757 photographs, measured by mAP@100 on two sets of queries, public and private.

A caution about what a model has learnt from: the cleaned training set of GLDv2 holds landmarks of ROxford and RParis, so a model trained
on it has seen what those benchmarks ask for. Its numbers there are not those of a model trained without (RGLDv2-clean leaves them out).

Source: Weyand, Araujo, Cao & Sim 2020, arXiv 2004.01804; the overlap: Song et al. 2024, arXiv 2404.01524.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sightline.contracts import IntArray
from sightline.data.judged import Judged, Judgements, absent, check_complete
from sightline.data.records import Records
from sightline.errors import DataError

SOLUTION, INDEX = "retrieval_solution_v2.1.csv", "index.csv"
NUM_QUERIES = {"public": 379, "private": 750}
NUM_GALLERY = 761_757
WHERE = "github.com/cvdfoundation/google-landmark says where it is kept"


def read(root: Path, *, verify: bool = True) -> Judged:
    """Return the retrieval benchmark of the folder with ``index/`` and ``test/`` (images as ``a/b/c/abc....jpg``) and the two lists.

    ``index.csv`` and ``retrieval_solution_v2.1.csv`` lie in the folder itself, or in ``index/`` and ``test/``. Ignored queries are left out.

    Args:
        root: the data set's folder.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: something is missing or damaged; the message says what and where it goes.
    """
    solution, index = _list_file(root, "test", SOLUTION), _list_file(root, "index", INDEX)
    if solution is None or index is None:
        parts = {
            SOLUTION: "the judgements",
            INDEX: "the images to search",
            "index/": f"{NUM_GALLERY:,} images, index/0/1/2/012....jpg",
            "test/": "the queries",
        }
        raise absent(root, "gldv2", parts, WHERE)
    gallery = [row["id"] for row in _rows(index, "id")]
    asked = [row for row in _rows(solution, "id", "images", "Usage") if row["Usage"].lower() in NUM_QUERIES]
    position = {image: place for place, image in enumerate(gallery)}
    found = [_positions(solution, row, position) for row in asked]
    nothing = tuple(np.empty(0, np.int64) for _ in asked)
    settings = {
        usage: Judgements(
            tuple(rows if row["Usage"].lower() == usage else rows[:0] for row, rows in zip(asked, found, strict=True)), nothing
        )
        for usage in NUM_QUERIES
    }
    paths = (*(_path("test", row["id"]) for row in asked), *(_path("index", image) for image in gallery))
    judged = Judged(
        name="gldv2" if verify else "gldv2 (not verified)",
        records=Records(root, paths),
        query_rows=np.arange(len(asked)),
        gallery_rows=np.arange(len(asked), len(asked) + len(gallery)),
        settings=settings,
        metrics=("map@100",),
    )
    if verify:
        check_complete(judged, sum(NUM_QUERIES.values()), NUM_GALLERY)
    return judged


def _list_file(root: Path, folder: str, name: str) -> Path | None:
    return next((place for place in (root / name, root / folder / name) if place.is_file()), None)


def _path(folder: str, image: str) -> str:
    return f"{folder}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(row.get(column) is None for row in rows for column in columns) or any(len(row["id"]) < 3 for row in rows):
        raise DataError(f"{path} needs the columns {', '.join(columns)} in every row: get the file again")
    return rows


def _positions(path: Path, row: dict[str, str], position: dict[str, int]) -> IntArray:
    images = set(row["images"].split())
    unknown = images - position.keys()
    if unknown:
        raise DataError(f"{path} names {min(unknown)} for query {row['id']}, which is not in {INDEX}: get both files again")
    return np.array(sorted(position[image] for image in images), np.int64)
