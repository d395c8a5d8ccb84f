"""Accuracy: how often a model's own classifier names the class of an image."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.errors import DataError, ModelError
from sightline.evaluation.probes import resampled_accuracy
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder, evaluating
from sightline.progress import Bar
from sightline.runtime import Precision, num_cpus

NUM_GUESSES = 5

BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Guesses:
    """What a classifier said of the images that could be read, the likeliest class first.

    ``rows`` int64 ``[M]`` into the records, ``targets`` int64 ``[M]`` and ``classes`` int64 ``[M, K]`` places among ``class_names``,
    ``probability`` float32 ``[M]`` that the first guess was given and ``target_probability`` that the right class was.
    """

    class_names: tuple[str, ...]
    rows: IntArray
    targets: IntArray
    classes: IntArray
    probability: FloatArray
    target_probability: FloatArray

    @property
    def is_right(self) -> BoolArray:
        """Whether each first guess is the image's class, bool ``[M]``."""
        return np.equal(self.classes[:, 0], self.targets)


@dataclass(frozen=True)
class Accuracy:
    """``accuracy@1`` and, of more than five classes, ``accuracy@5``, in 0..1, with 95 % intervals; over how many images and classes."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    num_images: int
    num_classes: int

    @classmethod
    def of(cls, guesses: Guesses) -> Accuracy:
        """Return how often the class is the first guess, or among the first five."""
        num_classes, is_hit = len(guesses.class_names), guesses.classes == guesses.targets[:, None]
        measured = {f"accuracy@{num}": np.any(is_hit[:, :num], axis=1) for num in (1, NUM_GUESSES) if num == 1 or num < num_classes}
        intervals = {name: _interval(is_right) for name, is_right in measured.items()}
        return cls({name: float(is_right.mean()) for name, is_right in measured.items()}, intervals, len(is_hit), num_classes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "metrics": dict(self.metrics),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_kind": "95 % percentile bootstrap over images",
            "num_images": self.num_images,
            "num_classes": self.num_classes,
        }


def measure_accuracy(
    encoder: Encoder, records: Records, bad_files: BadFiles, *, precision: Precision = "auto", show: bool = True
) -> Accuracy:
    """Return how often the class of a labelled image is the classifier's first guess, or among its first five (see ``guess``)."""
    return Accuracy.of(guess(encoder, records, bad_files, precision=precision, show=show))


@torch.inference_mode()
def guess(encoder: Encoder, records: Records, bad_files: BadFiles, *, precision: Precision = "auto", show: bool = True) -> Guesses:
    """Return the classifier's first five guesses (fewer of fewer classes) of every labelled image.

    Classes are matched by name. Files that cannot be read are left out and noted in ``bad_files``.

    Raises:
        ModelError: the model has no classifier.
        DataError: a class of the records is none that the classifier knows, or not one file could be read.
    """
    targets = classifier_targets(encoder, records)
    assert isinstance(encoder.classifier, Classifier)
    names = encoder.classifier.class_names
    parts: list[tuple[Any, ...]] = []
    with evaluating(encoder, precision), Bar("classifying", len(records), show=show and len(records) > BATCH_SIZE) as bar:
        transform = eval_transform(encoder.image)
        for rows, images in decode_stream(
            records, transform, batch_size=BATCH_SIZE, num_threads=num_cpus(), bad_files=bad_files, device=encoder.device
        ):
            logits = encoder.logits(images).float()
            encoder.require_numbers(logits.cpu().numpy(), "logits")
            probability = logits.softmax(dim=1)
            own = probability.gather(1, torch.from_numpy(targets[rows]).to(logits.device)[:, None])
            classes = logits.topk(min(NUM_GUESSES, len(names)), dim=1).indices
            parts.append((rows, *(values.cpu().numpy() for values in (classes, probability.amax(dim=1), own[:, 0]))))
            bar.update(int(rows[-1]) + 1)
    read, first_five, first, right = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Guesses(tuple(names), read, targets[read], first_five, first, right)


def classifier_targets(encoder: Encoder, records: Records) -> IntArray:
    """Return the place of each image's class among the classifier's, int64 ``[M]``.

    Raises:
        ModelError: the model has no classifier.
        DataError: one of the classes is none of the classifier's, or the classifier knows one class alone and cannot be wrong.
    """
    if not isinstance(encoder.classifier, Classifier):
        raise ModelError(
            "this model has no classifier, so no accuracy: train one with sightline train classify/finetune, or measure it with sightline probe"
        )
    # In the form that class names are read in: models of older versions kept that of the file system.
    place = {unicodedata.normalize("NFC", name): number for number, name in enumerate(encoder.classifier.class_names)}
    if len(place) < 2:
        raise DataError("the classifier knows one class, so every answer would be right: train it on two or more")
    present = np.flatnonzero(records.class_counts())
    strange = [records.class_names[label] for label in present if records.class_names[label] not in place]
    if strange or records.labels is None:
        raise DataError(
            f"{len(strange):,} classes of {records.root} are unknown to the classifier (such as '{strange[0] if strange else ''}'): "
            "accuracy is over the classes of its training; measure others by retrieval, without --protocol accuracy"
        )
    places = np.zeros(len(records.class_names), np.int64)
    places[present] = [place[records.class_names[label]] for label in present]
    return places[records.labels]


def _interval(is_right: BoolArray) -> tuple[float, float]:
    low, high = np.quantile(resampled_accuracy(is_right[None]), [0.025, 0.975])
    return float(low), float(high)
