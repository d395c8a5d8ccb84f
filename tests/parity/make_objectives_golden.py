"""Make golden/irt_objectives.json: what other people's code answers for normalised softmax and SNCA. Not part of the test run.

    python tests/parity/make_objectives_golden.py --snca CHECKOUT

It needs pytorch-metric-learning and a checkout of microsoft/snca.pytorch. Inputs are stored beside the answers, so the test depends on
no random generator. Everything is float64; gradients are with respect to the embeddings before they are normalised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

SEED = 20181130
NUM_STEPS, BATCH, DIM, NUM_IMAGES, NUM_CLASSES = 4, 6, 8, 15, 5
TEMPERATURES = (0.05, 0.2)
MEMORY_MOMENTUM = 0.5
GOLDEN = Path(__file__).parent / "golden" / "irt_objectives.json"


def made_inputs() -> dict[str, torch.Tensor]:
    """Return embeddings [4, 6, 8], the rows [4, 6] of the 15 images they are of, the images' labels [15], and where proxies and memory begin.

    The last image has no other of its class.
    """
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(NUM_IMAGES) % (NUM_CLASSES - 1)
    labels[-1] = NUM_CLASSES - 1
    centres = torch.randn(NUM_CLASSES, DIM, generator=generator, dtype=torch.float64)
    rows = torch.stack([torch.randperm(NUM_IMAGES, generator=generator)[:BATCH] for _ in range(NUM_STEPS)])
    rows[1, 0] = NUM_IMAGES - 1
    noise = torch.randn(NUM_STEPS, BATCH, DIM, generator=generator, dtype=torch.float64)
    return {
        "embeddings": 0.7 * centres[labels[rows]] + noise,
        "rows": rows,
        "labels": labels,
        "proxies": torch.randn(NUM_CLASSES, DIM, generator=generator, dtype=torch.float64),
        "memory": F.normalize(torch.randn(NUM_IMAGES, DIM, generator=generator, dtype=torch.float64)),
    }


def normalised_softmax(made: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return pytorch-metric-learning's normalised softmax of the first batch, with the gradients of embeddings and proxies."""
    import pytorch_metric_learning
    from pytorch_metric_learning.losses import NormalizedSoftmaxLoss

    answers = []
    for temperature in TEMPERATURES:
        criterion = NormalizedSoftmaxLoss(NUM_CLASSES, DIM, temperature=temperature)
        criterion.W.data = made["proxies"].T.clone()
        leaf = made["embeddings"][0].clone().requires_grad_()
        value = criterion(leaf, made["labels"][made["rows"][0]])
        value.backward()
        answers.append(
            {
                "temperature": temperature,
                "value": value.item(),
                "gradient": leaf.grad.tolist(),
                "proxy_gradient": criterion.W.grad.T.tolist(),
            }
        )
    return {"origin": f"pytorch-metric-learning {pytorch_metric_learning.__version__}", "answers": answers}


def snca(made: dict[str, torch.Tensor], checkout: Path) -> dict[str, Any]:
    """Return the published SNCA's loss, gradient and memory after each of the steps, at the first temperature."""
    sys.path.insert(0, str(checkout))
    from lib.LinearAverage import LinearAverage
    from lib.NCA import NCACrossEntropy

    similarities = LinearAverage(DIM, NUM_IMAGES)
    similarities.memory = made["memory"].clone()
    similarities.params = torch.tensor([TEMPERATURES[0], MEMORY_MOMENTUM], dtype=torch.float64)
    criterion = NCACrossEntropy(made["labels"])
    steps = []
    for raw, rows in zip(made["embeddings"], made["rows"], strict=True):
        leaf = raw.clone().requires_grad_()
        value = criterion(similarities(F.normalize(leaf), rows), rows)
        value.backward()  # which moves the memory
        steps.append({"value": value.item(), "gradient": leaf.grad.tolist(), "memory": similarities.memory.tolist()})
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "origin": f"github microsoft/snca.pytorch {commit}",
        "temperature": TEMPERATURES[0],
        "memory_momentum": MEMORY_MOMENTUM,
        "steps": steps,
    }


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snca", type=Path, required=True, help="checkout of microsoft/snca.pytorch")
    arguments = parser.parse_args()
    made = made_inputs()
    golden = {
        "seed": SEED,
        "made": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        **{name: value.tolist() for name, value in made.items()},
        "normalised_softmax": normalised_softmax(made),
        "snca": snca(made, arguments.snca),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
