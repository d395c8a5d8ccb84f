"""Which regions of which pictures look like this box? Patches propose pictures, and every window of a proposed picture's grid is compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sightline.contracts import Box, FloatArray, Hits, IntArray, PatchFeatures, Ranking
from sightline.errors import DataError
from sightline.index import filters
from sightline.index.filters import Filter
from sightline.index.patches import PLACE_BITS, PatchIndex

ASKING = 16
"""Patches of the box that propose pictures, spread evenly over it."""

CLOSEST, ROUNDS = 50, 4
"""Patches that each of them asks for, twice as many in each of so many rounds: one picture's sky may take all the places of the first."""

CANDIDATES = 100
"""Pictures whose windows are compared, and four times as many as answers where that is more."""

FEW = 500
"""Up to so many pictures all are compared: 370 photographs took 0.57 s that way, and 0.79 s where patches proposed a hundred of them."""

SCALES = (1.0, 2**-0.5, 2**0.5, 0.5, 2.0)
"""Sizes of the windows in those of the box; of equal windows the one first named here answers."""

MAX_QUERY = 256
"""Patches of the box that windows are compared with: of a larger box every second, third, ... row and column."""


@dataclass(frozen=True)
class Window:
    """Cells of a grid (top, left, bottom, right; the last two not within) and their similarity to a query (cosine, -1 to 1)."""

    cells: tuple[int, int, int, int]
    similarity: float


def best_window(query: FloatArray, shape: tuple[int, int], gallery: PatchFeatures) -> Window:
    """Return the window of a picture that is most like a query of unit-length patches ``[m, D]`` cut as ``shape`` (rows, columns).

    A window's similarity is the mean of two: how well it has what the query has (the mean over the query's patches of the closest of the
    window) and how little else it has (the mean over the window's patches of the closest of the query). The first alone would grow with
    the window. Windows have the query's aspect, at each of ``SCALES``, and lie within the grid. Of equal ones the first scale, then the
    upper left, answers.

    Source: Dubuisson and Jain 1994, "A modified Hausdorff distance for object matching" (mean distance to the closest, both ways).
    Departs: both directions are averaged where they take the worse one: with a cosine that keeps the scale of a mean of cosines.
    """
    rows, columns = gallery.grid
    alike = (query @ gallery.vectors.T).reshape(-1, rows, columns)  # [m, rows, columns]
    closest = alike.max(axis=0)
    best: Window | None = None
    for height, width in _sizes(shape, gallery.grid):
        has = running_max(running_max(alike, height, 1), width, 2).mean(axis=0)
        little_else = _running_mean(closest, height, width)
        similarity = (has + little_else) / 2
        place = int(similarity.argmax())
        found = float(similarity.flat[place])
        if best is None or found > best.similarity:
            top, left = divmod(place, similarity.shape[1])
            best = Window((top, left, top + height, left + width), found)
    assert best is not None
    return best


def _sizes(shape: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int]]:
    scaled = [tuple(min(most, max(1, round(scale * side))) for side, most in zip(shape, grid, strict=True)) for scale in SCALES]
    return [(height, width) for height, width in dict.fromkeys(scaled)]


def running_max(values: FloatArray, num: int, axis: int) -> FloatArray:
    """Return the largest of every ``num`` neighbours along an axis, which gets ``num - 1`` shorter, in log2(num) steps."""
    span = 1
    length = values.shape[axis]
    while span < num:
        step = min(span, num - span)  # two windows of ``span``, ``step`` apart, make one of ``span + step``
        length -= step
        low, high = (np.take(values, range(start, start + length), axis) for start in (0, step))
        values = np.maximum(low, high)
        span += step
    return values


def _running_mean(values: FloatArray, height: int, width: int) -> FloatArray:
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.float64)
    sums[1:, 1:] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    mean: FloatArray = (inside / (height * width)).astype(np.float32)
    return mean


