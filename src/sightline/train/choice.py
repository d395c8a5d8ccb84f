"""Which model of a run is kept: the best by what is held out, where it is surely better than the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.nn.encoder import Encoder

DoubleArray = npt.NDArray[np.float64]

SURE = 2.0
"""Standard errors by which a model must be better than the start."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Measures of an encoder on what is held out. Higher is better; the first chooses the model, NaN chooses nothing.

    ``scores`` ``[V]`` is the first measure of each held-out image, where the measure is their mean.
    """

    metrics: Mapping[str, float]
    scores: DoubleArray | None = None

    @property
    def value(self) -> float:
        """The measure that chooses."""
        return next(iter(self.metrics.values()))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"metrics": dict(self.metrics), "scores": None if self.scores is None else self.scores.tolist()}

    @classmethod
    def of(cls, state: Mapping[str, Any] | float | None) -> Validation | None:
        """Return what ``state`` returned; runs of older versions kept the value alone, or nothing."""
        if state is None or isinstance(state, float):
            return None if state is None else cls({"start": state})
        return cls(state["metrics"], None if state["scores"] is None else np.array(state["scores"]))

    def objection(self, start: Validation) -> str:
        """Return in words why this does not beat ``start``, "" where it does: it is sure to be better, and by no measure below.

        The gain is sure where it is above two standard errors of the paired difference over the held-out images: of few images, or of
        images that disagree, a mean says little.
        """
        for name, value in self.metrics.items():
            if value < start.metrics.get(name, -math.inf):
                return f"{name} {value:.4f} is below the start's {start.metrics[name]:.4f}"
        if self.scores is None or start.scores is None or len(self.scores) != len(start.scores) or len(self.scores) < 2:
            return ""
        gain, error = paired_gain(self.scores, start.scores)
        return "" if gain > SURE * error else f"{gain:+.4f} ± {error:.4f} over the start is no sure gain"


Validate = Callable[[Encoder], Validation]
"""Measures an encoder on what is held out, before the first step too."""


def paired_gain(scores: DoubleArray, before: DoubleArray) -> tuple[float, float]:
    """Return the mean of the differences ``scores`` - ``before``, both ``[V]``, and its standard error."""
    difference = scores - before
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
