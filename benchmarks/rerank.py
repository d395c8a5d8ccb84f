"""How fast and in how much memory is k-reciprocal re-ranking at the sizes of re-identification, beside the dense form it is published in?

    python benchmarks/rerank.py                                  # 5,796, 18,872 and 93,820 rows: some minutes
    python benchmarks/rerank.py --rows 1500 --repeats 1          # a quick look
    python benchmarks/rerank.py --rows 18872 --rerank diffusion --rerank superglobal

Rows are queries and gallery together; 18,872 is Market-1501 without its junk, 93,820 MSMT17. Each run is a process of its own, ours and
the dense one in turn; the peak is all of its resident memory, the ranking and torch included. The dense form is written here as it is
published, with matrices of all against all, and is measured up to --dense rows: the memory it needs grows with their square. At 5,796
rows it gives the numbers of the authors' Python code to 4e-7 and takes 0.7 of its time. The vectors come in classes of 20, with as much noise as signal
and half as much again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import head, machine, median_ratio, table

QUERIES = {5_796: 1_000, 18_872: 3_368, 93_820: 11_659}
WHOLE = 20_000
"""Up to this many rows a query's candidates are the whole gallery, above it the --candidates closest."""
SPREAD = 1.5
DENSE = "dense"


def make_vectors(num_rows: int, width: int) -> Any:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((num_rows // 20 + 1, width), dtype=np.float32)[generator.integers(0, num_rows // 20 + 1, num_rows)]
    for first in range(0, num_rows, 4096):  # block by block: the peak should be the re-ranker's
        vectors[first : first + 4096] += SPREAD * generator.standard_normal(vectors[first : first + 4096].shape, dtype=np.float32)
        vectors[first : first + 4096] /= np.linalg.norm(vectors[first : first + 4096], axis=1, keepdims=True)
    return vectors


def dense_distances(queries: Any, gallery: Any, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Any:
    """Return k-reciprocal's final distances [Q, G] by the published steps, each a matrix of all against all."""
    both = np.concatenate([queries, gallery])
    num, num_queries = len(both), len(queries)
    distance = np.maximum(2 - 2 * both @ both.T, 0)
    np.fill_diagonal(distance, 0)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1).astype(np.int32)

    def reciprocal(row: int, k: int) -> Any:
        near = order[row, : k + 1]
        return near[(order[near, : k + 1] == row).any(axis=1)]

    encoding = np.zeros_like(distance)
    for row in range(num):
        base = reciprocal(row, k1)
        expanded = [base]
        for other in base:
            half = reciprocal(other, round(k1 / 2))
            if 3 * len(np.intersect1d(half, base)) > 2 * len(half):
                expanded.append(half)
        members = np.unique(np.concatenate(expanded))
        encoding[row, members] = np.exp(-distance[row, members])
        encoding[row] /= encoding[row].sum()
    averaged = np.zeros_like(encoding)
    for row in range(num):
        averaged[row] = encoding[order[row, :k2]].mean(axis=0)
    holders = [np.flatnonzero(averaged[:, column]) for column in range(num)]
    final = np.empty((num_queries, num), np.float32)
    for query in range(num_queries):
        shared = np.zeros(num, np.float32)
        for column in np.flatnonzero(averaged[query]):
            shared[holders[column]] += np.minimum(averaged[query, column], averaged[holders[column], column])
        final[query] = (1 - weight) * (1 - shared / (2 - shared)) + weight * distance[query]
    return final[:, num_queries:]


def run_one(name: str, num_rows: int, width: int, candidates: int, threads: int, out: str) -> dict[str, Any]:
    import torch

    from sightline.search.neighbours import nearest
    from sightline.search.rerank import parse

    torch.set_num_threads(threads)
    vectors = make_vectors(num_rows, width)
    num_queries = QUERIES.get(num_rows, num_rows // 6)
    queries, gallery = vectors[:num_queries], vectors[num_queries:]
    parse("k-reciprocal")(nearest(queries[:50], gallery[:500], 100), queries[:50], gallery[:500])  # imports and kernels are warm
    ranking = nearest(queries, gallery, len(gallery) if num_rows <= WHOLE else candidates) if name != DENSE else None
    cpu, start = time.process_time(), time.perf_counter()
    if ranking is None:
        distances = dense_distances(queries, gallery)
    else:
        found = parse(name)(ranking, queries, gallery)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if out:
        if ranking is not None:
            distances = np.empty(found.rows.shape, np.float32)
            np.put_along_axis(distances, found.rows, 1 - found.similarity, axis=1)
        np.save(out, distances)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes, "queries": num_queries, "gallery": len(gallery)}


def measure(names: list[str], num_rows: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each of ``names`` takes at one size, run in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for place, name in enumerate(names):
                out = str(Path(folder) / f"{place}.npy") if DENSE in names and name in (DENSE, names[0]) else ""
                sizes = ["--rows", num_rows, "--width", options.width, "--candidates", options.candidates, "--threads", options.threads]
                command = [sys.executable, __file__, "--run-one", name, "--out", out, *map(str, sizes)]
                runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                print(num_rows, name, runs[name][-1], file=sys.stderr, flush=True)
        difference = None
        if DENSE in names:
            ours, theirs = (np.load(Path(folder) / f"{names.index(name)}.npy", mmap_mode="r") for name in (names[0], DENSE))
            difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    first = [run["wall_s"] for run in runs[names[0]]]
    return [
        {
            "rows": num_rows,
            "queries": taken[0]["queries"],
            "gallery": taken[0]["gallery"],
            "name": name,
            "median_wall_s": float(np.median([run["wall_s"] for run in taken])),
            "median_cpu_s": float(np.median([run["cpu_s"] for run in taken])),
            "ratio": median_ratio([run["wall_s"] for run in taken], first),
            "peak_bytes": max(run["peak_bytes"] for run in taken),
            "largest_difference": difference if name == DENSE else None,
        }
        for name, taken in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="queries and gallery together; may be repeated")
    parser.add_argument("--rerank", action="append", help="a re-ranker; may be repeated (default: k-reciprocal)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=1_000, help=f"of a query, above {WHOLE:,} rows; below them, the whole gallery")
    parser.add_argument("--dense", type=int, default=6_000, help="most rows that the dense form is measured at")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run-one", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_one:
        print(json.dumps(run_one(options.run_one, options.rows[0], options.width, options.candidates, options.threads, options.out)))
        return
    names = options.rerank or ["k-reciprocal"]
    facts, answer = machine(), []
    for num_rows in options.rows or list(QUERIES):
        dense = [DENSE] if names[0] == "k-reciprocal" and num_rows <= options.dense else []
        answer += measure([*names, *dense], num_rows, options)
    print(json.dumps({"machine": facts, "threads": options.threads, "runs": answer}, indent=2) if options.json else as_text(facts, answer))


def as_text(facts: dict[str, Any], answer: list[dict[str, Any]]) -> str:
    rows = [
        [
            run["name"],
            f"{run['rows']:,}",
            f"{run['queries']:,} x {run['gallery']:,}",
            f"{run['median_wall_s']:.1f}",
            f"{run['ratio']:.2f}",
            f"{run['median_cpu_s']:.1f}",
            f"{run['peak_bytes'] / 2**30:.2f}",
            "" if run["largest_difference"] is None else f"{run['largest_difference']:.1e}",
        ]
        for run in answer
    ]
    columns = ["form", "rows", "queries x gallery", "median s", "times the first", "processor s", "peak GiB", "largest difference"]
    return f"{head(__doc__.splitlines()[0], facts)}\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
