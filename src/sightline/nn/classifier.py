"""A classifier on top of an encoder: from a pooled vector to one logit a class. Descriptors are taken below it and do not change with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Classifier(nn.Module):
    """A linear layer that begins as zeros, behind one hidden tanh layer where ``hidden``; ``class_names`` ``[C]`` name its logits.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1; the initial values are those of the authors' JAX code.
    """

    def __init__(self, width: int, class_names: Sequence[str], *, hidden: bool) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.pre_logits = _lecun_normal(nn.Linear(width, width)) if hidden else None
        self.logits = nn.Linear(width, len(self.class_names))
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[B, C]`` of pooled vectors ``[B, D]``."""
        hidden = pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))
        logits: torch.Tensor = self.logits(hidden)
        return logits


def _lecun_normal(layer: nn.Linear) -> nn.Linear:
    """Give a layer flax's initial values: of variance one over its inputs, cut off at two deviations, and no bias."""
    deviation = layer.in_features**-0.5 / 0.87962566103423978  # of a standard normal that is cut off at two
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(layer.bias)
    return layer
