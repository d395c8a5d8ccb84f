"""The revisited benchmarks, ROxford5k and RParis6k, and any collection whose ground truth is written as theirs.

Source: Radenovic, Iscen, Tolias, Avrithis & Chum 2018, arXiv 1803.11285.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contracts import IntArray
from sightline.data.judged import Judged, Judgements, absent, check_complete
from sightline.data.records import Records
from sightline.data.unpickle import load_plain
from sightline.errors import DataError

METRICS = ("map", "mp@1", "mp@5", "mp@10")
SUFFIXES = (".json", ".pkl")
WHERE = "github.com/filipradenovic/revisitop says where its authors keep it"


def roxford5k(root: Path, *, verify: bool = True) -> Judged:
    """Return ROxford5k: 70 queries, cropped to their boxes, in 4,993 photographs, judged easy, medium and hard.

    Args:
        root: the folder with ``jpg/`` and ``gnd_roxford5k.pkl`` (or ``.json``), or one that holds it as ``roxford5k/``.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: something is missing or damaged; the message says what and where it goes.
    """
    return _official(root, "roxford5k", 70, 4_993, verify)


def rparis6k(root: Path, *, verify: bool = True) -> Judged:
    """Return RParis6k: 70 queries in 6,322 photographs; see ``roxford5k``."""
    return _official(root, "rparis6k", 70, 6_322, verify)


def read(root: Path, *, verify: bool = True) -> Judged:
    """Return any collection in this form, under its ground truth's own name: a folder with ``jpg/`` and one ``gnd_NAME.json`` or ``.pkl``.

    Args:
        root: the folder.
        verify: check that every image is there.

    Raises:
        DataError: something is missing or damaged, or there are several ground truths.
    """
    truths = {path.stem: path for suffix in reversed(SUFFIXES) for path in root.glob(f"gnd_*{suffix}")}  # JSON where there are both
    if not truths:
        raise absent(root, "a revisited benchmark", {"gnd_NAME.json or gnd_NAME.pkl": "the ground truth", "jpg/": "the images it names"})
    if len(truths) > 1:
        raise DataError(f"{root} holds several ground truths ({', '.join(sorted(truths))}): leave the one to measure with")
    ((name, path),) = truths.items()
    judged = _read(path, f"revisited {name}")
    if verify:
        check_complete(judged)
    return judged


def _official(root: Path, name: str, num_queries: int, num_gallery: int, verify: bool) -> Judged:
    places = [folder / f"gnd_{name}{suffix}" for folder in (root, root / name) for suffix in SUFFIXES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        parts = {f"gnd_{name}.pkl": "the ground truth, or the same as .json", "jpg/": f"{num_queries + num_gallery:,} photographs"}
        raise absent(root / name if root.name != name else root, name, parts, WHERE)
    judged = _read(path, name if verify else f"{name} (not verified)")
    if verify:
        check_complete(judged, num_queries, num_gallery)
    return judged


def _read(path: Path, name: str) -> Judged:
    truth = _load(path)
    queries, gallery, judgements = (_list(path, truth, key) for key in ("qimlist", "imlist", "gnd"))
    if len(judgements) != len(queries):
        raise DataError(f"{path} has {len(queries)} queries in qimlist and judges {len(judgements)} in gnd: get the file again")
    boxes = np.full((len(queries) + len(gallery), 4), np.nan, np.float32)
    parts: dict[str, list[IntArray]] = {"easy": [], "hard": [], "junk": []}
    for query, judged in enumerate(judgements):
        if not isinstance(judged, Mapping):
            raise DataError(f"{path} has no easy, hard and junk for query {query}: it is not a revisited ground truth")
        if judged.get("bbx") is not None:
            boxes[query] = _box(path, query, judged["bbx"])
        for key, rows in parts.items():
            rows.append(_rows(path, query, key, judged.get(key), len(gallery)))
    return Judged(
        name=name,
        records=Records(path.parent, tuple(f"jpg/{image}.jpg" for image in (*queries, *gallery)), boxes=boxes),
        query_rows=np.arange(len(queries)),
        gallery_rows=np.arange(len(queries), len(queries) + len(gallery)),
        settings=_settings(path, parts["easy"], parts["hard"], parts["junk"]),
        metrics=METRICS,
    )


def _settings(path: Path, easy: list[IntArray], hard: list[IntArray], junk: list[IntArray]) -> dict[str, Judgements]:
    def judgements(positives: list[list[IntArray]], others: list[list[IntArray]]) -> Judgements:
        def joined(lists: list[list[IntArray]]) -> tuple[IntArray, ...]:
            return tuple(np.sort(np.concatenate(rows)) for rows in zip(*lists, strict=True))

        return Judgements(joined(positives), joined(others))

    try:
        return {
            "easy": judgements([easy], [junk, hard]),
            "medium": judgements([easy, hard], [junk]),
            "hard": judgements([hard], [junk, easy]),
        }
    except ValueError as error:
        raise DataError(f"{path} judges an image twice for one query ({error}): get the file again") from error


def _load(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".pkl":
        truth = load_plain(path)
    else:
        try:
            truth = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): get the file again") from error
    if not isinstance(truth, Mapping):
        raise DataError(f"{path} is not a revisited ground truth: it holds no imlist, qimlist and gnd")
    return truth


def _list(path: Path, truth: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = truth.get(key)
    if not isinstance(found, Sequence | np.ndarray) or isinstance(found, str | bytes) or not len(found):
        raise DataError(f"{path} has no list '{key}': a revisited ground truth holds imlist, qimlist and gnd")
    return list(found)


def _rows(path: Path, query: int, key: str, values: Any, num_gallery: int) -> IntArray:
    found = np.asarray(values)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise DataError(f"{path} has no list of whole numbers '{key}' for query {query}: it is not a revisited ground truth")
    rows = np.sort(found.astype(np.int64))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < num_gallery:
        raise DataError(f"{path} names image {rows[0] if rows[0] < 0 else rows[-1]} of {num_gallery} for query {query}: get the file again")
    return rows


def _box(path: Path, query: int, values: Any) -> Any:
    try:
        return np.maximum(np.asarray(values, np.float32).reshape(4), 0)  # outside the picture there is nothing to crop
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} has a bbx that is not x0 y0 x1 y1 for query {query}: get the file again") from error
