"""Make golden/irt_losses.json: what other people's code answers for the losses of IRT. Not part of the test run.

    python tests/parity/make_irt_golden.py --xbm CHECKOUT --dinov2 CHECKOUT

It needs pytorch-metric-learning, and checkouts of msight-tech/research-xbm (CC-BY-NC: run here, copied nowhere) and
facebookresearch/dinov2. Inputs are stored beside the answers, so the test depends on no random generator.
Everything is float64 but KoLeo's second entry; gradients are with respect to the embeddings before they are normalised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

SEED = 20210210
NUM_STEPS, BATCH, DIM, NUM_CLASSES = 5, 16, 8, 4
MEMORY = 56  # not a multiple of the batch: it wraps in the middle of one
MARGINS = (0.1, 0.5, 0.85)
GOLDEN = Path(__file__).parent / "golden" / "irt_losses.json"

Loss = Callable[[torch.Tensor], torch.Tensor]


def made_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings [5, 16, 8], loosely clustered by class, and their labels [5, 16] (from 1: a zero label means empty to XBM)."""
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(NUM_CLASSES, DIM, generator=generator, dtype=torch.float64)
    labels = torch.arange(BATCH).remainder(NUM_CLASSES).add(1).repeat(NUM_STEPS, 1)
    noise = torch.randn(NUM_STEPS, BATCH, DIM, generator=generator, dtype=torch.float64)
    return 0.7 * centres[labels - 1] + noise, labels


def answer(loss: Loss, embeddings: torch.Tensor) -> dict[str, Any]:
    """Return the loss and its gradient, as plain numbers."""
    leaf = embeddings.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return {"value": value.item(), "gradient": leaf.grad.tolist()}


def metric_learning(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return pytorch-metric-learning's contrastive loss at several margins, and with its memory step by step."""
    import pytorch_metric_learning
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

    def contrastive(margin: float) -> Any:
        return ContrastiveLoss(pos_margin=1, neg_margin=margin, distance=CosineSimilarity())

    memory = CrossBatchMemory(contrastive(0.5), embedding_size=DIM, memory_size=MEMORY)
    return {
        "origin": f"pytorch-metric-learning {pytorch_metric_learning.__version__}",
        "batch": [{"margin": margin} | answer(lambda z, m=margin: contrastive(m)(z, labels[0]), embeddings[0]) for margin in MARGINS],
        "memory": [answer(lambda z, y=y: memory(z, y), batch) for batch, y in zip(embeddings, labels, strict=True)],
    }


def cross_batch_memory(embeddings: torch.Tensor, labels: torch.Tensor, checkout: Path) -> dict[str, Any]:
    """Return the published memory's batch and memory losses step by step, and how many negatives lay over the margin in each.

    Its memory is larger than all steps together: when it wraps it overwrites its newest entries, which is not a queue.
    """
    sys.path.insert(0, str(checkout))
    torch.Tensor.cuda = lambda self: self  # the memory is built on a GPU whatever the machine
    from ret_benchmark.losses.contrastive_loss import ContrastiveLoss
    from ret_benchmark.modeling.xbm import XBM

    criterion = ContrastiveLoss(None)
    memory = XBM(SimpleNamespace(XBM=SimpleNamespace(SIZE=NUM_STEPS * BATCH + 1)))
    memory.feats = torch.zeros(memory.K, DIM, dtype=torch.float64)
    steps = []
    for raw, y in zip(embeddings, labels, strict=True):
        memory.enqueue_dequeue(F.normalize(raw), y)
        keys, key_labels = (part.clone() for part in memory.get())
        in_batch = answer(lambda raw, y=y: criterion(F.normalize(raw), y, F.normalize(raw), y), raw)
        in_memory = answer(lambda raw, y=y, keys=keys, of=key_labels: criterion(F.normalize(raw), y, keys, of), raw)
        in_batch["num_negatives"] = count_negatives(raw, y, F.normalize(raw), y, criterion.margin)
        in_memory["num_negatives"] = count_negatives(raw, y, keys, key_labels, criterion.margin)
        steps.append({"batch": in_batch, "memory": in_memory})
    return {"origin": origin(checkout, "msight-tech/research-xbm"), "margin": criterion.margin, "steps": steps}


def count_negatives(raw: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, key_labels: torch.Tensor, margin: float) -> int:
    """Return how many negative pairs are more similar than the margin."""
    return int(((F.normalize(raw) @ keys.T > margin) & (labels[:, None] != key_labels[None])).sum())


def koleo(embeddings: torch.Tensor, checkout: Path) -> dict[str, Any]:
    """Return DINOv2's KoLeo in float64 and in float32."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("koleo_loss", checkout / "dinov2" / "loss" / "koleo_loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.KoLeoLoss()
    return {
        "origin": origin(checkout, "facebookresearch/dinov2"),
        "float64": [answer(loss, batch) for batch in embeddings],
        "float32": [answer(loss, batch.float()) for batch in embeddings],
    }


def origin(checkout: Path, repository: str) -> str:
    """Return the repository and the commit that a checkout is at."""
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return f"github {repository} {commit}"


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xbm", type=Path, required=True, help="checkout of msight-tech/research-xbm")
    parser.add_argument("--dinov2", type=Path, required=True, help="checkout of facebookresearch/dinov2")
    arguments = parser.parse_args()
    embeddings, labels = made_inputs()
    golden = {
        "seed": SEED,
        "made": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "embeddings": embeddings.tolist(),
        "labels": labels.tolist(),
        "memory_size": MEMORY,
        "metric_learning": metric_learning(embeddings, labels),
        "cross_batch_memory": cross_batch_memory(embeddings, labels, arguments.xbm),
        "koleo": koleo(embeddings, arguments.dinov2),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
