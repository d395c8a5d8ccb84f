"""Transferring: a frozen model's descriptors under simple classifiers, or the model fine-tuned, on one data set or the mean over several."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import runtime
from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.data.division import images_to_hold_out, require_classes
from sightline.data.images import BadFiles
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.errors import DataError, explain_os_error
from sightline.evaluation import probes
from sightline.evaluation.accuracy import guess
from sightline.evaluation.ranks import DoubleArray
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.workflows import training
from sightline.workflows.common import write_bad_files

Kind = Literal["knn", "linear", "fewshot", "finetune"]
FROZEN: tuple[Kind, ...] = ("knn", "linear", "fewshot")
"""The kinds that leave the model unchanged; fine-tuning trains all of it."""

SHOTS = (5, 10)
NUM_DRAWS = 3
"""Draws of the few shots that are averaged, as the ViT authors do."""

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.2
"""Of each class: what is tested on where the data has no split for it, and what chooses the linear probe's penalty."""

INTERVAL_KIND = "95 % percentile bootstrap over test images (and draws of the shots)"


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How the row ``finetune`` comes about: ``classify/finetune-small`` from the model's weights, with the last weights measured."""

    steps: int = 200
    image_px: int = 0  # 0 is the model's own
    lr: float = 0.01
    batch: int = 64


@dataclass(frozen=True, eq=False)
class Probed:
    """One data set: its sizes, how it was divided, each classifier's accuracy in 0..1 and the bootstrap's, the penalty that was chosen."""

    data: str
    part: str
    num_classes: int
    num_train: int
    num_test: int
    accuracy: Mapping[str, float]
    resampled: Mapping[str, DoubleArray]
    l2: float | None


