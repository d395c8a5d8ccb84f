"""Which folders and manifests brought which items, as the store of a local index keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sightline.index.items import Brought, Source
from sightline.index.schema import WITH_BOXES
from sightline.index.store import Store


def sources(store: Store) -> list[Source]:
    """Return the sources with what each brought (inside ``reading``)."""
    if store.version < WITH_BOXES:
        return []
    brought: dict[int, dict[int, Brought]] = {}
    for item, number, name, own_device, facts in store.rows("SELECT item, source, name, own_device, facts FROM brought"):
        brought.setdefault(number, {})[item] = Brought(name, bool(own_device), facts)
    found = store.rows("SELECT number, place, root FROM sources ORDER BY number")
    return [Source(place, root, brought.get(number, {})) for number, place, root in found]


def claim(store: Store, place: str, root: str, brought: Mapping[int, Brought]) -> None:
    """Note what a source brought (inside ``writing``)."""
    store.connection.execute(
        "INSERT INTO sources(place, root) VALUES (?, ?) ON CONFLICT(place) DO UPDATE SET root = excluded.root", [place, root]
    )
    number = store.rows("SELECT number FROM sources WHERE place = ?", [place])[0][0]
    rows = ((id, number, one.name, int(one.own_device), one.facts) for id, one in brought.items())
    store.connection.executemany("INSERT OR REPLACE INTO brought(item, source, name, own_device, facts) VALUES (?, ?, ?, ?, ?)", rows)


def disclaim(store: Store, ids: Sequence[int], place: str | None) -> None:
    """Forget that a source, or any, brought these items, and the sources that then brought none (inside ``writing``)."""
    of_place = "" if place is None else " AND source = (SELECT number FROM sources WHERE place = ?)"
    values = [json.dumps(list(ids)), *([] if place is None else [place])]
    store.connection.execute(f"DELETE FROM brought WHERE item IN (SELECT value FROM json_each(?)){of_place}", values)
    store.connection.execute("DELETE FROM sources WHERE number NOT IN (SELECT source FROM brought)")
