"""Mixing: two images of a batch made into one, with the share that each has in it; mixup and cutmix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SWITCH_PROBABILITY = 0.5
"""How often a batch is cut where a recipe both blends and cuts: timm's value, DeiT's too."""


@dataclass(frozen=True)
class Mix:
    """What every image of a batch keeps of itself, in 0..1; the rest is its partner's, blended in or, with a ``box``, put in its place.

    ``box`` is top, bottom, left, right in pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(random: np.random.Generator, mixup: float, cutmix: float, height: int, width: int) -> Mix | None:
    """Return how a batch is to be mixed, or None where ``mixup`` and ``cutmix`` are 0: the parameter of each one's symmetric beta distribution.

    Source: mixup: Zhang et al. 2018, arXiv 1710.09412, eq. 1; cutmix: Yun et al. 2019, arXiv 1905.04899, eqs. 1 and 2.
    Departs: the share is drawn once a batch, as DeiT does, and a cut box that the image's border shortens gives its share by what is
        left of it, as cutmix's code does and its equations do not.
    """
    if not (mixup or cutmix):
        return None
    cuts = bool(cutmix) and (not mixup or random.random() < SWITCH_PROBABILITY)
    alpha = cutmix if cuts else mixup
    share = float(random.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    row, column = int(random.integers(height)), int(random.integers(width))
    half_height, half_width = (int(side * (1 - share) ** 0.5) // 2 for side in (height, width))
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def partners(num: int) -> torch.Tensor:
    """Return each position's partner, int64 ``[B]``: neighbours change places, and the last of an odd number is its own.

    Batches come shuffled, so neighbours are strangers; and in the shares of several processes they are the same as in one's.
    """
    swapped = torch.arange(num) ^ 1
    return torch.where(swapped < num, swapped, torch.arange(num))


def mix_images(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Return the images ``[B, 3, H, W]`` mixed with their ``partners``; what was given stays as it was."""
    others = partners(len(images)).to(images.device)
    if mix.box is None:
        return torch.lerp(images[others], images, mix.share)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    return mixed
