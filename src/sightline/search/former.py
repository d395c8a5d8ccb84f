"""What an index holds under a former name: items of before it kept real paths and sources, and files that have moved since."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sightline.contracts import Box
from sightline.index.base import Index
from sightline.index.items import BEFORE, Brought, Item, Known
from sightline.search.listing import Listed, Listing


def settle(index: Index, listing: Listing) -> int:
    """Bring what an index held before it kept real paths and sources under them, and return how many items were there twice.

    A folder takes over what lies below it, a manifest the pictures that it names.
    """
    before = next((source for source in index.sources() if source.place == BEFORE), None)
    if before is None:
        return 0
    known = index.known()
    key_of = {have.id: key for key, have in known.items()}
    doubles: list[int] = []
    moved: dict[int, Item] = {}
    taken: dict[int, Brought] = {}
    for id in sorted(before.brought):
        path, box = key_of[id]
        real = listing.spelling.file(path)
        if real != path and os.path.lexists(path):
            if (real, box) in known:
                doubles.append(id)
                continue
            known[real, box] = known.pop((path, box))
            moved[id] = replace(index.get(id), path=real)
        inside = real.startswith(listing.root.rstrip("/") + "/")
        if real in listing.paths or (inside and os.path.isdir(listing.place)):
            taken[id] = Brought(os.path.relpath(real, listing.root), facts=before.brought[id].facts)
    if moved:
        index.update(list(moved), list(moved.values()))
    if doubles:
        index.remove(ids=doubles)
    if taken:
        index.claim(listing.place, listing.root, taken)
        index.disclaim(list(taken), BEFORE)
    return len(doubles)


def same_content(
    listing: Listing, listed: Listed, candidates: Sequence[tuple[str, Known]], marks: Counter[tuple[object, ...]]
) -> tuple[str, Known] | None:
    """Return the one of ``candidates``, items whose files are gone, that has the content of a new row's file; ``marks`` count the new rows."""
    assert listed.state is not None
    name = os.path.basename(listed.key[0])
    hashed = [one for one in candidates if one[1].content_sha256 is not None and one[1].content_sha256 == listing.sha256(listed.key[0])]
    if hashed:
        return next((one for one in hashed if os.path.basename(one[0]) == name), hashed[0])
    # What an index held before it kept hashes is known again by name, size and time to the nanosecond, where only one file has these.
    mark = mark_of(*listed.key, listed.state.size_bytes, listed.state.mtime_ns)
    marked = [
        one
        for one in candidates
        if one[1].content_sha256 is None and mark_of(one[0], listed.key[1], one[1].size_bytes, one[1].mtime_ns) == mark
    ]
    return marked[0] if len(marked) == 1 and marks[mark] == 1 else None


def mark_of(path: str, box: Box | None, size_bytes: int | None, mtime_ns: int | None) -> tuple[object, ...]:
    """Return what a file is known again by where its content was not kept."""
    return os.path.basename(path), box, size_bytes, mtime_ns
