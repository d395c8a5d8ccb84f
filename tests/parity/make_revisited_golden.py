"""Make golden/revisited.json with the evaluators of the benchmarks' own authors; not run in CI.

    python tests/parity/make_revisited_golden.py REVISITOP/python/evaluate.py DELF/python/datasets/google_landmarks_dataset/metrics.py

The first is github.com/filipradenovic/revisitop at be39832, the second github.com/tensorflow/models (research/delf) at e4009b2. NumPy
2.4 has no ``in1d``, which the first calls; ``isin`` stands in for it. Neither knows of ties: the order that it gets puts negatives first.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "revisited.json"
NUM_QUERIES, NUM_GALLERY, LISTED = 14, 150, 20
SEEDS = (0, 1)
KAPPAS = (1, 5, 10)


def inputs(seed: int) -> dict[str, Any]:
    """Return vectors of small whole numbers, whose products tie often, and judgements with junk, some without any positive or any junk."""
    generator = np.random.RandomState(seed)  # its stream is frozen for good, unlike default_rng's
    queries = generator.randint(-3, 4, (NUM_QUERIES, 4)).astype(np.float32)
    gallery = generator.randint(-3, 4, (NUM_GALLERY, 4)).astype(np.float32)
    positives, junk = [], []
    for query in range(NUM_QUERIES):
        shuffled = generator.permutation(NUM_GALLERY)
        num_positives = 0 if query in (3, 7) else 120 if query == 5 else generator.randint(1, 12)
        num_junk = 0 if query % 4 == 0 else generator.randint(0, 16)
        positives.append(np.sort(shuffled[:num_positives]).astype(np.int64))
        if query != 5:  # half of the positives are easy
            gallery[positives[-1][::2]] = queries[query] + generator.randint(-1, 2, (len(positives[-1][::2]), 4))
        junk.append(np.sort(shuffled[num_positives : num_positives + num_junk]).astype(np.int64))
    return {"queries": queries, "gallery": gallery, "positives": positives, "junk": junk}


def order(given: dict[str, Any]) -> Any:
    """Return each query's gallery in falling similarity, negatives before positives where they tie: [Q, G]."""
    lists = []
    for query, positives in zip(given["queries"], given["positives"], strict=True):
        similarity = given["gallery"] @ query
        lists.append(np.lexsort((np.isin(np.arange(NUM_GALLERY), positives), -similarity)))
    return np.stack(lists)


def revisitop(evaluator: Any, given: dict[str, Any], listed: int) -> dict[str, Any]:
    ranks = order(given)[:, :listed].T
    truth = [{"ok": ok, "junk": junk} for ok, junk in zip(given["positives"], given["junk"], strict=True)]
    found: dict[str, Any] = {"ap": [], "precision": []}
    for query, one in enumerate(truth):
        try:
            _, ap, _, precision = evaluator.compute_map(ranks[:, query : query + 1], [one], KAPPAS)
            found["ap"].append(None if np.isnan(ap[0]) else float(ap[0]))
            found["precision"].append(None if np.isnan(precision[0]).any() else precision[0].tolist())
        except (ValueError, ZeroDivisionError):  # positives of which the list holds none, or no positives at all, alone
            found["ap"].append("none listed" if len(one["ok"]) else None)
            found["precision"].append("none listed" if len(one["ok"]) else None)
    if "none listed" not in found["ap"]:
        mean, _, precisions, _ = evaluator.compute_map(ranks, truth, KAPPAS)
        found |= {"map": float(mean), "mp": precisions.tolist()}
    return found


def delf(evaluator: Any, given: dict[str, Any]) -> float:
    truth = {str(query): rows.tolist() for query, rows in enumerate(given["positives"]) if len(rows)}
    lists = order(given)
    return float(evaluator.MeanAveragePrecision({query: lists[int(query)].tolist() for query in truth}, truth, 100))


def module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def main() -> None:
    np.in1d = np.isin  # type: ignore[attr-defined]
    ours, google = (module(path) for path in sys.argv[1:])
    cases: dict[str, Any] = {}
    for seed in SEEDS:
        given = inputs(seed)
        cases[f"whole/{seed}"] = revisitop(ours, given, NUM_GALLERY)
        cases[f"cut off/{seed}"] = revisitop(ours, given, LISTED)
        cases[f"map@100/{seed}"] = delf(google, given)
    origin = {
        "made_by": "tests/parity/make_revisited_golden.py",
        "revisitop": "github.com/filipradenovic/revisitop python/evaluate.py compute_map at be39832, in1d as isin",
        "delf": "github.com/tensorflow/models research/delf google_landmarks_dataset/metrics.py MeanAveragePrecision at e4009b2",
        "inputs": "make_revisited_golden.inputs(seed), numpy.random.RandomState",
        "numpy": np.__version__,
    }
    GOLDEN.write_text(json.dumps({"origin": origin, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
