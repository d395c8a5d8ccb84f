"""Multi-crop: one image made into several crops, each with chances of its own, for learning without labels.

Source: Caron et al. 2021 (DINO), arXiv 2104.14294, section 3 and appendix; the chances are those of BYOL (Grill et al. 2020, arXiv
    2006.07733, appendix B), the radius of the blur is DINO's.
Departs: levels are rounded once, at the end of a crop's way, not after each change; a hue is not a byte; the blur is a Gaussian cut at
    three standard deviations, where Pillow's is three box blurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from sightline.contracts import FloatArray
from sightline.data import colour
from sightline.data.transforms import ASPECT_RATIOS, Normalises, random_area
from sightline.recipe import CropSpec

BLUR_SIGMA_PX = (0.1, 2.0)
"""A blur's standard deviation in pixels of the crop, from and to."""

ORDERS = tuple(permutations(("brightness", "contrast", "saturation", "hue")))
"""The orders in which a jitter's four changes may come."""

PIXELS_AT_ONCE = 2**16
"""Pixels whose hues are turned together: enough that NumPy's own cost is small, few enough that all planes stay in a core's cache."""


class Draw(NamedTuple):
    """What chance gives one crop."""

    box: tuple[int, int, int, int]
    mirrored: bool
    jitter: tuple[tuple[str, float], ...]  # changes in their order, with their factors; none where it is empty
    grey: bool
    sigma_px: float  # 0 does not blur
    solarized: bool


@dataclass(frozen=True)
class MultiCropTransform(Normalises):
    """The crops of a recipe: a random area resized, mirrored, jittered, greyed, blurred, solarized."""

    crops: CropSpec

    @property
    def short_px(self) -> int:
        """The short side from which the smallest crop of every size still has all the pixels that the model is given."""
        groups = zip(self.crops.crop_px, self.crops.crop_min_area, strict=True)
        return max(math.ceil(px / math.sqrt(area * ASPECT_RATIOS[0])) for px, area in groups)

    def pixels(self, image: Image.Image, seed: int) -> tuple[torch.Tensor, ...]:
        """Return uint8 ``[V, 3, h, w]`` for each size; the same image and seed give the same pixels in any process."""
        random = Random(seed)
        whole = np.array(image)  # a copy: torch warns of arrays that cannot be written to
        made = []
        for group, (side, num) in enumerate(zip(self.crops.crop_px, self.crops.num_crops, strict=True)):
            draws = [draw(random, image.size, self.crops, group, place) for place in range(num)]
            made.append(torch.from_numpy(_finish(_resized(whole, draws, side), draws)))
        return tuple(made)


def draw(random: Random, size: tuple[int, int], spec: CropSpec, group: int, place: int) -> Draw:
    """Return what chance gives the crop at ``place`` of its group."""
    kind = 2 if group else min(place, 1)
    box = random_area(random, size, spec.crop_min_area[group], spec.crop_max_area[group])
    mirrored = random.random() < spec.crop_flip
    jitter: tuple[tuple[str, float], ...] = ()
    if random.random() < spec.crop_jitter_p:
        factors = {name: random.uniform(1 - share, 1 + share) for name, share in zip(ORDERS[0][:3], spec.crop_jitter[:3], strict=True)}
        factors["hue"] = random.uniform(-spec.crop_jitter[3], spec.crop_jitter[3])
        jitter = tuple((name, factors[name]) for name in ORDERS[random.randrange(len(ORDERS))])
    grey = random.random() < spec.crop_gray
    sigma_px = random.uniform(*BLUR_SIGMA_PX) if random.random() < spec.crop_blur[kind] else 0.0
    return Draw(box, mirrored, jitter, grey, sigma_px, random.random() < spec.crop_solarize[kind])


def _resized(whole: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], draws: list[Draw], side: int) -> FloatArray:
    """Return the crops' levels float32 ``[3, V, side, side]``."""
    levels = np.empty((3, len(draws), side, side), np.float32)
    for place, (left, top, right, bottom) in enumerate(one.box for one in draws):
        area = torch.from_numpy(np.ascontiguousarray(whole[top:bottom, left:right])).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(area, (side, side), mode="bicubic", antialias=True)[0]
        levels[:, place] = (resized.flip(-1) if draws[place].mirrored else resized).numpy()
    return levels


def _finish(levels: FloatArray, draws: list[Draw]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the crops uint8 ``[V, 3, h, w]``; ``levels`` are used up."""
    _jitter(levels, draws)
    made = np.empty((len(draws), 3, *levels.shape[2:]), np.uint8)
    for place, one in enumerate(draws):
        mine = colour.luma(levels[:, place])[None] if one.grey else levels[:, place]
        if one.sigma_px:
            colour.blur(mine, one.sigma_px)
        mine += np.float32(0.5)
        np.copyto(made[place], mine, casting="unsafe")
        if one.solarized:
            np.minimum(made[place], 255 - made[place], out=made[place])  # levels from 128 on inverted
    return made


def _jitter(levels: FloatArray, draws: list[Draw]) -> None:
    """Jitter the crops in place: each one's changes up to its hue, the hues of many at once, each one's changes after it."""
    for place, one in enumerate(draws):
        _change(levels[:, place], one.jitter[: _turn(one)])
    flat = levels.reshape(3, len(draws), -1)
    turns = np.array([one.jitter[_turn(one)][1] if one.jitter else 0.0 for one in draws], np.float32)
    step = max(1, PIXELS_AT_ONCE // flat.shape[2])
    for start in range(0, len(draws), step):
        if turns[start : start + step].any():
            colour.hue(flat[:, start : start + step], turns[start : start + step])
    for place, one in enumerate(draws):
        _change(levels[:, place], one.jitter[_turn(one) + 1 :])


def _turn(one: Draw) -> int:
    return next((turn for turn, (name, _) in enumerate(one.jitter) if name == "hue"), 0)


def _change(levels: FloatArray, changes: tuple[tuple[str, float], ...]) -> None:
    for name, factor in changes:
        {"brightness": colour.brightness, "contrast": colour.contrast, "saturation": colour.saturation}[name](levels, factor)
