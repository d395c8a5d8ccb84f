"""What a sweep found: mean and deviation over the seeds, as a table and as a page with its figures. Nothing here trains."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.contracts import FloatArray
from sightline.html import INK, SERIES, Page, Plot, plot_axes
from sightline.sweep import Variant, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_TRAINED = "diverged"
DARK, LIGHT = "#111827", "#ffffff"
"""Text on a cell's own colour, which the page's light and dark do not change."""


@dataclass(frozen=True)
class Result:
    """One run: the variant and seed, and its metrics in 0..1, or the reason that training gave for stopping."""

    variant: Variant
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Spread:
    """The mean over ``num`` seeds and their sample deviation (not a number for one seed)."""

    mean: float
    deviation: float
    num: int

    def __str__(self) -> str:
        """Return per cent with one decimal."""
        return f"{100 * self.mean:.1f}" + ("" if math.isnan(self.deviation) else f" ± {100 * self.deviation:.1f}")


@dataclass(frozen=True)
class Row:
    """One variant over its seeds: each metric's spread over the runs that were measured, and how many diverged."""

    variant: Variant
    spreads: Mapping[str, Spread]
    num_measured: int
    num_diverged: int

    def cell(self, metric: str) -> str:
        """Return the metric in words, for a table or a figure."""
        found = self.spreads.get(metric)
        return str(found) if found else NOT_TRAINED if self.num_diverged and not self.num_measured else "–"


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and sample deviation of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def summarise(variants: Sequence[Variant], results: Sequence[Result]) -> list[Row]:
    """Return a row for every variant, in order, with what has been found so far."""
    rows = []
    for variant in variants:
        own = [result for result in results if result.variant == variant]
        measured = [result.metrics for result in own if not result.diverged]
        values = {name: [metrics[name] for metrics in measured if name in metrics] for metrics in measured for name in metrics}
        rows.append(Row(variant, {name: spread(found) for name, found in values.items()}, len(measured), len(own) - len(measured)))
    return rows


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the metrics that any run has, in the order in which they were measured."""
    return list(dict.fromkeys(name for row in rows for name in row.spreads))


# --- tables ---------------------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown: per cent, mean ± sample deviation over the seeds."""
    names = metric_names(rows)
    head = f"| % | {''.join(f'{name} | ' for name in names)}runs |\n|---|{'--:|' * (len(names) + 1)}\n"
    return head + "".join(f"| {row.variant.label} | {''.join(f'{row.cell(name)} | ' for name in names)}{_runs(row)} |\n" for row in rows)


def _runs(row: Row) -> str:
    return f"{row.num_measured}" + (f", {row.num_diverged} {NOT_TRAINED}" if row.num_diverged else "")


