"""Embedding a folder of images into a file."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sightline import runtime
from sightline.contracts import Descriptors
from sightline.data.images import BadFiles
from sightline.data.reading import read_data
from sightline.errors import UsageError, explain_os_error
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.workflows.common import write_bad_files


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
