"""Training, from a recipe and a folder to a model folder."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import __version__, catalog, runtime
from sightline.contracts import Batch, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import train_batches
from sightline.data.records import Records
from sightline.data.samplers import PKSampler, Sampler, ShuffleSampler
from sightline.errors import UsageError, explain_os_error
from sightline.methods.base import Measure, Method
from sightline.nn import model_folder, own_input
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder, headless
from sightline.recipe import DataSpec, Recipe, from_plain, override, recipe_hash, to_plain
from sightline.search.mining import MinedTuples
from sightline.train import checkpoint
from sightline.train.card import model_card
from sightline.train.loop import Loop, Progress
from sightline.train.parallel import process_group
from sightline.workflows.common import read_data, write_bad_files
from sightline.workflows.reducing import fit_head, require_head
from sightline.workflows.validating import Material, material, validator

# --- train ----------------------------------------------------------------------------------------------------------------------


def named_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Return a recipe of the catalog with ``key=value`` settings applied."""
    recipe: Recipe = override(catalog.find("recipes", name)(), settings)
    return recipe


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


@dataclass(frozen=True)
class Trained:
    """What a training run left: its folder, how far it came, the measure that chose the model, and in words what that was taken on."""

    run: Path
    progress: Progress
    recipe: Recipe
    num_bad: int
    chosen_by: Measure
    held_out: str = ""


def train(
    recipe: Recipe, data: str | Path | Records, out: str | Path, *, device: str = "auto", resume: bool = False, command: str = ""
) -> Trained:
    """Train ``recipe`` on ``data`` (records, or where to read them) into the run folder ``out`` and return what became of it.

    The split called val chooses the model; where there is none, a part of the training split is held out (see ``validating.material``). A test
    split is never touched.

    Raises:
        UsageError: the data, the recipe or the folder do not allow it.
        TrainingError: the numbers diverged.
    """
    run, where = Path(out), runtime.device(device)
    recipe = resolved(recipe)
    runtime.seed_everything(recipe.train.seed)
    bad_files = BadFiles()
    kind: type[Method] = catalog.find("methods", recipe.name.partition("/")[0])
    if kind.learns_from == "masks":
        from sightline.workflows import segmenting  # which stands on this module

        return segmenting.train_on_masks(recipe, data, run, where, bad_files, resume=resume, command=command)
    records = _records(data, recipe.data, kind, bad_files)
    data = records.root if isinstance(data, Records) else data
    found = material(records, recipe, kind)
    learning = found.learning
    labels = learning.labels if learning.labels is not None else np.zeros(len(learning), np.int64)
    epochs = _epochs(learning, recipe, bad_files)
    with process_group(where) as ranks:
        goes_on = resume and (run / checkpoint.NAME).exists()
        bare = headless(recipe.model)  # the head is fitted when training is over
        encoder = Encoder(replace(bare, weights="random") if goes_on else bare, recipe.image)  # the checkpoint has the weights
        if recipe.model != bare:
            require_head(encoder, recipe.model, learning)
        method: Method = kind(recipe, encoder, labels=labels)
        if not goes_on:
            method.begin()
        if isinstance(encoder.classifier, Classifier):
            encoder.classifier.class_names = tuple(_present(learning))
        if ranks.is_main:
            open_run(run, recipe, encoder.backbone.family, data, _about(found), resume=resume)
        transform = kind.transform(recipe)

        def batches(first: int) -> Iterator[Batch]:
            num = recipe.train.steps * recipe.train.accumulate - first
            sampler = epochs.sampler() if epochs is not None else _sampler(labels, recipe)
            if epochs is not None:
                num = min(num, sampler.steps_per_epoch - first % sampler.steps_per_epoch)  # the next epoch's are not known yet
            return train_batches(
                learning if kind.needs_labels else learning.without_labels(),
                sampler,
                transform,
                start_step=first,
                num_steps=num,
                seed=recipe.train.seed,
                num_workers=_num_workers(recipe.data.workers, ranks.world_size, where),
                rank=ranks.rank,
                world_size=ranks.world_size,
                bad_files=bad_files,
                device=where,
            )

        validate = validator(found, recipe, kind.chosen_by, bad_files)
        loop = Loop(method, batches, recipe.train, run, device=where, validate=validate, epochs=epochs, resume=resume)
        progress = loop.run()
        if ranks.is_main:
            note_compute(run, recipe, progress)
            if not progress.stopped_by:
                finish_model(run, recipe, kind.chosen_by, learning, where, bad_files, progress, command)
            write_bad_files(bad_files, run)
    return Trained(run, progress, recipe, len(bad_files), kind.chosen_by, found.held_out)


