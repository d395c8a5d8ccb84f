"""Watching for collapse: measures of how much a network's answers still tell images apart, and when to stop."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from sightline.errors import TrainingError
from sightline.nn.collectives import gather
from sightline.nn.projection import as_float32

LOWEST_SPREAD = 0.02
"""Below it, features are one direction and rounding: an untrained ViT-Ti has about 0.2 on photographs, a trained one more."""

LOWEST_INFORMATION = 1e-3
"""Nats that a teacher's answer tells of which image it saw, below which all images get one answer."""

PATIENCE = 10
"""Consecutive checks that must detect a collapse: one batch may be alike by chance."""


def spread(vectors: torch.Tensor) -> torch.Tensor:
    """Return how far unit vectors of ``[M, D]`` lie apart: 0 where all are one, 1 where they are spread over the sphere.

    Source: Chen and He 2021, arXiv 2011.10566, section 4.1 (the deviation of each coordinate, times sqrt(D)).
    """
    unit = F.normalize(as_float32(vectors), dim=1)
    deviation: torch.Tensor = unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1])
    return deviation


def feature_rank(vectors: torch.Tensor) -> torch.Tensor:
    """Return how many directions the rows ``[M, D]`` vary in: e to the entropy of their singular values, from 1 to min(M - 1, D).

    It is the effective rank of the centred rows. What ``inspect`` calls ``effective_rank`` is that of their covariance, whose singular values
    are the squares of these: smaller, unless all directions are alike.

    Source: Roy and Vetterli 2007, "The effective rank", section 2.
    """
    rows = as_float32(vectors)
    values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank: torch.Tensor = torch.special.entr(shares).sum().exp()
    return rank


class CollapseMonitor(nn.Module):
    """Looks at features (and a teacher's answers) now and then, and ends a run whose answers no longer depend on the image.

    How often in a row it found a collapse is a buffer, so a resumed run is stopped at the same step.
    """

    found: torch.Tensor

    def __init__(self, first_step: int, every: int, settings: str = "a lower teacher_temp, fewer num_prototypes, ") -> None:
        """``settings``: what of the method's own may help, beside its rate, batch and crops; each followed by a comma."""
        super().__init__()
        self.first_step, self.every, self.settings = first_step, every, settings
        self.last_step = -1  # a step of several batches is looked at in each, and counts once
        self.register_buffer("found", torch.zeros((), dtype=torch.int64))

    def is_due(self, step: int) -> bool:
        """Return whether ``step`` (counted from 0) is one to look at: the first, and those that the log tells."""
        return step == 0 or (step + 1) % self.every == 0

    @torch.no_grad()
    def look(self, features: torch.Tensor, step: int, information: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the measures of ``features`` ``[M, D]`` of all ranks: ``feature_rank`` and ``feature_spread``.

        Raises:
            TrainingError: a collapse, found ``PATIENCE`` times in a row; the message is the diagnosis.
        """
        everyones = gather(features.detach())
        told = {"feature_rank": feature_rank(everyones), "feature_spread": spread(everyones)}
        same = told["feature_spread"] < LOWEST_SPREAD
        silent = information is not None and bool(information < LOWEST_INFORMATION)
        collapsed = step >= self.first_step and (bool(same) or silent)
        self.found = self.found + int(step != self.last_step) if collapsed else torch.zeros_like(self.found)
        self.last_step = step
        if self.found >= PATIENCE:
            what = (
                f"all images get nearly the same features (spread {float(told['feature_spread']):.3f}, below {LOWEST_SPREAD})"
                if same
                else "the teacher gives all images the same answer"
            )
            raise TrainingError(
                f"the run has collapsed at step {step + 1}: {what}, {PATIENCE} looks in a row; try a lower lr, {self.settings}more images "
                "a batch, or a larger crop_min_area"
            )
        return told
