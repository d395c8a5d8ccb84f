"""The one writer of a local index: it holds the lock, and moves rows from the log into segments and out of dead ones.

Every move is: write new files, publish them in one transaction, delete the old files. Killed between any two of these, the index is
either as before or as after, and ``sweep`` removes the litter when the next writer opens.
"""

from __future__ import annotations

import datetime
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.errors import IndexStoreError
from sightline.index import ann
from sightline.index.ann import NO_DOUBT, Effort
from sightline.index.calibrate import calibrate
from sightline.index.segments import Segment, ann_file, sha256_of, sweep, write_segment
from sightline.index.snapshot import Snapshot
from sightline.index.store import SegmentRow, Store, explained

LOCK = "writer.lock"
MERGE_ROWS = 8_192

UNMEASURED_GROWTH, UNMEASURED_DEPTH = 1 / 16, 100
"""For an index made before filters were calibrated, until it is sealed again: twice what measured ones took, and not far down."""


@dataclass(frozen=True)
class Limits:
    """When rows change their form. The defaults suit vectors 200 to 1,000 wide; tests make them small."""

    log_rows: int = 20_000
    """The log becomes a segment here: every searching process holds the log in memory (30 MiB at 384 wide)."""
    ann_rows: int = 20_000
    """From here on a segment gets a search structure; below, exact search takes a few milliseconds."""
    ivf_rows: int = 3_000_000
    """From here on that structure is IVF-RaBitQ (an eighth of the memory) instead of a graph over bytes."""
    exact_rows: int = 5_000
    """A filter that leaves no more rows than this in a segment is answered exactly."""
    dead_share: float = 0.25
    """A segment with more dead rows than this is written anew."""
    tidy_rows: int = 200_000
    """So many rows outside any search structure start a ``seal`` by themselves."""
    walk_cost: float = 1.0
    """What a search structure costs beside a scan, in multiples of what was measured; 0 has it tried wherever it may answer."""


