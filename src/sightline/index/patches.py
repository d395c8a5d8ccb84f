"""The embedded engine for patches: an item is a picture and has one vector for each cell of its grid.

It is the local engine with one change: a row's number is its item's id with 16 bits behind it that count the item's patches. So the log,
the segments, their search structures, filters and what happens after a kill are those of every index. Segments hold float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.contracts import FloatArray, IntArray, PatchFeatures, Ranking
from sightline.errors import IndexStoreError
from sightline.index.base import IndexInfo, as_vectors, check_vectors
from sightline.index.filters import Filter
from sightline.index.header import Header
from sightline.index.items import Item, check_items, settled
from sightline.index.local import MAX_K, LocalIndex
from sightline.index.segments import FLOAT16, concat_ranges
from sightline.index.store import Store, explained
from sightline.index.writer import Limits, bury

PLACE_BITS = 16
MAX_PATCHES = 1 << PLACE_BITS
PICTURES_AT_ONCE = 16
"""Grids that ``patches`` copies out at a time: 5 MiB of 196 patches 384 wide."""

SCHEMA = """
CREATE TABLE grids(
    item INTEGER PRIMARY KEY, rows INTEGER NOT NULL, columns INTEGER NOT NULL,
    left REAL NOT NULL, top REAL NOT NULL, right REAL NOT NULL, bottom REAL NOT NULL);
