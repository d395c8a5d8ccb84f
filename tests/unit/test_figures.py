"""What stands on the axes of figures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from sightline.evaluation import figures
from sightline.evaluation.run import Separation
from sightline.lens import draw


def shares(figure: Figure, axis: str) -> list[str]:
    """The labels of an axis that would be drawn at steps of 2.5 %."""
    (axes,) = figure.axes
    formatter = getattr(axes, f"{axis}axis").get_major_formatter()
    return [formatter(value, 0).replace("\u202f", " ") for value in (0.0, 0.025, 0.05, 0.07, 0.075, 0.1, 0.125, 1.0)]


@pytest.mark.parametrize(
    "figure",
    [
        draw.similarity_histogram(np.linspace(-1, 1, 5), {"same": np.full(4, 0.25)}),
        figures.separation_histogram(Separation(np.array([0.5], np.float32), np.array([0.1], np.float32))),
    ],
    ids=["inspection", "report"],
)
def test_a_share_on_an_axis_is_not_rounded_to_another(figure: Figure) -> None:
    assert shares(figure, "y") == ["0 %", "2.5 %", "5 %", "7 %", "7.5 %", "10 %", "12.5 %", "100 %"]
