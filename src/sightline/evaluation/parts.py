"""The part of a collection that is measured, and the classes that the run of a model knows."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.records import Records
from sightline.errors import DataError, UsageError


@dataclass(frozen=True)
class Part:
    """What is measured, in words too, and what training learnt from where that is known (the report looks for near-duplicates)."""

    records: Records
    words: str
    learnt: Records | None = None


def part_to_measure(records: Records, model: str, split: str) -> Part:
    """Return the part of the records to measure (see ``evaluate``)."""
    splits = np.array(records.splits or (), dtype=str)
    present = set(splits.tolist())
    learnt = records.split("train") if "train" in present else None
    if split == "all":
        return Part(records, "all images")
    if split != "auto":
        return Part(records.split(split), f"split {split}{_learnt_from(records.split(split), model)}", learnt if split != "train" else None)
    if {"query", "gallery"} <= present:
        part = records.select(np.isin(splits, ["query", "gallery"]))
        return Part(part, f"splits query and gallery{_learnt_from(part, model)}", learnt)
    if "test" in present:
        return Part(records.split("test"), f"split test{_learnt_from(records.split('test'), model)}", learnt)
    if "train" in present and len(present) > 1:
        return _beside_train(records, model, sorted(present - {"train"}), learnt)
    return _unseen_classes(records, Path(model))


def _beside_train(records: Records, model: str, others: list[str], learnt: Records | None) -> Part:
    """Return the one split beside train: images of it may be learnt from, and are not measured without being asked for.

    Raises:
        UsageError: there are several.
    """
    name = "val" if "val" in others else others[0]
    if len(others) > 1 and name != "val":
        raise UsageError(
            f"{records.root} has the splits train, {', '.join(others)} and no test: say which to measure with --split {name}, or --split all"
        )
    part = records.split(name)
    chose = " (where it chose the model: slightly optimistic)" if name == "val" and classes_of_run(Path(model))[1] else ""
    return Part(part, f"split {name}{chose}{_learnt_from(part, model)}", learnt)


def _learnt_from(part: Records, model: str) -> str:
    """Return, for what is said of a part, that training learnt from its classes, where it did."""
    learnt, _ = classes_of_run(Path(model))
    names = {part.class_names[label] for label in np.flatnonzero(part.class_counts())}
    known = len(names & learnt)
    if not known:
        return ""
    if known == len(names):
        return " (training learnt from all of these classes: no measure of how it does on others)"
    return f" (training learnt from {known:,} of these {len(names):,} classes)"


def _unseen_classes(records: Records, model: Path) -> Part:
    learnt, chose_by = classes_of_run(model)
    assert records.labels is not None
    names = np.array(records.class_names, dtype=object)[records.labels]
    unseen = ~np.isin(names, list(learnt)) if learnt else np.ones(len(records), dtype=np.bool_)
    if unseen.all():
        return Part(records, "all images")
    if not unseen.any():
        return Part(records, "all images (training learnt from all of these classes: no measure of how it does on others)")
    held = " (they chose the model: slightly optimistic)" if np.isin(names[unseen], list(chose_by)).any() else ""
    return Part(records.select(unseen), f"classes held out of training{held}", records.select(~unseen))


def classes_of_run(model: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the classes that the run of a model learnt from, and those that chose it; none where nothing tells.

    Raises:
        DataError: the run's facts cannot be read.
    """
    for folder in (model, model.parent):
        facts = folder / "run.json"
        if facts.is_file():
            try:
                known: Mapping[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
                # In the form that class names are read in: runs of older versions kept that of the file system.
                training, validation = (
                    frozenset(unicodedata.normalize("NFC", name) for name in known[f"{part}_classes"])
                    for part in ("training", "validation")
                )
                return training, validation
            except (OSError, json.JSONDecodeError, KeyError) as error:
                raise DataError(f"'{facts}' cannot be read ({error}): pass --split all to measure every image") from error
    return frozenset(), frozenset()
