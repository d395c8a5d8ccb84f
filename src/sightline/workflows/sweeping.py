"""Sweeping: every variant of a recipe trained and measured under several seeds, with one table and one page that grow run by run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import catalog, runtime
from sightline.data.images import BadFiles
from sightline.data.reading import read_data
from sightline.data.sets import segmentation
from sightline.errors import TrainingError, UsageError, explain_os_error, nearest
from sightline.evaluation import sweep_report
from sightline.evaluation.classified import require_split
from sightline.evaluation.protocol import parse
from sightline.evaluation.sweep_report import Result
from sightline.methods.base import Method
from sightline.methods.segment import SegmentRecipe
from sightline.nn import model_folder
from sightline.progress import duration
from sightline.recipe import Recipe
from sightline.settings import full_path, recipe_hash
from sightline.sweep import Sweep, Variant, grid, parse_grid, run_name
from sightline.training import checkpoint
from sightline.training.rows import digest, rows_of
from sightline.workflows import evaluating, segmenting, training

USUAL_METRICS = ("recall@1", "map@r", "accuracy@1", "j&f", "miou")
RESULT = "result.json"
"""In a run's folder: what it was measured to be, or why training gave up; with it the run is done."""


@dataclass(frozen=True)
class Swept:
    """What a sweep has found, how many runs it will have, and the signal that ended it early, if one did."""

    folder: Path
    sweep: Sweep
    results: tuple[Result, ...]
    num_planned: int
    stopped_by: str = ""

    @property
    def rows(self) -> list[sweep_report.Row]:
        """The table: mean and deviation of each variant over its seeds."""
        return sweep_report.summarise(self.sweep.variants, self.results)

    def to_text(self) -> str:
        """Return the table in Markdown."""
        return sweep_report.markdown(self.rows).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``table`` by variant, and how far the sweep has come."""
        about = {"out": str(self.folder), "recipe": self.sweep.recipe, "runs_done": len(self.results), "runs": self.num_planned}
        return {**about, "stopped_by": self.stopped_by, "table": sweep_report.plain(self.rows)}


@dataclass(frozen=True)
class _RunProtocol:
    """What the runs are measured by, and on: a protocol (auto is what ``evaluate`` takes by itself) and another data set than theirs, or theirs."""

    protocol: str = "auto"
    data: str | Path | None = None
    rows: str = ""  # what names the rows of the training data, those of its test split too

    def require(self, recipe: Recipe, trained_on: str | Path) -> None:
        """Refuse what could not be measured, before the first run is trained.

        Raises:
            UsageError: the protocol is unknown, or asks for data, labels or a split that are not there.
        """
        if self.data is not None and not Path(self.data).exists():
            raise UsageError(f"'{self.data}' is not there: --measure-on names the data that the runs are measured on")
        parse(self.protocol)
        spec, data = recipe.data, self.data or trained_on
        if self.protocol == "auto" and _method(recipe).learns_from == "masks":
            found = segmentation.read(Path(data))
            found.part("test" if found.test else "val")
        elif self.protocol == "auto" and _classifies(recipe):
            require_split(data, dataset=spec.dataset, verify=spec.verify)
        elif self.protocol == "auto" and not _method(recipe).needs_labels:
            if read_data(data, BadFiles(), dataset=spec.dataset, verify=spec.verify).labels is not None:
                return
            raise UsageError(
                f"'{data}' has no labels to measure the runs by: name labelled data with --measure-on, or a dense protocol with its data, "
                "such as --protocol davis --measure-on DAVIS"
            )

    def measure(self, run: _Run, trained_on: str | Path, device: str) -> dict[str, Any]:
        """Return what was found, as plain data."""
        model, data, spec = str(run.folder), self.data or trained_on, run.recipe.data
        protocol = "accuracy" if self.protocol == "auto" and _classifies(run.recipe) else self.protocol
        how: dict[str, Any] = {"protocol": protocol, "device": device}
        # The recipe's reading of its data: protocols with a layout of their own read it their own way.
        if "dataset" in evaluating.protocol_for(protocol, model, data).takes:
            how |= {"dataset": "auto" if self.data else spec.dataset, "verify": spec.verify}
        return evaluating.evaluate(model, data, **how).to_json()


@dataclass(frozen=True)
class _Run:
    variant: Variant
    seed: int
    recipe: Recipe
    folder: Path


def named_sweep(name: str, grid_words: Sequence[str] = (), recipe: str = "") -> Sweep:
    """Return a sweep of the catalog, or the grid of ``key=value,value,...`` words over the recipe called ``name``.

    ``recipe`` replaces the one that a sweep of the catalog is over.

    Raises:
        UsageError: there is no such sweep, or a recipe without a grid.
    """
    if name in catalog.names("recipes"):
        if not grid_words or recipe:
            raise UsageError(f"what of {name} is to vary? for example: sightline sweep {name} --grid margin=0.1,0.3,0.5 --data D --out DIR")
        return Sweep(name, grid(parse_grid(grid_words)))
    known = catalog.names("sweeps")
    if name not in known or grid_words:
        what = "a grid goes over a recipe, and" if grid_words else "a sweep is one of the catalog or a recipe with a grid;"
        raise UsageError(f"{what} '{name}' is none{nearest(name, [*([] if grid_words else known), *catalog.names('recipes')])}")
    found: Sweep = catalog.find("sweeps", name)()
    return Sweep(recipe or found.recipe, found.variants)


def sweep(
    plan: Sweep,
    data: str | Path,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    num_seeds: int = 1,
    metrics: Sequence[str] = (),
    protocol: str = "auto",
    measure_on: str | Path | None = None,
    device: str = "auto",
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Train and measure every variant of ``plan`` under seeds 0 to ``num_seeds`` - 1 into run folders of ``out``; finished runs are kept.

    ``settings`` hold for all variants. A run is measured as ``evaluating.evaluate`` does by itself: on the test split, else on classes that
    training did not learn from; one of classification by its accuracy, on the test split, else val. ``protocol`` names another measure,
    ``measure_on`` other data than that of the training. One whose numbers diverge is noted and
    the sweep goes on. The table (``sweep.json``, ``sweep.csv``, ``sweep.md``) and the page (``index.html``, with figures of ``metrics``) are
    written after every run. ``say`` is told of each run.

    Raises:
        UsageError: the data, a variant or the folder do not allow it, or a run in the folder was made otherwise.
    """
    if runtime.ranks().world_size > 1:
        raise UsageError("a sweep trains in one process: start it without torchrun, on a device of its own with --device cuda:1")
    runs, ruler = _planned(plan, settings, num_seeds, Path(out)), _RunProtocol(protocol, measure_on)
    ruler.require(runs[0].recipe, data)
    ruler = replace(ruler, rows=_rows_of(data, runs[0].recipe))
    kept = [_kept(run, data, ruler) for run in runs]
    waiting, times_s = kept.count(None), list[float]()
    results = [result for result in kept if result is not None]
    swept = Swept(Path(out), plan, tuple(results), len(runs))
    for number, (run, result) in enumerate(zip(runs, kept, strict=True), 1):
        if result is not None:
            continue
        left = f", about {duration(waiting * sum(times_s) / len(times_s))} left" if times_s else ""
        say(f"run {number} of {len(runs)}: {run.variant.label}, seed {run.seed}{left}")
        started = time.perf_counter()
        found = _train_and_measure(run, data, ruler, device, command)
        if isinstance(found, str):
            return Swept(Path(out), plan, tuple(results), len(runs), stopped_by=found)
        results.append(found)
        times_s.append(time.perf_counter() - started)
        waiting -= 1
        swept = Swept(Path(out), plan, tuple(results), len(runs))
        _write(swept, data, ruler, settings, metrics, command)
    _write(swept, data, ruler, settings, metrics, command)
    return swept


