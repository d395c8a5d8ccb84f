"""Measuring: a model against labelled images, with a report to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline import runtime
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError, explain_os_error
from sightline.evaluate.protocols import Measured, Protocol, choose_protocol, measure
from sightline.evaluate.report import Collection, write_report
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.workflows.common import read_data, write_bad_files


@dataclass(frozen=True)
class Evaluation:
    """Measures, what they were measured with and on, and the files that could not be read."""

    model: str
    fingerprint: str
    data: str
    part: str
    measured: Measured
    bad_summary: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``metrics`` by their usual names, with how they were measured."""
        about = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data, "part": self.part, "bad_files": self.bad_summary}
        return {**about, **self.measured.to_json()}

    def to_text(self) -> str:
        """Return the numbers as lines to read, with their 95 % intervals."""
        found = self.measured
        size = f"{found.num_queries:,} queries in {found.num_gallery:,} images of {found.num_classes:,} classes"
        head = f"{self.model} on {self.data}: {self.part}, {found.protocol}, {size}"
        lines = [head]
        for name, value in found.metrics.items():
            low, high = found.intervals.get(name, (float("nan"), float("nan")))
            spread = "" if np.isnan(low) else f"   [{low:.4f}, {high:.4f}]"
            lines.append(f"  {name:12} {value:.4f}{spread}")
        lines.append(
            f"  ties: {found.tie_rule}; intervals: 95 %, bootstrap over classes; skipped (no other image of their class): {found.num_skipped}"
        )
        return "\n".join(lines)


def evaluate(
    model: str,
    data: str | Path,
    *,
    dataset: str = "auto",
    verify: bool = True,
    protocol: str = "auto",
    split: str = "auto",
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    command: str = "",
) -> Evaluation:
    """Return how well ``model`` retrieves within ``data``, exactly; ``report`` is a folder to write the page into.

    ``split`` auto measures the test split (or query and gallery) where there is one; else, for a model whose run tells its training
    classes, the classes that training did not learn from; else everything.

    Raises:
        UsageError: the model or data cannot be read, or nothing can be measured.
    """
    where, bad_files = runtime.device(device), BadFiles()
    encoder = model_folder.load(model, device=where)
    records = read_data(data, bad_files, dataset=dataset, verify=verify, require_labels=True)
    part = part_to_measure(records, model, split)
    chosen = choose_protocol(part.records, protocol)
    found = embed_records(encoder, part.records, bad_files, precision=precision)
    measured = measure(found, part.records, chosen, device=str(where) if where.type == "cuda" else "cpu")
    bad_summary = bad_files.summary(len(part.records), *([report / "bad_files.jsonl"] if report else []))
    evaluation = Evaluation(str(model), encoder.fingerprint, str(data), part.words, measured, bad_summary)
    if report is not None:
        learnt = None
        if part.learnt is not None:
            learnt = Collection(
                embed_records(encoder, part.learnt, BadFiles(), precision=precision, what="embedding the training part"), part.learnt
            )
        _write(report, evaluation, encoder, Collection(found, part.records), chosen, learnt, bad_files, command)
    return evaluation


def _write(
    folder: Path,
    evaluation: Evaluation,
    encoder: Encoder,
    found: Collection,
    protocol: Protocol,
    train: Collection | None,
    bad_files: BadFiles,
    command: str,
) -> None:
    facts = [
        ("model", f"{evaluation.model} ({encoder.model.backbone}, {encoder.dim}-d, {evaluation.fingerprint})"),
        ("data", f"{evaluation.data}: {evaluation.part}"),
        ("protocol", evaluation.measured.protocol),
    ]
    bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(
            folder / "index.html",
            evaluation.measured,
            found,
            protocol,
            title="Retrieval report",
            command=command,
            facts=facts,
            train=train,
            bad_files=bad,
        )
        model_folder.write_text(folder / "metrics.json", json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"writing the report in '{folder}'") from error
    write_bad_files(bad_files, folder)


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
        return Part(records.split(split), f"split {split}", learnt if split != "train" else None)
    if {"query", "gallery"} <= present:
        return Part(records.select(np.isin(splits, ["query", "gallery"])), "splits query and gallery", learnt)
    if "test" in present:
        return Part(records.split("test"), "split test", learnt)
    return _unseen_classes(records, Path(model))


def _unseen_classes(records: Records, model: Path) -> Part:
    learnt, chose_by = _classes_of_run(model)
    assert records.labels is not None
    names = np.array(records.class_names, dtype=object)[records.labels]
    unseen = ~np.isin(names, list(learnt)) if learnt else np.ones(len(records), dtype=np.bool_)
    if unseen.all():
        return Part(records, "all images")
    if not unseen.any():
        return Part(records, "all images (training learnt from all of these classes: no measure of how it does on others)")
    held = " (they chose the model: slightly optimistic)" if np.isin(names[unseen], list(chose_by)).any() else ""
    return Part(records.select(unseen), f"classes held out of training{held}", records.select(~unseen))


def _classes_of_run(model: Path) -> tuple[frozenset[str], frozenset[str]]:
    for folder in (model, model.parent):
        facts = folder / "run.json"
        if facts.is_file():
            try:
                known: Mapping[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
                return frozenset(known["training_classes"]), frozenset(known["validation_classes"])
            except (OSError, json.JSONDecodeError, KeyError) as error:
                raise DataError(f"'{facts}' cannot be read ({error}): pass --split all to measure every image") from error
    return frozenset(), frozenset()
