"""What does an index of patches take on the disk, how long does a box take, and does the right picture come back?

    python benchmarks/regions.py [--pictures 1000 5000] [--queries 40] [--json]

Made-up pictures of 14 x 14 unit vectors 384 wide: each cell is one of 2,000 centres with noise, and cells beside each other are alike, as
patches are. A query is 4 x 4 cells of one picture with new noise. "found" is the share of queries whose picture comes first with a
box that overlaps the true one by at least half (intersection over union). "exact" compares every picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import head, machine, seconds, table

SIDE, WIDTH, CENTRES, QUERY = 14, 384, 2_000, 4
BATCH = 32


def made_grids(num: int, seed: int) -> np.ndarray:
    """Return unit vectors ``[num, 14, 14, 384]``."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, WIDTH), dtype=np.float32)
    generator = np.random.default_rng(seed)
    cells = centres[generator.integers(0, CENTRES, (num, SIDE, SIDE))]
    cells = cells + 0.5 * np.roll(cells, 1, axis=1) + 0.5 * np.roll(cells, 1, axis=2)
    return noisy(cells, generator)


def noisy(cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    cells = cells / np.linalg.norm(cells, axis=-1, keepdims=True)
    cells = cells + (0.6 / WIDTH**0.5) * generator.standard_normal(cells.shape, dtype=np.float32)
    return (cells / np.linalg.norm(cells, axis=-1, keepdims=True)).astype(np.float32)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inside / (sum(areas) - inside)


def measured(num: int, num_queries: int, folder: Path) -> dict[str, Any]:
    from sightline.contracts import PatchFeatures
    from sightline.index.base import Index, Item
    from sightline.index.patches import PatchIndex
    from sightline.search.regions import regions_like

    frame = (0.0, 0.0, 224.0, 224.0)
    index = Index.create(folder / f"{num}.index", dim=WIDTH, fingerprint="made-up", engine="patches", short_px=224)
    assert isinstance(index, PatchIndex)

    def build() -> None:
        for start in range(0, num, BATCH):
            grids = made_grids(min(BATCH, num - start), 1 + start)
            items = [Item(f"{start + number}.jpg") for number in range(len(grids))]
            index.upsert_patches(items, [PatchFeatures(grid.reshape(-1, WIDTH), (SIDE, SIDE), frame) for grid in grids])
        index.seal()

    build_s = seconds(build)
    generator = np.random.default_rng(12345)
    found: dict[str, list[bool]] = {"proposed": [], "exact": []}
    taken: dict[str, list[float]] = {"proposed": [], "exact": []}
    for query in range(num_queries + 1):
        target = int(generator.integers(num))
        batch = made_grids(min(BATCH, num - target // BATCH * BATCH), 1 + target // BATCH * BATCH)
        top, left = (int(place) for place in generator.integers(0, SIDE - QUERY + 1, 2))
        cells = noisy(batch[target % BATCH, top : top + QUERY, left : left + QUERY], generator).reshape(-1, WIDTH)
        true = (16.0 * left, 16.0 * top, 16.0 * (left + QUERY), 16.0 * (top + QUERY))
        for name in found:
            start = time.perf_counter()
            hits = regions_like(index, cells, (QUERY, QUERY), 10, exact=name == "exact")
            wall_s = time.perf_counter() - start
            if query:  # the first one reads the files
                taken[name].append(wall_s)
                found[name].append(hits[0].path == f"{target}.jpg" and overlap(hits[0].box, true) >= 0.5)
    about = index.info()
    index.close()
    return {
        "pictures": num,
        "patches": about.rows,
        "bytes_a_picture": about.bytes_on_disk / num,
        "build_s": build_s,
        "structure": sorted({segment.kind for segment in about.segments}),
        "ms": {name: 1000 * statistics.median(times) for name, times in taken.items()},
        "found": {name: float(np.mean(hit)) for name, hit in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000, 5_000])
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(num, asked.queries, Path(folder)) for num in asked.pictures]
    if asked.json:
        print(json.dumps({"machine": facts, "rows": rows}))
        return
    print(head((__doc__ or "").splitlines()[0], facts))
    columns = ["pictures", "patches", "KiB a picture", "build s", "structure", "ms", "found", "exact ms", "exact found"]
    cells = [
        [
            f"{row['pictures']:,}",
            f"{row['patches']:,}",
            f"{row['bytes_a_picture'] / 1024:.0f}",
            f"{row['build_s']:.0f}",
            ", ".join(row["structure"]),
            f"{row['ms']['proposed']:.0f}",
            f"{row['found']['proposed']:.2f}",
            f"{row['ms']['exact']:.0f}",
            f"{row['found']['exact']:.2f}",
        ]
        for row in rows
    ]
    print(table(columns, cells))


if __name__ == "__main__":
    main()
