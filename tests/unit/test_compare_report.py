"""Comparing runs: seeds become one mark, and lines join what they say they join."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.errors import UsageError
from sightline.evaluation import compare_report
from sightline.evaluation.compare_report import Run
from sightline.workflows.comparing import compare


def run(name: str, flops: int, images: int, value: float, *, variant: str = "", family: str = "vit", before: int = 0) -> Run:
    return Run(name, family, "irt/small", variant or name, images, flops, before, 10 * images, 0.5, {"recall@1": value})


RUNS = [
    run("a0", 100, 50, 0.30, variant="a"),
    run("a1", 100, 50, 0.40, variant="a"),
    run("b", 200, 100, 0.30),
    run("c", 100, 400, 0.50, before=300),
    run("r", 100, 50, 0.60, family="resnet"),
]


def test_runs_that_differ_by_their_seed_are_one_point() -> None:
    first, *rest = compare_report.points(RUNS, "recall@1")
    assert (first.measured.mean, first.measured.deviation, first.measured.num) == (pytest.approx(0.35), pytest.approx(0.0707, abs=1e-4), 2)
    assert [(point.family, point.runs[0].name, point.flops) for point in rest] == [
        ("vit", "b", 200),
        ("vit", "c", 400),
        ("resnet", "r", 100),
    ]
    assert compare_report.points(RUNS, "map") == []


def test_lines_join_the_best_so_far_and_the_best_at_each_size() -> None:
    vits = [point for point in compare_report.points([*RUNS, run("d", 150, 100, 0.2)], "recall@1") if point.family == "vit"]
    assert [point.runs[0].name for point in compare_report.best_so_far(vits, lambda point: point.flops)] == ["a0", "c"]
    assert [point.runs[0].name for point in compare_report.best_at_each(vits, lambda point: point.num_images)] == ["a0", "b", "c"]


def test_the_table_names_costs_and_what_came_before() -> None:
    lines = compare_report.markdown(compare_report.points(RUNS, "recall@1"), "recall@1").splitlines()
    assert lines[2] == "| vit | a0 | 35.0 ± 7.1 | 100 | 0 | 50 | 500 | 0.5 | 2 |"
    assert lines[4] == "| vit | c | 50.0 | 400 | 300 | 400 | 4,000 | 0.5 | 1 |"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([5_000, 50_000], [5_000, 10_000, 20_000, 50_000]),
        ([1e12, 1e16], [1e12, 1e13, 1e14, 1e15, 1e16]),
        ([2.9e14, 3.1e14], [2.9e14, 3.1e14]),
        ([7], [7]),
        ([], []),
    ],
)
def test_a_logarithmic_axis_always_has_labels(values: list[float], labels: list[float]) -> None:
    assert compare_report._ticks(values) == pytest.approx(labels)


def test_runs_that_never_took_a_step_are_no_marks_against_compute() -> None:
    found = compare_report.points([run("o", 0, 50, 0.2)], "recall@1")
    assert len(compare_report.by_compute(found, "recall@1").axes[0].lines) == 0
    assert len(compare_report.by_data(found, "recall@1").axes[0].lines) > 0


def test_where_nothing_can_be_compared_every_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"\(.*one: no run is here; .*two: no run is here\): give runs of sightline train that were measured"
    ):
        compare([tmp_path / "one", tmp_path / "two"], tmp_path / "page")
