"""Recall, speed, build time, disk and memory of an index, beside plain FAISS on the same vectors.

    python benchmarks/search.py                        # 200,000 x 384, both kinds of data: about ten minutes on two cores
    python benchmarks/search.py --rows 20000 --queries 200
    python benchmarks/search.py --looks --data clustered          # one graph under several efforts, with and without a second look

Every row is timed ``--repeats`` times (5) after one warm-up and shows the median; recall@10 is against exact search over the
rows that the filter leaves. "clustered" has 4,000 clusters of Zipf-like sizes and a decaying spectrum; "manifold" is a curved
24-dimensional surface without clusters. Queries are drawn like the rows and are not among them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from _common import table

from sightline.index import ann
from sightline.index.base import Index, Item
from sightline.index.calibrate import calibrate, held_out_queries
from sightline.runtime import num_cpus, resident_bytes

K = 10
BATCH = 1_000
FILTERS = {"none": None, "93 %": "camera != 3", "20 %": "shelf < 4", "2.4 %": "tag = 7"}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered_with_centres(num: int, dim: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors and the centre of each one's cluster."""
    spectrum = 1 / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    centres = random.standard_normal((4_000, dim), dtype=np.float32) * spectrum
    sizes = 1 / np.arange(1, 4_001) ** 0.8
    own = 0.5 * random.standard_normal((num, dim), dtype=np.float32) * spectrum
    centre = centres[random.choice(4_000, num, p=sizes / sizes.sum())]
    return unit(centre + own), centre


def clustered(num: int, dim: int, random: np.random.Generator) -> np.ndarray:
    return clustered_with_centres(num, dim, random)[0]


