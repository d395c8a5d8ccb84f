"""The contract of an index: what every engine answers, in the same words, so that a server can take the place of a folder."""

from __future__ import annotations

import datetime
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from sightline import catalog, runtime
from sightline.contracts import UNIT_LENGTH_TOLERANCE, FloatArray, Hits, IntArray, Ranking
from sightline.errors import IndexStoreError, explain_os_error
from sightline.index.filters import Filter
from sightline.index.header import HEADER, Header, read_header, sync_folder, write_header
from sightline.index.items import Brought, Key, Known, Source
from sightline.index.items import Item as Item


@dataclass(frozen=True)
class SegmentInfo:
    """One sealed part: its rows, how it is searched, and the recall measured for it without a filter and, down to ``depth``, with one."""

    rows: int
    dead: int
    kind: str
    parameter: int | None
    recall_at_10: float
    calibrated: str | None
    recall_filtered: float | None = None
    depth: int | None = None


@dataclass(frozen=True)
class IndexInfo:
    """What an index says about itself: ``rows`` are vectors, ``items`` pictures; sizes in bytes; recall as of its segments."""

    path: str
    engine: str
    dim: int
    fingerprint: str
    model: str
    created: str
    rows: int
    items: int
    log_rows: int
    dead_rows: int
    bytes_on_disk: int
    recall_at_10: float
    recall_filtered: float | None = None
    segments: tuple[SegmentInfo, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Absent:
    """An equality of a filter that no item meets: ``told`` says so and what is near; ``spares`` where the filter keeps what is *not* equal."""

    told: str
    spares: bool


class Index(ABC):
    """Pictures by id and path, found by their descriptors and filtered by their metadata.

    What ``upsert`` and ``remove`` return from is durable. Vectors are float32 of unit length and ``header.dim`` wide.
    """

    header: Header
    path: Path

    @staticmethod
    def create(
        path: str | Path,
        *,
        dim: int,
        fingerprint: str,
        model: str = "",
        engine: str = "local",
        short_px: int = 0,
        deep: tuple[float, float] | None = None,
        **options: Any,
    ) -> Index:
        """Return a new, empty index open for writing; it appears at ``path`` whole or not at all.

        ``fingerprint`` names the model whose vectors it will take, ``model`` says where that model was found (where it is left out, the
        place that this process loaded it from);
        ``short_px`` is the size of the pictures whose patches it will take (engine ``patches``), ``deep`` what of deep greys is black and white;
        ``options`` are the engine's own.

        Raises:
            IndexStoreError: something is at ``path`` already.
            UsageError: there is no such engine.
        """
        kind = catalog.find("index_engines", engine)
        folder = Path(path)
        if dim < 1:
            raise IndexStoreError(f"an index of vectors {dim} wide cannot be made: dim must be 1 or more")
        if (folder / HEADER).exists():
            raise IndexStoreError(f"'{folder}' already holds an index: open it, or choose another folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise IndexStoreError(f"'{folder}' exists and is not an index: choose an empty or a new folder")
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        model = model or runtime.model_source(fingerprint)
        header = Header(dim=dim, fingerprint=fingerprint, engine=engine, model=model, created=created, short_px=short_px, deep=deep)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Made beside its place and renamed into it: killed halfway, nothing at `path` looks like an index.
            draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
            draft.mkdir()
            write_header(draft, header)
            kind.lay_out(draft, header)
            draft.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise explain_os_error(error, f"creating the index '{folder}'") from error
        return Index.open(folder, fingerprint=fingerprint, **options)

    @staticmethod
    def open(path: str | Path, *, fingerprint: str | None = None, read_only: bool = False, **options: Any) -> Index:
        """Return the index at ``path``; only one handle at a time may be open for writing, any number ``read_only``.

        Raises:
            IndexStoreError: no index is there, another program is writing to it, it was made by another version, or it holds the
                vectors of a model other than ``fingerprint``.
        """
        folder = Path(path)
        header = read_header(folder)
        if fingerprint is not None:
            header.require_model(folder, fingerprint)
        index: Index = catalog.find("index_engines", header.engine)(folder, header, read_only=read_only, **options)
        return index

    @classmethod
    @abstractmethod
    def lay_out(cls, folder: Path, header: Header) -> None:
        """Put into ``folder`` what an empty index of this engine needs, durably."""

    @abstractmethod
    def upsert(self, items: Sequence[Item], vectors: FloatArray) -> IntArray:
        """Add ``items`` with their ``vectors`` ``[M, D]``, or replace those whose path and box are known, and return their ids ``[M]``.

        An item keeps its id for life and no id is given twice. Of items with the same path and box the last counts.
        On return the batch is durable; on an error none of it is there.

        Raises:
            IndexStoreError: the vectors do not fit the index, or it is open for reading only.
            DiskFullError: no space is left; everything acknowledged before is intact.
        """

    @abstractmethod
    def update(self, ids: Sequence[int], items: Sequence[Item]) -> None:
        """Give the items with these ids another path, box, metadata and file facts; their vectors stay. Durable on return.

        Raises:
            IndexStoreError: there is no such id, another item has a path and box already, or the index is open for reading only.
        """

    @abstractmethod
    def remove(
        self, *, paths: Sequence[str] | None = None, ids: Sequence[int] | IntArray | None = None, where: str | Filter | None = None
    ) -> int:
        """Take out the items with these paths (all boxes of each), or ids, or that match a filter, and return how many there were; durable on return.

        Raises:
            UsageError: not exactly one of the three is given, or the filter cannot be read or compares what cannot be compared.
        """

    @abstractmethod
    def known(self) -> dict[Key, Known]:
        """Return what is known of every item by its path and box, for telling which have changed."""

    @abstractmethod
    def sources(self) -> list[Source]:
        """Return which folders and manifests brought which items; an item may have several sources or, from Python, none."""

    @abstractmethod
    def claim(self, place: str, root: str, brought: Mapping[int, Brought]) -> None:
        """Note that the source at ``place`` brought these items, by id, under names relative to ``root``. Durable on return."""

    @abstractmethod
    def disclaim(self, ids: Sequence[int], place: str | None = None) -> None:
        """Forget that the source at ``place`` (None: any) brought these items. Durable on return."""

    @abstractmethod
    def get(self, id: int) -> Item:
        """Return the item with this id.

        Raises:
            IndexStoreError: there is none.
        """

    @abstractmethod
    def vectors(self, ids: Sequence[int] | IntArray) -> tuple[IntArray, FloatArray]:
        """Return those of ``ids`` that exist, ascending and once each ``[M]``, and their vectors ``[M, D]``, bit for bit as they were given."""

    def vector(self, id: int) -> FloatArray:
        """Return the vector ``[D]`` of the item with this id.

        Raises:
            IndexStoreError: there is none.
        """
        found, vectors = self.vectors([id])
        if not len(found):
            raise IndexStoreError(f"the index has no item {id}: it may have been removed")
        vector: FloatArray = vectors[0]
        return vector

    @abstractmethod
    def ids(self, where: str | Filter | None = None) -> IntArray:
        """Return the ids of all items, or of those that match, ascending."""

    @abstractmethod
    def count(self, where: str | Filter | None = None) -> int:
        """Return the number of items, or of those that match."""

    @abstractmethod
    def absent(self, where: str | Filter) -> list[Absent]:
        """Return the equalities of a filter that no item meets, each value of a list on its own: what was misspelt is among them."""

    @abstractmethod
    def why_none(self, where: str | Filter) -> str:
        """Return one line on why a filter matches no item, with the values nearest to those it asks for."""

    @abstractmethod
    def search(self, vectors: FloatArray, k: int, *, where: str | Filter | None = None, exact: bool = False) -> Ranking:
        """Return the ``k`` items closest to each of ``vectors`` ``[Q, D]``, as ids; equal similarities put the lower id first.

        ``similarity`` is the exact float32 dot product (cosine, -1 to 1). Which items are found is approximate in large segments
        (see ``info``) unless ``exact``: see ``how``. ``k`` come back wherever ``k`` match.

        Raises:
            IndexStoreError: the vectors do not fit the index, or a file of it is damaged.
            UsageError: the filter cannot be read, asks for a key that no item has, or compares one with a value of a kind that no
                item has there.
        """

    @abstractmethod
    def hits(self, ranking: Ranking) -> list[Hits]:
        """Return the answers with their paths and metadata; padding, and items removed since the search, are left out."""

    @abstractmethod
    def seal(self) -> None:
        """Move acknowledged rows into their long-term form and bring the search structures up to date."""

    @abstractmethod
    def compact(self) -> None:
        """Drop what is deleted, merge the parts and give the space back."""

    @abstractmethod
    def info(self) -> IndexInfo:
        """Return what the index knows about itself."""

    @abstractmethod
    def verify(self) -> list[str]:
        """Read everything, check it, and return the problems found, one line each; none means sound."""

    @abstractmethod
    def repair(self) -> int:
        """Forget the items whose vectors are lost, rebuild what is derived, and return how many items went."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; closing twice does no harm."""

    def __len__(self) -> int:
        """Return the number of items."""
        return self.count()

    def __bool__(self) -> bool:
        """Return True: an empty index is an index."""
        return True

    def __repr__(self) -> str:
        """Return one line: where it is, what it holds, and whose vectors."""
        made_by = self.header.model or self.header.fingerprint[:12]
        return f"{type(self).__name__}('{self.path}', {self.header.engine}, {self.header.dim}-d, model {made_by})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def as_vectors(vectors: FloatArray, dim: int) -> FloatArray:
    """Return float32 vectors ``[M, dim]`` of unit length as one block of memory.

    Raises:
        IndexStoreError: they are anything else.
    """
    try:
        block = np.ascontiguousarray(vectors)
    except (ValueError, TypeError) as error:  # a list of rows of several lengths
        raise IndexStoreError(f"this index takes float32 vectors [M, {dim}], and no array can be made of these: {error}") from error
    check_vectors(block, dim)
    return block


def check_vectors(vectors: FloatArray, dim: int) -> None:
    """Pass float32 vectors ``[M, dim]`` of unit length.

    Raises:
        IndexStoreError: they are anything else.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32:
        remedy = "embed with the index's own model"
        if vectors.shape == (dim,):
            remedy = "one vector is [1, D]: numpy.asarray([vector], numpy.float32)"
        elif vectors.ndim == 2 and vectors.shape[1] == dim:
            remedy = "numpy.asarray(vectors, numpy.float32)"
        raise IndexStoreError(f"this index takes float32 vectors [M, {dim}], not {vectors.dtype} {list(vectors.shape)}: {remedy}")
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors, dtype=np.float64))
    if not np.abs(lengths - 1).max(initial=0) <= UNIT_LENGTH_TOLERANCE:  # written so that NaN fails too
        if not np.isfinite(lengths).all():
            raise IndexStoreError("a vector holds NaN or infinity: the model that made it is damaged, embed with another")
        raise IndexStoreError("a vector does not have unit length: normalise vectors before they are indexed or searched")
