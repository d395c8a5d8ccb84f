"""Measuring a model's own classifier on labelled images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline import runtime
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import UsageError, explain_os_error
from sightline.evaluate.accuracy import Accuracy, guess
from sightline.evaluate.accuracy_report import write_accuracy_report
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.workflows.common import read_data, write_bad_files

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
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    command: str = "",
) -> Classified:
    """Return the accuracy of ``model``'s classifier on ``data``; ``split`` auto is test, else val, else everything.

    ``report`` is a folder to write the page and ``metrics.json`` into.

    Raises:
        UsageError: the model or data cannot be read, the model has no classifier, or it does not know a class of the data.
    """
    bad_files = BadFiles()
    records, words = _part(read_data(data, bad_files, dataset=dataset, verify=verify, require_labels=True), split)
    encoder = model_folder.load(model, device=runtime.device(device))
    guesses = guess(encoder, records, bad_files, precision=precision)
    if len(np.unique(guesses.targets)) < 2:
        words += " (images of one class alone: whoever always names it is right)"
    bad_summary = bad_files.summary(len(records), *([report / "bad_files.jsonl"] if report else []))
    classified = Classified(str(model), encoder.fingerprint, str(data), words, Accuracy.of(guesses), bad_summary)
    if report is not None:
        facts = [
            ("model", f"{model} ({encoder.model.backbone}, {encoder.image.image_px} px, {encoder.fingerprint})"),
            ("data", f"{data}: {words}"),
        ]
        try:
            report.mkdir(parents=True, exist_ok=True)
            bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
            write_accuracy_report(report / "index.html", guesses, records, facts=facts, bad_files=bad, command=command)
            model_folder.write_text(report / "metrics.json", json.dumps(classified.to_json(), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise explain_os_error(error, f"writing the report in '{report}'") from error
        write_bad_files(bad_files, report)
    return classified


def require_split(data: str | Path, *, dataset: str = "auto", verify: bool = True) -> None:
    """Refuse data without images that are held out for measuring: without a test or a val split, accuracy would be of training images.

    Raises:
        UsageError: neither split is there.
    """
    if not {"test", "val"} & set(read_data(data, BadFiles(), dataset=dataset, verify=verify).splits or ()):
        raise UsageError(f"'{data}' has no test or val split to measure accuracy on: put the images into train/CLASS/ and test/CLASS/")


def require_plain(protocol: str, **given: object) -> None:
    """Refuse what only a ranking has: distractors and re-rankers.

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
