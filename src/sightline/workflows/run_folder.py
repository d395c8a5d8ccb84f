"""The folder of a run: what it says of itself, what of it has to be the same where a run goes on, and the model at its end."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import __version__, catalog
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import UsageError, explain_os_error
from sightline.methods.base import Measure
from sightline.nn import model_folder
from sightline.nn.encoder import headless
from sightline.recipe import Recipe
from sightline.settings import difference, from_plain, override, recipe_hash, to_plain
from sightline.training import checkpoint
from sightline.training.card import model_card
from sightline.training.loop import Progress
from sightline.training.rows import changes, rows_of
from sightline.workflows.reducing import fit_head

log = logging.getLogger(__name__)


def saved_recipe(file: Path, settings: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a ``recipe.json`` (or a run folder), with settings applied.

    Raises:
        UsageError: there is no such file, or it is of no known method.
    """
    file = file / "recipe.json" if file.is_dir() else file
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"no recipe can be read from '{file}': {error}") from error
    name = plain.get("name", "") if isinstance(plain, dict) else ""
    kind = type(catalog.find("recipes", name)())
    recipe: Recipe = override(from_plain(kind, plain), settings)
    return recipe


def rows_used(records: Records, *, needs_labels: bool) -> Records:
    """Return the rows that training may look at: the splits train and val, without labels all but test; everything where there are no splits."""
    if records.splits is None:
        return records
    splits = np.array(records.splits, dtype=str)
    own = np.isin(splits, ("train", "val"))
    return records.select(own if needs_labels or "train" in records.splits else splits != "test")


def held_to_data(run: Path, used: Records, *, goes_on: bool) -> dict[str, Any]:
    """Return what checkpoints remember of the rows that a run uses, after holding one that goes on to those that it began with.

    A folder that was moved as a whole is the same.

    Raises:
        UsageError: something is not as it was; the line says what.
    """
    rows = rows_of(used)
    if not goes_on:
        return rows
    before = checkpoint.peek(run, "rows")
    if before is None:
        log.warning("'%s' is of a version that did not note its data: whether they changed since cannot be told", run / checkpoint.NAME)
        return rows
    changed = changes(before, rows, used)
    if changed:
        raise UsageError(
            f"the data changed since the run in '{run}' began: {changed}; put them back, or learn from them in a new run that starts from "
            f"what this one has learnt: another --out with --set backbone=auto weights={run}"
        )
    return rows


NOT_WHILE_TRAINING_ON = ("train.optimizer", "train.accumulate", "train.ema", "train.seed")
"""Settings of the loop that the state in a checkpoint was made under."""


def goes_on_from(source: Path, recipe: Recipe) -> int:
    """Return the steps done by the run in ``source`` where ``recipe`` is its own with more of them to do, else 0: it is then replayed.

    Raises:
        UsageError: ``recipe`` differs in more than how the loop goes on.
    """
    if not (source / "recipe.json").is_file() or not (source / checkpoint.NAME).is_file():
        return 0
    own = saved_recipe(source)
    done = int(checkpoint.peek(source, "progress")["step"])
    if not done or recipe.train.steps <= own.train.steps:
        return 0
    other = [path for path, _, _ in difference(own, recipe) if path.partition(".")[0] != "train" or path in NOT_WHILE_TRAINING_ON]
    if other:
        raise UsageError(
            f"the run in '{source}' is trained on with more steps, and of its settings {', '.join(other)} cannot change on the way: leave that, or "
            f"replay the recipe from its start with --from {source / 'recipe.json'}"
        )
    return done


def copy_state(source: Path, run: Path) -> None:
    """Give a new run folder what a run in ``source`` has come to: its checkpoint, its log and its model."""
    try:
        for name in ("metrics.jsonl", checkpoint.NAME):
            shutil.copyfile(source / name, run / name)
        if (source / "model").is_dir():
            shutil.copytree(source / "model", run / "model")
    except OSError as error:
        raise explain_os_error(error, f"copying the run in '{source}' to '{run}'") from error


def open_run(run: Path, recipe: Recipe, family: str, data: str | Path, about: Mapping[str, Any], *, resume: bool) -> None:
    """Write the recipe and the facts of a run into its folder: ``about`` tells what is learnt from and what is held out.

    Raises:
        UsageError: the folder holds a run already, or one of other settings, or cannot be written.
    """
    kept = run / "recipe.json"
    if kept.exists() and not resume:
        raise UsageError(f"'{run}' already holds a run: go on with --resume, or choose another --out")
    if resume and kept.exists() and recipe_hash(saved_recipe(run)) != recipe_hash(recipe):
        raise UsageError(
            f"the run in '{run}' was made with other settings: resume without --set, choose another --out, or train it on in another --out "
            f"with --from {run} --set steps=N, more than it has"
        )
    facts = {
        "recipe_hash": recipe_hash(recipe),
        "family": family,
        "data": str(data),
        **about,
        "git_revision": _git_revision(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
        | {"sightline": __version__, "python": platform.python_version()},
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        model_folder.write_json(kept, to_plain(recipe))
        model_folder.write_json(run / "run.json", facts)
    except OSError as error:
        raise explain_os_error(error, f"writing the run folder '{run}'") from error
    log.warning("images enter at %s", recipe.image)


def note_compute(run: Path, recipe: Recipe, progress: Progress) -> None:
    """Add what a run has cost so far to its facts."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    facts["compute"] = {**progress.compute.to_json(), "flops_before": _flops_of(Path(recipe.model.weights))}
    try:
        model_folder.write_json(run / "run.json", facts)
    except OSError as error:
        raise explain_os_error(error, f"writing '{run / 'run.json'}'") from error


def _flops_of(model: Path) -> int:
    """Return what a run (or its model folder) took to train, with what the weights took that it started from; 0 where nothing tells."""
    for facts in (model / "run.json", model.parent / "run.json"):
        if facts.is_file():
            compute = json.loads(facts.read_text(encoding="utf-8")).get("compute", {})
            return int(compute.get("flops", 0) + compute.get("flops_before", 0))
    return 0


def present(records: Records) -> list[str]:
    """Return the names of the classes that have an image."""
    return [records.class_names[label] for label in np.flatnonzero(records.class_counts())]


def _git_revision() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def finish_model(
    run: Path,
    recipe: Recipe,
    chosen_by: Measure,
    learning: Records | None,
    where: torch.device,
    bad_files: BadFiles,
    progress: Progress,
    command: str,
) -> None:
    """Write the run's model again with its card, and with the head that ``learning`` is to fit, where the recipe has one."""
    encoder = model_folder.load(run, device=where)
    if learning is not None and recipe.model != headless(recipe.model):
        encoder, _ = fit_head(encoder, recipe.model, learning, bad_files)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    best = (chosen_by, progress.best_step, progress.best) if progress.best_step >= 0 else None  # a run that keeps the last has none
    model_folder.save(encoder, run / "model", card=model_card(recipe, encoder, facts, best=best, command=command))
