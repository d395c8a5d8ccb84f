"""The accuracy of a model's own classifier, as a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sightline.data.images import BadFiles
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.errors import UsageError
from sightline.evaluation.accuracy import Accuracy, Guesses, guess
from sightline.evaluation.accuracy_report import accuracy_page
from sightline.evaluation.evaluation import Evaluation
from sightline.evaluation.protocol import Options, Protocol
from sightline.html import Page
from sightline.nn.encoder import Encoder


@dataclass(frozen=True, eq=False)
class Detail:
    """What the page of an accuracy is made from."""

    guesses: Guesses
    records: Records


@dataclass(frozen=True, kw_only=True)
class ByAccuracy(Protocol):
    """The share of images whose class the classifier names; auto is the test split, else val, else everything."""

    takes: ClassVar[frozenset[str]] = frozenset({"dataset", "verify", "split"})
    name: ClassVar[str] = "accuracy"

    def measure(self, encoder: Encoder, data: Path, bad_files: BadFiles, options: Options = Options()) -> Evaluation:
        """See ``Protocol.measure``."""
        found = read_data(data, bad_files, dataset=options.dataset, verify=options.verify, require_labels=True)
        records, part = _part(found, options.split)
        guesses = guess(encoder, records, bad_files, precision=options.precision)
        if len(np.unique(guesses.targets)) < 2:
            part += " (images of one class alone: whoever always names it is right)"
        accuracy = Accuracy.of(guesses)
        facts = accuracy.to_json()
        return Evaluation(
            protocol=self.name,
            metrics=accuracy.metrics,
            intervals=accuracy.intervals,
            facts={name: value for name, value in facts.items() if name not in ("metrics", "intervals")},
            part=part,
            subject=f"{part}, {self.name}, {accuracy.num_images:,} images, {accuracy.num_classes:,} classes",
            num_files=len(records),
            detail=Detail(guesses, records),
        )

    def page(self, evaluation: Evaluation, encoder: Encoder, bad_files: Sequence[str], command: str) -> Page:
        """See ``Protocol.page``."""
        facts = [
            ("model", f"{evaluation.model} ({encoder.model.backbone}, {encoder.image.image_px} px, {evaluation.fingerprint})"),
            ("data", f"{evaluation.data}: {evaluation.part}"),
        ]
        detail: Detail = evaluation.detail
        return accuracy_page(detail.guesses, detail.records, facts=facts, bad_files=bad_files, command=command)


def require_split(data: str | Path, *, dataset: str = "auto", verify: bool = True) -> None:
    """Refuse data without images that are held out for measuring: without a test or a val split, accuracy would be of training images.

    Raises:
        UsageError: neither split is there.
    """
    if not {"test", "val"} & set(read_data(data, BadFiles(), dataset=dataset, verify=verify).splits or ()):
        raise UsageError(f"'{data}' has no test or val split to measure accuracy on: put the images into train/CLASS/ and test/CLASS/")


def _part(records: Records, split: str) -> tuple[Records, str]:
    if split not in ("auto", "all"):
        return records.split(split), f"split {split}"
    present = set(records.splits or ())
    if split == "auto" and "test" in present:
        return records.split("test"), "split test"
    if split == "auto" and "val" in present:
        return records.split("val"), "split val (where it chose the model: slightly optimistic)"
    return records, "all images (training may have learnt from them)"
