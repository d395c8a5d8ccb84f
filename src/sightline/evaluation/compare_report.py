"""Runs beside each other: what each measures, against what it cost and how much it learnt from. Nothing here reads a run or trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import counted
from sightline.evaluation.sweep_report import Spread, spread
from sightline.html import INK, SERIES, Page, Plot, plot_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = "osD^vPX*"


@dataclass(frozen=True)
class Run:
    """One run: where it is, its family and recipe, what it learnt from, what it cost, and its metrics in 0..1.

    ``variant`` is equal for runs that differ by their seed alone. ``flops`` and ``device_hours`` are the run's own; ``flops_before`` is
    what the weights that it started from had cost.
    """

    name: str
    family: str
    recipe: str
    variant: str
    num_images: int
    flops: int
    flops_before: int
    images_seen: int
    device_hours: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """The runs of one variant: the mean over its seeds, and what they share."""

    runs: tuple[Run, ...]
    measured: Spread

    @property
    def family(self) -> str:
        """The kind of network."""
        return self.runs[0].family

    @property
    def flops(self) -> float:
        """What training took in all, with what the weights took that it started from; mean over the runs."""
        return sum(run.flops + run.flops_before for run in self.runs) / len(self.runs)

    @property
    def num_images(self) -> float:
        """How many images were learnt from."""
        return float(self.runs[0].num_images)


def points(runs: Sequence[Run], metric: str) -> list[Point]:
    """Return the variants that ``metric`` was measured of, families in order of appearance, by rising compute."""
    families = list(dict.fromkeys(run.family for run in runs))
    by_variant: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if metric in run.metrics:
            by_variant.setdefault((run.family, run.variant), []).append(run)
    found = [Point(tuple(own), spread([run.metrics[metric] for run in own])) for own in by_variant.values()]
    return sorted(found, key=lambda point: (families.index(point.family), point.flops, point.num_images))


def best_so_far(found: Sequence[Point], x: Callable[[Point], float]) -> list[Point]:
    """Return the points that are better than every point of no larger ``x``, by rising ``x``: what that much of it can buy."""
    kept: list[Point] = []
    for point in sorted(found, key=lambda point: (x(point), -point.measured.mean)):
        if not kept or point.measured.mean > kept[-1].measured.mean:
            kept.append(point)
    return kept


def best_at_each(found: Sequence[Point], x: Callable[[Point], float]) -> list[Point]:
    """Return the best point at each value of ``x``, by rising ``x``."""
    best: dict[float, Point] = {}
    for point in found:
        if x(point) not in best or point.measured.mean > best[x(point)].measured.mean:
            best[x(point)] = point
    return [best[value] for value in sorted(best)]


# --- figures --------------------------------------------------------------------------------------------------------------------


def by_compute(found: Sequence[Point], metric: str) -> Figure:
    """Return the metric against training compute, on a logarithmic axis: every variant a mark, each family's best so far a line."""
    return _figure([point for point in found if point.flops], metric, "training compute (FLOPs)", lambda point: point.flops, best_so_far)


def by_data(found: Sequence[Point], metric: str) -> Figure:
    """Return the metric against the images learnt from, on a logarithmic axis: every variant a mark, each family's best a line."""
    return _figure(found, metric, "images learnt from", lambda point: point.num_images, best_at_each)


def _figure(
    found: Sequence[Point],
    metric: str,
    x_label: str,
    x: Callable[[Point], float],
    line: Callable[[Sequence[Point], Callable[[Point], float]], list[Point]],
) -> Figure:
    drawn, plane = plot_axes(x_label, f"{metric}, %")
    for number, family in enumerate(dict.fromkeys(point.family for point in found)):
        own = [point for point in found if point.family == family]
        colour, along = SERIES[number % len(SERIES)], line(own, x)
        plane.plot([x(point) for point in along], [100 * point.measured.mean for point in along], color=colour)
        plane.errorbar(
            [x(point) for point in own],
            [100 * point.measured.mean for point in own],
            yerr=[0.0 if math.isnan(point.measured.deviation) else 100 * point.measured.deviation for point in own],
            color=colour,
            fmt=MARKS[number % len(MARKS)],
            capsize=3,
            label=family,
        )
    plane.set_xscale("log")
    plane.set_xticks(_ticks([x(point) for point in found]))
    plane.xaxis.set_major_formatter(lambda value, _: _short(value))
    plane.minorticks_off()
    if found:
        plane.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, labelcolor=INK)
    return drawn


