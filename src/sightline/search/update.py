"""Bringing an index up to date with a folder or manifest: what is new is embedded, what moved is found again, only what is gone goes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sightline.contracts import Box, FloatArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.index.base import Index
from sightline.index.items import BEFORE, Brought, Item, Key, Known, Source, real_path
from sightline.index.patches import PatchIndex
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.search.embed import BATCH_SIZE, embed_stream
from sightline.search.former import mark_of, same_content, settle
from sightline.search.listing import Listed, Listing, facts, unused_columns
from sightline.search.patches import patch_stream
from sightline.search.presence import is_away
from sightline.search.told import Told


@dataclass(frozen=True)
class Update:
    """What bringing an index up to date did, in items (pictures, or boxes of them): each item of the source is in one of the counts.

    ``changed`` were embedded again, or (``rewritten`` of them) only what is said of them was written. ``moved`` were found by their
    content under another path. ``unreadable`` are known, cannot be read now and stay as they were. ``bad`` are files. ``notes`` are
    lines for the person; ``kept`` are ids of items that the source no longer shows but that are not gone from the disk for sure.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    bad: int = 0
    moved: int = 0
    unreadable: int = 0
    rewritten: int = 0
    notes: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()


def update_index(
    index: Index,
    encoder: Encoder,
    records: Records,
    bad_files: BadFiles,
    *,
    source: Path | None = None,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "auto",
    prune: bool = True,
    show: bool = True,
) -> Update:
    """Embed what is new or has changed, and take out what has gone.

    In an index of patches these are what is embedded. Every batch is acknowledged, durable, before the next one is embedded: stopped at any
    moment, the next call goes on where it was. An item is unchanged when its file's size and modification time are, and what its row says:
    where only the latter has changed it is written without embedding, and another box is embedded.
    ``source`` is the folder or manifest that the records came from (``records.root`` where None). ``prune`` removes the items that it
    brought before and whose files are gone; what lies below a link, mount or folder that cannot be seen now stays, and so does what
    another source brought.

    Raises:
        DataError: the index would stay empty because not one file could be read.
    """
    listing = Listing(source or records.root, records, bad_files)
    doubles = settle(index, listing)
    plan = _Plan(index, listing, bad_files)
    moved = _move(index, listing, plan)
    gone, kept, replaced = plan.left() if prune else ([], [], plan.left()[2])
    if gone:
        index.remove(ids=gone)
    plan.let_go()
    wanted = [listed for listed in plan.embed if listed.key not in moved]
    yielded: dict[Key, int] = {}
    for ids, keys in _acknowledged(index, encoder, plan, wanted, bad_files, batch_size, precision, show):
        yielded |= dict(zip(keys, ids.tolist(), strict=True))
    if replaced:
        index.remove(ids=replaced)
    if index.count() == 0:
        raise DataError(f"none of the {len(records):,} files in '{records.root}' could be read as an image: {_reasons(bad_files)}")
    _claim(index, listing, plan, yielded, {*gone, *replaced})
    index.seal()
    return _told(index, listing, plan, moved, yielded, gone, kept, replaced, doubles, bad_files)


