"""An index of pictures: brought up to date from a folder, and asked with a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.contracts import FloatArray, Hits, IntArray, Ranking
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.index.base import Index, Item
from sightline.index.filters import Value
from sightline.index.patches import PatchIndex
from sightline.nn.encoder import Encoder
from sightline.nn.pictures import Picture
from sightline.runtime import Precision
from sightline.search.embed import BATCH_SIZE, embed_stream
from sightline.search.patches import patch_stream
from sightline.search.rerank.base import Reranker

MAX_DIGITS = 19
"""Digits of a camera's number that 64 bits hold."""

RERANKED = 1_000
"""Items that are fetched for a re-ranker: what is farther from the query than these neither answers nor is anybody's neighbour."""


@dataclass(frozen=True)
class Update:
    """What bringing an index up to date did, in images."""

    added: int
    changed: int
    unchanged: int
    removed: int
    bad: int


def update_index(
    index: Index,
    encoder: Encoder,
    records: Records,
    bad_files: BadFiles,
    *,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "auto",
    prune: bool = True,
    show: bool = True,
) -> Update:
    """Embed what is new or has changed (in an index of patches, its patches), and take out what has gone; stopped at any moment, the next call goes on where it was.

    Every batch is acknowledged, durable, before the next one is embedded. A file is unchanged when its size and modification time
    are. ``prune`` removes the index's items below ``records.root`` whose files are no longer among the records (a folder that could not
    be listed keeps its items).

    Raises:
        DataError: the index would stay empty because not one file could be read.
    """
    known = {path: (size_bytes, mtime_ns) for path, (size_bytes, mtime_ns, _) in index.known().items()}
    paths = [str(records.file(row).absolute()) for row in range(len(records))]
    stats = [_stat(path) for path in paths]
    wanted = np.array(
        [row for row, path in enumerate(paths) if (known.get(path) != stats[row] or stats[row] is None) and _is_text(path, bad_files)],
        dtype=np.int64,
    )
    removed = index.remove(paths=_gone(known, paths, records.root, bad_files)) if prune else 0
    added = changed = 0
    if len(wanted):
        chosen = records.select(wanted)

        def items_of(rows: IntArray) -> list[Item]:
            return [_item(records, int(row), paths[row], stats[row]) for row in wanted[rows]]

        for items in _acknowledged(index, encoder, chosen, items_of, bad_files, batch_size, precision, show):
            changed += sum(item.path in known for item in items)
            added += sum(item.path not in known for item in items)
    if index.count() == 0:
        raise DataError(f"none of the {len(records):,} files in '{records.root}' could be read as an image: {bad_files.summary()}")
    index.seal()
    return Update(added, changed, sum(known.get(path) == stat for path, stat in zip(paths, stats, strict=True)), removed, len(bad_files))


def _acknowledged(
    index: Index,
    encoder: Encoder,
    records: Records,
    items_of: Callable[[IntArray], list[Item]],
    bad_files: BadFiles,
    batch_size: int,
    precision: Precision,
    show: bool,
) -> Iterator[list[Item]]:
    """Embed the records and yield the items of each batch once it is durable."""
    if isinstance(index, PatchIndex):
        short_px = index.header.short_px
        for rows, patches in patch_stream(encoder, records, bad_files, short_px=short_px, precision=precision, show=show, what="indexing"):
            items = items_of(rows)
            index.upsert_patches(items, patches)
            yield items
        return
    for rows, vectors in _embedded(encoder, records, bad_files, batch_size, precision, show):
        items = items_of(rows)
        index.upsert(items, vectors)
        yield items


def _embedded(
    encoder: Encoder, records: Records, bad_files: BadFiles, batch_size: int, precision: Precision, show: bool
) -> Iterator[tuple[IntArray, FloatArray]]:
    try:
        yield from embed_stream(encoder, records, bad_files, batch_size=batch_size, precision=precision, show=show, what="indexing")
    except DataError:
        if len(bad_files) < len(records):  # all of the *new* files are bad: the index keeps what it has
            raise


