"""Comparing: what runs measure against what they cost, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import DataError, UsageError, explain_os_error, nearest
from sightline.evaluation import compare_report
from sightline.evaluation.compare_report import Run
from sightline.nn import model_folder


@dataclass(frozen=True)
class Comparison:
    """The runs, the metrics that they are compared by, and the runs that could not take part, each with its reason."""

    runs: tuple[Run, ...]
    metrics: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_text(self) -> str:
        """Return a table in Markdown for each metric."""
        return "\n".join(compare_report.markdown(compare_report.points(self.runs, metric), metric) for metric in self.metrics).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``variants``, the table of each metric one after the other, and ``left_out``."""
        variants = [row for metric in self.metrics for row in compare_report.plain(compare_report.points(self.runs, metric), metric)]
        return {"runs": len(self.runs), "metrics": list(self.metrics), "left_out": list(self.left_out), "variants": variants}


def compare(folders: Sequence[str | Path], out: str | Path, *, metrics: Sequence[str] = (), command: str = "") -> Comparison:
    """Compare the runs in ``folders`` and write ``index.html`` and ``comparison.json`` into ``out``.

    A run's metrics are those of ``result.json`` (a sweep's) and of every ``metrics.json`` in a folder of the run (``--report RUN/NAME``).
    Without ``metrics``, the first that most runs have is taken. A folder that is no run (a reduced model, say), cannot be read or was
    measured by none of them is left out and named.

    Raises:
        UsageError: no run is left, or none was measured by a metric asked for.
    """
    found, left_out = [], []
    for folder in map(Path, folders):
        try:
            run = read_run(folder)
        except DataError as error:  # of many folders one is damaged: the others can be compared all the same
            run = str(error)
        if isinstance(run, Run):
            found.append(run)
        else:
            left_out.append(f"{folder}: {run}")
    if not found:
        raise UsageError(
            f"there is nothing to compare ({'; '.join(left_out) or 'no folders were given'}): give runs of sightline train that were measured"
        )
    known = list(dict.fromkeys(name for run in found for name in run.metrics))
    for name in metrics:
        if name not in known:
            raise UsageError(f"no run was measured by '{name}'{nearest(name, known)}")
    chosen = tuple(metrics) or (max(known, key=lambda name: sum(name in run.metrics for run in found)),)
    left_out += [f"{run.name}: not measured by {' or '.join(chosen)}" for run in found if not set(chosen) & set(run.metrics)]
    comparison = Comparison(tuple(run for run in found if set(chosen) & set(run.metrics)), chosen, tuple(left_out))
    page = Path(out) / "index.html"
    compare_report.write_page(page, comparison.runs, chosen, left_out=left_out, command=command)
    try:
        model_folder.write_json(page.parent / "comparison.json", {**comparison.to_json(), "command": command})
    except OSError as error:
        raise explain_os_error(error, f"writing '{page.parent / 'comparison.json'}'") from error
    return comparison


def read_run(folder: Path) -> Run | str:
    """Return what a run's folder tells, or the reason that it cannot be compared.

    Raises:
        DataError: one of its files cannot be read.
    """
    if not (folder / "run.json").is_file():
        return "no run is here"
    if not (folder / "recipe.json").is_file():
        return "it was not trained here but made from another model (sightline reduce), whose run tells its compute"
    facts, recipe = _read(folder / "run.json"), _read(folder / "recipe.json")
    if "compute" not in facts:
        return "it has no record of its compute: it is not done, or was made before Sightline kept one"
    metrics: dict[str, float] = {}
    for file in (*sorted(folder.glob("*/metrics.json")), folder / "result.json"):
        if file.is_file():
            metrics |= {name: float(value) for name, value in _read(file).get("metrics", {}).items() if isinstance(value, int | float)}
    if not metrics:
        return f"it was not measured: sightline evaluate {folder} --data D --report {folder / 'report'} (or sightline probe)"
    compute = facts["compute"]
    try:
        recipe["train"]["seed"] = None  # runs that differ by it alone are one variant
        return Run(
            name=folder.name,
            family=facts["family"],
            recipe=recipe["name"],
            variant=json.dumps([recipe, facts["data"]], sort_keys=True),
            num_images=int(facts["images"]),
            flops=int(compute["flops"]),
            flops_before=int(compute["flops_before"]),
            images_seen=int(compute["images"]),
            device_hours=float(compute["device_hours"]),
            metrics=metrics,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the run in '{folder}' is not as Sightline writes it ({error!r}): leave it out") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read ({error}): leave its run out, or make it again") from error
    if not isinstance(plain, dict):
        raise DataError(f"'{file}' holds no JSON object: leave its run out, or make it again")
    return plain
