"""What methods without labels share: several crops of an image, and a branch that follows the one that learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from sightline.data.multicrop import MultiCropTransform
from sightline.methods.base import Measure, Method
from sightline.nn.encoder import Encoder
from sightline.recipe import TrainSpec

PATCHES_ALONE = (("class_token", False), ("final_norm", False), ("global_pool", ""))
"""What the backbone of patches that learn is without: class attention has the class token and the norm."""


class Unlabelled(Method):
    """A method that learns from crops of images alone; the last model is kept, whatever k-NN says on the way."""

    chosen_by: ClassVar[Measure] = "last"
    needs_labels: ClassVar[bool] = False

    @classmethod
    def transform(cls, recipe: Any) -> MultiCropTransform:
        """Return the crops' transform."""
        return MultiCropTransform(recipe.image, recipe.crops)

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return two groups: matrices with weight decay (tables, tokens and positions among them, as DINO and MoBY do), biases and vectors without."""
        learning = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in learning if parameter.ndim > 1 and not name.endswith(".bias")]
        others = [parameter for name, parameter in learning if parameter.ndim <= 1 or name.endswith(".bias")]
        return [
            {"params": decayed, "lr": spec.lr, "weight_decay": spec.weight_decay},
            {"params": others, "lr": spec.lr, "weight_decay": 0.0},
        ]


def follower_of(encoder: Encoder) -> Encoder:
    """Return an encoder with the same weights that drops no paths: what follows by ``follow`` (a copy would keep the drop path)."""
    still = replace(encoder.model, drop_path=0.0, weights="random", frozen=())
    with torch.random.fork_rng(devices=[]):  # weights about to be replaced take no random numbers from anybody
        made = Encoder(still, encoder.image)
    made.load_state_dict(encoder.state_dict())
    return made.requires_grad_(False)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Move every parameter of ``follower`` towards that of ``leader``, of which it takes the share 1 - ``momentum``."""
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), 1.0 - momentum)


def to_one(start: float, step: int, num_steps: int) -> float:
    """Return the cosine from ``start`` to 1 over a run."""
    return 1.0 - 0.5 * (1.0 - start) * (1.0 + math.cos(math.pi * step / max(1, num_steps)))
