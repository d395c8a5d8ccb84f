"""What a filter can meet in an index: comparisons of the wrong kind are refused, and one that meets nothing is told beside what is near."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.contracts import IntArray
from sightline.errors import UsageError, nearest
from sightline.index.base import Absent
from sightline.index.filter_sql import NUMERIC_TEXT, counterpart
from sightline.index.filters import BUILT_IN, Below, Compare, Filter, In, Leaf, Value, leaves, show, show_leaf
from sightline.index.store import Store

SHOWN = 5_000
"""Distinct texts of a key among which the nearest are looked for: so many take half a second."""


def matching(store: Store, where: Filter | None) -> IntArray:
    """Return the ids of all items or of those that match, ascending.

    Raises:
        UsageError: the filter asks for a key that no item has, or compares one with a value of a kind that no item has there.
    """
    if where is not None:
        for leaf, _ in leaves(where):
            if isinstance(leaf, Compare | In) and leaf.key not in BUILT_IN:
                _check(store, leaf)
    return store.ids(where)


def _check(store: Store, leaf: Compare | In) -> None:
    key = leaf.key
    if not store.rows("SELECT 1 FROM facts WHERE key = ? LIMIT 1", [key]):
        others = [row[0] for row in store.rows("SELECT DISTINCT key FROM facts")]
        if others:  # an index without any metadata yet matches nothing, and that is no mistake
            raise UsageError(f"no item has the metadata '{key}' that the filter asks for{nearest(key, [*others, 'id', 'path'])}")
        return
    for value in leaf.values if isinstance(leaf, In) else (leaf.value,):
        if value is not None and not _has_kind(store, key, value):
            kind = "a text" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "a number"
            raise UsageError(
                f"no {key} in the index is {kind}, so none can be compared with {show(value)}{_near(store, Compare(key, '=', value))}"
            )


def _has_kind(store: Store, key: str, value: Value) -> bool:
    def is_there(condition: str) -> bool:
        return bool(store.rows(f"SELECT 1 FROM facts WHERE key = ? AND {condition} LIMIT 1", [key]))

    if counterpart(value) is not None and is_there("value < ''"):
        return True
    if isinstance(value, str):
        return is_there("value >= ''")
    if isinstance(value, bool):
        return is_there("value IN ('true', 'True', 'TRUE', 'false', 'False', 'FALSE')")
    return is_there(f"{NUMERIC_TEXT} AND as_number(value) IS NOT NULL")


def absent(store: Store, where: Filter) -> list[Absent]:
    """Return the equalities of a filter that no item meets, each value of a list on its own."""
    found = []
    for leaf, spared in leaves(where):
        for one in _equalities(leaf):
            if not len(store.ids(one)):
                spares = f", so {show_leaf(one, spared=True)} leaves nothing out" if spared else ""
                found.append(Absent(f"no item has {show_leaf(one)}{spares}{_near(store, one)}", spared))
    return found


def _equalities(leaf: Leaf) -> Iterator[Leaf]:
    if isinstance(leaf, In):
        yield from (Compare(leaf.key, "=", value) for value in leaf.values if value is not None)
    elif isinstance(leaf, Below) or (leaf.operator == "=" and leaf.value is not None):
        yield leaf


def why_none(store: Store, where: Filter) -> str:
    """Return one line on why a filter matches no item."""
    if not store.num_items():
        return "the index is empty"
    lacking = [one.told for one in absent(store, where) if not one.spares]
    for leaf, spared in leaves(where):
        if not spared and isinstance(leaf, Compare) and leaf.operator != "=" and not len(store.ids(leaf)):
            lacking.append(f"no item has {show_leaf(leaf)}{_near(store, leaf)}")
    return "; ".join(lacking) or "the comparisons match items one by one, but no item meets them together"


def _near(store: Store, leaf: Leaf) -> str:
    """Return "; ..." or ": ..." with the values nearest to those of a comparison that meets nothing."""
    if isinstance(leaf, Below) or leaf.key == "path":
        return _near_paths(store, leaf)
    if leaf.key == "id":
        first, last = store.rows("SELECT min(id), max(id) FROM items")[0]
        return f": ids go from {first} to {last}"
    assert isinstance(leaf, Compare)
    key, value = leaf.key, leaf.value
    number, condition = counterpart(value), "FROM facts WHERE key = ? AND value < ''"
    first, last = store.rows(f"SELECT min(value), max(value) {condition}", [key])[0]
    if first is not None and (number is not None or not store.rows("SELECT 1 FROM facts WHERE key = ? AND value >= '' LIMIT 1", [key])):
        if number is None or leaf.operator != "=" or not first < number < last:
            return f": it goes from {show(first)} to {show(last)}"
        below = store.rows(f"SELECT max(value) {condition} AND value < ?", [key, number])[0][0]
        above = store.rows(f"SELECT min(value) {condition} AND value > ?", [key, number])[0][0]
        return f": the nearest are {show(below)} and {show(above)}"
    texts = [row[0] for row in store.rows(f"SELECT DISTINCT value FROM facts WHERE key = ? AND value >= '' LIMIT {SHOWN}", [key])]
    return nearest(value if isinstance(value, str) else show(value), texts)


def _near_paths(store: Store, leaf: Leaf) -> str:
    asked = leaf.folder if isinstance(leaf, Below) else leaf.value if isinstance(leaf, Compare) else ""
    name = str(asked).rstrip("/").rpartition("/")[2]
    same = store.rows("SELECT path FROM items WHERE substr(path, -length(?)) = ? ORDER BY path LIMIT 3", [f"/{name}", f"/{name}"])
    if same:
        return f"; did you mean {' or '.join(show(row[0]) for row in same)}?"
    return f": paths are such as {show(store.rows('SELECT path FROM items LIMIT 1')[0][0])}"
