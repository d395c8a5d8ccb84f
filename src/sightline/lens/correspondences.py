"""Which patches of two pictures answer each other, and how like a part of one picture every patch of the other is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sightline.contracts import Box, FloatArray, IntArray, PatchFeatures

APART_CELLS = 1
"""The second closest patch is sought more than so many cells from the closest: patches beside each other look alike by nature."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of patches: ``places`` int64 ``[M, 2]`` in the row order of the one grid and of the other, ``similarity`` ``[M]`` (cosine), highest first."""

    places: IntArray
    similarity: FloatArray

    def __len__(self) -> int:
        return len(self.places)


def correspondences(
    one: PatchFeatures, other: PatchFeatures, *, within: Box | None = None, least: float = -1.0, ratio: float = 1.0, cycle_cells: int = 0
) -> Matches:
    """Return the pairs of patches that are each other's closest, most similar first; of equal ones the lower places.

    Args:
        one: a picture's patches.
        other: another's.
        within: a box in the one picture, whose patches alone count as its; the way back still goes to all of them.
        least: pairs of a lower similarity are left out.
        ratio: keep a pair if its distance is at most so much of the distance to the second closest patch of the other picture, more than
            ``APART_CELLS`` cells away; 1 keeps all.
        cycle_cells: the way back may end so many cells (in rows and in columns) from where it started; 0 is each other's closest.

    Raises:
        ValueError: ``within`` has nothing of the picture.
    Source: Dekel et al. 2015, "Best-Buddies Similarity", eq. 1; the ratio: Lowe 2004, section 7.1.
    Departs: distances are those of unit vectors, sqrt(2 - 2 cosine); the second closest must not lie beside the closest.
    """
    alike = one.vectors @ other.vectors.T  # [N, N']
    forth, back = alike.argmax(axis=1), alike.argmax(axis=0)
    start = np.arange(len(one))
    end = back[forth]
    columns = one.grid[1]
    away = np.maximum(np.abs(start // columns - end // columns), np.abs(start % columns - end % columns))
    similarity = alike[start, forth]
    good = (away <= cycle_cells) & (similarity >= least)
    if within is not None:
        top, left, bottom, right = one.cells_of(within)
        row, column = start // columns, start % columns
        good &= (row >= top) & (row < bottom) & (column >= left) & (column < right)
    if ratio < 1:
        good &= _is_clear(alike, forth, other.grid, ratio)
    kept = np.flatnonzero(good)
    kept = kept[np.lexsort((kept, -similarity[kept]))]
    return Matches(np.stack([kept, forth[kept]], axis=1).astype(np.int64), similarity[kept])


def _is_clear(alike: FloatArray, forth: IntArray, grid: tuple[int, int], ratio: float) -> np.ndarray:
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    apart = np.maximum(np.abs(rows[forth][:, None] - rows), np.abs(columns[forth][:, None] - columns)) > APART_CELLS
    second = np.where(apart, alike, -1.0).max(axis=1)  # -1, the farthest there is, where no patch is apart
    first = alike[np.arange(len(alike)), forth]
    clear: np.ndarray = np.sqrt(np.maximum(0, 2 - 2 * first)) <= ratio * np.sqrt(np.maximum(0, 2 - 2 * second))
    return clear


def spread(matches: Matches, grids: tuple[tuple[int, int], tuple[int, int]], most: int) -> Matches:
    """Return up to ``most`` matches, the most similar first, of which no two are beside each other in either picture."""
    chosen: list[int] = []
    for number, pair in enumerate(matches.places):
        if len(chosen) == most:
            break
        if not any(_are_beside(int(pair[side]), int(place), grids[side][1]) for side in (0, 1) for place in matches.places[chosen, side]):
            chosen.append(number)
    return Matches(matches.places[chosen], matches.similarity[chosen])


def _are_beside(one: int, other: int, columns: int) -> bool:
    return abs(one // columns - other // columns) <= 1 and abs(one % columns - other % columns) <= 1


def similarity_map(one: PatchFeatures, box: Box, other: PatchFeatures) -> FloatArray:
    """Return the cosine ``[rows, columns]`` of each patch of the other picture with the mean of the patches that a box has of the one.

    Raises:
        ValueError: the box has nothing of the picture.
    """
    mean = one.within(one.cells_of(box)).mean(axis=0)
    heat: FloatArray = (other.vectors @ (mean / max(float(np.linalg.norm(mean)), 1e-12))).reshape(other.grid)
    return heat


def box_of_place(patches: PatchFeatures, place: int) -> Box:
    """Return the box of one patch in its picture's own pixels."""
    row, column = divmod(place, patches.grid[1])
    return patches.box_of((row, column, row + 1, column + 1))
