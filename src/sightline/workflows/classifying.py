"""Measuring a model's own classifier on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import runtime
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import UsageError
from sightline.evaluate.accuracy import Accuracy, measure_accuracy
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.workflows.common import read_data

PROTOCOL = "accuracy"
"""What ``sightline evaluate --protocol`` calls this; the other protocols rank images."""


@dataclass(frozen=True)
class Classified:
    """How often a model named the right class, of which images, and the files that could not be read."""

    model: str
    fingerprint: str
    data: str
    part: str
    accuracy: Accuracy
    bad_summary: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``metrics`` by their usual names, with how they were measured."""
        about = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data, "part": self.part, "bad_files": self.bad_summary}
        return {**about, "protocol": PROTOCOL, **self.accuracy.to_json()}

    def to_text(self) -> str:
        """Return the numbers as lines to read, with their 95 % intervals."""
        found = self.accuracy
        lines = [f"{self.model} on {self.data}: {self.part}, {PROTOCOL}, {found.num_images:,} images, {found.num_classes:,} classes"]
        for name, value in found.metrics.items():
            low, high = found.intervals[name]
            lines.append(f"  {name:12} {value:.4f}   [{low:.4f}, {high:.4f}]")
        return "\n".join(lines)


def classify(
    model: str,
    data: str | Path,
    *,
    dataset: str = "auto",
    verify: bool = True,
    split: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
) -> Classified:
    """Return the accuracy of ``model``'s classifier on ``data``; ``split`` auto is test, else val, else everything.

    Raises:
        UsageError: the model or data cannot be read, the model has no classifier, or it does not know a class of the data.
    """
    bad_files = BadFiles()
    records, words = _part(read_data(data, bad_files, dataset=dataset, verify=verify, require_labels=True), split)
    encoder = model_folder.load(model, device=runtime.device(device))
    accuracy = measure_accuracy(encoder, records, bad_files, precision=precision)
    return Classified(str(model), encoder.fingerprint, str(data), words, accuracy, bad_files.summary(len(records)))


def require_plain(protocol: str, **given: object) -> None:
    """Refuse what only a ranking has: distractors, re-rankers, a page.

    Raises:
        UsageError: one of them was given.
    """
    wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"--protocol {protocol} ranks nothing: leave out {' and '.join(wrong)} (--json gives the numbers as data)")


def _part(records: Records, split: str) -> tuple[Records, str]:
    if split not in ("auto", "all"):
        return records.split(split), f"split {split}"
    present = set(records.splits or ())
    if split == "auto" and "test" in present:
        return records.split("test"), "split test"
    if split == "auto" and "val" in present:
        return records.split("val"), "split val (where it chose the model: slightly optimistic)"
    return records, "all images (training may have learnt from them)"
