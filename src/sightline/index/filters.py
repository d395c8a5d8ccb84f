"""Filters over metadata: ``camera != 3 and (tag in ["a", "b"] or label = "cat") and not (price >= 10)``.

A key is a name, or anything between backquotes; ``id`` and ``path`` are built in. A value is text in quotes, a number, true, false or
null. What an item does not have is null: ``camera != 3`` matches it, ``camera = null`` too, no range does. Beside a number true is 1 and
false is 0; beside a text they are these words.

Where one side is a number and the other a text that reads as one, they are compared as numbers: ``label = 1`` matches the labels 1, 01
and 1.0. Two texts are compared letter by letter, whatever their Unicode form: ``label = "1"`` matches the label 1 alone. Other values of
different kinds are never equal nor in order, and an engine refuses a comparison that for this reason no item can meet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from sightline.errors import UsageError

Value = str | int | float | bool | None
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
BUILT_IN = ("id", "path")

MAX_TERMS = 400
"""SQLite takes expressions 1,000 deep; what a person writes has ten terms."""
MAX_DEPTH = 50


@dataclass(frozen=True)
class Compare:
    """``key operator value``."""

    key: str
    operator: Operator
    value: Value

    def __post_init__(self) -> None:
        if self.operator not in ("=", "!=", "<", "<=", ">", ">="):
            raise UsageError(f"a filter cannot compare with '{self.operator}': use one of = != < <= > >=")
        if self.value is None and self.operator not in ("=", "!="):
            raise UsageError(f"the filter '{self.key} {self.operator} null' has no meaning: null has no order, use = or !=")
        _check_built_in(self.key, self.value)


@dataclass(frozen=True)
class In:
    """``key in [values]``."""

    key: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            _check_built_in(self.key, value)


@dataclass(frozen=True)
class Below:
    """``path below folder``: the pictures in a folder and in the folders in it."""

    folder: str


@dataclass(frozen=True)
class And:
    """All of ``parts`` (of none: everything)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """Any of ``parts`` (of none: nothing)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """Everything but ``part``."""

    part: Filter


Filter = Compare | In | Below | And | Or | Not
Leaf = Compare | In | Below


def _check_built_in(key: str, value: Value) -> None:
    if key == "path" and not isinstance(value, str):
        raise UsageError(f'the filter compares path with {value!r}: a path is text in quotes, as in path = "photos/1.jpg"')
    if key == "id" and not isinstance(value, int | float):
        raise UsageError(f"the filter compares id with {value!r}: an id is a number, as in id = 7")


# --- walking ------------------------------------------------------------------------------------------------------------------


def leaves(where: Filter, *, spared: bool = False) -> Iterator[tuple[Leaf, bool]]:
    """Yield the comparisons of a filter, each with whether what is equal is what it spares (``!=``, ``not``); ``!=`` comes as ``=``."""
    match where:
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part, spared=spared)
        case Not(part):
            yield from leaves(part, spared=not spared)
        case Compare(key, "!=", value):
            yield Compare(key, "=", value), not spared
        case _:
            yield where, spared


# --- to text ------------------------------------------------------------------------------------------------------------------


def show(value: object) -> str:
    """Return a value as a filter writes it."""
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def show_leaf(leaf: Leaf, *, spared: bool = False) -> str:
    """Return a comparison as a person would write it."""
    match leaf:
        case Below(folder):
            return f"{'not ' if spared else ''}path below {show(folder)}"
        case In(key, values):
            return f"{_show_key(key)}{' not' if spared else ''} in [{', '.join(show(value) for value in values)}]"
        case Compare(key, operator, value):
            if spared and operator != "=":
                return f"not {_show_key(key)} {operator} {show(value)}"
            return f"{_show_key(key)} {'!=' if spared else operator} {show(value)}"


def _show_key(key: str) -> str:
    return key if re.fullmatch(r"[^\W\d][\w.\-]*", key) and key.lower() not in _RESERVED else f"`{key}`"


# --- from text ----------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
  | (?P<key>`[^`]+`)
  | (?P<word>[^\W\d][\w.\-]*)
  | (?P<operator><=|>=|!=|==|<>|[=<>])
  | (?P<mark>[()\[\],])
  | (?P<end>$)
)""",
    re.VERBOSE | re.DOTALL,
)
_RESERVED = {"and", "or", "not", "in", "true", "false", "null"}
_CONSTANTS: dict[str, Value] = {"true": True, "false": False, "null": None}
_SAME = {"==": "=", "<>": "!="}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