def manifold_with_places(num: int, dim: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors and the place of each one on the surface ``[M, 24]``."""
    bend = random.standard_normal((24, 128), dtype=np.float32) / 24**0.5
    lift = random.standard_normal((128, dim), dtype=np.float32)
    place = random.standard_normal((num, 24), dtype=np.float32)
    return unit(np.tanh(place @ bend) @ lift), place


def manifold(num: int, dim: int, random: np.random.Generator) -> np.ndarray:
    return manifold_with_places(num, dim, random)[0]


DATA: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {"clustered": clustered, "manifold": manifold}


def facts(row: int) -> dict[str, int]:
    return {"camera": row % 14, "shelf": row * 7 % 20, "tag": row * 13 % 41}


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda row: np.ones(len(row), dtype=bool),
    "93 %": lambda row: row % 14 != 3,
    "20 %": lambda row: row * 7 % 20 < 4,
    "2.4 %": lambda row: row * 13 % 41 == 7,
}


def truths(vectors: np.ndarray, queries: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for name, mask in MASKS.items():
        rows = np.flatnonzero(mask(np.arange(len(vectors))))
        _, places = faiss.knn(queries, vectors[rows], K, faiss.METRIC_INNER_PRODUCT)
        found[name] = rows[places]
    return found


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len({*a} & {*b}) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def queries_per_s(search: Callable[[], Any], num: int, repeats: int) -> float:
    search()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    return num / statistics.median(times)


def both_threads(search: Callable[[], Any], num: int, repeats: int) -> dict[str, float]:
    values = {}
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        values[f"queries/s, {threads} thread{'s' * (threads > 1)}"] = round(queries_per_s(search, num, repeats))
    return values


def measure_sightline(
    folder: Path, vectors: np.ndarray, queries: np.ndarray, truth: dict[str, np.ndarray], repeats: int
) -> list[dict[str, Any]]:
    start = time.perf_counter()
    with Index.create(folder, dim=vectors.shape[1], fingerprint="benchmark") as index:
        for first in range(0, len(vectors), BATCH):
            part = vectors[first : first + BATCH]
            items = [Item(f"{row:08d}.jpg", facts(row)) for row in range(first, first + len(part))]
            index.upsert(items, part)
        put_s = time.perf_counter() - start
        index.seal()
        build_s = time.perf_counter() - start
    before_bytes = resident_bytes()
    with Index.open(folder, read_only=True) as index:
        index.search(queries[:1], K)
        about = {"build s": round(build_s, 1), "of it upserts s": round(put_s, 1), "disk MiB": round(index.info().bytes_on_disk / 2**20)}
        about["RSS added MiB"] = round((resident_bytes() - before_bytes) / 2**20)
        about["calibrated"] = ", ".join(f"{part.kind} {part.parameter} at {part.recall_at_10:.4f}" for part in index.info().segments)
        rows = []
        for name, where in FILTERS.items():
            found = index.search(queries, K, where=where).rows - 1  # ids count from 1 in the order of the rows
            speed = both_threads(lambda where=where: index.search(queries, K, where=where), len(queries), repeats)
            one = queries_per_s(lambda where=where: [index.search(query[None], K, where=where) for query in queries[:50]], 50, repeats)
            rows.append(
                {
                    "engine": "sightline",
                    "filter": name,
                    "recall@10": round(recall(found, truth[name]), 4),
                    **speed,
                    "one by one": round(one),
                    **about,
                }
            )
            about = {}
    return rows


def measure_looks(vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray, repeats: int) -> list[dict[str, Any]]:
    """Return recall, comparisons a query and the best rate on one thread of a graph under several efforts, timed in turns."""
    graph = ann.build(ann.HNSW, vectors)
    chosen = calibrate(graph, vectors, seed=1).effort
    doubt = float(np.quantile(held_out_queries(vectors, seed=1)[1], ann.DOUBTED_SHARE))
    tried = sorted({48, 64, 128, chosen.parameter})
    efforts = [ann.Effort(parameter, 0.0, K, again) for parameter in tried for again in (ann.NO_DOUBT, doubt)]
    faiss.omp_set_num_threads(1)
    rows, best_s = [], [float("inf")] * len(efforts)
    for effort in efforts:
        faiss.cvar.hnsw_stats.reset()
        found, _ = graph.top(queries, vectors, K, effort=effort)
        compared = faiss.cvar.hnsw_stats.ndis / len(queries)
        is_chosen = (effort.parameter, effort.doubt > ann.NO_DOUBT) == (chosen.parameter, chosen.doubt > ann.NO_DOUBT)
        rows.append(
            {
                "efSearch": effort.parameter,
                "second look": "yes" if effort.doubt > ann.NO_DOUBT else "no",
                "chosen": "chosen" if is_chosen else "",
                "recall@10": round(recall(found, truth), 4),
                "comparisons a query": round(compared),
            }
        )
    for _ in range(repeats):
        for number, effort in enumerate(efforts):
            start = time.process_time()
            graph.top(queries, vectors, K, effort=effort)
            best_s[number] = min(best_s[number], time.process_time() - start)
    return [row | {"queries/s, 1 thread": round(len(queries) / took_s)} for row, took_s in zip(rows, best_s, strict=True)]


def measure_faiss(
    name: str, structure: Any, options: Any, vectors: np.ndarray, queries: np.ndarray, truth: dict[str, np.ndarray], repeats: int
) -> list[dict[str, Any]]:
    faiss.omp_set_num_threads(2)
    start = time.perf_counter()
    structure.add(vectors)
    build_s = time.perf_counter() - start
    rows = []
    for label in FILTERS:
        mask = MASKS[label](np.arange(len(vectors)))
        selector = None if mask.all() else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        params = options(selector)

        def search(params: Any = params) -> np.ndarray:
            return structure.search(queries, K, params=params)[1]

        rows.append(
            {
                "engine": name,
                "filter": label,
                "recall@10": round(recall(search(), truth[label]), 4),
                **both_threads(search, len(queries), repeats),
            }
        )
    rows[0] |= {"build s": round(build_s, 1), "disk MiB": round(faiss.serialize_index(structure).nbytes / 2**20)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", choices=sorted(DATA), action="append", help="one kind of data only")
    parser.add_argument(
        "--looks", action="store_true", help="several efforts of one graph, with and without a second look, and nothing else"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave plain FAISS out")
    options = parser.parse_args()
    machine = {
        "cpus": num_cpus(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "faiss": faiss.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps({"rows": options.rows, "dim": options.dim, "queries": options.queries, **machine}))
    rows: list[dict[str, Any]] = []
    for kind in options.data or sorted(DATA):
        vectors = DATA[kind](options.rows + options.queries, options.dim, np.random.default_rng(0))
        queries, vectors = vectors[options.rows :].copy(), vectors[: options.rows].copy()
        truth = truths(vectors, queries)
        if options.looks:
            rows += told(kind, measure_looks(vectors, queries, truth["none"], options.repeats))
            continue
        with tempfile.TemporaryDirectory() as folder:
            faiss.omp_set_num_threads(2)
            rows += told(kind, measure_sightline(Path(folder) / "index", vectors, queries, truth, options.repeats))
        if not options.no_peers:
            flat = faiss.IndexFlatIP(options.dim)
            plain = lambda selector: faiss.SearchParameters(sel=selector)  # noqa: E731
            rows += told(kind, measure_faiss("faiss Flat", flat, plain, vectors, queries, truth, options.repeats))
            graph = faiss.IndexHNSWFlat(options.dim, 32)
            graph.hnsw.efConstruction = 128
            walk = lambda selector: faiss.SearchParametersHNSW(efSearch=96, sel=selector)  # noqa: E731
            rows += told(kind, measure_faiss("faiss HNSW32 f32, ef 96", graph, walk, vectors, queries, truth, options.repeats))
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]) if options.looks else as_table(rows))


def told(kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their kind of data, shown on standard error at once: the whole takes minutes."""
    named = [{"data": kind, **row} for row in rows]
    for row in named:
        print(json.dumps(row), file=sys.stderr, flush=True)
    return named


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return the table, with each row's speed as a multiple of exact search by plain FAISS under the same filter in this run."""
    exact = {(row["data"], row["filter"]): row["queries/s, 2 threads"] for row in rows if row["engine"] == "faiss Flat"}
    columns = [
        "engine", "data", "filter", "recall@10", "queries/s, 1 thread", "queries/s, 2 threads", "one by one", "build s", "disk MiB", "RSS added MiB", "calibrated",
    ]  # fmt: skip
    cells = []
    for row in rows:
        base = exact.get((row["data"], row["filter"]))
        cells.append([*(row.get(column, "") for column in columns), f"{row['queries/s, 2 threads'] / base:.1f}" if base else ""])
    return table([*columns, "times exact"], cells)


if __name__ == "__main__":
    main()
