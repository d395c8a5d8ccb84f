"""Drawings of what a lens sees: figures from numbers, and heat over pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sightline.contracts import FloatArray, IntArray
from sightline.html import INK, PLOT_INCHES, SERIES, plot_axes
from sightline.lens.embedding import Float64Array, num_directions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLOURS = 20
LEGEND_LINE_INCHES = 0.2
MAX_MAPS, MOSAIC_PX = 14, 700
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


def filter_picture(component: FloatArray, *, side_px: int = 96) -> Image.Image:
    """Return a filter ``[3, h, w]`` as colours, stretched so that 0 is grey and its largest entry is at the end of the scale."""
    most = float(np.abs(component).max())
    level = 0.5 + 0.5 * component / most if most > 0 else np.full_like(component, 0.5)
    return Image.fromarray((255 * level.transpose(1, 2, 0)).round().astype(np.uint8)).resize((side_px, side_px), Image.Resampling.NEAREST)


# --- figures ----------------------------------------------------------------------------------------------------------------------


def energy_curves(shares: Mapping[str, Float64Array]) -> Figure:
    """Return the share of variance in the first n directions over n of each model, with the n that holds 90 % beside its name."""
    figure, axes = plot_axes("principal directions", "share of variance")
    axes.axhline(0.9, color=INK, linewidth=1, linestyle=":", alpha=0.6)
    for number, (name, share) in enumerate(shares.items()):
        label = f"{name} (90 % in {num_directions(share, 0.9)})" if share[-1] > 0 else f"{name} (nothing varies)"
        _line(axes, number, np.arange(1, len(share) + 1), share, label)
    axes.set_xscale("log", base=2)  # most of the curve's bend is in the first directions, and widths differ by powers of two
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(1, max(2, *(len(share) for share in shares.values())))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    _legend_above(axes)
    return figure


def similarity_histogram(edges: Float64Array, kinds: Mapping[str, Float64Array]) -> Figure:
    """Return how often each similarity occurs among the pairs of each kind: shares of the kind, of the bins between ``edges``."""
    figure, axes = plot_axes("similarity (cosine)", "share of pairs")
    for (name, share), colour in zip(kinds.items(), SERIES[2:0:-1], strict=False):
        axes.stairs(share, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(share, edges, label=name, color=colour, linewidth=1.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, labelcolor=INK)
    axes.margins(x=0)
    return figure


def gradient_curves(margins: Float64Array, norms: Mapping[str, Float64Array]) -> Figure:
    """Return the nuclear norm of a covariance of gradients over the margin of each model."""
    figure, axes = plot_axes("margin (cosine)", "nuclear norm")
    for number, (name, norm) in enumerate(norms.items()):
        _line(axes, number, margins, norm, name)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    _legend_above(axes)
    return figure


def alignment_plane(places: Mapping[str, tuple[float, float]]) -> Figure:
    """Return the (uniformity, alignment) of each model as a dot.

    Source: Wang and Isola 2020, arXiv 2005.10242, section 5.
    """
    figure, axes = plot_axes("uniformity", "alignment")
    for number, (name, (uniformity, alignment)) in enumerate(places.items()):
        colour, _, marker = _style(number)
        axes.plot([uniformity], [alignment], color=colour, marker=marker, markersize=9, linestyle="none", label=f" {name}")
    axes.margins(0.25)
    _legend_above(axes)
    return figure


def distance_dots(distances_px: Sequence[Float64Array], even_px: Sequence[float]) -> Figure:
    """Return the mean attention distance of each head as a dot over its layer, and as a line that of attention spread evenly.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7 (right).
    """
    figure, axes = plot_axes("layer", "mean attention distance (px)")
    layers = np.arange(1, len(distances_px) + 1)
    axes.plot(layers, even_px, color=INK, linewidth=1, linestyle=":", alpha=0.6)
    for layer, heads in zip(layers, distances_px, strict=True):
        axes.plot(np.full(len(heads), layer), heads, color=SERIES[0], marker="o", markersize=5, linestyle="none", alpha=0.75)
    axes.set_ylim(0, 1.08 * max(*even_px, *(float(heads.max()) for heads in distances_px)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def norm_histogram(norms: FloatArray, least: float) -> Figure:
    """Return how many tokens have each norm, on a logarithmic scale, and the line above which they are far out."""
    figure, axes = plot_axes("norm", "tokens")
    counts, edges = np.histogram(norms, 60)
    axes.stairs(counts, edges, fill=True, alpha=0.4, color=SERIES[0])
    axes.axvline(least, color=SERIES[1], linewidth=1.5, linestyle="--")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2 * max(1, int(counts.max())))
    return figure


def layer_grid(alike: Float64Array, *, of_itself: bool) -> Figure:
    """Return how alike the layers of a model and its own or another's are, ``[L, L']``, as a grid with a scale; NaN stays empty."""
    figure, axes = plot_axes("layer" if of_itself else "layer of the other", "layer")
    shown = axes.imshow(alike, origin="lower", vmin=0.0, vmax=1.0, cmap="magma", interpolation="nearest", extent=_from_one(alike.shape))
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(shown, ax=axes, label="CKA", fraction=0.05)
    return figure


def _from_one(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    return 0.5, shape[1] + 0.5, 0.5, shape[0] + 0.5


def position_maps(similarity: FloatArray) -> Figure:
    """Return, for each patch in its place, the map of its position's similarity ``[rows, columns, rows, columns]`` to all, with a scale.

    Of a grid beyond ``MAX_MAPS`` a side only every second, third, ... patch has its map.
    """
    figure, axes = plot_axes("column of the patch", "row of the patch")
    step = -(-max(similarity.shape[:2]) // MAX_MAPS)
    maps = similarity[step // 2 :: step, step // 2 :: step]
    rows, columns, height, width = maps.shape
    tiled = np.full((rows, height + 1, columns, width + 1), np.nan, np.float32)  # what is between them stays empty
    tiled[:, :height, :, :width] = maps.transpose(0, 2, 1, 3)
    tiled = tiled.reshape(rows * (height + 1), columns * (width + 1))
    scale = max(1, MOSAIC_PX // max(tiled.shape))
    pixels = np.kron(tiled, np.ones((scale, scale), np.float32))
    low = float(np.floor(10 * maps.min()) / 10)
    shown = axes.imshow(pixels, vmin=low, vmax=1.0, cmap="viridis", interpolation="none", extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
    axes.grid(visible=False)
    axes.set_xticks([1, columns], ["1", str(similarity.shape[1])])
    axes.set_yticks([1, rows], ["1", str(similarity.shape[0])])
    figure.colorbar(shown, ax=axes, label="cosine", fraction=0.05)
    figure.set_size_inches(PLOT_INCHES[0], 0.82 * PLOT_INCHES[0])  # square, with room for the scale
    return figure


def _style(number: int) -> tuple[str, str, str]:
    """Return the colour, line and marker of a model: each differs from its neighbours in all three, so none rests on colour alone."""
    return SERIES[number % len(SERIES)], ("-", "--", "-.", ":")[number % 4], ("o", "s", "^", "D", "v", "P", "X")[number % 7]


def _line(axes: Axes, number: int, x: npt.NDArray[Any], y: Float64Array, name: str) -> None:
    colour, line, _ = _style(number)
    axes.plot(x, y, color=colour, linestyle=line, label=f" {name}")  # matplotlib hides a label that begins with "_"


def _legend_above(axes: Axes) -> None:
    """Name the models in lines of their own above the axes, and make the figure higher by as much."""
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a name is a dollar
    axes.figure.set_size_inches(PLOT_INCHES[0], PLOT_INCHES[1] + LEGEND_LINE_INCHES * (len(legend.get_texts()) - 1))


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