@dataclass(frozen=True, eq=False)
class Transfer:
    """What a model's descriptors are worth to each classifier, on every data set and in the mean over them."""

    model: str
    fingerprint: str
    datasets: tuple[Probed, ...]
    bad_summary: str

    @property
    def metrics(self) -> dict[str, float]:
        """The mean over the data sets of each classifier's accuracy, in 0..1."""
        return {name: float(np.mean([one.accuracy[name] for one in self.datasets])) for name in self.datasets[0].accuracy}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each mean."""
        return {name: _interval(np.mean([one.resampled[name] for one in self.datasets], axis=0)) for name in self.metrics}

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``metrics`` (means over the data sets) with ``intervals``, and ``datasets`` one by one."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "metrics": self.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_kind": INTERVAL_KIND,
            "datasets": [
                {
                    "data": one.data,
                    "part": one.part,
                    "num_classes": one.num_classes,
                    "num_train": one.num_train,
                    "num_test": one.num_test,
                    "metrics": dict(one.accuracy),
                    "intervals": {name: list(_interval(values)) for name, values in one.resampled.items()},
                    **({} if one.l2 is None else {"linear_l2": one.l2}),
                }
                for one in self.datasets
            ],
            "bad_files": self.bad_summary,
        }

    def to_text(self) -> str:
        """Return the table in Markdown, a row for each data set and the mean: per cent with its 95 % interval."""
        names = list(self.metrics)
        lines = [f"| % | {''.join(f'{name} | ' for name in names)}classes | train | test |", f"|---|{'--:|' * (len(names) + 3)}"]
        for one in self.datasets:
            cells = [_cell(one.accuracy[name], _interval(one.resampled[name])) for name in names]
            lines.append(f"| {' | '.join([one.data, *cells])} | {one.num_classes:,} | {one.num_train:,} | {one.num_test:,} |")
        if len(self.datasets) > 1:
            cells = [_cell(self.metrics[name], self.intervals[name]) for name in names]
            lines.append(f"| {' | '.join(['mean', *cells])} | | | |")
        return "\n".join(lines)


def transfer(
    model: str,
    data: Sequence[str | Path],
    *,
    dataset: str = "auto",
    kinds: Sequence[Kind] = FROZEN,
    tuning: FineTuning = FineTuning(),
    seed: int = 0,
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Transfer:
    """Return the accuracy of simple classifiers on ``model``'s descriptors of class folders or manifests; there the model learns nothing.

    The kind ``finetune`` trains a copy of it with a linear layer on each data set, as ``tuning`` says.

    ``dataset`` is how all of them are read: a name of the catalog, or auto. Each is divided by its own splits: train (with val) and test, or
    train and val; without splits by ``seed``, class by class.
    ``report`` is a folder to write ``metrics.json`` into.

    Raises:
        DataError, UsageError: the model or data cannot be read, or the parts do not show the same classes.
    """
    bad_files = BadFiles()
    read = [(str(source), divide(read_data(source, bad_files, dataset=dataset, require_labels=True), seed)) for source in data]
    encoder = model_folder.load(model, device=runtime.device(device))
    probed = tuple(_probe(encoder, *one, kinds, tuning, seed, precision, bad_files, number) for number, one in enumerate(read))
    num_images = sum(len(parts.training) + len(parts.test) for _, parts in read)
    found = Transfer(str(model), encoder.fingerprint, probed, bad_files.summary(num_images))
    if report is not None:
        try:
            report.mkdir(parents=True, exist_ok=True)
            model_folder.write_json(report / "metrics.json", found.to_json())
        except OSError as error:
            raise explain_os_error(error, f"writing '{report / 'metrics.json'}'") from error
        write_bad_files(bad_files, report)
    return found


@dataclass(frozen=True, eq=False)
class Parts:
    """What is fitted on, what is tested on, and in words how these were told apart."""

    training: Records
    test: Records
    words: str


def divide(records: Records, seed: int) -> Parts:
    """Return the parts of one data set (see ``transfer``).

    Raises:
        DataError: a test image is of a class that no training image shows, the test images are of one class, or the splits are none to fit and test by.
    """
    splits = np.array(records.splits or (), dtype=str)
    present = set(splits.tolist())
    if {"train", "test"} <= present:
        training, test = records.select(np.isin(splits, ["train", "val"])), records.split("test")
        words = "splits train and val, tested on test" if "val" in present else "split train, tested on test"
    elif {"train", "val"} <= present:
        training, test, words = records.split("train"), records.split("val"), "split train, tested on val"
    elif present:
        raise DataError(
            f"{records.root} has the splits {', '.join(sorted(present))}: a probe is fitted on train and tested on test (or val); without splits it divides by itself"
        )
    else:
        is_held_out = images_to_hold_out(records, TEST_SHARE, seed)
        training, test = records.select(~is_held_out), records.select(is_held_out)
        words = f"no splits: {TEST_SHARE:.0%} of each class tested on, by seed {seed}"
    require_classes(training, 2)
    unknown = np.flatnonzero((training.class_counts() == 0) & (test.class_counts() > 0))
    if len(unknown):
        raise DataError(
            f"{len(unknown):,} classes of the test part of {records.root} have no training image (such as '{records.class_names[unknown[0]]}'): "
            "a classifier cannot know them; measure such a split with sightline evaluate, or give the class folders without it"
        )
    if test.num_classes < 2:
        raise DataError(
            f"the test part of {records.root} shows one class, where a classifier that always names it is right: test on images of two or more"
        )
    return Parts(training, test, words)


def _is_validation(training: Records, seed: int) -> BoolArray:
    if training.splits is not None and "val" in training.splits:
        return np.array([split == "val" for split in training.splits])
    return images_to_hold_out(training, VALIDATION_SHARE, seed)


def _probe(
    encoder: Encoder,
    source: str,
    parts: Parts,
    kinds: Sequence[Kind],
    tuning: FineTuning,
    seed: int,
    precision: Precision,
    bad_files: BadFiles,
    number: int,
) -> Probed:
    num_classes, num_train, num_test = parts.training.num_classes, len(parts.training), len(parts.test)
    is_right: dict[str, BoolArray] = {}
    l2 = None
    if set(kinds) & set(FROZEN):
        fitted = embed_records(encoder, parts.training, bad_files, precision=precision, what=f"embedding {source} to fit on")
        tested = embed_records(encoder, parts.test, bad_files, precision=precision, what=f"embedding {source} to test on")
        assert parts.training.labels is not None
        assert parts.test.labels is not None
        # Labels of the classes that can be read, without gaps; a test image of any other is never right.
        classes, labels = np.unique(parts.training.labels[fitted.rows], return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"the training images of {parts.training.root} that can be read show one class: {bad_files.summary()}")
        num_classes, num_train, num_test = len(classes), len(fitted), len(tested)
        truth = parts.test.labels[tested.rows]
        where = encoder.device.type if encoder.device.type == "cuda" else "cpu"
        if "knn" in kinds:
            is_right["knn"] = (classes[probes.knn(fitted.vectors, labels, tested.vectors, device=where)] == truth)[None]
        if "linear" in kinds:
            is_validation = _is_validation(parts.training, seed)[fitted.rows]
            linear, l2 = probes.linear_probe(fitted.vectors, labels, is_validation, len(classes), device=where)
            is_right["linear"] = (classes[linear.predict(tested.vectors)] == truth)[None]
        if "fewshot" in kinds:
            for num_shots in SHOTS:
                draws = [_few_shot(fitted.vectors, labels, num_shots, seed + draw) for draw in range(NUM_DRAWS)]
                is_right[f"{num_shots}-shot"] = np.stack([classes[linear.predict(tested.vectors)] == truth for linear in draws])
    if "finetune" in kinds:
        right, num_bad = _fine_tune(encoder, parts, tuning, seed, precision, bad_files)
        is_right["finetune"] = right[None]
        num_train, num_test = len(parts.training) - num_bad, len(right)
    return Probed(
        data=source,
        part=parts.words,
        num_classes=num_classes,
        num_train=num_train,
        num_test=num_test,
        accuracy={name: float(right.mean()) for name, right in is_right.items()},
        resampled={name: probes.resampled_accuracy(right, seed=number) for name, right in is_right.items()},
        l2=l2,
    )


def _fine_tune(
    encoder: Encoder, parts: Parts, tuning: FineTuning, seed: int, precision: Precision, bad_files: BadFiles
) -> tuple[BoolArray, int]:
    """Return which readable test images a fine-tuned copy of the encoder names rightly, bool ``[Q]``, and how many it could not learn from.

    What stands behind pooling is left behind (projection, reduction, scales), and a linear layer of zeros takes its place.

    Raises:
        TrainingError: the numbers diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights, run = Path(folder) / "weights", Path(folder) / "run"
        fingerprint = encoder.fingerprint
        model_folder.save(encoder, weights)
        encoder.fingerprint = fingerprint
        settings = [
            f"steps={tuning.steps}",
            f"lr={tuning.lr}",
            f"warmup_steps={tuning.steps // 10}",
            f"images_per_batch={min(tuning.batch, len(parts.training))}",
            f"seed={seed}",
            f"precision={precision}",
            "validation=0",
            f"save_every={max(1, tuning.steps)}",
        ]
        recipe = training.named_recipe("classify/finetune-small", settings)
        recipe = replace(
            recipe,
            model=replace(encoder.model, weights=str(weights), projection=0, pca=0, whiten="none", scales=(1.0,), scale_p=1.0),
            image=encoder.image.at(tuning.image_px) if tuning.image_px else encoder.image,
        )
        trained = training.train(recipe, replace(parts.training, splits=None), run, device=str(encoder.device))
        if (run / "bad_files.jsonl").exists():
            for line in (run / "bad_files.jsonl").read_text(encoding="utf-8").splitlines():
                bad_files.add(**json.loads(line))
        guesses = guess(model_folder.load(run, device=encoder.device), parts.test, bad_files, precision=precision)
        return guesses.is_right, trained.num_bad


def _few_shot(features: FloatArray, labels: IntArray, num_shots: int, seed: int) -> probes.Linear:
    rows = probes.draw_shots(labels, num_shots, seed)
    return probes.ridge(features[rows], labels[rows], int(labels.max()) + 1)


def _interval(resampled: DoubleArray) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _cell(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
