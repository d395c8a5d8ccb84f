"""What one generation of a local index looks like from inside a process, and how the next one is reached without starting over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.errors import IndexStoreError
from sightline.index.segments import Segment, damaged, open_segment
from sightline.index.store import Store

RETRIES = 5


@dataclass(frozen=True)
class Log:
    """The acknowledged vectors that are in no segment yet: ``seqs`` and ``ids`` ``[M]``, ``vectors`` ``[M, D]``."""

    seqs: IntArray
    ids: IntArray
    vectors: FloatArray


@dataclass(frozen=True)
class Snapshot:
    """One generation: its segments and its log (None until somebody searches). Never changed, so threads share it freely."""

    generation: int
    segments: tuple[Segment, ...]
    dead_seen: int
    log: Log | None = None

    def vector(self, id: int) -> FloatArray | None:
        """Return the vector ``[D]`` of an item, or None."""
        assert self.log is not None
        in_log = np.flatnonzero(self.log.ids == id)
        if len(in_log):
            return np.array(self.log.vectors[in_log[0]])
        for segment in self.segments:
            for row in segment.rows_of(np.array([id])):
                return np.array(segment.vectors[row])
        return None


def refresh(store: Store, folder: Path, dim: int, before: Snapshot | None, *, with_log: bool) -> Snapshot:
    """Return the present snapshot, reusing what it shares with ``before`` (call inside ``store.reading``).

    Raises:
        FileNotFoundError: a segment's file is gone; see ``current``.
        IndexStoreError: a segment's file is damaged.
    """
    generation = store.generation()
    if before is not None and before.generation == generation and (before.log is not None or not with_log):
        return before
    log = _refresh_log(store, dim, before.log if before else None) if with_log else None
    dead = store.dead(after=before.dead_seen if before else 0)
    dead_seen = int(dead[-1, 0]) if len(dead) else before.dead_seen if before else 0
    old = {segment.row.number: segment for segment in before.segments} if before else {}
    segments = []
    for row in store.segments():
        newly_dead = dead[dead[:, 1] == row.number, 2]
        known = old.get(row.number)
        if known is None:
            segments.append(open_segment(folder, row, dim, newly_dead))
        elif len(newly_dead) or known.row != row:
            segments.append(Segment(row, known.ids, known.vectors, _without(known.live, newly_dead), known.file))
        else:
            segments.append(known)
    return Snapshot(generation, tuple(segments), dead_seen, log)


def current(store: Store, folder: Path, dim: int, before: Snapshot | None, *, with_log: bool) -> Snapshot:
    """Return the present snapshot; a writer may merge a segment away between the look at its name and at its file."""
    for attempt in range(RETRIES):
        try:
            with store.reading():
                return refresh(store, folder, dim, before, with_log=with_log)
        except FileNotFoundError as error:
            if attempt == RETRIES - 1:
                raise damaged(Path(error.filename)) from error
        except IndexStoreError:
            if attempt == RETRIES - 1:
                raise
    raise AssertionError("unreachable")


def _without(live: BoolArray, dead_rows: IntArray) -> BoolArray:
    live = live.copy()
    live[dead_rows] = False
    return live


def _refresh_log(store: Store, dim: int, before: Log | None) -> Log:
    seqs = store.log_seqs()
    if before is None or not len(before.seqs):
        return Log(seqs, *store.log_rows(dim))
    kept = np.isin(before.seqs, seqs, assume_unique=True)
    ids, vectors = store.log_rows(dim, after=int(before.seqs[-1]))
    return Log(seqs, np.concatenate([before.ids[kept], ids]), np.concatenate([before.vectors[kept], vectors]))
