"""What of a collection a run learns from, what is held out of that, and how the held-out part measures a model on the way.

A measure that cannot be wrong is none: what is held out always shows at least two classes, or is asked against images of at least two.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sightline import runtime
from sightline.contracts import FloatArray, IntArray
from sightline.data.division import hold_out_classes, images_to_hold_out, require_classes, require_per_class, share_of_images
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.evaluate import metrics, probes
from sightline.evaluate.accuracy import measure_accuracy
from sightline.methods.base import Measure, Method
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, Recipe
from sightline.search.embed import embed_records
from sightline.train.choice import Validate, Validation
from sightline.workflows.common import training_split

log = logging.getLogger(__name__)

EMBED_LIMIT = 4_096
"""Most validation images measured during training: enough to rank models, few enough not to slow the run."""


@dataclass(frozen=True, eq=False)
class Material:
    """What is learnt from, what is held out to measure on (None: nothing), and in words what that is.

    ``asks_training``: the held-out images ask those learnt from, since they are too few of each class to ask each other.
    ``num_apart``: the number of classes that were taken out of training for it.
    """

    learning: Records
    validation: Records | None
    held_out: str = ""
    asks_training: bool = False
    num_apart: int = 0


def material(records: Records, recipe: Recipe, kind: type[Method]) -> Material:
    """Return what a run of ``recipe`` learns from and what it holds out.

    A split called val is held out where there is one. Else a share of the classes is, at least two; and of two or three classes,
    as of every classifier's, a share of each one's images.

    Raises:
        DataError: there is too little to learn from, or the val split cannot tell a good model from a bad one.
    """
    if not kind.needs_labels:
        return _images_and_watched(records, recipe.data)
    found = _divided(records, recipe.data, kind.chosen_by)
    learning, data = found.learning, recipe.data
    require_classes(learning, 2)
    if data.share < 1:
        learning = share_of_images(learning, data.share)
        found = replace(found, learning=learning)
    if data.tuples_per_batch or data.images_per_batch:
        return found
    require_per_class(learning, data.images_per_class)
    if learning.num_classes + found.num_apart < data.classes_per_batch:
        raise DataError(
            f"a batch wants {data.classes_per_batch} classes but {learning.num_classes + found.num_apart} are there for training: "
            f"lower it with --set classes_per_batch={learning.num_classes + found.num_apart}"
        )
    return found


def fitted(recipe: Recipe, found: Material) -> Recipe:
    """Return the recipe with a batch of the classes left, and say so, if validation holds out too many for ``classes_per_batch``."""
    data, left = recipe.data, found.learning.num_classes
    if not found.num_apart or data.tuples_per_batch or data.images_per_batch or left >= data.classes_per_batch:
        return recipe
    if runtime.ranks().is_main:
        log.warning(
            "%d of %d classes are held out to choose the model: a batch takes the %d left, not classes_per_batch=%d; validation=0 learns from all",
            found.num_apart, left + found.num_apart, left, data.classes_per_batch,
        )  # fmt: skip
    return replace(recipe, data=replace(data, classes_per_batch=left))


def _divided(records: Records, data: DataSpec, chosen_by: Measure) -> Material:
    learning = training_split(records)
    require_classes(learning, 2)
    if not data.validation:
        return Material(learning, None)
    if records.splits is not None and "val" in records.splits:
        validation = records.split("val")
        if chosen_by == "accuracy@1":
            _require_known(validation, learning)
        elif not (validation.class_counts() > 1).any():
            raise DataError(f"no class of the val split of {validation.root} has two images: add some, or set validation=0")
        if validation.num_classes < 2:
            raise DataError(
                f"the val split of {validation.root} shows one class, among which nothing tells a good model from one that knows only that: "
                "add images of another class, or set validation=0"
            )
        return Material(learning, validation, _val_split(learning, validation))
    parts = None if chosen_by == "accuracy@1" else hold_out_classes(learning, data.validation, 0)
    if parts is not None:
        return Material(*parts, "held-out classes", num_apart=parts[1].num_classes)
    sampled = not (data.tuples_per_batch or data.images_per_batch)
    is_held_out = images_to_hold_out(learning, data.validation, 0, keep=data.images_per_class if sampled else 1)
    words = "held-out images of the classes that were learnt from"
    return Material(learning.select(~is_held_out), learning.select(is_held_out), words, asks_training=chosen_by != "accuracy@1")


def _val_split(learning: Records, validation: Records) -> str:
    asked, learnt = validation.class_counts() > 0, learning.class_counts() > 0
    num, num_learnt = int(asked.sum()), int((asked & learnt).sum())
    if num_learnt in (0, num):
        return f"the val split, of classes that were {'learnt from' if num_learnt else 'not learnt from'}"
    return f"the val split, where {num_learnt:,} of {num:,} classes were learnt from"


def _images_and_watched(records: Records, data: DataSpec) -> Material:
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
    can_tell = watched is not None and len(watched) > 0 and learning.num_classes > 1  # of one class every vote is right
    return Material(learning, watched if can_tell else None, "held-out images")


def _without(records: Records, splits: Sequence[str]) -> Records:
    return records.select(~np.isin(np.array(records.splits, dtype=str), splits))


def _require_known(validation: Records, learning: Records) -> None:
    strange = [validation.class_names[label] for label in np.flatnonzero((validation.class_counts() > 0) & (learning.class_counts() == 0))]
    if strange:
        raise DataError(
            f"{len(strange):,} classes of the val split of {validation.root} have no training image (such as '{strange[0]}'), so no classifier can "
            "know them: give the class folders without splits, or set validation=0"
        )


# --- measuring on the way ---------------------------------------------------------------------------------------------------------


def validator(found: Material, recipe: Recipe, chosen_by: Measure, bad_files: BadFiles) -> Validate | None:
    """Return what measures an encoder on the held-out part, or None where nothing is held out.

    The measure is NaN where too little of it can be read for any answer to be wrong.
    """
    if found.validation is None:
        return None
    learning, validation = _at_most(found.learning, EMBED_LIMIT), _at_most(found.validation, EMBED_LIMIT)
    assert validation.labels is not None
    precision = recipe.train.precision

    def neighbours(encoder: Encoder) -> Validation:
        voting, asked = (embed_records(encoder, part, bad_files, precision=precision, show=False) for part in (learning, validation))
        assert learning.labels is not None and validation.labels is not None  # noqa: PT018
        said = probes.knn(voting.vectors, learning.labels[voting.rows], asked.vectors)
        can_err = len(np.unique(learning.labels[voting.rows])) > 1
        return Validation({"knn": float(np.mean(said == validation.labels[asked.rows])) if can_err else float("nan")})

    def accuracy(encoder: Encoder) -> Validation:
        return Validation(measure_accuracy(encoder, validation, bad_files, precision=precision, show=False).metrics)

    def retrieval(encoder: Encoder) -> Validation:
        asked = embed_records(encoder, validation, bad_files, precision=precision, show=False)
        assert validation.labels is not None
        gallery: tuple[FloatArray, IntArray] | tuple[()] = ()
        if found.asks_training:
            searched = embed_records(encoder, learning, bad_files, precision=precision, show=False)
            assert learning.labels is not None
            gallery = (searched.vectors, learning.labels[searched.rows])
        ranks = metrics.positive_ranks(asked.vectors, validation.labels[asked.rows], *gallery)
        if not ranks.fallible.any():
            return Validation({"map@r": float("nan"), "recall@1": float("nan")})
        scores = {"map@r": metrics.map_at_r(ranks), "recall@1": metrics.recall_at(ranks, 1)}
        return Validation(metrics.means(scores), {name: values[~np.isnan(values)] for name, values in scores.items()})

    return {"accuracy@1": accuracy, "map@r": retrieval, "last": neighbours}[chosen_by]


def _at_most(records: Records, num: int) -> Records:
    """Return the records, or a random part of ``num`` of them."""
    return records if len(records) <= num else records.select(np.sort(np.random.default_rng(0).permutation(len(records))[:num]))
