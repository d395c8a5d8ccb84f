"""Frozen dataclasses of settings, such as recipes: read from text, changed by ``key=value``, saved as plain values, compared.

An override is ``key=value``, typed by its field. A key is a dotted path (``train.steps``) or, where only one field has that name, the
name alone (``steps``); an unknown one is an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from sightline.errors import RecipeError, UsageError, nearest

R = TypeVar("R")

_TABLES = ("backbone_args",)
"""Fields that hold named arguments, each of which can be set by itself."""

# --- reading and changing -------------------------------------------------------------------------------------------------------


def flatten(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every leaf field, in order."""
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def as_setting(path: str, value: Any) -> str:
    """Return a field's value as ``override`` reads it: JSON, and text as it is."""
    if isinstance(value, str):
        return value
    return json.dumps(dict(value) if path.rpartition(".")[2] in _TABLES else value)


def full_path(recipe: Any, key: str) -> str:
    """Return the dotted path that ``key`` means: itself, or the one path that ends in it; ``backbone_args.depth`` is one of several arguments.

    Raises:
        RecipeError: no field, or more than one, has that name.
    """
    paths = [path for path, _ in flatten(recipe)]
    if key in paths:
        return key
    ending = [path for path in paths if path.rpartition(".")[2] == key]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise RecipeError(f"recipe key '{key}' is ambiguous: write one of {', '.join(ending)}")
    table, _, argument = key.rpartition(".")
    if argument and table.rpartition(".")[2] in _TABLES:
        return f"{full_path(recipe, table)}.{argument}"
    names = {name: path for path in paths for name in (path, path.rpartition(".")[2])}
    raise RecipeError(f"unknown recipe key '{key}'{nearest(key, names)}")


def override(recipe: R, settings: Sequence[str]) -> R:
    """Return the recipe with ``key=value`` settings applied, each value parsed by its field's type.

    Raises:
        RecipeError: an unknown or ambiguous key, or a value of another type.
    """
    plain, changed = to_plain(recipe), list[str]()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"a setting is key=value, got '{setting}'")
        path = full_path(recipe, key.strip())
        table, kind, rest = plain, type(recipe), path.split(".")
        while dataclasses.is_dataclass(_field_types(kind)[rest[0]]):
            table, kind = table[rest[0]], _field_types(kind)[rest.pop(0)]
        leaf, *argument = rest
        wanted = _field_types(kind)[leaf]
        if argument:  # one of several: tuple[tuple[str, value], ...]
            value = _parse(text.strip(), typing.get_args(typing.get_args(wanted)[0])[1], path)
            table[leaf] = list((dict(table[leaf]) | {argument[0]: value}).items())
        else:
            value = _parse(text.strip(), wanted, path)
            changed += [path] if value != table[leaf] else []
            table[leaf] = value
    made = from_plain(type(recipe), plain)
    for path in changed:
        _require_effect(made, path)
    return made


def _require_effect(recipe: Any, path: str) -> None:
    """Pass a setting that has an effect: some go with certain values of another setting beside them.

    Raises:
        RecipeError: it has none; the message names the other setting. (A value that no field names is a plug-in's, which may use any.)
    """
    *tables, leaf = path.split(".")
    for table in tables:
        recipe = getattr(recipe, table)
    fields = {item.name: item.metadata["only_under"] for item in dataclasses.fields(recipe) if "only_under" in item.metadata}
    if leaf not in fields:
        return
    other, wanted = fields[leaf]
    now, known = getattr(recipe, other), {value for one, values in fields.values() if one == other for value in values}
    if now in known and now not in wanted:
        where = ".".join([*tables, other])
        raise RecipeError(f"{path} has no effect under {where}={now}: set {other}={' or '.join(wanted)} too, or leave it out")


def configured(default: R, what: str, settings: Sequence[str]) -> R:
    """Return a frozen dataclass of settings with ``key=value`` applied; ``what`` names it in errors, such as "re-ranker 'diffusion'".

    Raises:
        UsageError: an unknown setting, or a value of another type.
    """
    known = [item.name for item in dataclasses.fields(default)]  # type: ignore[arg-type]
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key not in known:
            raise UsageError(f"{what} has no setting '{key}'{nearest(key, known)}")
    return override(default, settings)


def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse(text: str, kind: Any, path: str) -> Any:
    if kind is str:
        return text
    if typing.get_origin(kind) is Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        if text not in choices:
            raise RecipeError(f"{path} cannot be '{text}'{nearest(text, choices)}")
        return text
    try:
        value: Any = {"true": True, "false": False, "none": None}.get(text.lower(), ...)
        value = json.loads(text) if value is ... else value
    except json.JSONDecodeError:
        value = _parse_loose(text)
    return coerce(value, kind, path)


def _parse_loose(text: str) -> Any:
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if all(len(pair) == 2 for pair in pairs):
        return dict(pairs)
    if "," in text:
        return [_parse_scalar(part.strip()) for part in text.split(",") if part]
    try:
        return float(text)
    except ValueError:
        return text


def coerce(value: Any, kind: Any, path: str) -> Any:
    """Return a plain (JSON) value as the type ``kind`` of the field at ``path``.

    Raises:
        RecipeError: the value does not fit the type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_plain(kind, value, f"{path}.")
    if origin is tuple and arguments[-1] is Ellipsis:
        if isinstance(value, Mapping):
            value = [[name, _parse_scalar(item)] for name, item in value.items()]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(item, arguments[0], path) for item in items)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(coerce(item, part, path) for item, part in zip(value, arguments, strict=True))
    if origin is Literal and value in arguments:
        return value
    if origin in (typing.Union, types.UnionType):
        for part in arguments:
            if type(value) is part or (typing.get_origin(part) is Literal and value in typing.get_args(part)):
                return value
            if typing.get_origin(part) is tuple and isinstance(value, list | tuple):  # JSON has lists alone: a Swin's depths
                return coerce(value, part, path)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(kind, type) and type(value) is kind and kind is not float:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise RecipeError(f"{path} must be of type {wanted}, got {value!r}")


def _parse_scalar(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    try:
        return json.loads(item)
    except json.JSONDecodeError:
        return item


# --- saving and replaying -------------------------------------------------------------------------------------------------------


def to_plain(recipe: Any) -> dict[str, Any]:
    """Return the recipe as nested plain values, ready for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def from_plain(kind: type[R], plain: Any, path: str = "") -> R:
    """Return the dataclass ``kind`` made of plain values; missing keys take their defaults, unknown ones are errors.

    A ``kind`` whose fields have changed brings values saved before up to date in its static method ``upgraded``.

    Raises:
        RecipeError: an unknown key, or a value of another type.
    """
    if not isinstance(plain, Mapping):
        raise RecipeError(f"{path.rstrip('.') or kind.__name__} must be a table of settings, got {plain!r}")
    plain = getattr(kind, "upgraded", lambda same: same)(plain)
    hints = _field_types(kind)
    names = [item.name for item in dataclasses.fields(typing.cast(Any, kind))]
    for key in plain:
        if key not in names:
            raise RecipeError(f"unknown recipe key '{path}{key}'{nearest(key, names)}")
    return kind(**{key: coerce(value, hints[key], f"{path}{key}") for key, value in plain.items()})


def recipe_hash(recipe: Any) -> str:
    """Return 12 hexadecimal digits that name the recipe's content."""
    text = json.dumps(to_plain(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def difference(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Return (path, old value, new value) of every leaf that differs between two recipes of one type."""
    before = dict(flatten(old))
    return [(path, before.get(path), value) for path, value in flatten(new) if before.get(path) != value]
