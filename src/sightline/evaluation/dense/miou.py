"""Intersection over union, from counts of what was predicted for what: streamed, in whole numbers, so that no order of images matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sightline.contracts import IntArray
from sightline.data.sets.segmentation import VOID
from sightline.evaluation.ranks import DoubleArray

Labels = npt.NDArray[np.integer]


class Confusion:
    """Pixels counted by truth and prediction: ``counts`` int64 ``[C, C]``, a row for each true class, a column for each predicted."""

    def __init__(self, num_classes: int) -> None:
        self.counts: IntArray = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: Labels, predicted: Labels) -> None:
        """Count pixels of one shape; those whose truth is ``VOID`` are left out, whatever is predicted there."""
        if truth.shape != predicted.shape:
            raise ValueError(f"truth and prediction must be of one shape, got {truth.shape} and {predicted.shape}")
        num = len(self.counts)
        counted = truth != VOID
        true, said = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        if len(true) and not (0 <= true.min() <= true.max() < num and 0 <= said.min() <= said.max() < num):
            raise ValueError(f"classes must be 0 to {num - 1}")
        self.counts += np.bincount(true * num + said, minlength=num * num).reshape(num, num)

    @property
    def iou(self) -> DoubleArray:
        """Intersection over union ``[C]`` of each class; NaN where neither truth nor prediction shows it."""
        right = self.counts.diagonal()
        return _ratio(right, self.counts.sum(axis=0) + self.counts.sum(axis=1) - right)

    @property
    def miou(self) -> float:
        """The mean IoU over the classes that truth or prediction shows; a class that is predicted and never true counts as 0.

        NaN where nothing was counted.
        """
        iou = self.iou
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; NaN where nothing was counted."""
        return float(_ratio(self.counts.trace(), self.counts.sum()))

    def groups(self, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return, of each class that is shown, its IoU, the share of its pixels found (``accuracy``) and its share of all (``pixels``)."""
        true = self.counts.sum(axis=1)
        found, share = _ratio(self.counts.diagonal(), true), _ratio(true, self.counts.sum())
        of_classes = {}
        for place in np.flatnonzero(np.isfinite(self.iou)).tolist():
            values = {"iou": self.iou[place], "accuracy": found[place], "pixels": share[place]}
            of_classes[class_names[place]] = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        return of_classes


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> DoubleArray:
    """Return the quotients; NaN where the divisor is 0."""
    divisor = np.asarray(whole, np.float64)
    quotient: DoubleArray = np.asarray(part, np.float64) / np.where(divisor == 0, np.nan, divisor)
    return quotient
