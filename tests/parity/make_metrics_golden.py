"""Make golden/metrics_pml_oml.json with the reference calculators. Needs both packages (benchmarks/requirements.txt); not run in CI.

    python tests/parity/make_metrics_golden.py

Comparable: PML's precision_at_1 (Recall@1), R-precision and MAP@R (with k="max_bin_count"); OML's CMC@K (Recall@K). Not comparable,
so not recorded: PML's mean reciprocal rank and mean average precision look no further than k; OML's precision@k divides by
min(k, number of positives), and its map@k by the hits among the first k instead of the number of positives.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "metrics_pml_oml.json"
KS = (1, 2, 5, 10)


def inputs(seed: int) -> dict[str, Any]:
    """Return 300 unit vectors of 16 numbers in 20 classes (two of them with a single image) and a split of them into query and gallery."""
    generator = np.random.RandomState(seed)  # its stream is frozen for good, unlike default_rng's
    labels = np.concatenate([[18, 19], generator.randint(0, 18, 298)])
    vectors = generator.randn(20, 16)[labels] + 1.2 * generator.randn(300, 16)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return {"vectors": vectors, "labels": labels.astype(np.int64), "is_query": generator.rand(300) < 0.3}


def pml(queries: Any, query_labels: Any, gallery: Any, gallery_labels: Any, same: bool) -> dict[str, float]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    reference = {} if same else {"reference": torch.from_numpy(gallery), "reference_labels": torch.from_numpy(gallery_labels)}
    found = calculator.get_accuracy(torch.from_numpy(queries), torch.from_numpy(query_labels), **reference)
    return {
        "recall@1": found["precision_at_1"],
        "r_precision": found["r_precision"],
        "map@r": found["mean_average_precision_at_r"],
    }


def oml(vectors: Any, labels: Any, query_rows: Any, gallery_rows: Any) -> dict[str, float]:
    import torch
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_cmc

    _, retrieved, truth = batched_knn(
        torch.from_numpy(vectors), torch.from_numpy(query_rows), torch.from_numpy(gallery_rows), max(KS), labels_gt=torch.from_numpy(labels)
    )
    kept = [place for place, positives in enumerate(truth) if len(positives)]  # OML counts a query without positives as a success
    hits = [torch.isin(retrieved[place], truth[place]) for place in kept]
    numbers = calc_cmc(hits, [len(truth[place]) for place in kept], KS)
    return {f"recall@{k}": float(values.double().mean()) for k, values in zip(KS, numbers, strict=True)}


def main() -> None:
    cases = {}
    for seed in (0, 1):
        given = inputs(seed)
        vectors, labels, is_query = given["vectors"], given["labels"], given["is_query"]
        rows = np.arange(300)
        cases[f"leave-one-out/{seed}"] = {
            "pml": pml(vectors, labels, vectors, labels, True),
            "oml": oml(vectors, labels, rows, rows),
        }
        cases[f"query-gallery/{seed}"] = {
            "pml": pml(vectors[is_query], labels[is_query], vectors[~is_query], labels[~is_query], False),
            "oml": oml(vectors, labels, rows[is_query], rows[~is_query]),
        }
    packages = ("pytorch-metric-learning", "open-metric-learning", "faiss-cpu", "torch", "numpy")
    origin = {
        "made_by": "tests/parity/make_metrics_golden.py",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "inputs": "make_metrics_golden.inputs(seed), numpy.random.RandomState",
    }
    GOLDEN.write_text(json.dumps({"origin": origin, "cases": cases}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
