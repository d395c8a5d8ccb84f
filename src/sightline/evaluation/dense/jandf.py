"""J and F: how well a predicted mask covers an object, and how well it follows the object's contour.

Source: Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object segmentation", sections 4.1 and 4.3; as
davisvideochallenge/davis2017-evaluation counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline.contracts import BoolArray

DoubleArray = npt.NDArray[np.float64]

TOLERANCE = 0.008
"""How far a contour may be off, as a share of the image's diagonal."""

RIGHT = 0.5
"""Recall is the share of frames above this."""

NUM_PARTS = 4
"""Decay compares the first quarter of a sequence with the last."""


def region(truth: BoolArray, found: BoolArray, void: BoolArray | None = None) -> float:
    """Return J of two masks ``[H, W]``: intersection over union outside ``void``; 1 where both are empty."""
    if void is not None:
        truth, found = truth & ~void, found & ~void
    union = int(np.count_nonzero(truth | found))
    return int(np.count_nonzero(truth & found)) / union if union else 1.0


def boundary(mask: BoolArray) -> BoolArray:
    """Return where a mask ``[H, W]`` differs from its neighbour to the right, below, or below to the right: a contour one pixel wide.

    The last row looks to the right alone, the last column down alone, and the last pixel is none.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def contour(truth: BoolArray, found: BoolArray, void: BoolArray | None = None, *, tolerance: float = TOLERANCE) -> float:
    """Return F of two masks ``[H, W]``: the harmonic mean of the shares of each one's contour that lie near the other's.

    Near is within a disk of ceil(``tolerance`` x diagonal) pixels. Two masks without a contour make 1, one alone without makes 0.
    """
    if void is not None:
        truth, found = truth & ~void, found & ~void
    edges = boundary(found), boundary(truth)
    num_found, num_truth = (int(np.count_nonzero(edge)) for edge in edges)
    if not num_found or not num_truth:
        return float(num_found == num_truth)
    radius_px = math.ceil(tolerance * float(np.linalg.norm(truth.shape)))
    box = _box(edges[0] | edges[1])  # what lies outside it is near no contour pixel that is asked
    of_found, of_truth = edges[0][box], edges[1][box]
    precision = int(np.count_nonzero(of_found & dilate(of_truth, radius_px))) / num_found
    recall = int(np.count_nonzero(of_truth & dilate(of_found, radius_px))) / num_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def dilate(mask: BoolArray, radius_px: int) -> BoolArray:
    """Return the pixels of ``[H, W]`` within ``radius_px`` of one that is set: dx^2 + dy^2 at most its square.

    Row by row of the disk: a row of half-width w is a sliding window of 2 w + 1 pixels, counted by differences of running sums.
    """
    height, width = mask.shape
    sums = np.zeros((height, width + 1), np.int32)
    np.cumsum(mask, axis=1, dtype=np.int32, out=sums[:, 1:])
    columns = np.arange(width)
    near = np.zeros_like(mask)
    wide: dict[int, BoolArray] = {}
    for shift in range(min(radius_px, height - 1) + 1):
        half = math.isqrt(radius_px**2 - shift**2)
        if half not in wide:
            right, left = np.minimum(columns + half + 1, width), np.maximum(columns - half, 0)
            wide[half] = sums[:, right] > sums[:, left]
        near[shift:] |= wide[half][: height - shift]
        near[: height - shift] |= wide[half][shift:]
    return near


def _box(mask: BoolArray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


@dataclass(frozen=True)
class Course:
    """A measure over the frames of a sequence: its mean, the share of frames above a half, and how much it loses from start to end."""

    mean: float
    recall: float
    decay: float


def course(values: DoubleArray) -> Course:
    """Return the course of a measure, ``[frames]``, in order; frames that were not measured (NaN) do not count.

    The quarters overlap by one frame, as in the official evaluator.

    Departs: that one keeps the quarters' bounds in 8 bits, which go wrong beyond 256 frames; no DAVIS sequence is that long.
    """
    bounds = np.round(np.linspace(1, len(values), NUM_PARTS + 1) + 1e-10).astype(np.int64) - 1
    first, last = values[bounds[0] : bounds[1] + 1], values[bounds[-2] : bounds[-1] + 1]
    measured = values[~np.isnan(values)]
    return Course(_mean(measured), _mean((measured > RIGHT).astype(np.float64)), _mean(first) - _mean(last))


def _mean(values: DoubleArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
