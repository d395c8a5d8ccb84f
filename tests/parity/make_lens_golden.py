"""Make golden/lens.json with the authors' alignment and uniformity, scikit-learn's PCA and SciPy's skewness; not run in CI.

    python tests/parity/make_lens_golden.py ALIGN_UNIFORM

ALIGN_UNIFORM is a checkout of github.com/SsnL/align_uniform.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "lens.json"
COMMIT = "e256d476ddbe04873dc15a8f893d4443d1f81671"
NUM_NEIGHBOURS = 5


def inputs(seed: int) -> tuple[Any, Any]:
    """Return 200 unit vectors of 12 numbers, longer in some directions, and their 15 classes."""
    generator = np.random.RandomState(seed)  # its stream is frozen for good, unlike default_rng's
    labels = generator.randint(0, 15, 200)
    vectors = (generator.randn(15, 12)[labels] + generator.randn(200, 12)) * np.linspace(2.0, 0.2, 12) + 0.3 * seed
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def reference(seed: int) -> dict[str, Any]:
    import torch
    from align_uniform import align_loss, uniform_loss
    from scipy.stats import skew
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    vectors, labels = inputs(seed)
    exact = torch.from_numpy(vectors).double()
    left, right = np.triu_indices(len(vectors), 1)
    positive = labels[left] == labels[right]
    neighbours = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit(vectors.astype(np.float64)).kneighbors(return_distance=False)
    return {
        "alignment": align_loss(exact[left[positive]], exact[right[positive]]).item(),
        "uniformity": uniform_loss(exact).item(),
        "energy": np.cumsum(PCA().fit(vectors.astype(np.float64)).explained_variance_ratio_).tolist(),
        "hubness": float(skew(np.bincount(neighbours.ravel(), minlength=len(vectors)))),
    }


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    cases = {str(seed): reference(seed) for seed in range(3)}
    packages = {name: importlib.metadata.version(name) for name in ("torch", "scikit-learn", "scipy")}
    origin = {"align_uniform": f"github.com/SsnL/align_uniform, align_uniform/__init__.py at {COMMIT}", **packages}
    GOLDEN.write_text(json.dumps({"origin": origin, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(GOLDEN)


if __name__ == "__main__":
    main()
