"""What a training will take on a processor, told before its first step: a few images through the network say it well enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from sightline import catalog, runtime
from sightline.nn.encoder import Encoder, evaluating
from sightline.progress import duration
from sightline.recipe import Recipe

TRIED = 4
"""Images that are timed; the pass before them, of as many, is not."""

WORTH_SAYING_S = 600.0
OF_A_FORWARD = 1 / 3
"""What a forward pass takes of one with its backward pass."""

log = logging.getLogger(__name__)


def expected_s(encoder: Encoder, recipe: Recipe, steps: int) -> float:
    """Return about how many seconds ``steps`` of a recipe take on this processor: the network's own time, without losses and data.

    The encoder is left as it was; random numbers are not touched.
    """
    a_step = sum(num * share * seconds_an_image(encoder, px) for px, num, share in images_a_step(recipe))
    return steps * recipe.train.accumulate * a_step / runtime.ranks().world_size


def images_a_step(recipe: Recipe) -> Sequence[tuple[int, int, float]]:
    """Return (pixels, images, of each one's time) of a batch: one image each, or several crops, the first size of which a teacher sees too."""
    crops = getattr(recipe, "crops", None)
    if crops is None:
        return [(recipe.image.image_px, recipe.data.batch, 1.0)]
    groups = list(zip(crops.crop_px, crops.num_crops, strict=True))
    learnt = [(px, num * recipe.data.batch, 1.0) for px, num in groups]
    return [*learnt, (groups[0][0], groups[0][1] * recipe.data.batch, OF_A_FORWARD)]


def seconds_an_image(encoder: Encoder, px: int) -> float:
    """Return what a forward and a backward pass take for each image of ``px`` squared."""
    images, took_s = torch.zeros(TRIED, 3, px, px, device=encoder.device), 0.0
    with evaluating(encoder):
        for _ in range(2):
            began_s = time.perf_counter()
            with encoder.any_size(images):
                total = encoder(images).sum()
            if total.requires_grad:
                total.backward()
            took_s = time.perf_counter() - began_s
    encoder.zero_grad(set_to_none=True)
    return took_s / TRIED


def foretell(encoder: Encoder, recipe: Recipe, steps: int, where: torch.device) -> float | None:
    """Return what the steps may take on a processor, after saying so where that is long; None on a device, which shows it soon enough."""
    if where.type != "cpu" or not steps:
        return None
    seconds = expected_s(encoder, recipe, steps)
    if seconds >= WORTH_SAYING_S and runtime.ranks().is_main:
        log.warning(
            "%s steps of %s images take about %s on this processor: %s",
            f"{steps:,}",
            f"{recipe.data.batch * recipe.train.accumulate:,}",
            duration(seconds),
            _instead(recipe),
        )
    return seconds


def _instead(recipe: Recipe) -> str:
    method = recipe.name.partition("/")[0]
    small = "irt/tuples" if recipe.data.sampling == "tuples" else f"{method}/small"
    fewer = "fewer steps, or a smaller image_px, take less"
    if small not in catalog.names("recipes") or recipe.name == small:
        return fewer
    return f"{small} is made for a machine without a GPU; {fewer}"
