"""Training, from a recipe and a folder to a model folder."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from sightline import __version__, catalog, runtime
from sightline.contracts import Batch, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import train_batches
from sightline.data.records import Records, hold_out_classes, images_to_hold_out, require_classes, require_per_class, share_of_images
from sightline.data.samplers import PKSampler, Sampler, ShuffleSampler
from sightline.errors import DataError, UsageError, explain_os_error
from sightline.evaluate import metrics, probes
from sightline.evaluate.accuracy import measure_accuracy
from sightline.methods.base import Measure, Method
from sightline.nn import model_folder, own_input
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder, headless
from sightline.recipe import DataSpec, Recipe, from_plain, override, recipe_hash, to_plain
from sightline.search.embed import embed_records
from sightline.search.mining import MinedTuples
from sightline.train import checkpoint
from sightline.train.card import model_card
from sightline.train.loop import Loop, Progress, Validate
from sightline.train.parallel import process_group
from sightline.workflows.common import read_data, training_split, write_bad_files
from sightline.workflows.reducing import fit_head, require_head

EMBED_LIMIT = 4_096
"""Most validation images measured during training: enough to rank models, few enough not to slow the run."""


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
    """What a training run left: its folder, how far it came, and the measures that chose the model."""

    run: Path
    progress: Progress
    recipe: Recipe
    num_bad: int
    chosen_by: Measure


def train(
    recipe: Recipe, data: str | Path | Records, out: str | Path, *, device: str = "auto", resume: bool = False, command: str = ""
) -> Trained:
    """Train ``recipe`` on ``data`` (records, or where to read them) into the run folder ``out`` and return what became of it.

    The split called val chooses the model; where there is none, classes (for classification: images) are held out of the training split. A test
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
    if isinstance(data, Records):
        records, data = data, data.root
    else:
        records = read_data(data, bad_files, dataset=recipe.data.dataset, verify=recipe.data.verify, require_labels=kind.needs_labels)
    learning, validation = _learning_and_validation(records, recipe, kind)
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
            _open_run(run, recipe, encoder.backbone.family, data, learning, validation, resume=resume)
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

        validate = _validator(learning, validation, recipe, kind.chosen_by, bad_files) if validation is not None else None
        loop = Loop(method, batches, recipe.train, run, device=where, validate=validate, epochs=epochs, resume=resume)
        progress = loop.run()
        if ranks.is_main:
            _note_compute(run, recipe, progress)
            if not progress.stopped_by:
                _finish_model(run, recipe, kind.chosen_by, learning, where, bad_files, progress, command)
            write_bad_files(bad_files, run)
    return Trained(run, progress, recipe, len(bad_files), kind.chosen_by)


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


def _learning_and_validation(records: Records, recipe: Recipe, kind: type[Method]) -> tuple[Records, Records | None]:
    if not kind.needs_labels:
        return _images_and_watched(records, recipe.data)
    learning, validation, data, chosen_by = training_split(records), None, recipe.data, kind.chosen_by
    require_classes(learning, 2)
    if data.validation and records.splits is not None and "val" in records.splits:
        validation = records.split("val")
        if chosen_by == "accuracy@1":
            _require_known(validation, learning)
        elif not (validation.class_counts() > 1).any():
            raise DataError(f"no class of the val split of {records.root} has two images: add some, or set validation=0")
    elif data.validation and chosen_by == "accuracy@1":
        is_held_out = images_to_hold_out(learning, data.validation, 0)
        learning, validation = learning.select(~is_held_out), learning.select(is_held_out)
    elif data.validation:
        learning, validation = hold_out_classes(learning, data.validation, 0)
    require_classes(learning, 2)
    if data.share < 1:
        learning = share_of_images(learning, data.share)
    if data.tuples_per_batch or data.images_per_batch:
        return learning, validation
    require_per_class(learning, data.images_per_class)
    if learning.num_classes < data.classes_per_batch:
        raise DataError(
            f"a batch wants {data.classes_per_batch} classes but {learning.num_classes} are left for training: "
            f"lower it with --set classes_per_batch={learning.num_classes}"
        )
    return learning, validation


