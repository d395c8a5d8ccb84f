"""Measuring patch features by the dense protocols: one model, one data set in its own layout, a page to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import catalog, runtime
from sightline.data.images import BadFiles
from sightline.data.sets import segmentation
from sightline.errors import UsageError, explain_os_error
from sightline.evaluate.dense import parse
from sightline.evaluate.dense.base import DenseResult
from sightline.html import Number, Page
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.workflows.common import write_bad_files

NUM_SHOWN = 18
"""Pictures on a page, three an image or sequence."""


@dataclass(frozen=True)
class DenseEvaluation:
    """Measures, what they were measured with and on, and the files that could not be read."""

    model: str
    fingerprint: str
    data: str
    result: DenseResult
    bad_summary: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``metrics`` by their usual names, with how they were measured."""
        about = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data, "bad_files": self.bad_summary}
        return {**about, **self.result.to_json()}

    def to_text(self) -> str:
        """Return the numbers as lines to read."""
        found = self.result
        counts = ", ".join(f"{num:,} {name}" for name, num in found.counts.items())
        part = f"{found.settings['part']}, " if "part" in found.settings else ""
        fitted = f" (fitted on {found.settings['train_data']})" if "train_data" in found.settings else ""
        lines = [f"{self.model} on {self.data}: {part}{found.protocol}{fitted}, {counts}"]
        lines += [f"  {name:12} {value:.4f}" for name, value in found.metrics.items()]
        return "\n".join(lines)


def is_dense(protocol: str) -> bool:
    """Return whether ``protocol`` (with settings) names a dense one."""
    return protocol.partition(",")[0].strip() in catalog.names("dense_protocols")


def of_the_model(protocol: str, model: str, data: str | Path) -> str:
    """Return ``segment`` for auto where the model has a segmentation head and the data has masks, else ``protocol`` as it is."""
    return "segment" if protocol == "auto" and model_folder.has_segmenter(model) and segmentation.is_one(Path(data)) else protocol


def with_options(protocol: str, *, dataset: str = "auto", verify: bool = True, split: str = "auto") -> str:
    """Return ``protocol`` with what every measuring takes said as its own settings: davis with the split test is ``davis,split=test``.

    Raises:
        UsageError: it has no setting for one of them, or sets it already.
    """
    known = set(vars(parse(protocol))) - {part.partition("=")[0].strip() for part in protocol.split(",")[1:]}
    own_split = next((name for name in ("split", "part") if name in known), "")
    given = (
        ("--dataset", "", dataset, dataset != "auto"),
        ("--split", own_split, split, split != "auto"),
        ("--no-verify", "verify" if "verify" in known else "", "false", not verify),
    )
    wrong = [option for option, setting, _, is_given in given if is_given and not setting]
    if wrong:
        raise UsageError(
            f"--protocol {protocol} leaves nothing for {' and '.join(wrong)} to say: leave {'it' if len(wrong) < 2 else 'them'} out"
        )
    return ",".join([protocol, *(f"{setting}={value}" for _, setting, value, is_given in given if is_given)])


def measure_dense(
    model: str,
    data: str | Path,
    protocol: str,
    *,
    dataset: str = "auto",
    verify: bool = True,
    split: str = "auto",
    train_data: Path | None = None,
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    command: str = "",
) -> DenseEvaluation:
    """Return how ``model``'s patch features do on ``data`` by a dense protocol; ``report`` is a folder to write the page into.

    ``split`` and ``verify`` are the protocol's own settings of that meaning, where it has them. ``train_data`` is the set whose train part
    the protocol learns from, where that is another folder than ``data``.

    Raises:
        UsageError: the model or data cannot be read, or the protocol has no such setting.
    """
    how, bad_files = parse(with_options(protocol, dataset=dataset, verify=verify, split=split)), BadFiles()
    if train_data is not None and not how.learns:
        raise UsageError(f"--protocol {protocol} learns from nothing: leave --train-data out")
    encoder = model_folder.load(model, device=runtime.device(device))
    result = how.measure(encoder, Path(data), bad_files, train_root=train_data, precision=precision, num_shown=NUM_SHOWN if report else 0)
    summary = bad_files.summary(None, *([report / "bad_files.jsonl"] if report else []))  # counts are of frames or objects, not of files
    if train_data is not None:
        result = replace(result, settings={**result.settings, "train_data": str(train_data)})
    evaluation = DenseEvaluation(str(model), encoder.fingerprint, str(data), result, summary)
    if report is not None:
        _write(report, evaluation, bad_files, command)
    return evaluation


def _write(folder: Path, evaluation: DenseEvaluation, bad_files: BadFiles, command: str) -> None:
    result = evaluation.result
    counts = ", ".join(f"{num:,} {name}" for name, num in result.counts.items())
    page = Page(
        "Dense evaluation",
        f"{result.protocol}: {counts}",
        [("model", f"{evaluation.model} ({evaluation.fingerprint})"), ("data", evaluation.data)],
    )
    page.section("Numbers").numbers([Number(name, f"{100 * value:.1f} %") for name, value in result.metrics.items()])
    if result.groups:
        names = list(dict.fromkeys(name for values in result.groups.values() for name in values))
        rows = [
            [group, *(f"{100 * values[name]:.1f}" if name in values else "-" for name in names)] for group, values in result.groups.items()
        ]
        page.section("One by one", "Per cent.").table(["", *names], rows)
    if result.shown:
        page.section("Pictures", "A click enlarges a picture.")
        if result.colours:
            page.legend(result.colours)
        page.panels(result.shown)
    said = [(name.replace("_", " "), value) for name, value in result.settings.items() if value not in ("", None)]
    page.section("Method").table(["setting", "value"], [(name, str(value)) for name, value in said])
    if bad_files:
        page.details("Files that could not be read", [f"{path}: {reason}" for path, reason in bad_files.items()])
    if command:
        page.text("Made by:").code(command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model_folder.write_text(folder / "metrics.json", json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"writing the report in '{folder}'") from error
    page.write(folder / "index.html")
    write_bad_files(bad_files, folder)
