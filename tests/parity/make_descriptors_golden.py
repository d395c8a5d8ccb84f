"""Make golden/descriptors.json: what cirtorch answers for whitening, R-MAC, GeM and multi-scale extraction. Not part of the test run.

    python tests/parity/make_descriptors_golden.py --cirtorch CHECKOUT

It needs a checkout of filipradenovic/cnnimageretrieval-pytorch. Inputs are stored beside the answers, so the test depends on no
random generator. Of a whitening the similarities are kept, since its matrix is free in sign and order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SEED = 20160408
NUM, DIM, NUM_PAIRS = 60, 10, 90
DIMS = (10, 4)
GRIDS = ((1, 1), (1, 5), (3, 4), (7, 7), (5, 9), (14, 14), (20, 13))
EXTRACTIONS: tuple[tuple[str, tuple[float, ...], float], ...] = (
    ("gem", (1.0,), 1.0),
    ("gem", (1.0, 0.7071, 0.5), 1.0),
    ("gem", (1.0, 0.7071, 0.5), 3.0),
    ("rmac", (1.4142, 1.0, 0.7071), 1.0),
    ("mac", (0.5, 1.0), 1.0),
)
GOLDEN = Path(__file__).parent / "golden" / "descriptors.json"


def whitenings(random: np.random.Generator) -> dict[str, Any]:
    """Return the similarities of all vectors under both whitenings at several widths."""
    from cirtorch.utils.whiten import pcawhitenlearn, whitenapply, whitenlearn

    raw = random.normal(size=(NUM, DIM)) * np.linspace(2.0, 0.2, DIM) + random.normal(size=DIM)
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).round(6)
    pairs = random.integers(0, NUM, (NUM_PAIRS, 2))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T  # [D, M], as cirtorch has them
    learned = {"pca": pcawhitenlearn(unit), "supervised": whitenlearn(unit, pairs[:, 0], pairs[:, 1])}
    answers = []
    for kind, (mean, projection) in learned.items():
        for dim in DIMS:
            found = whitenapply(unit, mean, projection, dim).real
            found /= np.linalg.norm(found, axis=0)  # its 1e-6 beside the length shortens a vector near the mean by 4e-6
            answers.append({"whiten": kind, "dim": dim, "similarity": (found.T @ found)[:12].tolist()})
    return {"vectors": vectors.tolist(), "pairs": pairs.tolist(), "answers": answers}


def poolings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return R-MAC and GeM of maps with four channels, some entries negative."""
    from cirtorch.layers.functional import gem, rmac

    found = []
    for rows, columns in GRIDS:
        features = random.normal(size=(4, rows, columns)).round(4) + 0.5
        given = torch.tensor(features)[None]
        found.append({"features": features.tolist(), "rmac": rmac(given).flatten().tolist(), "gem": gem(given, 3.0).flatten().tolist()})
    return found


def extractions(random: np.random.Generator) -> dict[str, Any]:
    """Return multi-scale descriptors of one image by a network of one convolution."""
    from cirtorch.layers.pooling import MAC, RMAC, GeM
    from cirtorch.networks.imageretrievalnet import ImageRetrievalNet, extract_ms

    weight = random.normal(size=(6, 3, 3, 3)).round(4)
    image = random.normal(size=(3, 24, 20)).round(4)
    convolution = nn.Conv2d(3, 6, 3, stride=2, bias=False)
    convolution.weight.data = torch.tensor(weight, dtype=torch.float32)
    answers = []
    for pooling, scales, power in EXTRACTIONS:
        layer = {"gem": GeM, "rmac": RMAC, "mac": MAC}[pooling]()
        net = ImageRetrievalNet([convolution, nn.ReLU()], None, layer, None, {"outputdim": 6}).eval()
        with torch.no_grad():
            found = extract_ms(net, torch.tensor(image, dtype=torch.float32)[None], list(scales), power)
        answers.append({"pooling": pooling, "scales": scales, "p": power, "descriptor": found.tolist()})
    return {"weight": weight.tolist(), "image": image.tolist(), "answers": answers}


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cirtorch", type=Path, required=True, help="checkout of filipradenovic/cnnimageretrieval-pytorch")
    checkout = parser.parse_args().cirtorch
    sys.path.insert(0, str(checkout))
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    random = np.random.default_rng(SEED)
    golden = {
        "origin": f"github filipradenovic/cnnimageretrieval-pytorch {commit}",
        "seed": SEED,
        "made": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "whitening": whitenings(random),
        "pooling": poolings(random),
        "multiscale": extractions(random),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
