"""Make golden/positions.json: positions resized as the JAX original of ViT does, by scipy. Not part of the test run.

    python tests/parity/make_positions_golden.py

scipy is needed: google-research/vision_transformer (vit_jax/checkpoint.py, load_pretrained) calls its ndimage.zoom with order=1 on the square
grid of patches and leaves the class token as it is. Recorded: the result for a larger, a smaller and a single-patch-wider grid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "positions.json"
COMMIT = "16fc24d2734f34b0a7b16212a4386c41fe662cb4"
SEED, SIDE, DIM = 20210603, 4, 3
SIDES = (6, 3, 5)


def inputs() -> Any:
    """Return a table of positions float32 [1, 1 + 16, 3], the class token's first."""
    return np.random.RandomState(SEED).randn(1, 1 + SIDE * SIDE, DIM).astype(np.float32)  # its stream is frozen, unlike default_rng's


def main() -> None:
    import scipy
    from scipy import ndimage

    table = inputs()
    grid = table[0, 1:].reshape(SIDE, SIDE, DIM)
    resized = {
        str(side): np.concatenate([table[0, :1], ndimage.zoom(grid, (side / SIDE, side / SIDE, 1), order=1).reshape(-1, DIM)]).tolist()
        for side in SIDES
    }
    origin = {"origin": f"scipy.ndimage.zoom, scipy {scipy.__version__}", "called by": f"google-research/vision_transformer {COMMIT}"}
    GOLDEN.write_text(json.dumps({**origin, "seed": SEED, "resized": resized}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
