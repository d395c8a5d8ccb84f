"""Samplers without state: the rows of a batch are a pure function of (seed, step), so resuming needs only the step's number."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sightline.contracts import IntArray
from sightline.errors import DataError


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
