"""The embedded engine: an index is a folder, the truth is one SQLite file in it, everything fast is derived.

Layout: ``index.json`` (what never changes), ``index.db`` (items, metadata, fresh vectors), ``segments/NNNNNN.vectors.npy`` and
``.ids.npy`` (sealed, memory-mapped), ``segments/NNNNNN.faiss`` (derived), ``writer.lock``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.contracts import FloatArray, Hit, Hits, IntArray, Ranking
from sightline.errors import IndexStoreError, UsageError
from sightline.index import ann, filters, plan, sources, writer
from sightline.index import snapshot as snapshots
from sightline.index.base import Absent, Index, IndexInfo, as_vectors
from sightline.index.filters import Filter
from sightline.index.header import FORMAT, Header, sync_folder, write_header
from sightline.index.items import Brought, Item, Key, Known, Source, check_items, settled
from sightline.index.matching import absent, matching, why_none
from sightline.index.readers import Readers
from sightline.index.segments import FLOAT32, FOLDER, Segment, ann_file, describe, open_segment, problems
from sightline.index.snapshot import Snapshot
from sightline.index.store import SegmentRow, Store, create, explained
from sightline.index.writer import Limits, WriterLock

MAX_K = 10_000
FEWEST_REMEMBERED, REMEMBERED_BYTES = 16, 1 << 26
"""Filters whose rows are remembered: those asked last, so many of them or so much, a byte a row and few rows' vectors."""


