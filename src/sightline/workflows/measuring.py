"""Measuring: a model against labelled images or a judged benchmark, with a report to look at."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline import catalog, runtime
from sightline.contracts import Descriptors
from sightline.data.images import BadFiles
from sightline.data.judged import read_benchmark, with_distractors
from sightline.data.records import Records
from sightline.errors import DataError, UsageError, counted, explain_os_error, nearest
from sightline.evaluate.measured import Measured, measure
from sightline.evaluate.protocols import add_distractors, choose_protocol, require_several
from sightline.evaluate.report import Collection, write_report
from sightline.evaluate.trials import Trial, judged_trial, label_trial
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.search.rerank import parse
from sightline.workflows.common import read_data, write_bad_files

_FOLDERS_OF = {"copydays": {"original", "strong", "jpegqual", "crops"}, "places": {"query", "reference"}}
"""Benchmarks whose folders would be taken for classes."""

_FILES_OF = {
    "gnd_*": "--protocol revisited",
    "ImageSets/20*": "--protocol davis",
    "retrieval_solution_v2.1.csv": "--protocol gldv2",
    "image_class_labels.txt": "--data {0}/images, or --dataset cub for the whole set",
    "Ebay_test.txt": "--dataset sop",
    "Eval/list_eval_partition.txt": "--dataset inshop",
    "annotations/*.json": "--protocol detect (for its objects)",
    "annotations/*/*.png": "--protocol in-context (for its masks)",
    "valannot": "--protocol in-context (for its masks)",
    "masks/*/*.png": "--protocol in-context (for its masks)",
}
"""What tells a data set's own layout by a file in it, and what reads it."""


