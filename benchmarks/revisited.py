"""How long, and in how much memory above the vectors, does ROxford with a million distractors take: 70 x 1,005,000 x 384?

    python benchmarks/revisited.py [--gallery 1005000] [--repeats 3] [--json]

The vectors are made up, unit length, and lie memory-mapped in a file, as those of a million distractors would. Each run is a process of
its own. Beside ours, which gives mAP and mP@1, 5 and 10 in three settings:

    the product alone    70 x G x 384 into one block after the other: the floor of any exact evaluation
    argsort              the reference's way: all similarities, argsort of every column, then each setting read off it

The peak is that of the memory of the process's own (RssAnon, sampled; Linux): pages of the mapped file, which the system takes back when
it likes, are not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import head, machine, table

NUM_QUERIES, WIDTH = 70, 384
NUM_JUDGED = 4_993
METRICS = ("map", "mp@1", "mp@5", "mp@10")
BLOCK_ROWS = 65_536


def make_vectors(path: Path, num_gallery: int) -> None:
    """Write queries and gallery, float32 unit vectors, into one file; the judged images lie around their queries."""
    generator = np.random.default_rng(0)
    vectors = np.memmap(path, np.float32, "w+", shape=(NUM_QUERIES + num_gallery, WIDTH))
    queries = generator.standard_normal((NUM_QUERIES, WIDTH), dtype=np.float32)
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = generator.standard_normal((min(BLOCK_ROWS, len(vectors) - first), WIDTH), dtype=np.float32)
        if first == 0:
            block[:NUM_QUERIES] = queries
            num_near = min(NUM_JUDGED, len(block) - NUM_QUERIES)
            block[NUM_QUERIES : NUM_QUERIES + num_near] += 0.2 * queries[np.arange(num_near) % NUM_QUERIES]
        vectors[first : first + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()


def judgements() -> dict[str, Any]:
    """Return easy, medium and hard judgements: about 70 images a query, as many as ROxford has."""
    from sightline.data.judged import Judgements

    near = [np.arange(query, NUM_JUDGED, NUM_QUERIES) for query in range(NUM_QUERIES)]
    easy, hard, junk = (tuple(rows[part::3] for rows in near) for part in range(3))

    def joined(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(np.sort(np.concatenate(rows)) for rows in zip(one, other, strict=True))

    return {
        "easy": Judgements(easy, joined(junk, hard)),
        "medium": Judgements(joined(easy, hard), junk),
        "hard": Judgements(hard, joined(junk, easy)),
    }


def sightline(queries: Any, gallery: Any) -> dict[str, float]:
    from sightline.evaluation import metrics
    from sightline.evaluation.ranks import exact_ranks

    found = exact_ranks(queries, gallery, judgements())
    return {
        f"{name}/{setting}": value
        for setting, ranks in found.items()
        for name, value in metrics.means(metrics.by_name(ranks, METRICS)).items()
    }


def argsort(queries: Any, gallery: Any) -> dict[str, float]:
    order = np.argsort(-np.dot(gallery, queries.T), axis=0)
    answer = {}
    for setting, truth in judgements().items():
        values = []
        for query in range(len(queries)):
            ranked = order[:, query]
            places = np.flatnonzero(np.isin(ranked, truth.positives[query]))
            places = places - np.searchsorted(np.flatnonzero(np.isin(ranked, truth.junk[query])), places)
            hits = np.arange(len(places))
            before = np.where(places == 0, 1.0, hits / np.maximum(places, 1))
            values.append(((before + (hits + 1) / (places + 1)) / 2).sum() / len(truth.positives[query]))
        answer[f"map/{setting}"] = float(np.mean(values))
    return answer


def product(queries: Any, gallery: Any) -> dict[str, float]:
    from sightline.search.neighbours import similarity_blocks

    return {"sum": float(sum(block.similarity[0, 0] for block in similarity_blocks(queries, gallery, np.arange(len(queries)))))}


WAYS: dict[str, Callable[[Any, Any], dict[str, float]]] = {"sightline": sightline, "product alone": product, "argsort": argsort}


class AnonymousPeak:
    """The largest anonymous memory of this process while it is entered, in bytes: what is no page of a mapped file."""

    def __enter__(self) -> AnonymousPeak:
        self.before = self.peak = self._now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def run_one(way: str, path: Path, num_gallery: int) -> dict[str, Any]:
    vectors = np.memmap(path, np.float32, "r", shape=(NUM_QUERIES + num_gallery, WIDTH))
    queries, gallery = np.array(vectors[:NUM_QUERIES]), vectors[NUM_QUERIES:]
    WAYS[way](queries, gallery[: max(NUM_JUDGED, 8)])  # imports, threads and kernels are warm
    gallery.sum(dtype=np.float32)  # and so is the file
    with AnonymousPeak() as memory:
        start = time.perf_counter()
        metrics = WAYS[way](queries, gallery)
        wall_s = time.perf_counter() - start
    return {"wall_s": wall_s, "peak_bytes": memory.peak - memory.before, "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=int, default=1_005_000, help=f"images to search, {NUM_JUDGED:,} or more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run-one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gallery < NUM_JUDGED:
        parser.error(f"--gallery {options.gallery}: {NUM_JUDGED:,} images are judged")
    if options.run_one:
        print(json.dumps(run_one(options.run_one, options.vectors, options.gallery)))
        return
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        make_vectors(path, options.gallery)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way, taken in runs.items():
                command = [sys.executable, __file__, "--run-one", way, "--vectors", str(path), "--gallery", str(options.gallery)]
                taken.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    if options.json:
        print(json.dumps({"machine": facts, "gallery": options.gallery, "runs": runs}, indent=2))
        return
    print(head(f"{NUM_QUERIES} queries in {options.gallery:,} x {WIDTH}, memory-mapped: every measure of the revisited protocol", facts))
    print(as_text(runs))


def as_text(runs: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for way, taken in runs.items():
        walls = [run["wall_s"] for run in taken]
        ratio = statistics.median(run["wall_s"] / ours["wall_s"] for run, ours in zip(taken, runs["sightline"], strict=True))
        rows.append(
            [
                way,
                f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})",
                f"{ratio:.2f}",
                f"{max(run['peak_bytes'] for run in taken) / 2**30:.2f}",
                f"{taken[0]['metrics'].get('map/medium', float('nan')):.9f}",
            ]
        )
    return table(["way", "median s (least to most)", "times ours", "peak GiB above the vectors", "map/medium"], rows)


if __name__ == "__main__":
    main()
