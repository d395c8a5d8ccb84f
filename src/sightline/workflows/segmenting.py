"""Training on masks: from a recipe of segmentation and a set of images and masks to a model folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from sightline import runtime
from sightline.contracts import Batch
from sightline.data.images import BadFiles
from sightline.data.records import Records, of_labels
from sightline.data.segments import training_crops
from sightline.data.sets.segmentation import Layout, Pair, SegmentationSet, read, require_several_classes, spread
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.segment import labeller
from sightline.evaluation.dense.segmenting import Bench, count
from sightline.methods.base import Measure
from sightline.methods.segment import Segment, SegmentRecipe
from sightline.nn.collectives import barrier
from sightline.nn.encoder import Encoder
from sightline.nn.segmenter import Segmenter
from sightline.recipe import Recipe
from sightline.training import checkpoint
from sightline.training.choice import Validate, Validation
from sightline.training.loop import Loop
from sightline.training.parallel import process_group
from sightline.workflows import run_folder, training
from sightline.workflows.common import write_bad_files

MEASURE: Measure = "miou"
MOST_VALIDATED = 128
"""Most validation images measured during training: whole images at full size take as long as steps do."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a run on masks learns from, and what it is chosen by where anything is held out; ``held_out`` says in words what that is."""

    data: SegmentationSet
    learning: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    held_out: str = ""

    @property
    def rows(self) -> Records:
        """All images and masks that may be looked at, with the classes: what a run that goes on is held to."""
        pairs = (*self.data.part("train"), *(self.data.val if self.data.test else ()))
        names = (file.relative_to(self.data.root).as_posix() for pair in pairs for file in (pair.image, pair.mask))
        return Records(self.data.root, tuple(names), class_names=self.data.class_names)

    @property
    def about(self) -> dict[str, Any]:
        """What a run's facts tell of it."""
        return {
            "images": len(self.learning),
            "training_classes": list(self.data.class_names),
            "validation_classes": list(self.data.class_names) if self.validation else [],
            "validation_images": len(self.validation),
            "held_out": self.held_out,
        }

    def batches(self, recipe: SegmentRecipe, first: int, ranks: runtime.Ranks, bad_files: BadFiles) -> Iterator[Batch]:
        """Return this rank's batches from the ``first`` on."""
        workers = recipe.data.workers
        return training_crops(
            self.data,
            self.learning,
            recipe.cutting,
            recipe.image,
            batch=recipe.data.images_per_batch,
            start_step=first,
            num_steps=recipe.train.steps * recipe.train.accumulate - first,
            seed=recipe.train.seed,
            num_threads=max(1, workers) if workers >= 0 else max(1, runtime.num_cpus() // ranks.world_size),
            bad_files=bad_files,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    def validate(self, recipe: SegmentRecipe, bad_files: BadFiles) -> Validate | None:
        """Return what measures an encoder on the held-out images; None where there are none."""
        if not self.validation:
            return None
        measured = spread(self.validation, MOST_VALIDATED)

        def segmentation(encoder: Encoder) -> Validation:
            head = cast(Segmenter, encoder.segmenter)
            how = {"short_px": encoder.image.resized_px, "slide_px": head.spec.slide_px, "batch": recipe.data.images_per_batch}
            label = labeller(encoder, self.data, precision=recipe.train.precision, **how)
            confusion, _ = count(Bench(encoder, self.data, bad_files, recipe.train.precision), label, measured, len(measured))
            if not confusion.counts.sum():
                first = "; ".join(f"{path}: {reason}" for path, reason in bad_files.items()[:1]) or "all is void"
                raise DataError(
                    f"no image held out of {self.data.root} has a labelled pixel that can be read ({first}): repair it, or set validation=0"
                )
            return Validation({"miou": confusion.miou, "pixel_accuracy": confusion.pixel_accuracy})

        return segmentation


def read_lesson(data: str | Path, recipe: SegmentRecipe, bad_files: BadFiles) -> Lesson:
    """Return what ``recipe`` learns from in ``data``: its train part; the model is chosen on val where the set has a test part beside it.

    Else a share of the training images is held out, so that val stays for measuring.

    Raises:
        DataError, UsageError: there is no such set, or too little in it.
    """
    layout = recipe.data.dataset
    if layout not in get_args(Layout):
        raise UsageError(f"dataset={layout} holds no masks: take one of {', '.join(get_args(Layout))}")
    found = read(Path(data), cast(Layout, layout))
    for path, reason in found.unpaired:
        bad_files.add(path, reason)
    learning, validation, held_out = found.part("train"), tuple[Pair, ...](), ""
    if recipe.data.validation and found.test and found.val:
        validation, held_out = found.val, "the val images"
    elif recipe.data.validation:
        order = np.random.default_rng(0).permutation(len(learning))
        held = set(order[: max(1, round(recipe.data.validation * len(learning)))].tolist())
        validation = tuple(pair for row, pair in enumerate(learning) if row in held)
        learning, held_out = tuple(pair for row, pair in enumerate(learning) if row not in held), "held-out images"
    if recipe.data.share < 1:
        order = np.random.default_rng(0).permutation(len(learning))
        kept = set(order[: max(1, round(recipe.data.share * len(learning)))].tolist())
        learning = tuple(pair for row, pair in enumerate(learning) if row in kept)
    for name, pairs in (("train", learning), (held_out, validation)):
        require_several_classes(found, pairs, name)
    return Lesson(found, learning, validation, held_out)


def train_on_masks(
    recipe: Recipe,
    data: str | Path | Records,
    run: Path,
    where: torch.device,
    bad_files: BadFiles,
    *,
    resume: bool,
    after: Path | None,
    command: str,
) -> training.Trained:
    """Train a recipe of segmentation into the run folder ``run`` and return what became of it.

    Raises:
        UsageError: the data, the recipe or the folder do not allow it.
        TrainingError: the numbers diverged.
    """
    if isinstance(data, Records) or not isinstance(recipe, SegmentRecipe):
        raise UsageError("segmentation learns from images with masks: give the folder that holds both, as docs/dense.md lays them out")
    lesson = read_lesson(data, recipe, bad_files)
    goes_on = after is not None or (resume and (run / checkpoint.NAME).exists())
    rows = run_folder.held_to_data(after or run, lesson.rows, goes_on=goes_on)
    with process_group(where) as ranks:
        encoder = Encoder(
            replace(recipe.model, weights="random") if goes_on else recipe.model, recipe.image
        )  # the checkpoint has the weights
        method = Segment(recipe, encoder, of_labels(np.arange(lesson.data.num_classes), lesson.data.class_names))
        if not goes_on:
            method.begin()
        if ranks.is_main:
            run_folder.open_run(run, recipe, encoder.backbone.family, data, lesson.about, resume=resume)
            if after is not None:
                run_folder.copy_state(after, run)
        barrier()
        loop = Loop(
            method,
            lambda first: lesson.batches(recipe, first, ranks, bad_files),
            recipe.train,
            run,
            device=where,
            validate=lesson.validate(recipe, bad_files),
            rows=rows,
            resume=goes_on,
        )
        progress = loop.run()
        if ranks.is_main:
            run_folder.note_compute(run, recipe, progress)
            if not progress.stopped_by:
                run_folder.finish_model(run, recipe, MEASURE, None, where, bad_files, progress, command)
            write_bad_files(bad_files, run)
    return training.Trained(run, progress, recipe, len(bad_files), MEASURE, lesson.held_out)
