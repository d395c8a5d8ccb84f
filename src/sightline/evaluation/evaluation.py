"""An evaluation: the measures of one model on one data set by one protocol, whatever the protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sightline.html import Picture


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measures by their usual names, each 0..1 (NaN where none can be taken), and how they were taken.

    ``intervals`` are 95 %. ``groups`` are the same measures by sequence or class; ``counts`` the number of things measured (frames, objects);
    ``settings`` those of the protocol; ``facts`` further plain data for ``to_json``. ``subject`` is the data's part, the protocol and the size
    in words, ``notes`` lines below the numbers. ``bad_files`` is a summary of the files that could not be read.
    """

    protocol: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    subject: str = ""
    notes: tuple[str, ...] = ()
    model: str = ""
    fingerprint: str = ""
    data: str = ""
    bad_files: str = ""
    num_files: int | None = None
    """The number of files that were to be read, where the counts are of files."""
    shown: tuple[tuple[Picture, ...], ...] = ()
    """Pictures for the page, in rows of those that belong side by side."""
    colours: tuple[tuple[str, str], ...] = ()
    """The meaning of the pictures' colours: (name, ``#rrggbb``)."""
    detail: Any = field(default=None, repr=False, compare=False)
    """What the page of the protocol is made from."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data; NaN becomes None."""
        about = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data, "part": self.part, "bad_files": self.bad_files}
        plain: dict[str, Any] = {name: value for name, value in about.items() if value or name != "part"}
        plain |= {
            "protocol": self.protocol,
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
        }
        if self.intervals:
            plain["intervals"] = {name: list(interval) for name, interval in self.intervals.items()}
        if self.counts:
            groups = {name: dict(values) for name, values in self.groups.items()}
            plain |= {"counts": dict(self.counts), "settings": dict(self.settings), "groups": groups}
        return plain | dict(self.facts)

    def to_text(self) -> str:
        """Return the numbers as lines to read, with their intervals."""
        lines = [f"{self.model} on {self.data}: {self.subject or self._described()}"]
        width = max(12, *map(len, self.metrics))
        for name, value in self.metrics.items():
            if math.isnan(value):
                lines.append(f"  {name:{width}} -        (nothing to find, or nothing wrong to find)")
                continue
            low, high = self.intervals.get(name, (math.nan, math.nan))
            interval = "" if math.isnan(low) else f"   [{low:.4f}, {high:.4f}]"
            lines.append(f"  {name:{width}} {value:.4f}{interval}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def _described(self) -> str:
        counts = ", ".join(f"{num:,} {name}" for name, num in self.counts.items())
        part = f"{self.settings['part']}, " if "part" in self.settings else ""
        fitted = f" (fitted on {self.settings['train_data']})" if "train_data" in self.settings else ""
        return f"{part}{self.protocol}{fitted}, {counts}"