def group(found: Ranking, most: int) -> IntArray:
    """Return the ids of up to ``most`` pictures that the closest patches of a query's patches ``[Q, K]`` speak for, the best first.

    A picture's score is the sum over the query's patches of the similarity of its closest patch; where a query's patch has none of it
    among its K, no more than the last of the K can be it, so that one's similarity is taken. Equal scores put the lower id first.
    """
    scores: dict[int, float] = {}
    for rows, similarity in zip(found.rows, found.similarity, strict=True):
        real = rows >= 0
        if not real.any():
            continue
        floor = float(similarity[real][-1])
        ids, first = np.unique(rows[real] >> PLACE_BITS, return_index=True)
        for id, value in zip(ids.tolist(), similarity[real][first].tolist(), strict=True):
            scores[id] = scores.get(id, 0.0) + value - floor
    order = sorted(scores, key=lambda id: (-scores[id], id))
    return np.array(order[:most], dtype=np.int64)


def candidates(index: PatchIndex, query: FloatArray, num: int, *, where: str | Filter | None, exact: bool) -> tuple[IntArray, str]:
    """Return the ids of the pictures to compare, and how they were chosen: "exact" or "approximate".

    They are ``num`` wherever that many match, and all that match if ``exact`` or if they are few.
    """
    if exact or index.count(where) <= max(num, FEW):
        return index.ids(where), "exact"
    asking = query[np.linspace(0, len(query) - 1, min(ASKING, len(query))).round().astype(np.int64)]
    asked = filters.parse(where) if isinstance(where, str) else where
    found = np.zeros(0, np.int64)
    for number in range(ROUNDS):
        others = filters.Not(filters.In("id", tuple(found.tolist())))
        rest = asked if not len(found) else others if asked is None else filters.And((asked, others))
        proposed = group(index.search_patches(asking, CLOSEST << number, where=rest), num - len(found))
        found = np.concatenate([found, proposed])
        if len(found) == num:
            return found, "approximate"
    return np.concatenate([found, np.setdiff1d(index.ids(where), found)[: num - len(found)]]), "approximate"


def regions_like(
    index: PatchIndex, query: FloatArray, shape: tuple[int, int], k: int, *, where: str | Filter | None = None, exact: bool = False
) -> Hits:
    """Return the region most like a query's patches of each of the ``k`` pictures whose region is most like them, closest first.

    ``query`` ``[m, D]`` are patches cut as ``shape`` (rows, columns). A hit has its region's box in the pixels of its own picture. ``exact``
    compares the windows of every picture that matches.

    Raises:
        UsageError: the filter ``where`` cannot be read.
    """
    proposed, how = candidates(index, query, max(CANDIDATES, 4 * k), where=where, exact=exact)
    windows: list[tuple[float, int, Box]] = []
    for id, patches in index.patches(proposed):
        window = best_window(query, shape, patches)
        windows.append((window.similarity, id, patches.box_of(window.cells)))
    first = sorted(windows, key=lambda one: (-one[0], one[1]))[:k]
    ids, similarity = np.array([[id for _, id, _ in first]], np.int64), np.array([[value for value, _, _ in first]], np.float32)
    (hits,) = index.hits(Ranking(ids, similarity))
    box_of = {id: box for _, id, box in first}
    return Hits(tuple(replace(hit, box=box_of[hit.id]) for hit in hits), how)


def query_patches(asked: PatchFeatures, box: Box | None) -> tuple[FloatArray, tuple[int, int]]:
    """Return the patches ``[m, D]`` of a box, None all, at most ``MAX_QUERY``, and the (rows, columns) that the box has of the grid.

    Raises:
        DataError: the box is empty or outside the picture.
    """
    try:
        cells = asked.cells_of(asked.frame if box is None else box)
    except ValueError as error:
        width, height = asked.frame[2] - asked.frame[0], asked.frame[3] - asked.frame[1]
        shown = ",".join(f"{side:g}" for side in box or ())
        raise DataError(
            f"the box {shown} is empty or outside the picture, which is {width:g} x {height:g} pixels: give left,top,right,bottom"
        ) from error
    shape = cells[2] - cells[0], cells[3] - cells[1]
    step = 1
    while -(-shape[0] // step) * -(-shape[1] // step) > MAX_QUERY:
        step += 1
    part = asked.within(cells).reshape(*shape, -1)[::step, ::step]
    return part.reshape(-1, part.shape[-1]), shape