def _is_text(path: str, bad_files: BadFiles) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        bad_files.add(path, "name not UTF-8: an index keeps paths as text; rename the file")
        return False
    return True


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None  # decoding will name the reason
    return found.st_size, found.st_mtime_ns


def _gone(known: Mapping[str, object], paths: Sequence[str], root: Path, bad_files: BadFiles) -> list[str]:
    below = str(root.absolute()).rstrip("/") + "/"
    # A folder that could not be listed just now (permissions, a share that is away) has not lost its images.
    unlisted = tuple(str(Path(path).absolute()) + "/" for path, _ in bad_files.items() if Path(path).is_dir())
    return sorted(path for path in known.keys() - set(paths) if path.startswith(below) and not path.startswith(unlisted))


def facts(records: Records, row: int) -> dict[str, Value]:
    """Return what an index keeps of a row beside its path and box: label, split, camera, caption, and a manifest's other columns."""
    metadata: dict[str, Value] = {name: values[row] for name, values in records.extras.items() if values[row] is not None}
    if records.labels is not None:
        metadata["label"] = records.class_names[records.labels[row]]
    if records.splits is not None:
        metadata["split"] = records.splits[row]
    if records.cameras is not None:
        metadata["camera"] = _camera(records.camera_names[records.cameras[row]])
    if records.captions is not None:
        metadata["caption"] = records.captions[row]
    return metadata


def _camera(name: str) -> Value:
    is_number = name.isascii() and name.isdigit() and str(int(name)) == name and len(name) < MAX_DIGITS  # 007 is a name, 7 is a number
    return int(name) if is_number else name


def _item(records: Records, row: int, path: str, stat: tuple[int, int] | None) -> Item:
    size_bytes, mtime_ns = stat if stat is not None else (None, None)
    return Item(path=path, metadata=facts(records, row), size_bytes=size_bytes, mtime_ns=mtime_ns)


def search(
    index: Index,
    encoder: Encoder,
    pictures: Sequence[Picture],
    k: int,
    *,
    where: str | None = None,
    exact: bool = False,
    precision: Precision = "auto",
    reranker: Reranker | None = None,
    num_reranked: int = RERANKED,
) -> list[Hits]:
    """Return the ``k`` closest items of each picture, closest first.

    A ``reranker`` orders the ``num_reranked`` closest anew, each picture's on their own, before the first ``k`` answer; a hit's
    similarity stays the cosine.

    Raises:
        DataError: a picture cannot be decoded.
        UsageError: the filter ``where`` cannot be read.
    """
    queries = encoder.embed(pictures, precision=precision)
    if reranker is None:
        return index.hits(index.search(queries, k, where=where, exact=exact))
    found = index.search(queries, max(k, num_reranked), where=where, exact=exact)
    return index.hits(rerank_found(index, queries, found, reranker, k))


def rerank_found(index: Index, queries: FloatArray, found: Ranking, reranker: Reranker, k: int) -> Ranking:
    """Return the first ``k`` ids of each query once what was found for it is re-ranked as a gallery of its own, with their cosines.

    One query does not change what another is answered. Items that were removed since the search are left out.
    """
    ids = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    for query in range(len(queries)):
        present, vectors = index.vectors(found.rows[query][found.rows[query] >= 0])
        kept = np.isin(found.rows[query], present)
        candidates, similarity = found.rows[query][kept], found.similarity[query][kept]
        gallery = vectors[np.searchsorted(present, candidates)]
        ranking = Ranking(np.arange(len(candidates))[None], similarity[None])
        first = reranker(ranking, queries[query : query + 1], gallery).rows[0, :k]
        ids[query, : len(first)], cosines[query, : len(first)] = candidates[first], similarity[first]
    return Ranking(ids, cosines)
