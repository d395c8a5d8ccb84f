"""The choice of the model that a run keeps: the best on held-out images, if it is surely better than the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.nn.encoder import Encoder

DoubleArray = npt.NDArray[np.float64]

SURE = 2.0
"""A difference is sure above so many standard errors."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Measures of an encoder on what is held out. Higher is better; the first chooses the model, NaN chooses nothing.

    ``scores`` ``[V]`` are those of the held-out images by measure, where a measure is their mean. ``chooses`` is False where the last model is
    kept whatever is measured.
    """

    metrics: Mapping[str, float]
    scores: Mapping[str, DoubleArray] = field(default_factory=dict)
    chooses: bool = True

    @property
    def value(self) -> float:
        """The measure that chooses."""
        return next(iter(self.metrics.values()))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"metrics": dict(self.metrics), "scores": {name: scores.tolist() for name, scores in self.scores.items()}}

    @classmethod
    def of(cls, state: Mapping[str, Any] | float | None) -> Validation | None:
        """Return what ``state`` returned; runs of older versions kept the value alone, or nothing."""
        if state is None or isinstance(state, float):
            return None if state is None else cls({"start": state})
        return cls(state["metrics"], {name: np.array(scores) for name, scores in state["scores"].items()})

    def objection(self, start: Validation) -> str:
        """Return the reason not to prefer this to ``start``; "" if its first measure is surely higher and no other surely lower.

        A paired difference over the held-out images is sure above two standard errors: with few images, or with gains on some and losses
        on others, its mean alone can be chance.
        """
        for name in self.metrics:
            scores, before = self.scores.get(name), start.scores.get(name)
            if scores is None or before is None or len(scores) != len(before) or len(scores) < 2:
                continue
            gain, error = paired_gain(scores, before)
            if name == next(iter(self.metrics)) and gain <= SURE * error:
                return f"not surely above the start: {gain:+.4f} ± {error:.4f}"
            if gain < -SURE * error:
                return f"{name} surely below the start: {gain:+.4f} ± {error:.4f}"
        return ""


Validate = Callable[[Encoder], Validation]
"""Measures an encoder on what is held out, before the first step too."""


def paired_gain(scores: DoubleArray, before: DoubleArray) -> tuple[float, float]:
    """Return the mean of the differences ``scores`` - ``before``, both ``[V]``, and its standard error."""
    difference = scores - before
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