def parse(text: str) -> Filter:
    """Return the filter that ``text`` writes.

    Raises:
        UsageError: it cannot be read; the message says at which character and why.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._split()
        self.at = 0
        self.depth = 0

    def _split(self) -> Sequence[_Token]:
        tokens: list[_Token] = []
        place = 0
        while not tokens or tokens[-1].kind != "end":
            found = _TOKEN.match(self.text, place)
            if found is None:
                place += len(self.text[place:]) - len(self.text[place:].lstrip())
                self._refuse(place, "a text is not closed" if self.text[place] in "\"'`" else f"{self.text[place]!r} means nothing here")
            kind = str(found.lastgroup)
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            place = found.end()
        if sum(token.kind == "operator" for token in tokens) > MAX_TERMS:
            self._refuse(0, f"more than {MAX_TERMS} comparisons; write key in [...] instead")
        return tokens

    def _refuse(self, place: int, why: str) -> NoReturn:
        around = self.text[max(0, place - 20) : place] + " -->" + self.text[place : place + 30]
        raise UsageError(f"the filter cannot be read at character {place + 1}: {why}; {around!r}")

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def _take(self, *texts: str) -> bool:
        if self.token.kind in ("word", "mark") and self.token.text.lower() in texts:
            self.at += 1
            return True
        return False

    def whole(self) -> Filter:
        found = self._any()
        if self.token.kind != "end":
            self._refuse(self.token.start, "expected 'and', 'or' or the end")
        return found

    def _any(self) -> Filter:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Filter:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Filter:
        start = self.token.start
        if self.depth > MAX_DEPTH:
            self._refuse(start, f"nested more than {MAX_DEPTH} deep")
        self.depth += 1
        if self._take("not"):
            found: Filter = Not(self._one())
        elif self._take("("):
            found = self._any()
            if not self._take(")"):
                self._refuse(self.token.start, f"the bracket opened at character {start + 1} is not closed")
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> Filter:
        token = self.token
        if token.kind not in ("word", "key") or token.text.lower() in _RESERVED:
            self._refuse(token.start, "expected a metadata key, such as camera")
        key = token.text.strip("`")
        self.at += 1
        if self._take("in"):
            return In(key, self._list())
        if key == "path" and self._take("below"):
            return Below(self._folder())
        if self.token.kind == "word" and self.token.text.lower() == "not":
            self.at += 1
            if not self._take("in"):
                self._refuse(self.token.start, "expected 'in' after 'not'")
            return Not(In(key, self._list()))
        if self.token.kind != "operator":
            self._refuse(self.token.start, "expected one of = != < <= > >= in")
        operator = self.token.text
        self.at += 1
        return Compare(key, _SAME.get(operator, operator), self._value())  # type: ignore[arg-type]

    def _list(self) -> tuple[Value, ...]:
        start = self.token.start
        if not self._take("["):
            self._refuse(start, 'expected a list, such as ["a", "b"]')
        values: list[Value] = []
        while not self._take("]"):
            if values and not self._take(","):
                self._refuse(self.token.start, "expected ',' or ']'")
            values.append(self._value())
            if len(values) > MAX_TERMS:
                self._refuse(start, f"a list of more than {MAX_TERMS} values")
        return tuple(values)

    def _value(self) -> Value:
        token = self.token
        self.at += 1
        if token.kind == "text":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        if token.kind == "number":
            return self._number(token)
        if token.kind == "word" and token.text.lower() in _CONSTANTS:
            return _CONSTANTS[token.text.lower()]
        if token.kind == "word":
            self._refuse(token.start, f'expected a value; text goes in quotes: "{token.text}"')
        self._refuse(token.start, 'expected a value: "text", a number, true, false or null')

    def _folder(self) -> str:
        start, folder = self.token.start, self._value()
        if not isinstance(folder, str) or not folder:
            self._refuse(start, 'expected a folder in quotes, as in path below "photos/2026"')
        return folder

    def _number(self, token: _Token) -> int | float:
        if not re.fullmatch(r"[-+]?\d+", token.text):
            return float(token.text)
        if not -(2**63) <= int(token.text) < 2**63:
            self._refuse(token.start, "a whole number has at most 64 bits")
        return int(token.text)