def _rows_of(data: str | Path, recipe: Recipe) -> str:
    if _method(recipe).learns_from == "masks":
        assert isinstance(recipe, SegmentRecipe)
        return digest(rows_of(segmenting.read_lesson(data, recipe, BadFiles()).rows))
    spec, needs_labels = recipe.data, _method(recipe).needs_labels
    return digest(rows_of(read_data(data, BadFiles(), dataset=spec.dataset, verify=spec.verify, require_labels=needs_labels)))


def _planned(plan: Sweep, settings: Sequence[str], num_seeds: int, out: Path) -> list[_Run]:
    """Return the runs, all variants of a seed before the next seed, so that a sweep cut short has compared them all."""
    runs = []
    for seed in range(num_seeds):
        for variant in plan.variants:
            recipe = training.named_recipe(plan.recipe, [*settings, *variant.settings])
            if any(full_path(recipe, key) == "train.seed" for key in variant.values):
                raise UsageError("the seed is no part of a grid: ask for several with --seeds 3")
            recipe = training.resolved(training.named_recipe(plan.recipe, [*settings, *variant.settings, f"train.seed={seed}"]))
            runs.append(_Run(variant, seed, recipe, out / "runs" / run_name(variant, seed)))
    if len({run.folder for run in runs}) < len(runs):
        raise UsageError("two variants of the sweep would share a run folder: give them values that differ in letters or digits")
    return runs


