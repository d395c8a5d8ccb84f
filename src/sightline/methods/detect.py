"""Fine-tuning for detection: a pre-trained encoder under a detector's heads, all of it learning, or the heads alone.

Source: Li et al. 2022, arXiv 2203.16527 (AdamW, layer-wise decay of the rate over a plain ViT).

It has no recipe of its own: ``evaluate --protocol detect`` is the one command that fine-tunes and measures.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from sightline.contracts import Batch, DetectionBatch, LossTerms
from sightline.methods.base import Method, encoder_groups
from sightline.nn.detector import Detector
from sightline.nn.encoder import Encoder
from sightline.recipe import TrainSpec


class Detect(Method):
    """The detector that learns from batches with instances."""

    def __init__(self, detector: Detector, *, frozen: bool = False) -> None:
        """``frozen`` leaves the backbone as it is, in evaluation mode."""
        super().__init__()
        self.detector, self.frozen = detector, frozen
        if frozen:
            self.encoder().requires_grad_(False)

    def train(self, mode: bool = True) -> Detect:
        """Switch to training; a frozen backbone stays as it is measured."""
        super().train(mode)
        if self.frozen:
            self.encoder().eval()
        return self

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return the sum of the losses of proposals, classes, boxes and masks, each with weight 1."""
        terms = self.detector.losses(cast(DetectionBatch, batch))
        return LossTerms(torch.stack(list(terms.values())).sum(), {name: value.detach() for name, value in terms.items()})

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups, and those of pyramid and heads at the full rate; vectors have no weight decay."""
        of_encoder = {id(parameter) for parameter in self.encoder().parameters()}
        ours = [parameter for parameter in self.parameters() if id(parameter) not in of_encoder]
        return [
            *encoder_groups(self.encoder(), spec),
            {"params": [one for one in ours if one.ndim > 1], "lr": spec.lr, "weight_decay": spec.weight_decay},
            {"params": [one for one in ours if one.ndim <= 1], "lr": spec.lr, "weight_decay": 0.0},
        ]

    def encoder(self) -> Encoder:
        """Return the encoder that is fine-tuned."""
        return self.detector.features.encoder
