"""Validation during training: the part of the records that is held out, and its measure; rows of the catalog's VALIDATIONS table.

A measure that no answer can lower is none: what is held out shows at least two classes, or is searched among images of at least two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sightline import catalog
from sightline.contracts import FloatArray, IntArray
from sightline.data.division import hold_out_classes, images_to_hold_out, require_classes, share_of_images, training_split
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.data.samplers import Sampling
from sightline.errors import DataError
from sightline.evaluation import metrics, probes
from sightline.evaluation.accuracy import measure_accuracy
from sightline.methods.base import Measure
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, Recipe
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.training.choice import Validate, Validation

EMBED_LIMIT = 4_096
"""Most validation images measured during training: enough to rank models, few enough not to slow the run."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The records that a run trains on and those that it is measured on (None: none), with the name of the latter.

    ``among_training``: held-out images are searched among the training images, being too few of each class to be searched among themselves.
    ``num_apart`` is the number of classes that were taken out of training.
    """

    training: Records
    validation: Records | None
    name: str = ""
    among_training: bool = False
    num_apart: int = 0


class HoldOut(ABC):
    """A way to hold out a part of the records and to measure an encoder on it; ``measure`` is the first of its measures.

    With ``chooses`` the best model is kept, else the last.
    """

    measure: ClassVar[Measure]
    chooses: ClassVar[bool] = True

    @abstractmethod
    def split(self, records: Records, data: DataSpec) -> Parts:
        """Return the training and the validation part.

        Raises:
            DataError: there is too little to train on, or a val split that cannot tell a good model from a bad one.
        """

    @abstractmethod
    def validate(self, parts: Parts, encoder: Encoder, precision: Precision, bad_files: BadFiles) -> Validation:
        """Return the measures of an encoder; NaN where too little can be read for any answer to be wrong."""

    def validator(self, parts: Parts, recipe: Recipe, bad_files: BadFiles) -> Validate | None:
        """Return the measuring function of a run, or None where nothing is held out."""
        if parts.validation is None:
            return None
        few = replace(parts, training=_at_most(parts.training, EMBED_LIMIT), validation=_at_most(parts.validation, EMBED_LIMIT))
        return lambda encoder: self.validate(few, encoder, recipe.train.precision, bad_files)


# --- with labels ------------------------------------------------------------------------------------------------------------------


class UnseenClasses(HoldOut):
    """The split called val, else about a tenth of the classes; of two or three classes, some images of each. The measure is MAP@R."""

    measure = "map@r"

    def split(self, records: Records, data: DataSpec) -> Parts:
        """See ``HoldOut.split``."""
        training = training_split(records)
        require_classes(training, 2)
        if not data.validation:
            return _with_share(Parts(training, None), data)
        if _has_val(records):
            validation = records.split("val")
            if not (validation.class_counts() > 1).any():
                raise DataError(f"no class of the val split of {validation.root} has two images: add some, or set validation=0")
            return _with_share(_with_val(training, validation), data)
        parts = hold_out_classes(training, data.validation, 0)
        if parts is not None:
            return _with_share(Parts(*parts, "held-out classes", num_apart=parts[1].num_classes), data)
        return _with_share(replace(_images_apart(training, data), among_training=True), data)

    def validate(self, parts: Parts, encoder: Encoder, precision: Precision, bad_files: BadFiles) -> Validation:
        """See ``HoldOut.validate``."""
        assert parts.validation is not None
        assert parts.validation.labels is not None
        queries = embed_records(encoder, parts.validation, bad_files, precision=precision, show=False)
        gallery: tuple[FloatArray, IntArray] | tuple[()] = ()
        if parts.among_training:
            searched = embed_records(encoder, parts.training, bad_files, precision=precision, show=False)
            assert parts.training.labels is not None
            gallery = (searched.vectors, parts.training.labels[searched.rows])
        ranks = metrics.positive_ranks(queries.vectors, parts.validation.labels[queries.rows], *gallery)
        if not ranks.fallible.any():
            return Validation({"map@r": float("nan"), "recall@1": float("nan")})
        scores = {"map@r": metrics.map_at_r(ranks), "recall@1": metrics.recall_at(ranks, 1)}
        return Validation(metrics.means(scores), {name: values[~np.isnan(values)] for name, values in scores.items()})


class HeldOutImages(HoldOut):
    """The split called val, else some images of each class. The measure is the accuracy of the classifier."""

    measure = "accuracy@1"

    def split(self, records: Records, data: DataSpec) -> Parts:
        """See ``HoldOut.split``."""
        training = training_split(records)
        require_classes(training, 2)
        if not data.validation:
            return _with_share(Parts(training, None), data)
        if _has_val(records):
            validation = records.split("val")
            _require_known(validation, training)
            return _with_share(_with_val(training, validation), data)
        return _with_share(_images_apart(training, data), data)

    def validate(self, parts: Parts, encoder: Encoder, precision: Precision, bad_files: BadFiles) -> Validation:
        """See ``HoldOut.validate``."""
        assert parts.validation is not None
        return Validation(measure_accuracy(encoder, parts.validation, bad_files, precision=precision, show=False).metrics)


def _has_val(records: Records) -> bool:
    return records.splits is not None and "val" in records.splits


def _with_val(training: Records, validation: Records) -> Parts:
    if validation.num_classes < 2:
        raise DataError(
            f"the val split of {validation.root} shows one class, among which nothing tells a good model from one that knows only that: "
            "add images of another class, or set validation=0"
        )
    measured, trained = validation.class_counts() > 0, training.class_counts() > 0
    num, num_trained = int(measured.sum()), int((measured & trained).sum())
    if num_trained in (0, num):
        return Parts(training, validation, f"the val split, of classes that were {'learnt from' if num_trained else 'not learnt from'}")
    return Parts(training, validation, f"the val split, where {num_trained:,} of {num:,} classes were learnt from")


def _images_apart(training: Records, data: DataSpec) -> Parts:
    sampling: Sampling = catalog.find("samplers", data.sampling)()
    is_held_out = images_to_hold_out(training, data.validation, 0, keep=sampling.num_kept(data))
    name = "held-out images of the classes that were learnt from"
    return Parts(training.select(~is_held_out), training.select(is_held_out), name)


def _with_share(parts: Parts, data: DataSpec) -> Parts:
    require_classes(parts.training, 2)
    return parts if data.share == 1 else replace(parts, training=share_of_images(parts.training, data.share))


def _require_known(validation: Records, training: Records) -> None:
    strange = [validation.class_names[label] for label in np.flatnonzero((validation.class_counts() > 0) & (training.class_counts() == 0))]
    if strange:
        raise DataError(
            f"{len(strange):,} classes of the val split of {validation.root} have no training image (such as '{strange[0]}'), so no classifier can "
            "know them: give the class folders without splits, or set validation=0"
        )


# --- without labels ---------------------------------------------------------------------------------------------------------------


class NearestNeighbours(HoldOut):
    """Labelled images, where there are any: k-NN accuracy by the training images. It chooses no model.

    They are the val split, or where there are no splits a part of each class; of classes that have images among the training ones.
    """

    measure = "last"
    chooses = False

    def split(self, records: Records, data: DataSpec) -> Parts:
        """See ``HoldOut.split``."""
        splits = set(records.splits or ())
        training, validation = training_split(records) if "train" in splits or not splits else _without(records, ("val", "test")), None
        if data.validation and records.labels is not None and "val" in splits:
            validation = records.split("val")
            assert validation.labels is not None
            validation = validation.select(training.class_counts()[validation.labels] > 0)
        elif data.validation and not splits and training.num_classes > 1 and training.class_counts().max() > 1:
            is_held_out = images_to_hold_out(training, data.validation, 0)
            training, validation = training.select(~is_held_out), training.select(is_held_out)
        if data.share < 1 and training.labels is None:
            training = training.select(
                np.sort(np.random.default_rng(0).permutation(len(training))[: max(1, round(data.share * len(training)))])
            )
        elif data.share < 1:
            training = share_of_images(training, data.share)
        can_tell = validation is not None and len(validation) > 0 and training.num_classes > 1  # of one class every vote is right
        return Parts(training, validation if can_tell else None, "held-out images")

    def validate(self, parts: Parts, encoder: Encoder, precision: Precision, bad_files: BadFiles) -> Validation:
        """See ``HoldOut.validate``."""
        training, validation = parts.training, parts.validation
        assert training.labels is not None
        assert validation is not None
        assert validation.labels is not None
        voting, queries = (embed_records(encoder, part, bad_files, precision=precision, show=False) for part in (training, validation))
        votes = training.labels[voting.rows]
        predicted = probes.knn(voting.vectors, votes, queries.vectors)
        can_err = len(np.unique(votes)) > 1
        accuracy = float(np.mean(predicted == validation.labels[queries.rows])) if can_err else float("nan")
        return Validation({"knn": accuracy}, chooses=False)


def _without(records: Records, splits: Sequence[str]) -> Records:
    return records.select(~np.isin(np.array(records.splits, dtype=str), splits))


def _at_most(records: Records, num: int) -> Records:
    """Return the records, or a random part of ``num`` of them."""
    return records if len(records) <= num else records.select(np.sort(np.random.default_rng(0).permutation(len(records))[:num]))
