"""Training, from a recipe and a folder to a model folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sightline import catalog, runtime
from sightline.contracts import Batch
from sightline.data.images import BadFiles
from sightline.data.loading import train_batches
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.data.samplers import Sampling
from sightline.errors import UsageError
from sightline.evaluation.validation import HoldOut, Parts
from sightline.methods.base import Measure, Method
from sightline.nn import model_folder, own_input
from sightline.nn.collectives import barrier
from sightline.nn.encoder import Encoder, headless
from sightline.recipe import DataSpec, Recipe
from sightline.settings import override
from sightline.training import checkpoint
from sightline.training.loop import Epochs, Loop, Progress
from sightline.training.parallel import process_group
from sightline.workflows.common import write_bad_files
from sightline.workflows.expecting import foretell
from sightline.workflows.reducing import require_head
from sightline.workflows.run_folder import copy_state, finish_model, held_to_data, note_compute, open_run, present, rows_used

# --- train ----------------------------------------------------------------------------------------------------------------------


def named_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Return a recipe of the catalog with ``key=value`` settings applied."""
    recipe: Recipe = override(catalog.find("recipes", name)(), settings)
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
    recipe: Recipe | str,
    data: str | Path | Records,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    after: Path | None = None,
    command: str = "",
) -> Trained:
    """Train ``recipe`` on ``data`` (records, or where to read them) into the run folder ``out`` and return what became of it.

    ``recipe`` may be a name of the catalog, and ``settings`` are its ``key=value``, such as ``steps=500``.
    ``resume`` goes on where the run in ``out`` stopped; ``after`` names a run that a new one goes on from, with the steps it has done.

    The split called val chooses the model; where there is none, a part of the training split is held out (see ``evaluation.validation``). A test
    split is never touched.

    Raises:
        UsageError: the data, the recipe or the folder do not allow it.
        TrainingError: the numbers diverged.
    """
    run, where = Path(out), runtime.device(device)
    recipe = resolved(override(recipe, settings) if isinstance(recipe, Recipe) else named_recipe(recipe, settings))
    runtime.seed_everything(recipe.train.seed)
    bad_files = BadFiles()
    kind: type[Method] = catalog.find("methods", recipe.name.partition("/")[0])
    if kind.learns_from == "masks":
        from sightline.workflows import segmenting  # which stands on this module

        return segmenting.train_on_masks(recipe, data, run, where, bad_files, resume=resume, after=after, command=command)
    records = _records(data, recipe.data, kind, bad_files)
    data = records.root if isinstance(data, Records) else data
    goes_on = after is not None or (resume and (run / checkpoint.NAME).exists())
    rows = held_to_data(after or run, rows_used(records, needs_labels=kind.needs_labels), goes_on=goes_on)
    sampling: Sampling = catalog.find("samplers", recipe.data.sampling)()
    hold_out: HoldOut = catalog.find("validations", kind.validation)()
    parts = hold_out.split(records, recipe.data)
    learning, recipe = parts.training, sampling.fitted(recipe, parts.training, parts.num_apart)
    sampler = sampling.sampler(learning, recipe, bad_files)
    epochs = sampler if isinstance(sampler, Epochs) else None
    with process_group(where) as ranks:
        bare = headless(recipe.model)  # the head is fitted when training is over
        encoder = Encoder(replace(bare, weights="random") if goes_on else bare, recipe.image)  # the checkpoint has the weights
        if recipe.model != bare:
            require_head(encoder, recipe.model, learning)
        method: Method = kind(recipe, encoder, learning)
        if not goes_on:
            method.begin()
        if ranks.is_main:
            open_run(run, recipe, encoder.backbone.family, data, _about(parts), resume=resume)
            if after is not None:
                copy_state(after, run)
        barrier()
        batches = _batches(learning, sampler, recipe, kind, where, bad_files)
        validate = hold_out.validator(parts, recipe, bad_files)
        loop = Loop(method, batches, recipe.train, run, device=where, validate=validate, epochs=epochs, rows=rows, resume=goes_on)
        progress = loop.run(foretell(encoder, recipe, recipe.train.steps - loop.progress.step, where))
        if ranks.is_main:
            note_compute(run, recipe, progress)
            if not progress.stopped_by:
                finish_model(run, recipe, hold_out.measure, learning, where, bad_files, progress, command)
            write_bad_files(bad_files, run, goes_on=bool(resume))
    return Trained(run, progress, recipe, len(bad_files), hold_out.measure, parts.name)


def _batches(
    learning: Records, sampler: Any, recipe: Recipe, kind: type[Method], where: torch.device, bad_files: BadFiles
) -> Callable[[int], Iterator[Batch]]:
    """Return what gives this rank's batches from the n-th on, to the end of the run or of an epoch."""
    ranks, transform = runtime.ranks(), kind.transform(recipe)

    def batches(first: int) -> Iterator[Batch]:
        num = recipe.train.steps * recipe.train.accumulate - first
        current = sampler
        if isinstance(sampler, Epochs):
            current = sampler.sampler()
            num = min(num, current.steps_per_epoch - first % current.steps_per_epoch)  # the next epoch's are not known yet
        return train_batches(
            learning if kind.needs_labels else learning.without_labels(),
            current,
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

    return batches


def _records(data: str | Path | Records, spec: DataSpec, kind: type[Method], bad_files: BadFiles) -> Records:
    if isinstance(data, Records):
        return data
    return read_data(data, bad_files, dataset=spec.dataset, verify=spec.verify, require_labels=kind.needs_labels)


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with what it leaves open filled: ``backbone=auto``, and the image settings that are left to the backbone.

    ``backbone=auto`` becomes the network of the model folder that ``weights`` names: its arguments, pooling and colours too; or that of a
    weights file which tells it.

    Raises:
        ModelError: ``weights`` names no model folder, or a file that does not tell its network.
    """
    if recipe.model.backbone != "auto":
        return replace(recipe, image=own_input.resolved(recipe.image, recipe.model))
    if recipe.model.weights in ("auto", "hub", "random"):
        raise UsageError("backbone=auto is that of a model folder or weights file: name one with weights=runs/mine, or name a backbone")
    model, image = model_folder.specs(recipe.model.weights)
    if Path(recipe.model.weights).is_file():
        return resolved(replace(recipe, model=replace(recipe.model, backbone=model.backbone)))
    taken = {name: getattr(model, name) for name in ("backbone", "backbone_args", "pooling", "gem_p", "positions_at")}
    found = replace(recipe.model, weights=str(model_folder.find(recipe.model.weights)), **taken)
    return replace(
        recipe,
        model=found,
        image=own_input.resolved(replace(recipe.image, mean=image.mean, std=image.std), found),
    )


def _num_workers(asked: int, world_size: int, where: torch.device) -> int:
    if asked >= 0:
        return asked
    share = runtime.num_cpus() // world_size
    return max(1, min(8, share)) if where.type != "cpu" or share > 2 else 0  # two cores that also train gain nothing from a third process


def _about(parts: Parts) -> dict[str, Any]:
    learning, validation = parts.training, parts.validation
    return {
        "images": len(learning),
        "training_classes": present(learning),
        "validation_classes": present(validation) if validation is not None else [],
        "validation_images": len(validation) if validation is not None else 0,
        "held_out": parts.name,
    }
