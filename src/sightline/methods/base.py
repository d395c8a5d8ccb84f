"""Method interface: loss, parameter_groups, encoder, after_step; optional hooks begin and before_step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from sightline.contracts import Batch, LossTerms
from sightline.data.transforms import CropTransform, Transform, train_transform
from sightline.nn.encoder import Encoder
from sightline.recipe import TrainSpec

Measure = Literal["map@r", "accuracy@1", "miou", "last"]
"""The validation measure that chooses the model of a run; ``last`` keeps the last one."""

LearnsFrom = Literal["images", "masks"]


class Method(nn.Module, ABC):
    """What is trained, made of ``(recipe, encoder, records)``: the records that it learns from.

    State that the next step needs (teacher, centre, memory and its pointer) is a buffer, so resuming is free.

    ``validation`` names the row of the catalog's VALIDATIONS table that holds out a part of the records and measures the encoder on it.
    ``needs_labels`` is False where it learns from images alone; ``learns_from`` is ``masks`` where every pixel has a class: its batches are
    of ``SegmentationBatch``, and its workflow holds out images itself.
    """

    validation: ClassVar[str] = "unseen-classes"
    needs_labels: ClassVar[bool] = True
    learns_from: ClassVar[LearnsFrom] = "images"

    @classmethod
    def transform(cls, recipe: Any) -> Transform | CropTransform:
        """Return how a training image becomes pixels."""
        return train_transform(recipe.augment, recipe.image)

    def begin(self) -> None:
        """Load what a run starts from beside its backbone's weights; a run that goes on has all that in its checkpoint."""

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return the loss of one batch at one step (counted from 0)."""

    def before_step(self, step: int) -> None:
        """Change the gradients, already clipped, before the optimiser's step."""

    def after_step(self, step: int) -> None:
        """Update what follows the weights without a gradient (teacher, momentum encoder); called after the optimiser's step."""

    @abstractmethod
    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the optimiser's groups: ``params``, ``lr``, ``weight_decay``."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """Return what is evaluated, saved and searched with."""

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return ``loss`` as plain tensors: the form that DistributedDataParallel wraps."""
        terms = self.loss(batch, step)
        return terms.total, dict(terms.terms)


def encoder_groups(encoder: Encoder, spec: TrainSpec) -> list[dict[str, Any]]:
    """Return optimiser groups for an encoder: the learning rate falls by ``layer_decay`` a block towards the pixels.

    Vectors (biases, norms) and what the backbone names (position and class tokens) have no weight decay.
    """
    layers = encoder.backbone.layer_of()
    exempt: Iterable[str] = getattr(encoder.backbone.net, "no_weight_decay", lambda: ())()
    deepest = max(layers.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix("backbone.net.")
        depth = layers.get(own, deepest) if own != name else deepest
        lr = spec.lr * spec.layer_decay ** (deepest - depth)
        decay = 0.0 if parameter.ndim <= 1 or own in exempt else spec.weight_decay
        groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())