class WriterLock:
    """The right to write, held until ``close`` or the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        with explained(f"opening '{folder}' for writing"):
            self.file = (folder / LOCK).open("a")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise IndexStoreError(
                f"another program is writing to '{folder}': wait until it is done, or open the index read-only"
            ) from error

    def close(self) -> None:
        """Let the next writer in."""
        self.file.close()


def sweep_litter(store: Store, folder: Path) -> None:
    """Delete what a killed writer left in the folder of segments."""
    with explained("clearing up after the last writer"):
        sweep(folder, [row.number for row in store.segments()])


def seal_log(store: Store, folder: Path, dim: int, dtype: str) -> None:
    """Move the whole log into a new segment."""
    num_rows = store.num_log_rows()
    if num_rows:
        with explained("sealing the log"):
            made = write_segment(folder, store.next_segment(), dim, store.log_parts(dim), num_rows, dtype)
        with store.writing("sealing the log"):
            store.publish(made)
            store.clear_log()


def merge_segments(store: Store, folder: Path, dim: int, group: Sequence[Segment]) -> None:
    """Put the living rows of ``group`` into one new segment in its place; without any, the group just goes."""
    num_rows = sum(segment.num_live for segment in group)
    with explained("merging segments"):
        dtype = group[0].vectors.dtype.str
        made = write_segment(folder, store.next_segment(), dim, _merged(group), num_rows, dtype) if num_rows else None
    with store.writing("merging segments"):
        for segment in group:
            store.drop_segment(segment.row.number)
        if made is not None:
            store.publish(made)
    sweep_litter(store, folder)


def _merged(group: Sequence[Segment]) -> Iterator[tuple[IntArray, FloatArray]]:
    rows = [np.flatnonzero(segment.live) for segment in group]
    ids = np.concatenate([segment.ids[mine] for segment, mine in zip(group, rows, strict=True)])
    owner = np.repeat(np.arange(len(group)), [len(mine) for mine in rows])
    row = np.concatenate(rows)
    order = np.argsort(ids, kind="stable")
    for start in range(0, len(order), MERGE_ROWS):
        part = order[start : start + MERGE_ROWS]
        vectors = np.empty((len(part), group[0].vectors.shape[1]), dtype=np.float32)
        for number, segment in enumerate(group):
            mine = owner[part] == number
            vectors[mine] = segment.vectors[row[part[mine]]]
        yield ids[part], vectors


def to_merge(segments: Sequence[Segment], limits: Limits) -> list[Segment]:
    """Return the segments that belong together: those without a structure, those mostly dead, and indexed ones not larger than these.

    Sizes grow as in a binary counter, so a row is written and indexed again only about log2(rows / ``tidy_rows``) times.
    """
    group = [segment for segment in segments if segment.row.ann_kind is None or mostly_dead(segment, limits)]
    num_rows = sum(segment.num_live for segment in group)
    if num_rows >= limits.ann_rows:
        for segment in sorted((segment for segment in segments if segment not in group), key=lambda segment: segment.num_live):
            if segment.num_live <= num_rows:
                group.append(segment)
                num_rows += segment.num_live
    worth_it = len(group) > 1 or any(mostly_dead(segment, limits) for segment in group)
    return group if worth_it else []


def mostly_dead(segment: Segment, limits: Limits) -> bool:
    """Return True where so many rows are dead that the segment should be written anew."""
    return segment.row.rows - segment.num_live > limits.dead_share * segment.row.rows


def index_segments(store: Store, folder: Path, snapshot: Snapshot, limits: Limits) -> None:
    """Build and calibrate the search structure of every large segment that lacks it, or whose file is not what was recorded.

    A structure that was built before filters were calibrated is calibrated again.
    """
    for segment in snapshot.segments:
        sound = has_sound_ann(folder, segment)
        if segment.row.rows >= limits.ann_rows and not (sound and segment.row.depth is not None):
            with explained("building the search structure of a segment"):
                _index_segment(store, folder, segment, limits, load_ann(folder, segment.row) if sound else None)


def load_ann(folder: Path, row: SegmentRow) -> ann.Ann | None:
    """Return the search structure of a segment, None where there is none or its file is not what was recorded."""
    if row.ann_kind is None or row.ann_sha256 is None:
        return None
    growth, depth = (UNMEASURED_GROWTH, UNMEASURED_DEPTH) if row.depth is None else (row.growth or 0.0, row.depth)
    effort = Effort(row.parameter or 0, growth, depth, NO_DOUBT if row.doubt is None else row.doubt)
    return ann.load(ann_file(folder, row.number), row.ann_sha256, row.ann_kind, row.rows, effort)


def has_sound_ann(folder: Path, segment: Segment) -> bool:
    """Return True where the segment's structure is on disk as recorded."""
    file = ann_file(folder, segment.row.number)
    return segment.row.ann_sha256 is not None and file.is_file() and sha256_of(file) == segment.row.ann_sha256


def _index_segment(store: Store, folder: Path, segment: Segment, limits: Limits, kept: ann.Ann | None) -> None:
    built = kept or ann.build(ann.kind_for(segment.row.rows, limits.ivf_rows), segment.vectors)
    chosen = calibrate(built, segment.vectors, seed=segment.row.number)
    sha256 = segment.row.ann_sha256 if kept else ann.write(built, ann_file(folder, segment.row.number))
    row = replace(
        segment.row,
        ann_kind=built.kind,
        ann_sha256=sha256,
        parameter=chosen.effort.parameter,
        recall_at_10=chosen.recall_at_10,
        calibrated=datetime.datetime.now(datetime.UTC).date().isoformat(),
        growth=chosen.effort.growth,
        depth=chosen.effort.depth,
        doubt=None if chosen.effort.doubt == NO_DOUBT else chosen.effort.doubt,
        recall_filtered=chosen.recall_filtered,
    )
    with store.writing("publishing a search structure"):
        store.publish(row)


def bury(store: Store, segments: Sequence[Segment], ids: IntArray) -> None:
    """Mark all rows of these items (ascending) as dead, in every segment (inside ``writing``)."""
    for segment in segments:
        store.bury(segment.row.number, segment.rows_of(ids, store.bits))
