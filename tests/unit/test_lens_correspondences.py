"""Correspondences and heat by hand, principal components as colours, and what is drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sightline.contracts import PatchFeatures
from sightline.lens import pair
from sightline.lens.correspondences import Matches, box_of_place, correspondences, similarity_map, spread
from sightline.lens.draw import class_colours
from sightline.lens.principal import principal_colours


def at(degrees: list[list[float]], frame: tuple[float, float, float, float] | None = None) -> PatchFeatures:
    """Patches in the plane, by their angle: the cosine of two is that of the angle between them."""
    angle = np.radians(np.array(degrees, np.float64))
    rows, columns = angle.shape
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(-1, 2).astype(np.float32)
    return PatchFeatures(vectors, (rows, columns), frame or (0, 0, columns, rows))


def pairs(matches: Matches) -> list[list[int]]:
    return matches.places.tolist()


def test_pairs_are_each_others_closest_by_hand() -> None:
    one, other = at([[0, 50, 100]]), at([[102, 7, 20]])
    # 0 -> 7 and back; 50 -> 20 (30 off), but 20 -> 0 (20 off); 100 -> 102 and back
    found = correspondences(one, other)
    assert pairs(found) == [[2, 0], [0, 1]]
    np.testing.assert_allclose(found.similarity, np.cos(np.radians([2, 7])), atol=1e-6)
    assert pairs(correspondences(one, other, least=0.995)) == [[2, 0]]
    assert pairs(correspondences(one, other, cycle_cells=1)) == [[2, 0], [0, 1], [1, 2]], "the way back ends one cell from the middle"
    assert pairs(correspondences(one, other, within=(0, 0, 1.2, 1))) == [[0, 1]]
    assert pairs(correspondences(other, one)) == [[0, 2], [1, 0]]
    with pytest.raises(ValueError, match="has nothing of the frame"):
        correspondences(one, other, within=(5, 5, 6, 6))


def test_of_equal_patches_the_first_answer_each_other() -> None:
    same = at([[30, 30], [30, 30]])
    assert pairs(correspondences(same, same)) == [[0, 0]]


def test_the_ratio_leaves_out_what_has_a_rival_elsewhere_but_not_beside() -> None:
    one = at([[0, 90]])
    other = at([[1, 2, 170, 4, 93]])
    # 0 -> 1 (1 off): 2 is beside it, but 4 is not: chords go as 1 : 4. 90 -> 93 (3 off): its rival elsewhere is 170 (80 off).
    assert len(correspondences(one, other)) == 2
    assert pairs(correspondences(one, other, ratio=0.3)) == [[0, 0], [1, 4]]
    assert pairs(correspondences(one, other, ratio=0.2)) == [[1, 4]]


def test_a_shifted_grid_answers_itself_cell_by_cell() -> None:
    cells = np.random.default_rng(0).normal(size=(6, 7, 16))
    cells = (cells / np.linalg.norm(cells, axis=-1, keepdims=True)).astype(np.float32)
    one = PatchFeatures(cells[:5, :5].reshape(-1, 16), (5, 5), (0, 0, 50, 50))
    other = PatchFeatures(cells[1:, 2:].reshape(-1, 16), (5, 5), (0, 0, 50, 50))
    found = correspondences(one, other, least=0.999)
    assert {(a, b) for a, b in pairs(found)} == {
        (5 * row + column, 5 * (row - 1) + column - 2) for row in range(1, 5) for column in range(2, 5)
    }


def test_drawn_matches_are_apart_in_both_pictures() -> None:
    places = np.array([[0, 0], [1, 15], [15, 1], [3, 12], [12, 3]])
    found = spread(Matches(places, np.linspace(0.9, 0.5, 5).astype(np.float32)), ((4, 4), (4, 4)), 9)
    assert pairs(found) == [[0, 0], [3, 12], [12, 3]]
    assert len(spread(Matches(places, np.ones(5, np.float32)), ((4, 4), (4, 4)), 2)) == 2
    assert len(spread(Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32)), ((4, 4), (4, 4)), 2)) == 0


def test_heat_is_the_cosine_with_the_boxes_mean() -> None:
    heat = similarity_map(at([[0, 60, 200]], (0, 0, 30, 10)), (0, 0, 20, 10), at([[30], [120], [210]]))
    np.testing.assert_allclose(heat, [[1], [0], [-1]], atol=1e-6)  # the mean of 0 and 60 points to 30


def test_three_directions_become_three_colours_shared_by_the_pictures() -> None:
    axes = np.eye(4, dtype=np.float32)
    one = PatchFeatures(np.repeat(axes[[0, 1]], [60, 40], axis=0), (10, 10), (0, 0, 1, 1))
    other = PatchFeatures(np.repeat(axes[[1, 2]], [30, 20], axis=0), (5, 10), (0, 0, 1, 1))
    (first, second), shares = principal_colours([one, other])
    assert (first.shape, second.shape) == ((10, 10, 3), (5, 10, 3))
    assert first.reshape(-1, 3)[60].tolist() == second.reshape(-1, 3)[0].tolist(), "the same feature has one colour in both"
    assert len({tuple(colour) for colour in [*first.reshape(-1, 3).tolist(), *second.reshape(-1, 3).tolist()]}) == 3
    assert shares[:2].sum() == pytest.approx(1)
    assert shares[2] == 0
    assert set(first[..., 2].ravel()) | set(second[..., 2].ravel()) == {128}, "what does not vary is grey"


def test_colours_go_with_the_component_and_not_with_the_seed_of_its_sign() -> None:
    angles = at([[0, 30, 60, 90]])
    (colours,), shares = principal_colours([angles])
    red = colours[0, :, 0].astype(int)
    assert red[0] in (0, 255)
    assert red[3] == 255 - red[0]
    assert all(np.diff(red) > 0) or all(np.diff(red) < 0)
    np.testing.assert_array_equal(principal_colours([angles])[0][0], colours)
    assert shares[2] == 0, "a plane has two"


def test_lines_lead_from_patch_to_patch() -> None:
    images = Image.new("RGB", (200, 100), "black"), Image.new("RGB", (100, 200), "black")
    patches = at([[0, 10, 20, 30]], (0, 0, 200, 100)), at([[0], [5], [9], [12]], (0, 0, 100, 200))
    drawn = pair.match_picture(images, patches, Matches(np.array([[1, 3]]), np.ones(1, np.float32)))
    colour = tuple(int(class_colours(1)[0][start : start + 2], 16) for start in (1, 3, 5))
    first, second = pair.fitted(images[0]).size, pair.fitted(images[1]).size
    assert drawn.size == (first[0] + pair.GAP_PX + second[0], max(first[1], second[1]))
    assert drawn.getpixel((round(first[0] * 3 / 8), round(first[1] / 2))) == colour
    assert drawn.getpixel((first[0] + pair.GAP_PX + round(second[0] / 2), round(second[1] * 7 / 8))) == colour
    assert box_of_place(patches[0], 1) == (50, 0, 100, 100)
    empty = pair.match_picture(images, patches, Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32)))
    assert empty.getpixel((5, 5)) == (0, 0, 0)