def _images_and_watched(records: Records, data: DataSpec) -> tuple[Records, Records | None]:
    """Return what is learnt from without labels, and the labelled images that k-NN is asked about on the way, where there are any.

    They are the val split, or where there are no splits a part of each class; of classes that have images to vote among those learnt from.
    """
    splits = set(records.splits or ())
    learning, watched = training_split(records) if "train" in splits or not splits else _without(records, ("val", "test")), None
    if data.validation and records.labels is not None and "val" in splits:
        watched = records.split("val")
        assert watched.labels is not None
        watched = watched.select(learning.class_counts()[watched.labels] > 0)
    elif data.validation and not splits and learning.num_classes > 1 and learning.class_counts().max() > 1:
        is_held_out = images_to_hold_out(learning, data.validation, 0)
        learning, watched = learning.select(~is_held_out), learning.select(is_held_out)
    if data.share < 1 and learning.labels is None:
        learning = learning.select(
            np.sort(np.random.default_rng(0).permutation(len(learning))[: max(1, round(data.share * len(learning)))])
        )
    elif data.share < 1:
        learning = share_of_images(learning, data.share)
    return learning, watched if watched is not None and len(watched) else None


def _without(records: Records, splits: Sequence[str]) -> Records:
    return records.select(~np.isin(np.array(records.splits, dtype=str), splits))


def _require_known(validation: Records, learning: Records) -> None:
    strange = [validation.class_names[label] for label in np.flatnonzero((validation.class_counts() > 0) & (learning.class_counts() == 0))]
    if strange:
        raise DataError(
            f"{len(strange):,} classes of the val split of {validation.root} have no training image (such as '{strange[0]}'), so no classifier can "
            "know them: give the class folders without splits, or set validation=0"
        )


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


def _validator(learning: Records, validation: Records, recipe: Recipe, chosen_by: Measure, bad_files: BadFiles) -> Validate:
    assert validation.labels is not None
    learning, validation = _at_most(learning, EMBED_LIMIT), _at_most(validation, EMBED_LIMIT)

    def neighbours(encoder: Encoder) -> Mapping[str, float]:
        voting, asked = (
            embed_records(encoder, part, bad_files, precision=recipe.train.precision, show=False) for part in (learning, validation)
        )
        assert learning.labels is not None and validation.labels is not None  # noqa: PT018
        said = probes.knn(voting.vectors, learning.labels[voting.rows], asked.vectors)
        return {"knn": float(np.mean(said == validation.labels[asked.rows]))}

    def accuracy(encoder: Encoder) -> Mapping[str, float]:
        return measure_accuracy(encoder, validation, bad_files, precision=recipe.train.precision, show=False).metrics

    def retrieval(encoder: Encoder) -> Mapping[str, float]:
        found = embed_records(encoder, validation, bad_files, precision=recipe.train.precision, show=False)
        assert validation.labels is not None
        ranks = metrics.positive_ranks(found.vectors, validation.labels[found.rows])
        values = metrics.means({"map@r": metrics.map_at_r(ranks), "recall@1": metrics.recall_at(ranks, 1)})
        return {name: 0.0 if np.isnan(value) else value for name, value in values.items()}

    return {"accuracy@1": accuracy, "map@r": retrieval, "last": neighbours}[chosen_by]


def _at_most(records: Records, num: int) -> Records:
    """Return the records, or a random part of ``num`` of them."""
    return records if len(records) <= num else records.select(np.sort(np.random.default_rng(0).permutation(len(records))[:num]))


def _open_run(
    run: Path, recipe: Recipe, family: str, data: str | Path, learning: Records, validation: Records | None, *, resume: bool
) -> None:
    kept = run / "recipe.json"
    if kept.exists() and not resume:
        raise UsageError(f"'{run}' already holds a run: go on with --resume, or choose another --out")
    if resume and kept.exists() and recipe_hash(saved_recipe(run)) != recipe_hash(recipe):
        raise UsageError(f"the run in '{run}' was made with other settings: resume without --set, or choose another --out")
    facts = {
        "recipe_hash": recipe_hash(recipe),
        "family": family,
        "data": str(data),
        "images": len(learning),
        "training_classes": _present(learning),
        "validation_classes": _present(validation) if validation is not None else [],
        "validation_images": len(validation) if validation is not None else 0,
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


def _note_compute(run: Path, recipe: Recipe, progress: Progress) -> None:
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


def _finish_model(
    run: Path,
    recipe: Recipe,
    chosen_by: Measure,
    learning: Records,
    where: torch.device,
    bad_files: BadFiles,
    progress: Progress,
    command: str,
) -> None:
    encoder = model_folder.load(run, device=where)
    if recipe.model != headless(recipe.model):
        encoder, _ = fit_head(encoder, recipe.model, learning, bad_files)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    best = (chosen_by, progress.best_step, progress.best) if progress.best_step >= 0 else None  # a run that keeps the last has none
    model_folder.save(encoder, run / "model", card=model_card(recipe, encoder, facts, best=best, command=command))
