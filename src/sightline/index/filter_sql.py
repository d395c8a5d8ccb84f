"""A filter as a condition of SQL over the tables of ``store``: numbers and texts that read as numbers meet, values are always bound."""

from __future__ import annotations

import math
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence

from sightline.index.filters import BUILT_IN, And, Below, Compare, Filter, In, Not, Or, Value

Places = Callable[[str], Sequence[str]]
"""The paths that a path in a filter stands for: itself, and where it leads from the folders that pictures came from."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_TRUTHS: dict[str, int] = {"true": 1, "false": 0}


def as_number(text: object) -> int | float | None:
    """Return the number that a text reads as (whole ones of 64 bits exactly), None where it reads as none."""
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("+-").isdigit() and len(text) < 20 and -(2**63) <= int(text) < 2**63:
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else None


def counterpart(value: Value) -> int | float | None:
    """Return what stored numbers are compared with where a filter has ``value``; None where they cannot be."""
    if isinstance(value, str):
        return _TRUTHS.get(value.lower(), as_number(value))
    return None if value is None else int(value) if isinstance(value, bool) else value


def forms(text: str) -> list[str]:
    """Return a text as it is and in both Unicode forms of accents, which differ in nothing that a person sees: NFC and NFD."""
    return list(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]))


_NAMED = "(id IN (SELECT item FROM brought WHERE "
_FACTS = "SELECT item FROM facts WHERE key = ? AND "
# SQLite puts every number before every text, so a range needs a second bound to stay among its own kind. Texts that read as numbers
# begin with a sign, a dot or a digit; the cast is a quick look that lets few of the others reach ``as_number`` (see ``Store``).
NUMERIC_TEXT = "value >= '+' AND value < ':'"


def to_sql(where: Filter, places: Places = lambda path: [path], *, named: bool = False) -> tuple[str, list[Value]]:
    """Return a condition over ``items`` and the values to bind to its question marks; nothing a person wrote is in the text.

    With ``named`` a path also stands for the items that a folder or manifest brought under that name.
    """
    match where:
        case And(parts) | Or(parts):
            if not parts:
                return ("1" if isinstance(where, And) else "0"), []
            return _joined(" AND " if isinstance(where, And) else " OR ", [to_sql(part, places, named=named) for part in parts])
        case Not(part):
            text, values = to_sql(part, places, named=named)
            return f"NOT {text}", values
        case Below(folder):
            ends = [place.rstrip("/") for form in forms(folder) for place in places(form)]
            parts_of: list[tuple[str, list[Value]]] = [
                ("(path > ? AND path < ?)", [f"{end}/", f"{end}0"]) for end in ends
            ]  # 0 comes after /
            if named:
                names = [posixpath.normpath(form) for form in forms(folder)]
                parts_of += [(f"{_NAMED}name > ? AND name < ?))", [f"{name}/", f"{name}0"]) for name in names]
            return _joined(" OR ", parts_of)
        case In("path", choices):
            paths = [form for path in choices if isinstance(path, str) for form in forms(path)]
            meant = [place for path in paths for place in places(path)]
            exact: tuple[str, list[Value]] = f"(path IN ({_marks(meant)}))", [*meant]
            names = [posixpath.normpath(path) for path in paths]
            return _joined(" OR ", [exact, (f"{_NAMED}name IN ({_marks(names)})))", [*names])]) if named else exact
        case In("id", choices):
            return f"(id IN ({_marks(choices)}))", list(choices)
        case In(key, choices):
            among = _equal(key, [choice for choice in choices if choice is not None])
            return among if None not in choices else _joined(" OR ", [among, to_sql(Compare(key, "=", None))])
        case Compare(key, "!=", value):
            return to_sql(Not(Compare(key, "=", value)), places, named=named)
        case Compare("path", "=", value):
            return to_sql(In("path", (value,)), places, named=named)
        case Compare(key, operator, value) if key in BUILT_IN:
            return f"({key} {operator} ?)", [value]
        case Compare(key, "=", None):
            return "(id NOT IN (SELECT item FROM facts WHERE key = ?))", [key]
        case Compare(key, "=", value):
            return _equal(key, [value])
        case Compare(key, operator, value):
            return _in_order(key, operator, value)


def _equal(key: str, choices: Sequence[Value]) -> tuple[str, list[Value]]:
    exact: list[Value] = [form for choice in choices for form in (forms(choice) if isinstance(choice, str) else [choice])]
    exact += [number for choice in choices if (number := counterpart(choice)) is not None]
    exact += [text for choice in choices if isinstance(choice, bool) for text in _spellings(choice)]
    parts, values = [f"{_FACTS}value IN ({_marks(exact)})"], [key, *exact]
    numbers = [number for choice in choices if not isinstance(choice, str | bool) and (number := counterpart(choice)) is not None]
    if numbers:
        parts.append(f"{_FACTS}{NUMERIC_TEXT} AND CAST(value AS REAL) IN ({_marks(numbers)}) AND as_number(value) IN ({_marks(numbers)})")
        values += [key, *(float(number) for number in numbers), *numbers]
    return f"(id IN ({' UNION ALL '.join(parts)}))", values


def _spellings(value: bool) -> list[str]:
    word = str(value)
    return [word, word.lower(), word.upper()]


def _in_order(key: str, operator: str, value: Value) -> tuple[str, list[Value]]:
    number = counterpart(value)
    parts: list[str] = []
    values: list[Value] = []
    if number is not None:
        parts.append(f"{_FACTS}value {operator} ? AND value < ''")
        values += [key, number]
    if isinstance(value, str):
        parts.append(f"{_FACTS}value {operator} ? AND value >= ''")
        values += [key, value]
    elif number is not None and not isinstance(value, bool):
        parts.append(f"{_FACTS}{NUMERIC_TEXT} AND CAST(value AS REAL) {operator[0]}= ? AND as_number(value) {operator} ?")
        values += [key, float(number), number]
    return f"(id IN ({' UNION ALL '.join(parts)}))", values


def _marks(values: Sequence[Value]) -> str:
    return ", ".join("?" * len(values))


def _joined(joint: str, made: Sequence[tuple[str, list[Value]]]) -> tuple[str, list[Value]]:
    return "(" + joint.join(text for text, _ in made) + ")", [value for _, values in made for value in values]