"""


class PatchStore(Store):
    """The store of an index of patches: for each item its grid, and a row for each cell."""

    bits = PLACE_BITS

    def put_grids(self, ids: IntArray, patches: Sequence[PatchFeatures]) -> None:
        """Set the grids of items (inside ``writing``)."""
        rows = ((id, *one.grid, *one.frame) for id, one in zip(ids.tolist(), patches, strict=True))
        self.connection.executemany("INSERT OR REPLACE INTO grids VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def grids(self) -> dict[int, tuple[int, int, float, float, float, float]]:
        """Return ``id -> (rows, columns, left, top, right, bottom)`` of every item."""
        return {id: tuple(rest) for id, *rest in self.rows("SELECT * FROM grids")}

    def grid(self, id: int) -> tuple[int, int, float, float, float, float] | None:
        """Return (rows, columns, left, top, right, bottom) of an item, None where there is none."""
        found = self.rows("SELECT rows, columns, left, top, right, bottom FROM grids WHERE item = ?", [id])
        return tuple(found[0]) if found else None

    def drop_items(self, ids: IntArray) -> None:
        """Delete items with their facts, log rows and grids (inside ``writing``)."""
        super().drop_items(ids)
        self.connection.executemany("DELETE FROM grids WHERE item = ?", ((id,) for id in ids.tolist()))


class PatchIndex(LocalIndex):
    """Pictures by id and path, each with the vectors of its patches, rounded to float16.

    What the contract says of an item's vector holds of the unit-length mean of its patches, but for ``search``: it finds the items that
    have the patch closest to a vector. ``upsert`` takes a vector as a picture of one patch.
    """

    STORE = PatchStore
    DTYPE = FLOAT16
    # Lists of binary codes from the start: a graph over 39,000 patches took 51 s to weave on a busy machine, and eight times the memory.
    LIMITS = Limits(ann_rows=50_000, ivf_rows=50_000)

    @classmethod
    def lay_out(cls, folder: Path, header: Header) -> None:
        """Put an empty store with a table of grids into ``folder``."""
        super().lay_out(folder, header)
        store = Store(folder, read_only=False)
        try:
            with explained("creating the index"):
                store.connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        finally:
            store.close()

    def upsert(self, items: Sequence[Item], vectors: FloatArray) -> IntArray:
        """See ``Index.upsert``: each vector is the one patch of a picture of unknown size."""
        vectors = np.ascontiguousarray(vectors)
        check_items(items)
        vectors = as_vectors(vectors, self.header.dim)
        if len(items) != len(vectors):
            raise IndexStoreError(f"{len(items)} items came with {len(vectors)} vectors: each item needs one")
        return self.upsert_patches(items, [PatchFeatures(vector[None], (1, 1), (0.0, 0.0, 1.0, 1.0)) for vector in vectors])

    def upsert_patches(self, items: Sequence[Item], patches: Sequence[PatchFeatures]) -> IntArray:
        """Add ``items`` with their patches, or replace those whose path and box are known, and return their ids ``[M]``; durable on return.

        Raises:
            IndexStoreError: the patches do not fit the index, or it is open for reading only.
            DiskFullError: no space is left; everything acknowledged before is intact.
        """
        check_items(items)
        if len(items) != len(patches):
            raise IndexStoreError(f"{len(items)} items came with the patches of {len(patches)} pictures: each item needs those of one")
        for one in patches:
            check_vectors(one.vectors, self.header.dim)
            if len(one) > MAX_PATCHES:
                raise IndexStoreError(f"a picture has {len(one):,} patches and an index takes {MAX_PATCHES:,}: make short_px smaller")
        items = [settled(item) for item in items]
        last = {item.key: place for place, item in enumerate(items)}
        places = list(last.values())
        with self._writing:
            store, segments = self._writable(), self._current(with_log=False).segments
            assert isinstance(store, PatchStore)
            with store.writing("adding to the index"):
                ids = store.put_items([items[place] for place in places])
                bury(store, segments, np.sort(ids))
                store.drop_vectors(ids)
                kept = [patches[place] for place in places]
                store.put_grids(ids, kept)
                if kept:
                    rows = concat_ranges(ids << PLACE_BITS, np.array([len(one) for one in kept]))
                    # Rounded here, so that a vector is the same in the log and in a segment.
                    store.put_vectors(rows, np.concatenate([one.vectors for one in kept]).astype(np.float16).astype(np.float32))
            self._keep_up(store)
        id_of = dict(zip(last, ids.tolist(), strict=True))
        return np.array([id_of[item.key] for item in items], dtype=np.int64)

    def patches(self, ids: Sequence[int] | IntArray) -> Iterator[tuple[int, PatchFeatures]]:
        """Yield (id, its patches) of those of ``ids`` that exist, ascending and once each."""
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        now = self._current(with_log=True)
        for start in range(0, len(wanted), PICTURES_AT_ONCE):
            part = wanted[start : start + PICTURES_AT_ONCE].tolist()
            with self._read() as reader:
                assert isinstance(reader, PatchStore)
                grids = {id: grid for id in part if (grid := reader.grid(id)) is not None}
            nums = np.array([grid[0] * grid[1] for grid in grids.values()], dtype=np.int64)
            found, vectors = now.vectors(concat_ranges(np.array(list(grids), dtype=np.int64) << PLACE_BITS, nums))
            for id, grid in grids.items():
                first, end = np.searchsorted(found, [id << PLACE_BITS, (id + 1) << PLACE_BITS])
                if end - first == grid[0] * grid[1]:  # it may have been replaced or removed since ``now``
                    yield id, PatchFeatures(vectors[first:end], (grid[0], grid[1]), grid[2:])

    def vectors(self, ids: Sequence[int] | IntArray) -> tuple[IntArray, FloatArray]:
        """See ``Index.vectors``: the unit-length mean of each item's patches."""
        found: list[int] = []
        means: list[FloatArray] = []
        for id, one in self.patches(ids):
            found.append(id)
            mean = one.vectors.mean(axis=0)
            means.append(one.vectors[0] if len(one) == 1 else mean / max(float(np.linalg.norm(mean)), 1e-12))
        return np.array(found, dtype=np.int64), np.stack(means) if means else np.empty((0, self.header.dim), np.float32)

    def search(self, vectors: FloatArray, k: int, *, where: str | Filter | None = None, exact: bool = False) -> Ranking:
        """See ``Index.search``: the ``k`` items that have the patch closest to each vector; the similarity is that patch's."""
        num = k
        while True:
            found = self.search_patches(vectors, num, where=where, exact=exact)
            ids, similarity = items_of(found, k)
            # Patches of one picture may take all the places of many: ask for more until there are k pictures, or no more patches.
            if num >= MAX_K or bool(np.all((ids >= 0).all(axis=1) | (found.rows < 0).any(axis=1))):
                return Ranking(ids, similarity, found.how)
            num = min(MAX_K, 4 * num)

    def search_patches(self, vectors: FloatArray, k: int, *, where: str | Filter | None = None, exact: bool = False) -> Ranking:
        """Return the ``k`` patches closest to each of ``vectors`` ``[Q, D]`` by row number: ``rows >> PLACE_BITS`` are the items' ids."""
        return super().search(vectors, k, where=where, exact=exact)

    def info(self) -> IndexInfo:
        """See ``Index.info``: ``rows`` are patches, ``items`` pictures."""
        return replace(super().info(), items=self.count())

    def verify(self) -> list[str]:
        """See ``Index.verify``: besides, every item has as many vectors as its grid has cells."""
        found = super().verify()
        if found:
            return found
        now = self._current(with_log=True)
        with self._read() as reader:
            assert isinstance(reader, PatchStore)
            grids = reader.grids()
        assert now.log is not None
        rows = np.concatenate([now.log.ids, *(segment.ids[segment.live] for segment in now.segments)])
        ids, nums = np.unique(rows >> PLACE_BITS, return_counts=True)
        wrong = sum(grids.get(id, (0, 0))[0] * grids.get(id, (0, 0))[1] != num for id, num in zip(ids.tolist(), nums.tolist(), strict=True))
        return [f"{wrong} items have another number of vectors than their grids have cells"] if wrong else []


def items_of(found: Ranking, k: int) -> tuple[IntArray, FloatArray]:
    """Return the first ``k`` items (ids ``[Q, K]``) of ranked patches and the similarity of each one's closest; pads are -1 and -inf."""
    ids = np.full((len(found.rows), k), -1, np.int64)
    similarity = np.full((len(found.rows), k), -np.inf, np.float32)
    for query, (rows, values) in enumerate(zip(found.rows, found.similarity, strict=True)):
        items, first = np.unique(rows[rows >= 0] >> PLACE_BITS, return_index=True)
        order = np.argsort(first)[:k]
        ids[query, : len(order)], similarity[query, : len(order)] = items[order], values[first[order]]
    return ids, similarity
