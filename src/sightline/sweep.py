"""Sweeps: one recipe under several settings, each named, in a fixed order. Plain data; ``workflows.sweeping`` runs them.

A grid is every combination of the values of its keys; a named sweep is a function of the catalog that returns a ``Sweep``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.errors import UsageError

LONGEST_NAME = 120
"""Most characters of a run folder's name that tell the settings; file systems allow 255 bytes."""


@dataclass(frozen=True)
class Variant:
    """What one row of the table changes: ``key=value`` settings on top of the sweep's recipe, and what to call them."""

    label: str
    settings: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, str]:
        """The value of each key that it sets, as written."""
        return dict(setting.split("=", 1) for setting in self.settings)


@dataclass(frozen=True)
class Sweep:
    """A recipe of the catalog and the variants of it to compare, in the table's order."""

    recipe: str
    variants: tuple[Variant, ...]


def grid(values: Mapping[str, Sequence[object]]) -> tuple[Variant, ...]:
    """Return every combination of the values of each key, the last key turning fastest; what does not vary is not in the labels."""
    combinations = itertools.product(*([f"{key}={value}" for value in choices] for key, choices in values.items()))
    fixed = {key for key, choices in values.items() if len(choices) == 1}
    return tuple(
        Variant(" ".join(word for word in settings if word.partition("=")[0] not in fixed) or " ".join(settings), settings)
        for settings in combinations
    )


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each key of ``key=value,value,...`` words.

    Raises:
        UsageError: a word of another form, or a key or value that comes twice.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, _, text = word.partition("=")
        choices = [part.strip() for part in text.split(",")]
        if not key or not all(choices):
            raise UsageError(f"a grid is key=value,value,... such as margin=0.1,0.3,0.5; got '{word}'")
        if key in values or len(set(choices)) < len(choices):
            raise UsageError(f"'{word}' repeats a key or a value of the grid: write each once")
        values[key] = choices
    return values


def axes(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Return the keys that vary, each with its values in order, where the variants are a whole grid; else nothing."""
    tables = [variant.values for variant in variants]
    if not tables or any(list(table) != list(tables[0]) for table in tables):
        return {}
    values = {key: list(dict.fromkeys(table[key] for table in tables)) for key in tables[0]}
    whole = {tuple(table.values()) for table in tables} == set(itertools.product(*values.values()))
    return {key: choices for key, choices in values.items() if len(choices) > 1} if whole else {}


def run_name(variant: Variant, seed: int) -> str:
    """Return the name of a run's folder: the variant's label in characters that every file system takes, and the seed."""
    return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '_', variant.label)[:LONGEST_NAME]}_seed={seed}"