class LocalIndex(Index):
    """An index in a folder of a local disk (SQLite's write-ahead log does not work over a network file system).

    Threads may share one: each reads by a connection of its own, writes wait for each other, searches wait for nobody.
    """

    STORE: type[Store] = Store
    DTYPE = FLOAT32
    LIMITS = Limits()

    def __init__(self, folder: Path, header: Header, *, read_only: bool = False, limits: Limits | None = None) -> None:
        self.path, self.header, self.limits = folder, header, limits or self.LIMITS
        self._reading, self._writing = threading.RLock(), threading.RLock()
        self._snapshot: Snapshot | None = None
        self._anns: dict[tuple[int, str], ann.Ann | None] = {}
        self._allowed: OrderedDict[str | None, plan.Allowed] = OrderedDict()
        self._store: Store | None = None
        with ExitStack() as stack:
            if not read_only:
                stack.enter_context(closing(WriterLock(folder)))
                if header.format != FORMAT:  # before the tables are: a Sightline of before must not write into new ones
                    self.header = replace(header, format=FORMAT)
                    with explained("bringing an index of before up to date"):
                        write_header(folder, self.header)
                self._store = stack.enter_context(closing(self.STORE(folder, read_only=False)))
                writer.sweep_litter(self._store, folder)
            self._readers = stack.enter_context(closing(Readers(lambda: self.STORE(folder, read_only=True))))
            self._open = stack.pop_all()

    @classmethod
    def lay_out(cls, folder: Path, header: Header) -> None:
        """Put an empty store into ``folder``."""
        (folder / FOLDER).mkdir()
        create(folder)
        sync_folder(folder)

    def close(self) -> None:
        """Let go of the lock, the store and the mapped files."""
        with self._writing, self._reading:
            self._open.close()
            self._snapshot = None
            self._anns.clear()
            self._allowed.clear()

    # --- writing --------------------------------------------------------------------------------------------------------------

    def upsert(self, items: Sequence[Item], vectors: FloatArray) -> IntArray:
        """See ``Index.upsert``."""
        check_items(items)
        vectors = as_vectors(vectors, self.header.dim)
        if len(items) != len(vectors):
            raise IndexStoreError(f"{len(items)} items came with {len(vectors)} vectors: each item needs one")
        items = [settled(item) for item in items]
        last = {item.key: place for place, item in enumerate(items)}
        places = list(last.values())
        with self._writing:
            store, segments = self._writable(), self._current(with_log=False).segments
            with store.writing("adding to the index"):
                ids = store.put_items([items[place] for place in places])
                writer.bury(store, segments, np.sort(ids))
                store.put_vectors(ids, vectors[places])
            self._keep_up(store)
        id_of = dict(zip(last, ids.tolist(), strict=True))
        return np.array([id_of[item.key] for item in items], dtype=np.int64)

    def update(self, ids: Sequence[int], items: Sequence[Item]) -> None:
        """See ``Index.update``."""
        with self._changing() as store:
            store.change_items(ids, items)

    def claim(self, place: str, root: str, brought: Mapping[int, Brought]) -> None:
        """See ``Index.claim``."""
        with self._changing() as store:
            sources.claim(store, place, root, brought)

    def disclaim(self, ids: Sequence[int], place: str | None = None) -> None:
        """See ``Index.disclaim``."""
        with self._changing() as store:
            sources.disclaim(store, ids, place)

    def remove(
        self, *, paths: Sequence[str] | None = None, ids: Sequence[int] | IntArray | None = None, where: str | Filter | None = None
    ) -> int:
        """See ``Index.remove``."""
        if sum(given is not None for given in (paths, ids, where)) != 1:
            raise UsageError("say what to remove in one way: by paths, by ids or by a filter")
        with self._writing:
            store, segments = self._writable(), self._current(with_log=False).segments
            with store.writing("removing from the index"):
                if paths is not None:
                    gone = store.ids_of_paths(paths)
                elif ids is not None:
                    gone = np.array(sorted(store.items(np.asarray(ids, dtype=np.int64))), dtype=np.int64)
                else:
                    gone = matching(store, _parsed(where))
                writer.bury(store, segments, gone)
                store.drop_items(gone)
            self._keep_up(store)
        return len(gone)

    def seal(self) -> None:
        """See ``Index.seal``: the log becomes a segment, small segments one, and large ones get a calibrated search structure."""
        with self._writing:
            store = self._writable()
            writer.seal_log(store, self.path, self.header.dim, self.DTYPE)
            self._merge(store, writer.to_merge(self._current(with_log=False).segments, self.limits))
            writer.index_segments(store, self.path, self._current(with_log=False), self.limits)
            store.give_back()

    def compact(self) -> None:
        """See ``Index.compact``: all segments become one, without dead rows."""
        with self._writing:
            store = self._writable()
            writer.seal_log(store, self.path, self.header.dim, self.DTYPE)
            segments = self._current(with_log=False).segments
            if len(segments) > 1 or any(segment.num_live < segment.row.rows for segment in segments):
                self._merge(store, list(segments))
            self.seal()

    def repair(self) -> int:
        """Forget the items whose vectors are damaged, build lost search structures again, and return how many items went.

        The next indexing run finds the forgotten files unknown and embeds them again.
        """
        with self._writing:
            store = self._writable()
            sound = [segment for row in store.segments() for segment, wrong in [self._checked(row)] if segment is not None and not wrong]
            with store.writing("repairing the index"):
                kept = [store.log_rows(self.header.dim)[1], *(segment.ids[segment.live] for segment in sound)]
                lost = np.setdiff1d(store.ids(None), np.concatenate(kept) >> store.bits)
                store.drop_items(lost)
                for row in store.segments():
                    if row not in [segment.row for segment in sound]:
                        store.drop_segment(row.number)
            self._snapshot = None
            writer.sweep_litter(store, self.path)
            self.seal()
        return len(lost)

    @contextmanager
    def _changing(self) -> Iterator[Store]:
        with self._writing:
            store = self._writable()
            with store.writing("updating the index"):
                yield store

    def _writable(self) -> Store:
        if self._store is None:
            raise IndexStoreError(f"'{self.path}' is open for reading only: open it without read_only to change it")
        return self._store

    def _merge(self, store: Store, group: list[Segment]) -> None:
        if group:
            writer.merge_segments(store, self.path, self.header.dim, group)

    def _keep_up(self, store: Store) -> None:
        if store.num_log_rows() >= self.limits.log_rows:
            writer.seal_log(store, self.path, self.header.dim, self.DTYPE)
        segments = self._current(with_log=False).segments
        unindexed = sum(segment.num_live for segment in segments if segment.row.ann_kind is None)
        dead, rows = sum(segment.row.rows - segment.num_live for segment in segments), sum(segment.row.rows for segment in segments)
        if unindexed >= self.limits.tidy_rows or dead > self.limits.dead_share * rows:
            self.seal()

    # --- reading --------------------------------------------------------------------------------------------------------------

    def known(self) -> dict[Key, Known]:
        """See ``Index.known``."""
        with self._read() as reader:
            return reader.known()

    def sources(self) -> list[Source]:
        """See ``Index.sources``."""
        with self._read() as reader:
            return sources.sources(reader)

    def get(self, id: int) -> Item:
        """See ``Index.get``."""
        with self._read() as reader:
            found = reader.items(np.array([id]))
        if id not in found:
            raise IndexStoreError(f"the index has no item {id}: it may have been removed")
        return found[id]

    def vectors(self, ids: Sequence[int] | IntArray) -> tuple[IntArray, FloatArray]:
        """See ``Index.vectors``."""
        return self._current(with_log=True).vectors(np.unique(np.asarray(ids, dtype=np.int64)))

    def ids(self, where: str | Filter | None = None) -> IntArray:
        """See ``Index.ids``."""
        with self._read() as reader:
            return matching(reader, _parsed(where))

    def count(self, where: str | Filter | None = None) -> int:
        """See ``Index.count``."""
        if where is not None:
            return len(self.ids(where))
        with self._read() as reader:
            return reader.num_items()

    def absent(self, where: str | Filter) -> list[Absent]:
        """See ``Index.absent``."""
        with self._read() as reader:
            return absent(reader, filters.parse(where) if isinstance(where, str) else where)

    def why_none(self, where: str | Filter) -> str:
        """See ``Index.why_none``."""
        with self._read() as reader:
            return why_none(reader, filters.parse(where) if isinstance(where, str) else where)

    def search(self, vectors: FloatArray, k: int, *, where: str | Filter | None = None, exact: bool = False) -> Ranking:
        """See ``Index.search``."""
        queries = as_vectors(vectors, self.header.dim)
        if not 1 <= k <= MAX_K:
            raise UsageError(f"{k} answers were asked for: ask for 1 to {MAX_K:,}")
        now, allowed = self._searchable(where)
        return plan.answer(now, allowed, queries, k, ann_of=self._ann_of, limits=self.limits, exact=exact)

    def hits(self, ranking: Ranking) -> list[Hits]:
        """See ``Index.hits``."""
        with self._read() as reader:
            items = reader.items(np.unique(ranking.rows))
        return [
            Hits(
                tuple(
                    Hit(id, items[id].path, value, items[id].metadata, items[id].box)
                    for id, value in zip(ids, similarity, strict=True)
                    if id in items
                ),
                how,
            )
            for ids, similarity, how in zip(
                ranking.rows.tolist(), ranking.similarity.tolist(), ranking.how or [""] * len(ranking.rows), strict=True
            )
        ]

    @contextmanager
    def _read(self, doing: str = "reading the index") -> Iterator[Store]:
        """Hold one generation of this thread's connection."""
        reader = self._readers.own()
        with reader.lock, reader.store.reading(doing):
            yield reader.store

    def _current(self, *, with_log: bool) -> Snapshot:
        reader = self._readers.own()
        with self._reading, reader.lock:
            before = self._snapshot
            with explained("reading the index"):
                version = reader.store.data_version()
            if before is not None and version == reader.version and (before.log is not None or not with_log):
                return before
            self._snapshot = now = snapshots.current(reader.store, self.path, self.header.dim, before, with_log=with_log)
            reader.version = version
            if before is None or before.generation != now.generation:
                self._allowed.clear()
                sealed = {(segment.row.number, segment.row.ann_sha256) for segment in now.segments}
                self._anns = {key: value for key, value in self._anns.items() if key in sealed}
            return now

    def _searchable(self, where: str | Filter | None) -> tuple[Snapshot, plan.Allowed]:
        name = where if where is None or isinstance(where, str) else repr(where)  # of equal filters 1 and true would be one
        with self._reading:
            now = self._current(with_log=True)
            if name in self._allowed:
                self._allowed.move_to_end(name)
                return now, self._allowed[name]
        # The filter is matched without the lock: it may take long, and other threads search meanwhile.
        parsed = _parsed(where)
        with self._read() as reader:
            chosen = None if where is None else matching(reader, parsed)
        allowed = plan.allow(now, chosen, self.STORE.bits)
        with self._reading:
            if self._snapshot is not None and self._snapshot.generation == now.generation:
                self._allowed[name] = allowed
                each_bytes = max(1, now.num_rows + plan.FEW_BYTES * len(now.segments))
                while len(self._allowed) > max(FEWEST_REMEMBERED, REMEMBERED_BYTES // each_bytes):
                    self._allowed.popitem(last=False)
        return now, allowed

    def _ann_of(self, segment: Segment) -> ann.Ann | None:
        row = segment.row
        if row.ann_kind is None or row.ann_sha256 is None:
            return None
        key = (row.number, row.ann_sha256)
        with self._reading:
            if key not in self._anns:
                with explained("loading a search structure"):
                    self._anns[key] = writer.load_ann(self.path, row)
            return self._anns[key]

    # --- about itself ---------------------------------------------------------------------------------------------------------

    def info(self) -> IndexInfo:
        """See ``Index.info``."""
        now = self._current(with_log=True)
        assert now.log is not None
        sound = {segment.row.number: writer.has_sound_ann(self.path, segment) for segment in now.segments}
        segments = tuple(describe(segment, sound[segment.row.number]) for segment in now.segments)
        rows = len(now.log.ids) + sum(segment.num_live for segment in now.segments)
        found = len(now.log.ids) + sum(about.recall_at_10 * (about.rows - about.dead) for about in segments)
        filtered = [about.recall_filtered for about in segments]
        unindexed = sum(about.rows >= self.limits.ann_rows and about.kind == "exact" for about in segments)
        notes = (
            [f"{unindexed} large segments have no sound search structure and are searched exactly, which is slower: seal the index"]
            if unindexed
            else []
        )
        if None in filtered:
            notes.append("recall with a filter was not measured when this index was made: sightline index with --images measures it")
        if segments and all(about.kind == "exact" for about in segments) and not unindexed:
            notes.append(f"small enough to be searched exactly (a search structure starts at {self.limits.ann_rows:,} rows)")
        head = self.header
        with explained("measuring the index"):
            bytes_on_disk = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return IndexInfo(
            path=str(self.path),
            engine=head.engine,
            dim=head.dim,
            fingerprint=head.fingerprint,
            model=head.model,
            created=head.created,
            rows=rows,
            items=rows,
            log_rows=len(now.log.ids),
            dead_rows=sum(about.dead for about in segments),
            bytes_on_disk=bytes_on_disk,
            recall_at_10=found / rows if rows else 1.0,
            recall_filtered=None if None in filtered else min((value for value in filtered if value is not None), default=1.0),
            segments=segments,
            notes=tuple(notes),
        )

    def verify(self) -> list[str]:
        """See ``Index.verify``: every byte is read, hashes are compared, and items are matched with their vectors."""
        with self._writing:
            with self._read("verifying the index") as reader:
                found = reader.problems(self.header.dim)
                rows = reader.segments()
            for row in rows:
                wrong = self._checked(row)[1]
                if wrong and self._is_published(row):  # another process may have merged it away meanwhile
                    found += wrong
            return found or self._unmatched()

    def _checked(self, row: SegmentRow) -> tuple[Segment | None, list[str]]:
        with self._read("verifying the index") as reader:
            dead = reader.dead()
        try:
            segment = open_segment(self.path, row, self.header.dim, dead[dead[:, 1] == row.number, 2])
            return segment, problems(self.path, segment)
        except (OSError, IndexStoreError) as error:
            return None, [str(error)]

    def _is_published(self, row: SegmentRow) -> bool:
        with self._read() as reader:
            return row.number in [published.number for published in reader.segments()]

    def _unmatched(self) -> list[str]:
        now = self._current(with_log=True)
        with self._read() as reader:
            is_of_now = reader.generation() == now.generation
            ids = reader.ids(None)
        if not is_of_now:
            return self._unmatched()
        assert now.log is not None
        located = np.concatenate([now.log.ids, *(segment.ids[segment.live] for segment in now.segments)])
        counts = {
            "items have more than one vector": len(located) - len(np.unique(located)),
            "items have no vector": len(np.setdiff1d(ids, located >> self.STORE.bits)),
            "vectors belong to no item": int((~np.isin(located >> self.STORE.bits, ids)).sum()),
        }
        found = [f"{num} {what}" for what, num in counts.items() if num]
        for segment in now.segments:
            if segment.row.ann_kind is not None and not writer.has_sound_ann(self.path, segment):
                found.append(
                    f"{ann_file(self.path, segment.row.number).name}: missing or not what was recorded; seal the index to build it again"
                )
        return found


def _parsed(where: str | Filter | None) -> Filter | None:
    return filters.parse(where) if isinstance(where, str) else where
