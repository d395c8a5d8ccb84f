"""Drawings of what a lens sees: figures from numbers, and heat over pictures."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sightline.contracts import FloatArray, IntArray
from sightline.html import INK, SERIES, plot_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLOURS = 20
_HEAT = ((0.0, (20, 20, 60)), (0.35, (120, 28, 109)), (0.65, (237, 105, 37)), (1.0, (252, 240, 140)))
"""Dark to light in even steps of lightness, so that it reads in grey too."""


# --- pictures ---------------------------------------------------------------------------------------------------------------------


def overlay(image: Image.Image, heat: FloatArray) -> Image.Image:
    """Return the image in grey with ``heat`` ``[rows, columns]`` over it, stretched from its least to its greatest value."""
    low, high = float(heat.min()), float(heat.max())
    level = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    smooth = Image.fromarray(level.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(smooth).clip(0.0, 1.0)[..., None]  # [H, W, 1]
    levels = [at for at, _ in _HEAT]
    colour = np.concatenate([np.interp(strength, levels, [rgb[channel] for _, rgb in _HEAT]) for channel in range(3)], axis=2)
    grey = np.asarray(ImageOps.grayscale(image), np.float32)[..., None]
    share = 0.35 + 0.45 * strength
    return Image.fromarray((grey * (1.0 - share) + colour * share).round().astype(np.uint8))


def framed(image: Image.Image, colour: str, *, side_px: int = 160) -> Image.Image:
    """Return the middle square of the image within a broad frame of the colour: a picture that is its own entry in a legend."""
    border_px = side_px // 12
    return ImageOps.expand(ImageOps.fit(image.convert("RGB"), (side_px - 2 * border_px,) * 2), border_px, colour)


def class_colours(num: int) -> list[str]:
    """Return ``num`` colours (``#rrggbb``) that tell classes apart: the hues evenly spaced, lighter and darker by turns."""
    rgb = [colorsys.hls_to_rgb(index / num, 0.42 if index % 2 else 0.62, 0.72) for index in range(num)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in one) for one in rgb]


# --- figures ----------------------------------------------------------------------------------------------------------------------


def energy_curve(shares: npt.NDArray[np.float64], num_for_90: int) -> Figure:
    """Return the share of variance in the first n directions over n, with the n that holds 90 % marked (none where it is 0)."""
    figure, axes = plot_axes("principal directions", "share of variance")
    counts = np.arange(1, len(shares) + 1)
    axes.plot(counts, shares, color=SERIES[0])
    if num_for_90:
        axes.plot([1, num_for_90, num_for_90], [0.9, 0.9, 0], color=SERIES[1], linewidth=1, linestyle="--")
        axes.annotate(f"90 % in {num_for_90}", (num_for_90, 0.9), xytext=(8, -16), textcoords="offset points", color=INK)
    axes.set_xlim(1, max(2, len(shares)))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return figure


def similarity_histogram(kinds: dict[str, FloatArray]) -> Figure:
    """Return how often each similarity occurs among the pairs of each kind, as a share of the kind."""
    values = np.concatenate(list(kinds.values()))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-3), 61)
    figure, axes = plot_axes("similarity (cosine)", "share of pairs")
    for (name, similarity), colour in zip(kinds.items(), SERIES[2:0:-1], strict=False):
        share = np.histogram(similarity, edges)[0] / max(1, len(similarity))
        axes.stairs(share, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(share, edges, label=name, color=colour, linewidth=1.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, labelcolor=INK)
    axes.margins(x=0)
    return figure


def principal_plot(places: FloatArray, colour_of: IntArray, colours: list[str], shares: tuple[float, float]) -> Figure:
    """Return ``places`` ``[M, 2]`` as dots; ``colour_of`` ``[M]`` points into ``colours``, and -1 is pale grey, below the others.

    The dots are pixels inside the SVG: as shapes, ten thousand of them would be a megabyte.
    """
    figure, axes = plot_axes(f"first direction ({shares[0]:.0%} of variance)", f"second ({shares[1]:.0%})")
    palette = np.array([*colours, "#9aa0a6"])
    for chosen, size, alpha in ((colour_of < 0, 5, 0.35), (colour_of >= 0, 9, 0.85)):
        dots = places[chosen]
        axes.scatter(dots[:, 0], dots[:, 1], s=size, c=palette[colour_of[chosen]].tolist(), alpha=alpha, linewidths=0, rasterized=True)
    axes.set_aspect("equal", adjustable="datalim")
    figure.set_dpi(160)
    return figure
