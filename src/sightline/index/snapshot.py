"""What one generation of a local index looks like from inside a process, and how the next one is reached without starting over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.index.segments import DamagedError, Segment, open_segment
from sightline.index.store import Store

RETRIES = 5


@dataclass(frozen=True)
class Log:
    """The acknowledged vectors that are in no segment yet: ``ids`` ``[M]`` ascending, ``seqs``, ``vectors`` ``[M, D]``."""

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

    @property
    def num_rows(self) -> int:
        """The rows of its segments, dead ones too."""
        return sum(segment.row.rows for segment in self.segments)

    def vectors(self, ids: IntArray) -> tuple[IntArray, FloatArray]:
        """Return those of ``ids`` (ascending) that are here ``[M]``, ascending, and their vectors ``[M, D]``."""
        assert self.log is not None
        in_log = np.flatnonzero(np.isin(self.log.ids, ids, assume_unique=True))
        parts = [(self.log.ids[in_log], self.log.vectors[in_log])]
        for segment in self.segments:
            rows = segment.rows_of(ids)
            parts.append((segment.ids[rows], np.asarray(segment.vectors[rows], np.float32)))
        found = np.concatenate([part for part, _ in parts])
        order = np.argsort(found)
        return found[order], np.concatenate([part for _, part in parts])[order]


def refresh(store: Store, folder: Path, dim: int, before: Snapshot | None, *, with_log: bool) -> Snapshot:
    """Return the present snapshot, reusing what it shares with ``before`` (call inside ``store.reading``).

    Raises:
        DamagedError: a segment's file is missing or damaged; see ``current``.
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
    """Return the present snapshot.

    A writer may merge a segment away between the look at its name and at its file: then a newer generation is there to be read.

    Raises:
        DamagedError: a segment's file is missing or damaged.
    """
    for _ in range(RETRIES):
        with store.reading():
            tried = store.generation()
            try:
                return refresh(store, folder, dim, before, with_log=with_log)
            except DamagedError as error:
                failure = error
        with store.reading():
            if store.generation() == tried:
                break
    raise failure


def _without(live: BoolArray, dead_rows: IntArray) -> BoolArray:
    live = live.copy()
    live[dead_rows] = False
    return live


def _refresh_log(store: Store, dim: int, before: Log | None) -> Log:
    if before is None or not len(before.seqs):
        seqs, ids, vectors = store.log_rows(dim)
    else:
        kept = np.isin(before.seqs, store.log_seqs(), assume_unique=True)
        new_seqs, new_ids, new_vectors = store.log_rows(dim, after=int(before.seqs.max()))
        seqs, ids = np.concatenate([before.seqs[kept], new_seqs]), np.concatenate([before.ids[kept], new_ids])
        vectors = np.concatenate([before.vectors[kept], new_vectors])
    order = np.argsort(ids)
    return Log(seqs[order], ids[order], vectors[order])
