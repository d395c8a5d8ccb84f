"""Colour: the photometric changes of an image as plain functions on float32 planes, levels 0 to 255, channels first, changed in place.

Each is defined as torchvision's functional of that name, whose factors it takes. Levels are clipped after every change, as theirs are, but
rounded only by who asks for bytes: theirs (on PIL images) cut off the fraction each time. NumPy, and no product of matrices: these run in
loader processes, where threads would wait for cores that decode, and the same numbers must come out whatever the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from sightline.contracts import FloatArray

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue weigh in a grey level: ITU-R 601, as Pillow's."""

BLUR_REACH = 3.0
"""A blur's kernel ends at this many of its standard deviations; 0.3 % of a normal distribution lie beyond."""


def luma(levels: FloatArray) -> FloatArray:
    """Return the grey levels ``[...]`` of ``[3, ...]``."""
    grey: FloatArray = levels[0] * np.float32(LUMA[0])
    weighed = levels[1] * np.float32(LUMA[1])
    grey += weighed
    np.multiply(levels[2], np.float32(LUMA[2]), out=weighed)
    grey += weighed
    return grey


def brightness(levels: FloatArray, factor: float) -> None:
    """Multiply all levels by ``factor``."""
    levels *= np.float32(factor)
    np.clip(levels, 0, 255, out=levels)


def contrast(levels: FloatArray, factor: float) -> None:
    """Bring the levels ``[3, ...]`` of one image to ``factor`` times their distance from its mean grey."""
    means = levels.reshape(3, -1).mean(axis=1)
    middle = sum(weight * float(mean) for weight, mean in zip(LUMA, means, strict=True))
    levels *= np.float32(factor)
    levels += np.float32((1 - factor) * middle)
    np.clip(levels, 0, 255, out=levels)


def saturation(levels: FloatArray, factor: float) -> None:
    """Bring the levels ``[3, ...]`` to ``factor`` times their distance from each pixel's own grey."""
    grey = luma(levels)
    grey *= np.float32(1 - factor)
    levels *= np.float32(factor)
    levels += grey
    np.clip(levels, 0, 255, out=levels)


def hue(levels: FloatArray, turns: FloatArray) -> None:
    """Turn the hues of images ``[3, V, N]`` by ``turns`` ``[V]``, -0.5 to 0.5 of the colour circle; value and saturation (of HSV) stay.

    With the hue h in sixths of the circle, red is ``value - spread * clip(2 - d, 0, 1)``, where d is how far h lies from 3 along the
    circle and spread is the largest level less the smallest; green the same from 5, blue from 1. Everything here is multiplied by
    spread, so that nothing is divided by it. In Pillow hue and saturation are bytes: a full colour comes out up to 14 levels away there.
    """
    red, green, blue = levels
    value = np.maximum(red, green)
    np.maximum(value, blue, out=value)
    spread = np.minimum(red, green)
    np.minimum(spread, blue, out=spread)
    np.subtract(value, spread, out=spread)
    two, three = spread * np.float32(2), spread * np.float32(3)
    angle, other = two + two, red - green
    angle += other
    np.subtract(blue, red, out=other)
    other += two
    np.copyto(angle, other, where=green == value)
    np.subtract(green, blue, out=other)
    np.copyto(angle, other, where=red == value)
    np.multiply(spread, 6 * turns[:, None].astype(np.float32), out=other)
    angle += other
    value -= two
    for level, step in ((blue, spread), (red, two), (green, two)):
        angle -= step  # now from 1, from 3, from 5
        np.abs(angle, out=other)
        other -= three
        np.abs(other, out=other)
        np.subtract(three, other, out=other)
        np.abs(other, out=other)  # the distance along the circle, of any angle within one and a half turns
        np.minimum(other, two, out=other)
        np.maximum(other, spread, out=other)
        np.add(value, other, out=level)


def blur(levels: FloatArray, sigma_px: float) -> None:
    """Blur images ``[..., H, W]`` by a Gaussian of standard deviation ``sigma_px`` (Pillow's radius); pixels at the border go on beyond it.

    It is the discrete Gaussian, whose weight at distance n is the mean over all angles a of ``exp(sigma^2 (cos a - 1)) cos(n a)``: unlike
    samples of the continuous one, its variance is ``sigma_px`` squared for a blur of less than a pixel too, as Pillow's is.

    Source: Lindeberg 1990, Scale-space for discrete signals, IEEE PAMI 12(3).
    """
    reach = math.ceil(BLUR_REACH * sigma_px)
    angles = np.linspace(0, 2 * math.pi, 4 * reach + 16, endpoint=False)
    weights = np.exp(sigma_px**2 * (np.cos(angles) - 1)) @ np.cos(np.outer(angles, np.arange(reach + 1)))
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    for axis in (-2, -1):
        _blur_along(levels, weights, axis)


def _blur_along(levels: FloatArray, weights: FloatArray, axis: int) -> None:
    length, reach = levels.shape[axis], len(weights) - 1
    shape = list(levels.shape)
    shape[axis] += 2 * reach
    padded = np.empty(shape, np.float32)

    def window(start: int, stop: int) -> FloatArray:
        return padded[..., start:stop, :] if axis == -2 else padded[..., start:stop]

    ends = (levels[..., :1, :], levels[..., -1:, :]) if axis == -2 else (levels[..., :1], levels[..., -1:])
    window(0, reach)[...], window(reach, reach + length)[...], window(reach + length, length + 2 * reach)[...] = ends[0], levels, ends[1]
    levels *= weights[0]
    pair = np.empty(levels.shape, np.float32)
    for distance, weight in enumerate(weights[1:], 1):
        before, after = reach - distance, reach + distance
        np.add(window(before, before + length), window(after, after + length), out=pair)
        pair *= weight
        levels += pair