def _method(recipe: Recipe) -> type[Method]:
    found: type[Method] = catalog.find("methods", recipe.name.partition("/")[0])
    return found


def _classifies(recipe: Recipe) -> bool:
    return _method(recipe).validation == "held-out-images"


def _kept(run: _Run, data: str | Path, ruler: _RunProtocol) -> Result | None:
    """Return what an earlier sweep found for this run, or None where it is still to be done."""
    file = run.folder / RESULT
    if not file.exists():
        return None
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        now = _about(run, data, ruler)
        since = {"trained_on": plain["data"], "asked": "auto", "rows": ruler.rows}  # what earlier versions did not note
        made = {name: plain.get(name, default) for name, default in since.items()}
        made |= {"recipe_hash": plain["recipe_hash"], "data": plain["data"]}
        result = Result(run.variant, run.seed, plain["metrics"], plain["diverged"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"'{file}' cannot be read ({error}): delete '{run.folder}' to make this run again") from error
    if made | {"rows": ruler.rows} == now != made:
        raise UsageError(f"the data of '{data}' changed since the run in '{run.folder}' was made: sweep into another --out")
    if made != now:
        raise UsageError(f"the run in '{run.folder}' was made with other settings or data: choose another --out, or delete it")
    return result


def _about(run: _Run, data: str | Path, ruler: _RunProtocol) -> dict[str, Any]:
    """Return what a result has to share with a run to be its own."""
    measured_on = str(ruler.data or data)
    return {
        "recipe_hash": recipe_hash(run.recipe),
        "trained_on": str(data),
        "asked": ruler.protocol,
        "data": measured_on,
        "rows": ruler.rows,
    }


def _train_and_measure(run: _Run, data: str | Path, ruler: _RunProtocol, device: str, command: str) -> Result | str:
    """Return what was found, or the signal that stopped the training; a run that was broken off goes on where it stood."""
    about = _about(run, data, ruler)
    try:
        trained = training.train(run.recipe, data, run.folder, device=device, resume=True, command=command)
        if trained.progress.stopped_by:
            return trained.progress.stopped_by
        found = ruler.measure(run, data, device)
        metrics = {name: value for name, value in found["metrics"].items() if value is not None}
        result = Result(run.variant, run.seed, metrics)
        about |= {**found, "metrics": metrics, "diverged": ""}
    except TrainingError as error:
        result = Result(run.variant, run.seed, diverged=str(error))
        about |= {"metrics": {}, "diverged": str(error)}
    try:
        model_folder.write_json(run.folder / RESULT, about)
        (run.folder / checkpoint.NAME).unlink(missing_ok=True)  # three times the model's size and more, and the run is done
    except OSError as error:
        raise explain_os_error(error, f"writing '{run.folder / RESULT}'") from error
    return result


def _write(swept: Swept, data: str | Path, ruler: _RunProtocol, settings: Sequence[str], metrics: Sequence[str], command: str) -> None:
    """Write the table and the page; nothing where no run has been measured yet."""
    known = sweep_report.metric_names(swept.rows)
    for name in metrics:
        if known and name not in known:
            raise UsageError(f"the runs were not measured by '{name}'{nearest(name, known)}")
    drawn = [name for name in metrics or USUAL_METRICS if name in known] or known[:1]
    facts = [
        ("data", str(data)),
        ("measured by", f"{ruler.protocol} on {ruler.data or data}"),
        ("recipe", " ".join([swept.sweep.recipe, *settings])),
        ("runs", f"{len(swept.results)} of {swept.num_planned}"),
    ]
    plain = {**swept.to_json(), "data": str(data), "settings": list(settings), "command": command}
    try:
        swept.folder.mkdir(parents=True, exist_ok=True)
        model_folder.write_json(swept.folder / "sweep.json", plain)
        model_folder.write_text(swept.folder / "sweep.csv", sweep_report.comma_separated(swept.results))
        model_folder.write_text(swept.folder / "sweep.md", sweep_report.markdown(swept.rows))
    except OSError as error:
        raise explain_os_error(error, f"writing the table in '{swept.folder}'") from error
    title = f"Sweep of {swept.sweep.recipe}"
    page = swept.folder / "index.html"
    sweep_report.write_page(page, swept.sweep.variants, swept.results, title=title, facts=facts, metrics=drawn, command=command)