def _ticks(values: Sequence[float]) -> list[float]:
    """Return places to label on a logarithmic axis: 1, 2 and 5 by powers of ten, over three decades the powers; else the two ends."""
    if not values:
        return []
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 1e3 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**decade for decade in decades for step in steps if low / 1.05 <= step * 10.0**decade <= high * 1.05]
    return found if len(found) > 1 else sorted({low, high})


def _short(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2g}".replace("e+", "e")


# --- table and page -------------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Point], metric: str) -> str:
    """Return the table in Markdown, a row a variant: per cent, mean ± sample deviation over the seeds."""
    columns, rows = _table(found, metric)
    lines = [f"| {' | '.join(columns)} |", f"|---|---|{'--:|' * (len(columns) - 2)}"]
    return (
        "\n".join([*lines, *(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |" for row in rows)]) + "\n"
    )


def _table(found: Sequence[Point], metric: str) -> tuple[list[str], list[list[str | int]]]:
    columns = ["family", "run", f"{metric}, %", "FLOPs", "of them before", "images learnt from", "images seen", "device-hours", "runs"]
    rows: list[list[str | int]] = []
    for point in found:
        first, num = point.runs[0], len(point.runs)
        hours = sum(run.device_hours for run in point.runs) / num
        rows.append(
            [
                point.family,
                first.name,
                str(point.measured),
                f"{point.flops:.3g}",
                f"{first.flops_before:.3g}",
                first.num_images,
                first.images_seen,
                f"{hours:.3g}",
                num,
            ]
        )
    return columns, rows


def plain(found: Sequence[Point], metric: str) -> list[dict[str, Any]]:
    """Return the variants ready for JSON: the mean of ``metric`` in 0..1, its sample deviation (None for one run), and the costs."""
    return [
        {
            "family": point.family,
            "runs": [run.name for run in point.runs],
            "recipe": point.runs[0].recipe,
            "metric": metric,
            "mean": point.measured.mean,
            "deviation": None if math.isnan(point.measured.deviation) else point.measured.deviation,
            "flops": point.flops,
            "flops_before": point.runs[0].flops_before,
            "images": point.runs[0].num_images,
            "images_seen": point.runs[0].images_seen,
            "device_hours": sum(run.device_hours for run in point.runs) / len(point.runs),
        }
        for point in found
    ]


def write_page(path: Path, runs: Sequence[Run], metrics: Sequence[str], *, left_out: Sequence[str] = (), command: str = "") -> None:
    """Write the comparison as one page: for each of ``metrics`` its two figures and its table, then how it was made.

    Raises:
        SightlineError: the file cannot be written.
    """
    page = Page(
        f"{counted(len(runs), 'run')} compared", "By what they cost and by what they learnt from; mean and sample deviation over the seeds."
    )
    for metric in metrics:
        found = points(runs, metric)
        page.section(metric)
        page.plots(
            [
                Plot(
                    by_compute(found, metric),
                    "Against compute",
                    f"{metric} against training compute, a curve for each family; the table below has the numbers",
                    "The line joins a family's best so far.",
                ),
                Plot(
                    by_data(found, metric),
                    "Against data",
                    f"{metric} against the images learnt from, a curve for each family; the table below has the numbers",
                    "The line joins a family's best at each size.",
                ),
            ]
        )
        page.table(*_table(found, metric))
    page.section("Method")
    page.text(
        "FLOPs are counted on the graph of each run's first step (matrix products, convolutions, attention; forward and backward), times its "
        "steps, and include what the weights had cost that it started from. Device-hours are the run's own, by the clock."
    )
    if left_out:
        page.details(f"{counted(len(left_out), 'run')} left out", left_out)
    if command:
        page.text("Made by:").code(command)
    page.write(path)
