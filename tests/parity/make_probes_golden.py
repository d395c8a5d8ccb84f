"""Make golden/probes.json: what the ViT authors' few-shot evaluator and DINO's k-NN classifier answer. Not part of the test run.

    python tests/parity/make_probes_golden.py --big-vision CHECKOUT --dino CHECKOUT

Checkouts of google-research/big_vision and facebookresearch/dino: run here, copied nowhere. jax and torch are needed. Of each file only
the functions named below are run, in float64: the files import a whole training stack.

What is recorded: the test logits [Q, C] of big_vision's regression for 2 and 6 shots (fewer and more images than features), with the rows
that its draw takes; DINO's top-1 and top-5 accuracy for three K.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "probes.json"
SEED = 20210603
NUM_TRAIN, NUM_TEST, DIM, NUM_CLASSES = 150, 200, 24, 6
SHOTS, L2, KS, TEMPERATURE = (2, 6), 1024.0, (1, 5, 20), 0.07


def inputs() -> tuple[Any, Any, Any, Any]:
    """Return unit vectors float64 [M, 24] in six loose classes and their labels: train, its labels, test, its labels."""
    generator = np.random.RandomState(SEED)  # its stream is frozen for good, unlike default_rng's
    labels = generator.randint(0, NUM_CLASSES, NUM_TRAIN + NUM_TEST)
    vectors = generator.randn(NUM_CLASSES, DIM)[labels] + 1.5 * generator.randn(len(labels), DIM)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    return vectors[:NUM_TRAIN], labels[:NUM_TRAIN], vectors[NUM_TRAIN:], labels[NUM_TRAIN:]


def functions(file: Path, names: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Return some functions of a file, without their decorators, that see ``given`` and the file's constants and nothing else of it."""
    body = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            body.append(node)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            body.append(node)
    space = dict(given)
    exec(compile(ast.Module(body=body, type_ignores=[]), str(file), "exec"), space)
    return space


def few_shots(checkout: Path) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    theirs = functions(checkout / "big_vision/evaluators/fewshot_lsr.py", ("_precompute_cache",), {"jax": jax, "jnp": jnp})
    train, labels, test, _ = inputs()
    answers = {}
    for shots in SHOTS:
        random = np.random.default_rng(0)
        rows = np.concatenate([random.permutation(np.where(labels == label)[0])[:shots] for label in range(NUM_CLASSES)])
        cache = theirs["_precompute_cache"](jnp.asarray(train[rows]), jnp.asarray(labels[rows]), NUM_CLASSES)
        weight = (cache["lhs"] / (cache["eigs"] + L2)) @ cache["rhs"]  # as _eig_fewshot_acc_fn, which returns an accuracy alone
        own = np.pad(
            (test - np.asarray(cache["mean"])) / np.asarray(cache["std"]), ((0, 0), (0, 1)), constant_values=theirs["BIAS_CONSTANT"]
        )
        answers[str(shots)] = {"rows": rows.tolist(), "logits": np.round(own @ np.asarray(weight), 12).tolist()}
    return answers


def neighbours(checkout: Path) -> dict[str, Any]:
    import torch

    classify = functions(checkout / "eval_knn.py", ("knn_classifier",), {"torch": torch, "nn": torch.nn})["knn_classifier"]
    train, labels, test, truth = (torch.from_numpy(values) for values in inputs())
    return {str(k): classify(train, labels, test, truth, k, TEMPERATURE, num_classes=NUM_CLASSES) for k in KS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--big-vision", type=Path, required=True)
    parser.add_argument("--dino", type=Path, required=True)
    given = parser.parse_args()

    def commit(folder: Path) -> str:
        return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()

    golden = {
        "origin": {
            "google-research/big_vision": commit(given.big_vision),
            "facebookresearch/dino": commit(given.dino),
        },
        "seed": SEED,
        "few_shots": few_shots(given.big_vision),
        "knn_top1_top5": neighbours(given.dino),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
