"""J, F and their course over a sequence, on masks worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.evaluation.dense.jandf import boundary, contour, course, dilate, region


def mask(*rows: str) -> np.ndarray:
    return np.array([[digit == "1" for digit in row] for row in rows])


def square(top: int, left: int, side: int = 20, size: int = 100) -> np.ndarray:
    made = np.zeros((size, size), bool)
    made[top : top + side, left : left + side] = True
    return made


def test_j_is_intersection_over_union_outside_void() -> None:
    truth, found = mask("1100", "1100"), mask("0110", "0110")
    assert region(truth, found) == 2 / 6
    assert region(truth, found, mask("1000", "1000")) == 2 / 4
    assert region(truth, found, mask("0100", "0100")) == 0
    nothing = np.zeros((2, 4), bool)
    assert region(nothing, nothing) == 1
    assert region(truth, nothing) == 0
    assert region(truth, nothing, truth) == 1


def test_a_contour_lies_half_a_pixel_towards_the_origin() -> None:
    found = boundary(mask("0000", "0110", "0110", "0000"))
    assert found.tolist() == mask("1110", "1010", "1110", "0000").tolist()


def test_a_contour_at_the_border() -> None:
    assert boundary(mask("000", "000", "001")).tolist() == mask("000", "011", "010").tolist()
    assert not boundary(mask("111", "111")).any()


def test_a_disk_is_within_its_radius() -> None:
    point = np.zeros((9, 9), bool)
    point[4, 4] = True
    expected = [[(row - 4) ** 2 + (column - 4) ** 2 <= 9 for column in range(9)] for row in range(9)]
    assert dilate(point, 3).tolist() == expected
    assert dilate(point, 0).tolist() == point.tolist()
    assert dilate(point, 40).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_dilation_is_a_search_of_every_pixel(seed: int, height: int, width: int, radius_px: int) -> None:
    made = np.random.default_rng(seed).random((height, width)) > 0.9
    rows, columns = np.nonzero(made)
    grid = np.indices((height, width))
    near = ((grid[0][..., None] - rows) ** 2 + (grid[1][..., None] - columns) ** 2 <= radius_px**2).any(axis=2)
    assert dilate(made, radius_px).tolist() == near.tolist()


def test_f_forgives_a_shift_within_the_disk_and_no_more() -> None:
    truth = square(40, 40)  # the diagonal of 100 x 100 is 141.4 px: the disk has a radius of 2
    assert contour(truth, square(42, 40)) == 1
    assert contour(truth, square(40, 42)) == 1
    shifted = contour(truth, square(43, 40))
    assert 0 < shifted < 1
    # Of 80 pixels of each contour the horizontal side three pixels off is not near the other, but for the ends beside a vertical side.
    assert contour(truth, square(70, 70)) == 0


def test_f_where_one_or_both_have_no_contour() -> None:
    nothing, whole = np.zeros((10, 10), bool), np.ones((10, 10), bool)
    thing = square(3, 3, 3, 10)
    assert contour(nothing, nothing) == contour(whole, nothing) == contour(whole, whole) == 1
    assert contour(thing, nothing) == contour(nothing, thing) == 0
    assert contour(thing, nothing, thing) == 1


def test_void_takes_a_part_of_both_out_of_the_contour() -> None:
    truth = square(40, 40)
    wrong = truth | square(10, 70)
    assert contour(truth, wrong) < 1
    assert contour(truth, wrong, square(5, 65, 30)) == 1


def test_course_compares_the_first_quarter_with_the_last() -> None:
    found = course(np.array([1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2]))
    assert found.mean == pytest.approx(0.5875)
    assert found.recall == 4 / 8  # above a half, not at it
    # Bounds of the quarters: linspace(1, 8, 5) rounded is 1, 3, 5, 6 (6.25), 8.
    assert found.decay == pytest.approx((1.0 + 0.9 + 0.8) / 3 - (0.4 + 0.3 + 0.2) / 3)


def test_frames_that_were_not_measured_do_not_count() -> None:
    found = course(np.array([1.0, np.nan, 0.5, np.nan]))
    assert (found.mean, found.recall) == (0.75, 0.5)
    nothing = course(np.full(5, np.nan))
    assert all(math.isnan(value) for value in (nothing.mean, nothing.recall, nothing.decay))