@dataclass(frozen=True)
class Evaluation:
    """Measures, what they were measured with and on, and the files that could not be read."""

    model: str
    fingerprint: str
    data: str
    part: str
    rerank: str
    measured: Measured
    bad_summary: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``metrics`` by their usual names, with how they were measured."""
        about = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data, "part": self.part, "bad_files": self.bad_summary}
        if self.rerank:
            about["rerank"] = self.rerank
        return {**about, **self.measured.to_json()}

    def to_text(self) -> str:
        """Return the numbers as lines to read, with their 95 % intervals."""
        found = self.measured
        size = f"{counted(found.num_queries, 'query', 'queries')} in {counted(found.num_gallery, 'image')}"
        size += f" of {counted(found.num_groups, 'class', 'classes')}" if found.by_labels else ""
        reranked = f", {self.rerank} over the {found.rerank_top:,} closest" if found.rerank_top is not None else ""
        left_out = f" ({found.left_out} left out)" if found.left_out else ""
        lines = [f"{self.model} on {self.data}: {self.part}, {found.protocol}{left_out}, {size}{reranked}"]
        width = max(12, *map(len, found.metrics))
        for name, value in found.metrics.items():
            if np.isnan(value):
                lines.append(f"  {name:{width}} -        (nothing to find, or nothing wrong to find)")
                continue
            low, high = found.intervals.get(name, (float("nan"), float("nan")))
            spread = "" if np.isnan(low) else f"   [{low:.4f}, {high:.4f}]"
            lines.append(f"  {name:{width}} {value:.4f}{spread}")
        skipped = ", ".join(f"{setting} {num}".strip() for setting, num in found.num_skipped.items())
        what = "no other image of their class" if found.by_labels else "nothing to find"
        over = "classes" if found.by_labels else "groups of queries that share a positive"
        lines.append(f"  ties: {found.tie_rule}; intervals: 95 %, bootstrap over {over}; skipped ({what}): {skipped}")
        return "\n".join(lines)


def evaluate(
    model: str,
    data: str | Path,
    *,
    dataset: str = "auto",
    verify: bool = True,
    protocol: str = "auto",
    split: str = "auto",
    distractors: Path | None = None,
    rerank: str = "",
    rerank_top: int | None = None,
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    command: str = "",
) -> Evaluation:
    """Return how well ``model`` retrieves within ``data``, exactly; ``report`` is a folder to write the page into.

    ``protocol`` is one by labels, or names a judged benchmark, which reads ``data`` in its own layout. ``split`` auto measures the test
    split (or query and gallery) where there is one; else, for a model whose run tells its training classes, the classes that training
    did not learn from; else everything. ``distractors`` is a folder or manifest whose images are searched too and never right.
    ``rerank`` names what re-ranks the ``rerank_top`` closest of each query (None: see ``evaluate.measured.measure``).

    Raises:
        UsageError: the model or data cannot be read, or nothing can be measured.
    """
    where, bad_files = runtime.device(device), BadFiles()
    reranker = parse(rerank) if rerank else None
    read = _judged if is_benchmark(protocol) else _labelled
    task = read(data, model, bad_files, dataset=dataset, verify=verify, protocol=protocol, split=split, distractors=distractors)
    encoder = model_folder.load(model, device=where)
    found = embed_records(encoder, task.records, bad_files, precision=precision)
    trial = task.trial(found)
    products_on = str(where) if where.type == "cuda" else "cpu"
    measured = measure(
        trial, rerank=None if reranker is None else partial(reranker, device=products_on), rerank_top=rerank_top, device=products_on
    )
    bad_summary = bad_files.summary(len(task.records), *([report / "bad_files.jsonl"] if report else []))
    evaluation = Evaluation(str(model), encoder.fingerprint, str(data), task.words, rerank, measured, bad_summary)
    if report is not None:
        learnt = None
        if task.learnt is not None:
            learnt = Collection(
                embed_records(encoder, task.learnt, BadFiles(), precision=precision, what="embedding the training part"), task.learnt
            )
        _write(report, evaluation, encoder, trial, learnt, bad_files, command)
    return evaluation


def is_benchmark(protocol: str) -> bool:
    """Return whether ``protocol`` names a judged benchmark, and not one by labels.

    Raises:
        UsageError: it is neither.
    """
    name, benchmarks, by_labels = protocol.partition(",")[0], catalog.names("benchmarks"), ["auto", *catalog.names("protocols")]
    if name not in (*benchmarks, *by_labels):
        raise UsageError(f"unknown protocol '{name}'{nearest(name, [*benchmarks, *by_labels, *catalog.names('dense_protocols')])}")
    return name in benchmarks


@dataclass(frozen=True)
class _Task:
    """The records to embed, the trial that their descriptors make, what is measured in words, and what training learnt from."""

    records: Records
    trial: Callable[[Descriptors], Trial]
    words: str
    learnt: Records | None = None


def _judged(
    data: str | Path, model: str, bad_files: BadFiles, *, dataset: str, verify: bool, protocol: str, split: str, distractors: Path | None
) -> _Task:
    if dataset != "auto" or split != "auto":
        raise UsageError(f"--protocol {protocol} reads its own layout and measures all of it: leave out --dataset and --split")
    judged = read_benchmark(protocol, Path(data), verify=verify)
    if distractors is not None:
        judged = with_distractors(judged, read_data(distractors, bad_files))
    return _Task(judged.records, partial(judged_trial, judged=judged), "all of it")


def _labelled(
    data: str | Path, model: str, bad_files: BadFiles, *, dataset: str, verify: bool, protocol: str, split: str, distractors: Path | None
) -> _Task:
    if dataset == "auto" and protocol == "auto":
        _require_class_folders(Path(data))
    records = read_data(data, bad_files, dataset=dataset, verify=verify, require_labels=True)
    mistaken = next(
        (name for name, folders in _FOLDERS_OF.items() if records.num_classes > 1 and folders.issuperset(records.class_names)), ""
    )
    if mistaken and protocol == "auto":
        raise UsageError(
            f"'{data}' looks like {mistaken}: add --protocol {mistaken}, or --protocol leave-one-out if its folders are classes"
        )
    part = part_to_measure(records, model, split)
    measured, chosen = part.records, choose_protocol(part.records, protocol)
    if distractors is None:
        require_several(measured, chosen)
    else:
        measured, chosen = add_distractors(measured, chosen, read_data(distractors, bad_files))
    return _Task(measured, partial(label_trial, records=measured, protocol=chosen), part.words, part.learnt)


def _require_class_folders(data: Path) -> None:
    """Refuse a folder in the layout of a data set that is read otherwise: its folders are no classes.

    Raises:
        UsageError: it is one.
    """
    option = next((option for file, option in _FILES_OF.items() if data.is_dir() and any(data.glob(file))), None)
    if option is not None:
        raise UsageError(
            f"'{data}' looks like a data set in its own layout: give {option.format(data)}; or --protocol leave-one-out if its folders are classes"
        )


def _write(
    folder: Path,
    evaluation: Evaluation,
    encoder: Encoder,
    trial: Trial,
    train: Collection | None,
    bad_files: BadFiles,
    command: str,
) -> None:
    facts = [
        ("model", f"{evaluation.model} ({encoder.model.backbone}, {encoder.dim}-d, {evaluation.fingerprint})"),
        ("data", f"{evaluation.data}: {evaluation.part}"),
        ("protocol", evaluation.measured.protocol),
        *([("re-ranked by", evaluation.rerank)] if evaluation.rerank else []),
    ]
    bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(
            folder / "index.html",
            evaluation.measured,
            trial,
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
