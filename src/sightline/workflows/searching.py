"""Embedding a folder of images, and searching an index of one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sightline import runtime
from sightline.contracts import Box, Descriptors, Hits
from sightline.data.images import BadFiles
from sightline.errors import UsageError, explain_os_error
from sightline.index.base import Index
from sightline.index.header import read_header
from sightline.index.patches import PatchIndex
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.search import pipeline
from sightline.search.embed import embed_records
from sightline.search.regions import search_regions
from sightline.search.rerank import parse
from sightline.workflows.common import read_data, write_bad_files
from sightline.workflows.indexing import load_for


@dataclass(frozen=True)
class Embedded:
    """What an embedding run did."""

    num_images: int
    dim: int
    num_bad: int
    images_per_s: float
    bad_summary: str


def embed(model: str, images: Path, out: Path, *, device: str = "auto", precision: Precision = "auto") -> Embedded:
    """Embed a folder or manifest into ``out``: Parquet (path, vector) or .npy (vectors alone, with the paths in a .txt beside it, a line each).

    A path that is no line of text (it is not UTF-8, or holds a line break) is written as a JSON string there; in Parquet if it is not UTF-8.

    Raises:
        UsageError: the model or images cannot be read, or ``out`` has another ending.
    """
    if out.suffix not in (".parquet", ".npy"):
        raise UsageError(f"--out must end in .parquet or .npy, got '{out}'")
    bad_files = BadFiles()
    encoder = model_folder.load(model, device=runtime.device(device))
    records = read_data(images, bad_files)
    started = time.perf_counter()
    found = embed_records(encoder, records, bad_files, precision=precision)
    elapsed_s = time.perf_counter() - started
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_vectors(out, found, [records.paths[row] for row in found.rows], encoder.fingerprint)
    except OSError as error:
        raise explain_os_error(error, f"writing '{out}'") from error
    write_bad_files(bad_files, out.parent)
    return Embedded(
        len(found), encoder.dim, len(bad_files), len(found) / elapsed_s, bad_files.summary(len(records), out.parent / "bad_files.jsonl")
    )


def _write_vectors(out: Path, found: Descriptors, paths: list[str], fingerprint: str) -> None:
    part = out.with_name(out.name + ".part")
    if out.suffix == ".npy":
        with part.open("wb") as stream:
            np.save(stream, found.vectors)
        model_folder.write_text(out.with_suffix(".txt"), "".join(f"{_as_line(path)}\n" for path in paths))
    else:
        width = found.vectors.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.vectors.reshape(-1)), width)
        table = pa.table({"path": [_as_text(path) for path in paths], "vector": vectors}, metadata={"fingerprint": fingerprint})
        pq.write_table(table, part)
    os.replace(part, out)


def _as_text(path: str) -> str:
    """Return a path, or where it is not UTF-8 (or looks like what stands for one) the JSON string of it."""
    return json.dumps(path) if path.startswith('"') or _is_not_utf8(path) else path


def _as_line(path: str) -> str:
    return json.dumps(path) if path.splitlines() != [path] else _as_text(path)


def _is_not_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- search ---------------------------------------------------------------------------------------------------------------------


class Search:
    """An index open for questions, with its model, which takes seconds to load: ask it any number of pictures, one after another."""

    def __init__(
        self,
        path: Path,
        k: int = 10,
        *,
        box: Box | None = None,
        where: str | None = None,
        exact: bool = False,
        rerank: str = "",
        rerank_top: int | None = None,
        model: str = "",
        device: str = "auto",
    ) -> None:
        self.k, self.box, self.where, self.exact = k, box, where, exact
        self.reranker, self.num_reranked = (parse(rerank) if rerank else None), rerank_top or pipeline.RERANKED
        if read_header(path).engine != "patches" and box is not None:
            raise UsageError(
                f"'{path}' is an index of whole images, and a box asks for regions: make one with sightline index NEW --patches"
            )
        if read_header(path).engine == "patches" and rerank:
            raise UsageError(f"'{path}' is an index of patches, whose regions are compared exactly as it is: leave out the re-ranker")
        self.encoder = load_for(path, model, device)
        self.index = Index.open(path, fingerprint=self.encoder.fingerprint, read_only=True)
        self.encoder.deep = self.index.header.deep

    def answers(self, pictures: Sequence[Path]) -> list[Hits]:
        """Return the answers to each picture, closest first.

        Raises:
            UsageError: the filter cannot be read or meets nothing by its kind, or one box goes with several pictures.
            DataError: a picture cannot be decoded.
        """
        if self.box is not None and len(pictures) != 1:
            raise UsageError(f"one box goes with one picture, and {len(pictures)} were given")
        if isinstance(self.index, PatchIndex):
            return [
                search_regions(self.index, self.encoder, picture, self.box, self.k, where=self.where, exact=self.exact)
                for picture in pictures
            ]
        options = {"where": self.where, "exact": self.exact, "reranker": self.reranker, "num_reranked": self.num_reranked}
        return pipeline.search(self.index, self.encoder, pictures, self.k, **options)  # type: ignore[arg-type]

    def note(self) -> str:
        """Return one line on why nothing matches, or on what the filter names in vain; empty where there is nothing to tell."""
        if self.where is None:
            return "" if self.index.count() else "the index is empty"
        if not self.index.count(self.where):
            return f"nothing matches: {self.index.why_none(self.where)}"
        return "; ".join(one.told for one in self.index.absent(self.where))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.index.close()


def search(
    path: Path,
    pictures: Sequence[Path],
    k: int = 10,
    *,
    box: Box | None = None,
    where: str | None = None,
    exact: bool = False,
    rerank: str = "",
    rerank_top: int | None = None,
    model: str = "",
    device: str = "auto",
) -> list[Hits]:
    """Return the ``k`` closest items of an index for each picture; ``rerank`` names what orders the ``rerank_top`` (1,000) closest anew.

    In an index of patches these are regions that look like ``box`` (None: like all of the picture).

    Raises:
        UsageError: there is no such re-ranker, or the index has no regions or is one of regions and cannot be re-ranked.
        IndexStoreError: there is no such index, or it belongs to another model.
        DataError: a picture cannot be decoded.
    """
    how = {"box": box, "where": where, "exact": exact, "rerank": rerank, "rerank_top": rerank_top, "model": model, "device": device}
    with Search(path, k, **how) as opened:  # type: ignore[arg-type]
        return opened.answers(pictures)