def comma_separated(results: Sequence[Result]) -> str:
    """Return one line a run: its variant, seed, settings and metrics in 0..1."""
    keys = list(dict.fromkeys(key for result in results for key in result.variant.values))
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["variant", "seed", *keys, *names, "diverged"])
    for result in results:
        settings, metrics = [result.variant.values.get(key, "") for key in keys], [result.metrics.get(name, "") for name in names]
        writer.writerow([result.variant.label, result.seed, *settings, *metrics, result.diverged])
    return written.getvalue()


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows ready for JSON: ``metrics`` by their usual names, each with mean, sample deviation (None for one run) and runs."""
    return [
        {
            "variant": row.variant.label,
            "settings": list(row.variant.settings),
            "runs": row.num_measured,
            "diverged": row.num_diverged,
            "metrics": {
                name: {"mean": found.mean, "deviation": None if math.isnan(found.deviation) else found.deviation, "runs": found.num}
                for name, found in row.spreads.items()
            },
        }
        for row in rows
    ]


# --- figures --------------------------------------------------------------------------------------------------------------------


def figure(rows: Sequence[Row], metric: str) -> Figure:
    """Return a heat map of a grid of two keys, a line over one key of numbers, and marks beside their names for anything else."""
    keys = axes([row.variant for row in rows])
    if len(keys) == 2:
        return heat_map(rows, keys, metric)
    if len(keys) == 1 and all(_is_number(value) for values in keys.values() for value in values):
        return line(rows, next(iter(keys)), metric)
    return marks(rows, metric)


def heat_map(rows: Sequence[Row], keys: Mapping[str, Sequence[str]], metric: str) -> Figure:
    """Return the means of a grid of two keys as coloured cells with mean and deviation in them; the first key goes down."""
    (down, heights), (across, widths) = keys.items()
    cells = {(row.variant.values[down], row.variant.values[across]): row for row in rows}
    means: FloatArray = np.full((len(heights), len(widths)), np.nan, np.float32)
    for (height, width), row in cells.items():
        if metric in row.spreads:
            means[heights.index(height), widths.index(width)] = 100 * row.spreads[metric].mean
    drawn, plane = plot_axes(across, down)
    drawn.set_size_inches(1.6 + 0.85 * len(widths), 1.0 + 0.55 * len(heights))
    mesh = plane.pcolormesh(np.ma.masked_invalid(means), cmap="viridis", edgecolors="none")
    for (height, width), row in cells.items():
        x, y = widths.index(width), heights.index(height)
        colour = INK if np.isnan(means[y, x]) else DARK if mesh.norm(means[y, x]) > 0.6 else LIGHT
        plane.text(x + 0.5, y + 0.5, row.cell(metric).replace(" ±", "\n±"), ha="center", va="center", fontsize=8, color=colour)
    plane.grid(visible=False)
    plane.set_xticks(np.arange(len(widths)) + 0.5, widths)
    plane.set_yticks(np.arange(len(heights)) + 0.5, heights)
    plane.tick_params(length=0)
    plane.spines[:].set_visible(False)
    plane.invert_yaxis()
    return drawn


def line(rows: Sequence[Row], key: str, metric: str) -> Figure:
    """Return the metric over one key of numbers, with the deviation over the seeds as bars."""
    found = sorted((float(row.variant.values[key]), row.spreads[metric]) for row in rows if metric in row.spreads)
    drawn, plane = plot_axes(key, f"{metric}, %")
    plane.errorbar(
        [x for x, _ in found],
        [100 * y.mean for _, y in found],
        yerr=_deviations([y for _, y in found]),
        color=SERIES[0],
        marker="o",
        capsize=3,
    )
    return drawn


def marks(rows: Sequence[Row], metric: str) -> Figure:
    """Return the metric of each variant as a mark beside its name, with the deviation over the seeds as bars."""
    found = [(place, row.spreads[metric]) for place, row in enumerate(rows) if metric in row.spreads]
    drawn, plane = plot_axes(f"{metric}, %", "")
    drawn.set_size_inches(5.0, 0.8 + 0.3 * len(rows))
    plane.errorbar(
        [100 * x.mean for _, x in found],
        [y for y, _ in found],
        xerr=_deviations([x for _, x in found]),
        color=SERIES[0],
        fmt="o",
        capsize=3,
    )
    plane.set_yticks(range(len(rows)), [row.variant.label for row in rows])
    plane.set_ylim(len(rows) - 0.5, -0.5)
    return drawn


def _deviations(found: Sequence[Spread]) -> list[float]:
    return [0.0 if math.isnan(value.deviation) else 100 * value.deviation for value in found]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# --- page -----------------------------------------------------------------------------------------------------------------------


def write_page(
    path: Path,
    variants: Sequence[Variant],
    results: Sequence[Result],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    command: str,
) -> None:
    """Write the sweep as one page: a figure for each of ``metrics``, the table, the runs that diverged, and how it was made."""
    rows = summarise(variants, results)
    page = Page(title, "Mean and sample deviation over the seeds, in per cent.", facts)
    if metrics:
        page.section("Figures")
        page.plots(
            [Plot(figure(rows, metric), metric, f"{metric} of every variant; the table below has the numbers") for metric in metrics]
        )
    page.section("Table")
    names = metric_names(rows)
    page.table(
        ["", *names, "runs"], [[row.variant.label, *(row.cell(name).replace(" ", "\u00a0") for name in names), _runs(row)] for row in rows]
    )
    lost = [f"{result.variant.label}, seed {result.seed}: {result.diverged}" for result in results if result.diverged]
    if lost:
        page.section("Diverged").details(f"{len(lost)} of {len(results)} runs", lost)
    page.section("Method")
    page.text(
        "Every variant of a seed starts from the same weights and sees its batches in the same order. Means leave out runs that diverged."
    )
    if command:
        page.text("Made by:").code(command)
    page.write(path)
