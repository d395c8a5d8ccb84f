"""Shared parts of the methods without labels: several crops of an image, and a momentum branch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from sightline.data.multicrop import MultiCropTransform
from sightline.errors import ModelError, RecipeError
from sightline.methods.base import Method
from sightline.nn.class_attention import Wrap
from sightline.nn.encoder import Encoder, evaluating
from sightline.recipe import AugmentSpec, Recipe, TrainSpec

PATCHES_ALONE = (("class_token", False), ("final_norm", False), ("global_pool", ""))
"""timm arguments that drop the class token and the final norm; class attention provides both."""


class SelfSupervised(Method):
    """A method that trains on crops without labels; the last model is kept, k-NN is measured along the way."""

    validation: ClassVar[str] = "knn"
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


def require_for_crops(recipe: Recipe) -> None:
    """Refuse the settings that nothing here would heed.

    Raises:
        RecipeError: batches of fewer than two images, ``augment``, or a learning rate that differs by layer.
    """
    if recipe.data.sampling != "shuffle" or recipe.data.images_per_batch < 2:
        raise RecipeError(
            "learning without labels takes shuffled passes over all images, two or more a batch: set sampling=shuffle and images_per_batch, such as 64"
        )
    if recipe.augment != AugmentSpec():
        raise RecipeError("augment.* is ignored by crops: set crop_flip, crop_jitter, crop_min_area and the like instead")
    if recipe.train.layer_decay != 1:
        raise RecipeError("layer_decay is for weights that have learnt already: without labels all layers learn at one rate")


@torch.no_grad()
def require_grids(encoder: Encoder, crop_px: Iterable[int], window: int = 0, wrap: Wrap = "clip") -> None:
    """Hold an encoder to crops of these sizes and, with a ``window`` of neighbours, to grids that have some, by asking it once.

    Raises:
        ModelError: a size of crops that the network does not take, or of one patch alone, or on a torus of fewer than the window.
    """
    for side_px in crop_px:
        with evaluating(encoder):
            rows, columns = encoder.tokens(torch.zeros(1, 3, side_px, side_px, device=encoder.device)).grid
        if window and (rows < 2 or (wrap == "torus" and rows < window)):
            what = "smaller than the window: take wrap=clip or" if rows > 1 else "alone, without neighbours: set"
            raise ModelError(f"a crop of {side_px} px has {rows} x {columns} patches, {what} a larger crop_px")


def ema_copy(encoder: Encoder) -> Encoder:
    """Return a frozen encoder with the same weights and no drop path, to be moved by ``ema_update`` (a plain copy would keep the drop path)."""
    still = replace(encoder.model, drop_path=0.0, weights="random", frozen=())
    with torch.random.fork_rng(devices=[]):  # weights about to be replaced take no random numbers from anybody
        made = Encoder(still, encoder.image)
    made.load_state_dict(encoder.state_dict())
    return made.requires_grad_(False)


@torch.no_grad()
def ema_update(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """EMA update in place: follower = momentum * follower + (1 - momentum) * leader."""
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), 1.0 - momentum)


def cosine_to_one(start: float, step: int, num_steps: int) -> float:
    """Return the cosine from ``start`` to 1 over a run."""
    return 1.0 - 0.5 * (1.0 - start) * (1.0 + math.cos(math.pi * step / max(1, num_steps)))
