"""Samplers without state: the rows of a batch are a pure function of (seed, step), so resuming needs only the step's number.

A row of the catalog's SAMPLERS table is a ``Sampling``: it fits a recipe to the records and makes their sampler.
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from sightline import runtime
from sightline.contracts import IntArray
from sightline.data.division import require_per_class
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.recipe import DataSpec, Recipe

log = logging.getLogger(__name__)


class Sampler(Protocol):
    """What the loader asks of a sampler."""

    @property
    def batch_size(self) -> int:
        """Rows in every batch."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass."""
        ...

    def batch(self, step: int) -> IntArray:
        """Return the rows int64 ``[B]`` of the batch of a step."""
        ...


@dataclass(frozen=True, eq=False)
class PKSampler:
    """Batches of ``num_classes`` classes (P) with ``num_per_class`` images (K) each, the images of a class side by side.

    An epoch is one pass through all classes in a new order; where P does not divide their number, its last batch is filled with
    classes from its beginning. The images of a class are drawn without repeats; a class with fewer than K takes all of its images
    before it repeats one.

    Raises:
        DataError: there are fewer than P classes.
    """

    labels: IntArray
    num_classes: int
    num_per_class: int
    seed: int = 0
    _rows: Sequence[IntArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", rows_by_class(self.labels))
        if len(self._rows) < self.num_classes:
            have = len(self._rows)
            raise DataError(
                f"a batch takes {self.num_classes} classes, but the training part has {have}: set classes_per_batch={have} or lower"
            )

    @property
    def batch_size(self) -> int:
        """P times K."""
        return self.num_classes * self.num_per_class

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every class was seen."""
        return -(-len(self._rows) // self.num_classes)

    def batch(self, step: int) -> IntArray:
        """Return the rows int64 ``[P * K]`` of a step's batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _permutation(len(self._rows), self.seed, epoch)
        classes = order[(within * self.num_classes + np.arange(self.num_classes)) % len(order)]
        random = np.random.default_rng([self.seed, step, 1])
        return np.concatenate([_draw(random, self._rows[label], self.num_per_class) for label in classes])


@dataclass(frozen=True, eq=False)
class ClassBalancedSampler:
    """Batches in which every class is equally frequent, however many images it has: classes pass in turn, in a new order each time."""

    labels: IntArray
    batch_size: int
    seed: int = 0
    _rows: Sequence[IntArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", rows_by_class(self.labels))

    @property
    def steps_per_epoch(self) -> int:
        """Batches with as many images as there are rows."""
        return -(-len(self.labels) // self.batch_size)

    def batch(self, step: int) -> IntArray:
        """Return the rows int64 ``[B]`` of a step's batch."""
        random = np.random.default_rng([self.seed, step, 2])
        classes = _stream(len(self._rows), self.seed, step * self.batch_size, self.batch_size)
        return np.array([random.choice(self._rows[label]) for label in classes], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ShuffleSampler:
    """Plain epochs: an endless row of shuffled passes cut into batches, so each pass sees every row once and every batch is full.

    A batch that straddles two passes may hold a row twice.
    """

    num_rows: int
    batch_size: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass, the last one counted whole."""
        return -(-self.num_rows // self.batch_size)

    def batch(self, step: int) -> IntArray:
        """Return the rows int64 ``[B]`` of a step's batch."""
        return _stream(self.num_rows, self.seed, step * self.batch_size, self.batch_size)


@dataclass(frozen=True, eq=False)
class TupleSampler:
    """Batches of ``per_batch`` tuples, one after the other, from the tuples that one epoch is made of.

    ``tuples`` int64 ``[num tuples, 2 + num negatives]`` holds the rows of an anchor, its positive and its negatives, in the order in
    which they are to come. Tuples that do not fill a last batch are left out; after the last batch comes the first again.

    Raises:
        DataError: there are fewer tuples than one batch takes.
    """

    tuples: IntArray
    per_batch: int

    def __post_init__(self) -> None:
        if len(self.tuples) < self.per_batch:
            have = len(self.tuples)
            raise DataError(f"a batch takes {self.per_batch} tuples, but an epoch has {have}: set tuples_per_batch={have} or lower")

    @property
    def batch_size(self) -> int:
        """Rows in every batch."""
        return int(self.per_batch * self.tuples.shape[1])

    @property
    def steps_per_epoch(self) -> int:
        """Batches that can be filled."""
        return len(self.tuples) // self.per_batch

    def batch(self, step: int) -> IntArray:
        """Return the rows int64 ``[per_batch * (2 + num negatives)]`` of a step's batch."""
        start = step % self.steps_per_epoch * self.per_batch
        return self.tuples[start : start + self.per_batch].reshape(-1)


# --- rows of the catalog's table --------------------------------------------------------------------------------------------------


class Sampling(ABC):
    """A way to put batches together: a row of the catalog's SAMPLERS table."""

    def num_kept(self, data: DataSpec) -> int:
        """Return the images of a class that must stay in training when some are held out."""
        return 1

    def fitted(self, recipe: Recipe, learning: Records, num_apart: int) -> Recipe:
        """Return the recipe, fitted to what there is to learn from once ``num_apart`` classes were held out of it.

        Raises:
            DataError: there is too little.
        """
        return recipe

    @abstractmethod
    def sampler(self, learning: Records, recipe: Recipe, bad_files: BadFiles) -> Any:
        """Return a ``Sampler``, or where batches depend on the model, the loop's ``Epochs`` with a method ``sampler()``."""


class PK(Sampling):
    """P classes of K images each."""

    def num_kept(self, data: DataSpec) -> int:
        """Return K."""
        return data.images_per_class

    def fitted(self, recipe: Recipe, learning: Records, num_apart: int) -> Recipe:
        """See ``Sampling.fitted``: a batch takes all classes that are left, with a warning, where too many were held out."""
        data, left = recipe.data, learning.num_classes
        require_per_class(learning, data.images_per_class)
        if left + num_apart < data.classes_per_batch:
            raise DataError(
                f"a batch wants {data.classes_per_batch} classes but {left + num_apart} are there for training: "
                f"lower it with --set classes_per_batch={left + num_apart}"
            )
        if left >= data.classes_per_batch:
            return recipe
        if runtime.ranks().is_main:
            log.warning(
                "%d of %d classes are held out to choose the model: a batch takes the %d left, not classes_per_batch=%d; validation=0 learns from all",
                num_apart, left + num_apart, left, data.classes_per_batch,
            )  # fmt: skip
        return replace(recipe, data=replace(data, classes_per_batch=left))

    def sampler(self, learning: Records, recipe: Recipe, bad_files: BadFiles) -> PKSampler:
        """See ``Sampling.sampler``."""
        assert learning.labels is not None
        return PKSampler(learning.labels, recipe.data.classes_per_batch, recipe.data.images_per_class, recipe.train.seed)


class Shuffle(Sampling):
    """Shuffled passes over all images."""

    def sampler(self, learning: Records, recipe: Recipe, bad_files: BadFiles) -> ShuffleSampler:
        """See ``Sampling.sampler``."""
        return ShuffleSampler(len(learning), recipe.data.images_per_batch, recipe.train.seed)


class ClassBalanced(Sampling):
    """Images of every class equally often."""

    def sampler(self, learning: Records, recipe: Recipe, bad_files: BadFiles) -> ClassBalancedSampler:
        """See ``Sampling.sampler``.

        Raises:
            DataError: there are no labels.
        """
        if learning.labels is None:
            raise DataError(f"{learning.root} has no labels, and sampling=class-balanced goes by class: take sampling=shuffle")
        return ClassBalancedSampler(learning.labels, recipe.data.images_per_batch, recipe.train.seed)


# --- draws ------------------------------------------------------------------------------------------------------------------------


def draw_pairs(positives: IntArray | None, labels: IntArray, num: int, seed: int, epoch: int) -> IntArray:
    """Return ``num`` different (anchor, positive) rows, int64 ``[num, 2]``, in random order, or all where there are fewer.

    They are drawn from ``positives`` int64 ``[num pairs, 2]``; without any, each anchor is another image and its positive any other
    image of its class. The draw is a pure function of (seed, epoch).
    """
    random = np.random.default_rng([seed, epoch, 4])
    if positives is not None:
        return positives[random.permutation(len(positives))[:num]]
    classes = rows_by_class(labels)
    rows = np.concatenate([np.empty(0, np.int64), *(peers for peers in classes if len(peers) > 1)])
    sizes = np.array([len(peers) for peers in classes if len(peers) > 1], dtype=np.int64)
    size, start = np.repeat(sizes, sizes), np.repeat(np.cumsum(sizes) - sizes, sizes)
    anchors = random.permutation(len(rows))[:num]
    turn = random.integers(1, size[anchors])  # places further along the circle of the class
    others = start[anchors] + (anchors - start[anchors] + turn) % size[anchors]
    return np.stack([rows[anchors], rows[others]], axis=1)


def rows_by_class(labels: IntArray) -> list[IntArray]:
    """Return the rows of each class that has any, by rising label; rows rise within a class."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


@functools.lru_cache(maxsize=8)
def _permutation(num: int, seed: int, epoch: int) -> IntArray:
    # Kept because an epoch of 60,000 rows takes 1 ms to shuffle and each of its steps asks for it.
    order = np.random.default_rng([seed, epoch, 0]).permutation(num)
    order.flags.writeable = False
    return order


def _stream(num: int, seed: int, start: int, count: int) -> IntArray:
    """Return ``count`` numbers below ``num`` from position ``start`` of the endless row of permutations."""
    position = start + np.arange(count)
    epochs = position // num
    return np.concatenate([_permutation(num, seed, int(epoch))[position[epochs == epoch] % num] for epoch in np.unique(epochs)])


def _draw(random: np.random.Generator, rows: IntArray, count: int) -> IntArray:
    rounds = -(-count // len(rows))
    if rounds == 1:
        return random.choice(rows, count, replace=False)
    return np.concatenate([random.permutation(rows) for _ in range(rounds)])[:count]