def _records(data: str | Path | Records, spec: DataSpec, kind: type[Method], bad_files: BadFiles) -> Records:
    if isinstance(data, Records):
        return data
    return read_data(data, bad_files, dataset=spec.dataset, verify=spec.verify, require_labels=kind.needs_labels)


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with what it leaves open filled: ``backbone=auto``, and the image settings that are left to the backbone.

    ``backbone=auto`` becomes the network of the model folder that ``weights`` names: its arguments, pooling and colours too.

    Raises:
        ModelError: ``weights`` names no model folder.
    """
    if recipe.model.backbone != "auto":
        return replace(recipe, image=own_input.resolved(recipe.image, recipe.model))
    if recipe.model.weights in ("auto", "hub", "random"):
        raise UsageError("backbone=auto is that of a model folder: name one with weights=runs/mine, or name a backbone")
    model, image = model_folder.specs(recipe.model.weights)
    taken = {name: getattr(model, name) for name in ("backbone", "backbone_args", "pooling", "gem_p", "positions_at")}
    found = replace(recipe.model, weights=str(model_folder.find(recipe.model.weights)), **taken)
    return replace(
        recipe,
        model=found,
        image=own_input.resolved(replace(recipe.image, mean=image.mean, std=image.std), found),
    )


def _sampler(labels: IntArray, recipe: Recipe) -> Sampler:
    data, seed = recipe.data, recipe.train.seed
    if data.images_per_batch:
        return ShuffleSampler(len(labels), data.images_per_batch, seed)
    return PKSampler(labels, data.classes_per_batch, data.images_per_class, seed)


def _epochs(learning: Records, recipe: Recipe, bad_files: BadFiles) -> MinedTuples | None:
    if not recipe.data.tuples_per_batch:
        return None
    train = recipe.train
    return MinedTuples(
        learning, recipe.data, seed=train.seed, batches_per_step=train.accumulate, precision=train.precision, bad_files=bad_files
    )


def _num_workers(asked: int, world_size: int, where: torch.device) -> int:
    if asked >= 0:
        return asked
    share = runtime.num_cpus() // world_size
    return max(1, min(8, share)) if where.type != "cpu" or share > 2 else 0  # two cores that also train gain nothing from a third process


def open_run(run: Path, recipe: Recipe, family: str, data: str | Path, about: Mapping[str, Any], *, resume: bool) -> None:
    """Write the recipe and the facts of a run into its folder: ``about`` tells what is learnt from and what is held out.

    Raises:
        UsageError: the folder holds a run already, or one of other settings, or cannot be written.
    """
    kept = run / "recipe.json"
    if kept.exists() and not resume:
        raise UsageError(f"'{run}' already holds a run: go on with --resume, or choose another --out")
    if resume and kept.exists() and recipe_hash(saved_recipe(run)) != recipe_hash(recipe):
        raise UsageError(f"the run in '{run}' was made with other settings: resume without --set, or choose another --out")
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
        model_folder.write_text(kept, json.dumps(to_plain(recipe), indent=2) + "\n")
        model_folder.write_text(run / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"writing the run folder '{run}'") from error


def _about(found: Material) -> dict[str, Any]:
    learning, validation = found.learning, found.validation
    return {
        "images": len(learning),
        "training_classes": _present(learning),
        "validation_classes": _present(validation) if validation is not None else [],
        "validation_images": len(validation) if validation is not None else 0,
        "held_out": found.held_out,
    }


def note_compute(run: Path, recipe: Recipe, progress: Progress) -> None:
    """Add what a run has cost so far to its facts."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    facts["compute"] = {**progress.compute.to_json(), "flops_before": _flops_of(Path(recipe.model.weights))}
    try:
        model_folder.write_text(run / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"writing '{run / 'run.json'}'") from error


def _flops_of(model: Path) -> int:
    """Return what a run (or its model folder) took to train, with what the weights took that it started from; 0 where nothing tells."""
    for facts in (model / "run.json", model.parent / "run.json"):
        if facts.is_file():
            compute = json.loads(facts.read_text(encoding="utf-8")).get("compute", {})
            return int(compute.get("flops", 0) + compute.get("flops_before", 0))
    return 0


def _present(records: Records) -> list[str]:
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
