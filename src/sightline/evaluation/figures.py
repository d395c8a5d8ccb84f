"""The report's figures, each a pure function from numbers to a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sightline.contracts import FloatArray
from sightline.evaluation.metrics import first_rank, precision_at_recall
from sightline.evaluation.ranks import DoubleArray, PositiveRanks
from sightline.evaluation.run import Separation
from sightline.html import INK, SERIES, plot_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def recall_curve(ranks: PositiveRanks) -> Figure:
    """Return Recall@K over K, on a logarithmic axis up to the whole gallery."""
    first = np.sort(first_rank(ranks)[ranks.answerable])
    ks = np.unique(np.geomspace(1, max(2, ranks.num_gallery), 200).astype(np.int64))
    figure, axes = plot_axes("K (closest answers looked at)", "queries answered")
    axes.plot(ks, np.searchsorted(first, ks, side="right") / len(first), color=SERIES[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlim(1, ks[-1])
    _percent(axes)
    return figure


def precision_curve(ranks: PositiveRanks) -> Figure:
    """Return the mean interpolated precision over recall."""
    levels = np.linspace(0, 1, 101)
    figure, axes = plot_axes("recall (share of a query's positives found)", "precision")
    axes.plot(levels, precision_at_recall(ranks, levels), color=SERIES[0])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    _percent(axes)
    return figure


def class_histogram(per_class: DoubleArray) -> Figure:
    """Return how many classes have which mean average precision."""
    figure, axes = plot_axes("mean average precision of a class", "classes")
    axes.hist(per_class, bins=[float(edge) for edge in np.linspace(0, 1, 21)], color=SERIES[0], rwidth=0.92)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.grid(visible=False, axis="x")
    return figure


def separation_histogram(found: Separation) -> Figure:
    """Return the similarities of positives beside those of each query's most similar negative."""
    both = np.concatenate([found.positives, found.best_negatives])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-3), 41)
    figure, axes = plot_axes("similarity (cosine)", "share")
    parts: list[tuple[FloatArray, str, str, str]] = [
        (found.positives, "positives", SERIES[2], "-"),
        (found.best_negatives, "closest negative of a query", SERIES[1], "--"),
    ]
    for values, name, colour, line in parts:
        share = np.histogram(values, edges)[0] / max(1, len(values))
        axes.stairs(share, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(share, edges, label=name, color=colour, linestyle=line, linewidth=1.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, labelcolor=INK)
    axes.margins(x=0)
    return figure


def _percent(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
