"""Make golden/layers.json with the authors' CKA and attention rollout, and Keras's attention distance; not run in CI.

    python tests/parity/make_layers_golden.py DEMO ATTENTION_GRAPH PROBING_VITS

DEMO is representation_similarity/Demo.ipynb of github.com/google-research/google-research, ATTENTION_GRAPH is attention_graph_util.py of
github.com/samiraabnar/attention_flow, PROBING_VITS is examples/vision/probing_vits.py of github.com/keras-team/keras-io. Only the
functions named below are taken from them, so none of what the files import is needed.

Keras leaves attention on the class token out and lets the rest sum to less than 1; it is given attention that has none there.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "layers.json"
ORIGIN = {
    "cka": "github.com/google-research/google-research, representation_similarity/Demo.ipynb at 10bf941a5a0625bf27bb8443aa849e9b48fdd5f9",
    "rollout": "github.com/samiraabnar/attention_flow, attention_graph_util.py at 8044f5312f4ced18d4cf66ffe28f6c045629b4ed",
    "distance": "github.com/keras-team/keras-io, examples/vision/probing_vits.py at 0427d78e54d20c68499059490a636ad91fa5aa3c",
}
SIDE, PATCH_PX = 3, 16


def features(seed: int) -> tuple[Any, Any]:
    """Return features of 100 images from two layers, the second the first with noise; of seed 1337, those of the authors' notebook."""
    generator = np.random.RandomState(seed)  # its stream is frozen for good, unlike default_rng's
    one = generator.randn(100, 10)
    return one, generator.randn(100, 10) + one


def queries_and_keys(seed: int) -> tuple[Any, Any]:
    """Return queries and keys ``[2 layers, 3 heads, 1 + SIDE^2 tokens, 8]``."""
    generator = np.random.RandomState(seed)
    shape = 2, 3, 1 + SIDE**2, 8
    return 2 * generator.randn(*shape), generator.randn(*shape)


def softmax(logits: Any) -> Any:
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def functions(source: str, *names: str) -> dict[str, Any]:
    """Return the named functions of a Python source, which see NumPy and each other."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name in names]
    space: dict[str, Any] = {"np": np}
    exec(compile(ast.Module(found, []), "reference", "exec"), space)
    return {name: space[name] for name in names}


def reference(seed: int, similar: dict[str, Any], graph: dict[str, Any], keras: dict[str, Any]) -> dict[str, Any]:
    one, other = (similar["gram_linear"](part) for part in features(seed))
    queries, keys = queries_and_keys(seed)
    logits = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    without = logits.copy()
    without[..., 0] = -np.inf
    return {
        "cka": float(similar["cka"](one, other, debiased=True)),
        "rollout": graph["compute_joint_attention"](softmax(logits).mean(axis=1))[-1].tolist(),
        "distance_px": keras["compute_mean_attention_dist"](PATCH_PX, softmax(without), "vit").tolist(),
    }


def main() -> None:
    demo, graph, keras = (Path(path).read_text(encoding="utf-8") for path in sys.argv[1:])
    code = next("".join(cell["source"]) for cell in json.loads(demo)["cells"] if "def cka(" in "".join(cell["source"]))
    sides = (
        functions(code, "gram_linear", "center_gram", "cka"),
        functions(graph, "compute_joint_attention"),
        functions(keras, "compute_distance_matrix", "compute_mean_attention_dist"),
    )
    cases = {str(seed): reference(seed, *sides) for seed in (0, 1, 1337)}
    GOLDEN.write_text(json.dumps({"origin": ORIGIN, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(GOLDEN)


if __name__ == "__main__":
    main()
