"""Deep greys, of 16 bits and more, as 8 bits: by the range of their collection, or alone by the bits that they use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DeepRange = tuple[float, float]
"""The values of a deep grey that become black and white; what lies beyond is cut."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras use of the 16 that a file has."""

SAMPLED = 64
"""Pictures of a collection whose values tell its range."""

LOOKED_AT = 1_000
"""Pictures of whose heads it is read whether they are deep greys, where there are few of these among the first sample."""

OUTLIERS = 0.001
"""Share of a picture's values at either end that its range leaves out: dead and hot pixels."""


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture has greys of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def to_grey(image: Image.Image, deep: DeepRange | None = None) -> Image.Image:
    """Return a deep grey as 8 bits: ``deep`` spans black to white; without it

    - integers span 0 to the most that the bits they use can hold (a largest value of 3,100: 12 bits, so 4095 is white);
    - floats within [0, 1] span 0 to 1, any other floats and integers below 0 or of more than 16 bits their own values.

    Raises:
        ValueError: it has values that are not finite.
    """
    values = np.asarray(image)
    low, high = deep or _own_range(values)
    if not (np.isfinite(values).all() and math.isfinite(high - low)):
        raise ValueError("it has pixels that are not finite numbers")
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))


def _own_range(values: npt.NDArray[Any]) -> DeepRange:
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind != "f" and low >= 0 and high < 1 << DEPTHS[-1]:
        return 0.0, float(next((1 << bits) - 1 for bits in DEPTHS if high < 1 << bits))
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high


def ends(image: Image.Image) -> DeepRange:
    """Return the least and the greatest value of a deep grey but for its outliers, of at most about a million pixels spread over it."""
    values = np.asarray(image)
    step = max(1, math.isqrt(values.size // 1_000_000))
    low, high = np.quantile(values[::step, ::step], (OUTLIERS, 1 - OUTLIERS))
    return float(low), float(high)


def joined(found: Sequence[DeepRange]) -> DeepRange | None:
    """Return the range that holds those of a sample of a collection; None where they hold nothing.

    Half of 16 bits or more are taken for all of them: such pictures are what they always were, however many are added.
    """
    if not found:
        return None
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if not math.isfinite(high - low) or high <= low:
        return None
    whole = float((1 << DEPTHS[-1]) - 1)
    return (0.0, whole) if low >= 0 and high <= whole and high - low >= whole / 2 else (low, high)


def sampled(paths: Sequence[Path], num: int = SAMPLED) -> list[Path]:
    """Return up to ``num`` of the paths, evenly spread."""
    if not paths:
        return []
    places = np.linspace(0, len(paths) - 1, min(num, len(paths))).round().astype(int)
    return [paths[place] for place in np.unique(places)]
