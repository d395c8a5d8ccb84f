"""How fast and in how much memory is an exact evaluation of 60,502 x 384 (the size of SOP's test set), beside its peers?

    python benchmarks/evaluate.py [--rows 60502] [--repeats 5] [--spread 4.0] [--json]

Each run is a process of its own, so that its peak of resident memory, less that before the call, is what the calculator needed above
the vectors. Peers that are not installed are left out, with a line that says so (pip install -r benchmarks/requirements.txt).
Ours answers more than it is compared on: Recall@1 to @1000, MAP@R, R-precision, mAP and MRR, with 1,000 bootstrap resamples.
The floor is the multiplication alone: 2 * rows^2 * width operations at the rate of this machine's float32 matrix product.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from _common import table

WIDTH = 384
ROWS_PER_CLASS = 60_502 / 11_316
PEERS = {"pytorch-metric-learning": "pytorch_metric_learning", "open-metric-learning": "oml"}
CALCULATORS = ("sightline", *PEERS)


def make_vectors(num_rows: int, spread: float) -> tuple[Any, Any]:
    """Return unit vectors in shuffled classes of 2 to about 15 rows, as SOP's; the larger the spread the harder."""
    generator = np.random.default_rng(0)
    num_classes = int(num_rows / ROWS_PER_CLASS)
    labels = np.concatenate([np.repeat(np.arange(num_classes), 2), generator.integers(0, num_classes, num_rows - 2 * num_classes)])
    generator.shuffle(labels)
    vectors = generator.standard_normal((num_classes, WIDTH), dtype=np.float32)[labels]
    for first in range(0, num_rows, 4096):  # block by block: the peak before the call should be the vectors, not their making
        vectors[first : first + 4096] += spread * generator.standard_normal(vectors[first : first + 4096].shape, dtype=np.float32)
        vectors[first : first + 4096] /= np.linalg.norm(vectors[first : first + 4096], axis=1, keepdims=True)
    return vectors, labels


def sightline(vectors: Any, labels: Any) -> dict[str, float]:
    from sightline.evaluation.metrics import positive_ranks, summarise

    return dict(summarise(positive_ranks(vectors, labels), labels).metrics)


def pytorch_metric_learning(vectors: Any, labels: Any) -> dict[str, float]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    found = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    return {"recall@1": found["precision_at_1"], "map@r": found["mean_average_precision_at_r"]}


def open_metric_learning(vectors: Any, labels: Any) -> dict[str, float]:
    import torch
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_retrieval_metrics

    rows = torch.arange(len(vectors))
    _, retrieved, truth = batched_knn(torch.from_numpy(vectors), rows, rows, 10, labels_gt=torch.from_numpy(labels))
    found = calc_retrieval_metrics(retrieved, truth, cmc_top_k=(1, 10), precision_top_k=(), map_top_k=(), verbose=False)
    return {"recall@1": float(found["cmc"][1]), "recall@10": float(found["cmc"][10])}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_one(name: str, num_rows: int, spread: float) -> dict[str, Any]:
    import torch

    vectors, labels = make_vectors(num_rows, spread)
    measure = {"sightline": sightline, "pytorch-metric-learning": pytorch_metric_learning, "open-metric-learning": open_metric_learning}[
        name
    ]
    measure(vectors[:512], labels[:512] % 20)  # imports, threads and kernels are warm
    before, cpu, start = peak_bytes(), time.process_time(), time.perf_counter()
    metrics = measure(vectors, labels)
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_above_bytes": peak_bytes() - before,
        "num_threads": torch.get_num_threads(),
        "metrics": metrics,
    }


def floor(num_rows: int) -> dict[str, float]:
    """Return the seconds that the multiplication alone takes here, from the best of a few large matrix products."""
    import torch

    left, right = torch.randn(2048, WIDTH), torch.randn(WIDTH, 2048)
    product = torch.empty(2048, 2048)
    best = min(_seconds(lambda: torch.matmul(left, right, out=product)) for _ in range(30))
    operations = 2 * WIDTH * 2048**2
    return {"gflops": operations / best / 1e9, "floor_s": 2 * num_rows**2 * WIDTH / (operations / best)}


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_502)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spread", type=float, default=4.0, help="noise around each class centre; 1.5 is easy, 4 is hard")
    parser.add_argument("--only", choices=CALCULATORS, help="measure this one alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run-one", choices=CALCULATORS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_one:
        print(json.dumps(run_one(options.run_one, options.rows, options.spread)))
        return
    answer: dict[str, Any] = {"rows": options.rows, "width": WIDTH, "spread": options.spread, "floor": floor(options.rows), "runs": {}}
    for name in [options.only] if options.only else CALCULATORS:
        if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
            print(f"{name} is not installed, so it is left out: pip install -r benchmarks/requirements.txt", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--run-one", name, "--rows", str(options.rows), "--spread", str(options.spread)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(options.repeats)]
        walls = sorted(run["wall_s"] for run in runs)
        answer["runs"][name] = {
            "median_wall_s": statistics.median(walls),
            "least_wall_s": walls[0],
            "most_wall_s": walls[-1],
            "median_cpu_s": statistics.median(run["cpu_s"] for run in runs),
            "peak_above_bytes": max(run["peak_above_bytes"] for run in runs),
            "share_of_floor": answer["floor"]["floor_s"] / statistics.median(walls),
            "num_threads": runs[0]["num_threads"],
            "metrics": runs[0]["metrics"],
        }
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def as_text(answer: dict[str, Any]) -> str:
    speed, runs = answer["floor"], answer["runs"]
    ours = runs.get("sightline", {}).get("median_wall_s")
    rows = [
        [
            name,
            f"{run['median_wall_s']:.1f} ({run['least_wall_s']:.1f} to {run['most_wall_s']:.1f})",
            f"{run['median_wall_s'] / ours:.2f}" if ours else "",
            f"{run['median_cpu_s']:.1f}",
            f"{run['share_of_floor']:.0%}",
            f"{run['peak_above_bytes'] / 2**30:.2f}",
            f"{run['metrics']['recall@1']:.6f}",
        ]
        for name, run in runs.items()
    ]
    columns = [
        "calculator",
        "median s (least to most)",
        "times ours",
        "processor s",
        "of the product's speed",
        "peak GiB above the vectors",
        "recall@1",
    ]
    head = f"{answer['rows']:,} x {answer['width']}; the product alone takes {speed['floor_s']:.1f} s at {speed['gflops']:.0f} GFLOP/s"
    return f"{head}\n\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
