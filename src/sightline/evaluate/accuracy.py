"""Accuracy: how often a model's own classifier names the class of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.contracts import BoolArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.errors import DataError, ModelError
from sightline.evaluate.probes import resampled_accuracy
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder
from sightline.progress import Bar
from sightline.runtime import Precision, autocast_dtype, num_cpus

NUM_GUESSES = 5

BATCH_SIZE = 64


@dataclass(frozen=True)
class Accuracy:
    """``accuracy@1`` and, of more than five classes, ``accuracy@5``, in 0..1, with 95 % intervals; over how many images and classes."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    num_images: int
    num_classes: int

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
    """Return how often the class of a labelled image is the classifier's first guess, or among its first five.

    Classes are matched by name. Files that cannot be read are left out and noted in ``bad_files``.

    Raises:
        ModelError: the model has no classifier.
        DataError: a class of the records is none that the classifier knows, or not one file could be read.
    """
    targets, num_guesses = classifier_targets(encoder, records), min(NUM_GUESSES, _num_classes(encoder))
    is_hit = _hits(encoder, records, targets, num_guesses, bad_files, precision, show)
    measured = {f"accuracy@{num}": np.any(is_hit[:, :num], axis=1) for num in (1, NUM_GUESSES) if num == 1 or num < _num_classes(encoder)}
    intervals = {name: _interval(is_right) for name, is_right in measured.items()}
    return Accuracy({name: float(is_right.mean()) for name, is_right in measured.items()}, intervals, len(is_hit), _num_classes(encoder))


def classifier_targets(encoder: Encoder, records: Records) -> IntArray:
    """Return the place of each image's class among the classifier's, int64 ``[M]``.

    Raises:
        ModelError: the model has no classifier.
        DataError: one of the classes is none of the classifier's.
    """
    if not isinstance(encoder.classifier, Classifier):
        raise ModelError(
            "this model has no classifier, so no accuracy: train one with sightline train classify/finetune, or measure it with sightline probe"
        )
    place = {name: number for number, name in enumerate(encoder.classifier.class_names)}
    present = np.flatnonzero(records.class_counts())
    strange = [records.class_names[label] for label in present if records.class_names[label] not in place]
    if strange or records.labels is None:
        raise DataError(
            f"{len(strange):,} classes of {records.root} are none that the model learnt (such as '{strange[0] if strange else ''}'): "
            "accuracy is over the classes of its training; measure others by retrieval, without --protocol accuracy"
        )
    places = np.zeros(len(records.class_names), np.int64)
    places[present] = [place[records.class_names[label]] for label in present]
    return places[records.labels]


def _num_classes(encoder: Encoder) -> int:
    assert isinstance(encoder.classifier, Classifier)
    return len(encoder.classifier.class_names)


@torch.inference_mode()
def _hits(
    encoder: Encoder, records: Records, targets: IntArray, num_guesses: int, bad_files: BadFiles, precision: Precision, show: bool
) -> BoolArray:
    """Return which of each readable image's first guesses is its class, bool ``[M, num_guesses]``."""
    was_training, dtype = encoder.training, autocast_dtype(precision, encoder.device)
    encoder.eval()
    found = []
    with Bar("classifying", len(records), show=show and len(records) > BATCH_SIZE) as bar:
        transform = eval_transform(encoder.image)
        for rows, images in decode_stream(
            records, transform, batch_size=BATCH_SIZE, num_threads=num_cpus(), bad_files=bad_files, device=encoder.device
        ):
            with torch.autocast(encoder.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                guesses = encoder.logits(images).float().topk(num_guesses, dim=1).indices
            found.append(guesses.cpu().numpy() == targets[rows][:, None])
            bar.update(int(rows[-1]) + 1)
    encoder.train(was_training)
    return np.concatenate(found)


def _interval(is_right: BoolArray) -> tuple[float, float]:
    low, high = np.quantile(resampled_accuracy(is_right[None]), [0.025, 0.975])
    return float(low), float(high)