@dataclass
class _Plan:
    """What is to be done with each row, and with each item that no row names."""

    index: Index
    listing: Listing
    bad_files: BadFiles
    known: dict[Key, Known] = field(init=False)
    sources: list[Source] = field(init=False)
    told: Told = field(init=False)
    unchanged: int = 0
    rewrite: dict[int, Item] = field(default_factory=dict)
    changed_rows: int = 0
    embed: list[Listed] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known, self.sources = self.index.known(), self.index.sources()
        self.told = Told(self.sources, self.listing.place)
        self.unlisted = tuple(real_path(path) + "/" for path, _ in self.bad_files.items() if os.path.isdir(path))
        for listed in self.listing.by_key.values():
            have = self.known.get(listed.key)
            if have is None or listed.state is None or not self._is_same_file(listed, have):
                self.embed.append(listed)
                continue
            item = self.item(listed, have)
            same = item.digest == have.digest
            self.unchanged += same
            self.changed_rows += not same
            if not same or have.mtime_ns != listed.state.mtime_ns:
                self.rewrite[have.id] = item
        if self.rewrite:
            self.index.update(list(self.rewrite), list(self.rewrite.values()))

    def item(self, listed: Listed, have: Known | None, *, hashed: bool = False, moved: bool = False) -> Item:
        """Return the item of a row with what all its sources and Python say of it; ``hashed`` reads the file for its hash.

        Where it has ``moved``, what others said was said of another path.
        """
        sha256 = self.listing.sha256(listed.key[0]) if hashed else None if have is None else have.content_sha256
        own = facts(self.listing.records, listed.row)
        if have is None:
            return self.listing.item(listed, own, sha256=sha256)
        item = self.listing.item(listed, own if moved else self.told.merged(have.id, own), sha256=sha256)
        if item.digest == have.digest:
            return item
        metadata = {**self.told.kept(have.id, self.index.get(have.id).metadata), **item.metadata}
        return self.listing.item(listed, metadata, sha256=sha256)

    def _is_same_file(self, listed: Listed, have: Known) -> bool:
        assert listed.state is not None
        if have.size_bytes != listed.state.size_bytes:
            return False
        if have.mtime_ns == listed.state.mtime_ns:
            return True
        return have.content_sha256 is not None and have.content_sha256 == self.listing.sha256(listed.key[0])  # touched, or copied back

    def left(self) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of items to take out now, of items that are kept though the source does not show them, and of replaced boxes."""
        gone: list[int] = []
        kept: list[int] = []
        replaced: list[int] = []
        mine = next((source.brought for source in self.sources if source.place == self.listing.place), {})
        elsewhere = {id for source in self.sources if source.place != self.listing.place for id in source.brought}
        for (path, box), have in self.known.items():
            listed = self.listing.by_key.get((path, box))
            if listed is not None and listed.state is not None:
                continue
            how = mine.get(have.id)
            if how is None:
                continue
            if listed is None and path in self.listing.paths and have.id not in elsewhere:
                replaced.append(have.id)
            elif not os.path.lexists(path) and not self._is_away(path, how):
                gone.append(have.id)
            elif listed is None and have.id in elsewhere:
                self.dropped.append(have.id)
            elif listed is None:
                kept.append(have.id)
        return gone, kept, replaced

    def let_go(self) -> None:
        """Take back what this source said of items that it no longer names and another one does."""
        if self.dropped:
            items = [self.index.get(id) for id in self.dropped]
            told = [{**self.told.kept(id, item.metadata), **self.told.merged(id, {})} for id, item in zip(self.dropped, items, strict=True)]
            self.index.update(self.dropped, [replace(item, metadata=one) for item, one in zip(items, told, strict=True)])
            self.index.disclaim(self.dropped, self.listing.place)

    def _is_away(self, path: str, how: Brought) -> bool:
        spelled = os.path.join(self.listing.root, how.name)
        return path.startswith(self.unlisted) or spelled.startswith(self.unlisted) or is_away(self.listing.root, path, how)


# --- what is known under other names ----------------------------------------------------------------------------------------------


def _move(index: Index, listing: Listing, plan: _Plan) -> dict[Key, str]:
    """Give items whose file is gone the path where a new row has the same content, and return the former path of each new key."""
    new = [listed for listed in plan.embed if listed.key not in plan.known and listed.state is not None]
    sizes = {listed.state.size_bytes for listed in new if listed.state is not None}
    lost: dict[tuple[int, Box | None], list[tuple[str, Known]]] = defaultdict(list)
    for (path, box), have in plan.known.items():
        if have.size_bytes in sizes and not os.path.lexists(path):
            lost[have.size_bytes, box].append((path, have))
    if not lost:
        return {}
    marks = Counter(mark_of(*listed.key, listed.state.size_bytes, listed.state.mtime_ns) for listed in new if listed.state is not None)
    moved: dict[Key, str] = {}
    items: dict[int, Item] = {}
    for listed in new:
        assert listed.state is not None
        candidates = lost[listed.state.size_bytes, listed.key[1]]
        found = same_content(listing, listed, candidates, marks)
        if found is not None:
            candidates.remove(found)
            moved[listed.key], items[found[1].id] = found[0], plan.item(listed, found[1], hashed=True, moved=True)
    if items:
        index.update(list(items), list(items.values()))
        index.disclaim(list(items))
        for key, (id, item) in zip(moved, items.items(), strict=True):
            former = plan.known.pop((moved[key], key[1]))
            plan.known[key] = Known(id, item.size_bytes, item.mtime_ns, item.content_sha256, former.digest)
    return moved


def _claim(index: Index, listing: Listing, plan: _Plan, yielded: dict[Key, int], removed: set[int]) -> None:
    known = {key: have.id for key, have in plan.known.items() if have.id not in removed} | yielded
    mine = next((source.brought for source in plan.sources if source.place == listing.place), {})
    claimed: dict[int, Brought] = {}
    for key, listed in listing.by_key.items():
        if key in known:
            id, how = known[key], listing.brought(listed)
            if listed.state is None and id in mine:  # where it lies now cannot be told
                how = replace(how, own_device=mine[id].own_device)
            if mine.get(id) != how:
                claimed[id] = how
    if claimed:
        index.claim(listing.place, listing.root, claimed)


# --- embedding --------------------------------------------------------------------------------------------------------------------


def _acknowledged(
    index: Index,
    encoder: Encoder,
    plan: _Plan,
    wanted: Sequence[Listed],
    bad_files: BadFiles,
    batch_size: int,
    precision: Precision,
    show: bool,
) -> Iterator[tuple[IntArray, list[Key]]]:
    """Embed rows and yield the ids and keys of each batch once it is durable."""
    if not wanted:
        return
    chosen = plan.listing.records.select(np.array([listed.row for listed in wanted], dtype=np.int64))
    if isinstance(index, PatchIndex):
        short_px = index.header.short_px
        for rows, patches in patch_stream(encoder, chosen, bad_files, short_px=short_px, precision=precision, show=show, what="indexing"):
            items = [plan.item(wanted[row], plan.known.get(wanted[row].key), hashed=True) for row in rows]
            yield index.upsert_patches(items, patches), [item.key for item in items]
        return
    for rows, vectors in _embedded(encoder, chosen, bad_files, batch_size, precision, show):
        items = [plan.item(wanted[row], plan.known.get(wanted[row].key), hashed=True) for row in rows]
        yield index.upsert(items, vectors), [item.key for item in items]


def _embedded(
    encoder: Encoder, records: Records, bad_files: BadFiles, batch_size: int, precision: Precision, show: bool
) -> Iterator[tuple[IntArray, FloatArray]]:
    num_yielded = 0
    try:
        for batch in embed_stream(encoder, records, bad_files, batch_size=batch_size, precision=precision, show=show, what="indexing"):
            num_yielded += 1
            yield batch
    except DataError:
        if num_yielded:  # without one, all of the *new* files are bad: the index keeps what it has
            raise


# --- telling ----------------------------------------------------------------------------------------------------------------------


def _told(
    index: Index,
    listing: Listing,
    plan: _Plan,
    moved: dict[Key, str],
    yielded: dict[Key, int],
    gone: list[int],
    kept: list[int],
    replaced: list[int],
    doubles: int,
    bad_files: BadFiles,
) -> Update:
    again = sum(key in plan.known for key in yielded)
    # A box that took the place of another one of its picture is a change of it.
    key_of = {have.id: key for key, have in plan.known.items()}
    fresh = Counter(path for path, box in yielded if (path, box) not in plan.known)
    swapped = sum(min(num, fresh[path]) for path, num in Counter(key_of[id][0] for id in replaced).items())
    unread = [listed for listed in plan.embed if listed.key in plan.known and listed.key not in yielded and listed.key not in moved]
    notes = [*unused_columns(listing.records)]
    if listing.twice:
        notes.append(f"{listing.twice:,} rows name a picture and box that another row names too, by a link or again: each is one item")
    if doubles:
        notes.append(f"{doubles:,} items were pictures that the index had under another path too: taken out")
    if moved:
        key, former = next(iter(moved.items()))
        notes.append(f"{len(moved):,} files have moved, such as {former} to {key[0]}: known by their content, not embedded again")
    if kept:
        notes.append(
            f"{len(kept):,} items are no longer to be seen from '{listing.place}', such as {key_of[kept[0]][0]}, but not surely gone from the "
            "disk (a link, mount or share may be away): kept; --prune takes them out"
        )
    notes += _lost_sources(index, listing)
    return Update(
        added=len(yielded) - again - swapped,
        changed=again + swapped + plan.changed_rows,
        unchanged=plan.unchanged,
        removed=len(gone) + len(replaced) - swapped + doubles,
        bad=len(bad_files),
        moved=len(moved),
        unreadable=sum(plan.known[listed.key].id not in set(gone) for listed in unread),
        rewritten=plan.changed_rows,
        notes=tuple(notes),
        kept=tuple(kept),
    )


def _lost_sources(index: Index, listing: Listing) -> list[str]:
    """Return a line for each other source that is not there now and whose pictures are not either."""
    lost = [source for source in index.sources() if source.place != listing.place and not (source.place and os.path.exists(source.place))]
    path_of = {have.id: path for (path, _), have in index.known().items()} if lost else {}
    lines = []
    for source in lost:
        missing = [path_of[id] for id in source.brought if not os.path.lexists(path_of[id])]
        if missing:
            where = (
                f" came from '{source.place}', which is not there now: they"
                if source.place != BEFORE
                else " have files that are not there now:"
            )
            lines.append(f"{len(missing):,} items{where} stay ({missing[0]}); index the place they moved to, or take them out with --prune")
    return lines


def _reasons(bad_files: BadFiles) -> str:
    """Return why nothing could be read; no file of reasons is written where there is no index to write it into."""
    items = bad_files.items()
    kinds = Counter(reason.partition(":")[0] for _, reason in items)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"{shown}; such as {items[0][0]}: {items[0][1]}" if items else "nothing is there any more"
