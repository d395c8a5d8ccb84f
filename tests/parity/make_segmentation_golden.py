"""Make golden/segmentation.json: what open-hummingbird-eval does with given features and masks. Not part of the test run.

    python tests/parity/make_segmentation_golden.py --hummingbird CHECKOUT

A checkout of vpariza/open-hummingbird-eval (2.0.0): run here, copied nowhere. torch is needed. Of its class only the methods named below are
run: the file imports a whole training stack, and its search needs a GPU; the neighbours it asks for are found here by exact inner products.

What is recorded: the label shares of each patch of two masks; which patches a bounded memory takes of each, with the chance that was drawn;
the class scores [Q, C] that queries take from a memory.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

GOLDEN = Path(__file__).parent / "golden" / "segmentation.json"
SEED = 20230605
GRID, PATCH_PX, DIM, NUM_CLASSES, NUM_SAMPLED = 6, 4, 16, 5, 12
NUM_MEMORY, NUM_QUERIES, K = 150, 20, 30
METHODS = ("_sample_features", "_patchify_gt", "_cross_attention", "_find_nearest_key_to_query")


def inputs() -> dict[str, Any]:
    """Return masks int64 [2, 24, 24] in blobs, and a memory of features in loose classes with label shares, and queries."""
    generator = np.random.RandomState(SEED)  # its stream is frozen for good, unlike default_rng's
    coarse = generator.randint(0, NUM_CLASSES, (2, 8, 8)) * (generator.rand(2, 8, 8) < 0.6)
    masks = coarse.repeat(3, axis=1).repeat(3, axis=2)
    centres = generator.randn(NUM_CLASSES, DIM)
    classes = generator.randint(0, NUM_CLASSES, NUM_MEMORY + NUM_QUERIES)
    vectors = centres[classes] + 0.8 * generator.randn(len(classes), DIM)
    shares = generator.rand(NUM_MEMORY, NUM_CLASSES) * 0.4 + np.eye(NUM_CLASSES)[classes[:NUM_MEMORY]]
    memory = vectors[:NUM_MEMORY] / np.linalg.norm(vectors[:NUM_MEMORY], axis=1, keepdims=True)
    return {
        "masks": masks,
        "memory": memory.astype(np.float32),
        "labels": (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32),
        "queries": vectors[NUM_MEMORY:].astype(np.float32),
    }


def theirs(checkout: Path) -> dict[str, Any]:
    """Return the methods of their evaluation as plain functions of ``self``."""
    file = checkout / "hbird" / "hbird_eval.py"
    found = next(
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "HbirdEvaluation"
    )
    body: list[ast.stmt] = [ast.parse("from __future__ import annotations").body[0]]
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name in METHODS:
            node.decorator_list = []
            body.append(node)
    space: dict[str, Any] = {"torch": torch, "F": F}
    exec(compile(ast.Module(body=body, type_ignores=[]), str(file), "exec"), space)
    return {name: space[name] for name in METHODS}


class Exact:
    """Their search's one method, by exact inner products."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory

    def find_nearest_neighbors(self, queries: torch.Tensor) -> tuple[Any, Any]:
        similarity, rows = (queries @ self.memory.T).topk(K, dim=1)
        return rows.numpy(), similarity.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hummingbird", type=Path, required=True)
    parser.add_argument("--commit", help="of the checkout, where it is not a git work tree")
    arguments = parser.parse_args()
    commit = (
        arguments.commit
        or subprocess.run(
            ["git", "-C", arguments.hummingbird, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    methods, given = theirs(arguments.hummingbird), {name: torch.from_numpy(values) for name, values in inputs().items()}

    patches = methods["_patchify_gt"](given["masks"][:, None], PATCH_PX)
    shares = F.one_hot(patches, num_classes=NUM_CLASSES).float().mean(dim=3).flatten(1, 2)
    torch.manual_seed(SEED)
    chance = torch.rand(2 * GRID * GRID)
    torch.manual_seed(SEED)  # theirs draws the same numbers: every patch shows a class
    _, sampled = methods["_sample_features"](
        SimpleNamespace(num_sampled_features=NUM_SAMPLED), torch.zeros(2, GRID * GRID, DIM), patches, NUM_CLASSES
    )
    bench = SimpleNamespace(
        n_neighbours=K, NN_algorithm=Exact(given["memory"]), feature_memory=given["memory"], label_memory=given["labels"]
    )
    keys, labels = methods["_find_nearest_key_to_query"](bench, given["queries"][None])
    scores = methods["_cross_attention"](bench, given["queries"][None], keys, labels)[0]
    golden = {
        "origin": f"vpariza/open-hummingbird-eval {commit}",
        "seed": SEED,
        "torch": torch.__version__.partition("+")[0],
        "shares": shares.tolist(),
        "chance": chance.reshape(2, -1).tolist(),
        "sampled": sampled.sort(dim=1).values.tolist(),
        "scores": [[round(value, 8) for value in row] for row in scores.tolist()],
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
