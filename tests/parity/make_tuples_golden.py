"""Make golden/tuples_cirtorch.json: what cirtorch mines for an epoch, and its contrastive loss. Not part of the test run.

    python tests/parity/make_tuples_golden.py --cirtorch CHECKOUT

It needs a checkout of filipradenovic/cnnimageretrieval-pytorch, whose own create_epoch_tuples and contrastive_loss run on made vectors:
files, loaders and the GPU are stood in for. Inputs are stored beside the answers, so the test depends on no random generator.
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

SEED = 20210210
NUM_IMAGES, NUM_CLUSTERS, DIM, NUM_NEGATIVES = 60, 12, 8, 5
NUM_QUERIES, POOL = 14, 45
MARGINS = (0.7, 0.85, 1.2)  # the default of its code, the value trained with, one that most negatives are under
GOLDEN = Path(__file__).parent / "golden" / "tuples_cirtorch.json"


class GivenNet:
    """A network whose input is already its descriptor."""

    meta = {"outputdim": DIM}  # noqa: RUF012

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return vector

    def cuda(self) -> None: ...

    def eval(self) -> None: ...

    def meta_repr(self) -> str:
        return "given vectors"


def made_vectors() -> tuple[torch.Tensor, list[int]]:
    """Return unit vectors [60, 8], loosely clustered, and the cluster of each."""
    generator = torch.Generator().manual_seed(SEED)
    clusters = torch.arange(NUM_IMAGES) % NUM_CLUSTERS
    centres = torch.randn(NUM_CLUSTERS, DIM, generator=generator)
    vectors = centres[clusters] + torch.randn(NUM_IMAGES, DIM, generator=generator)
    return F.normalize(vectors, dim=1), clusters.tolist()


def mined(vectors: torch.Tensor, clusters: list[int]) -> dict[str, Any]:
    """Return what create_epoch_tuples draws and mines, and the average distance it reports."""
    from cirtorch.datasets import traindataset

    traindataset.ImagesFromList = lambda images, **_: images
    torch.utils.data.DataLoader = lambda images, **_: images
    torch.Tensor.cuda = lambda self: self
    drawn: list[torch.Tensor] = []
    permuted = torch.randperm
    torch.randperm = lambda num: drawn.append(permuted(num)) or drawn[-1]  # type: ignore[func-returns-value]
    try:
        dataset = object.__new__(traindataset.TuplesDataset)
        pool = [(row, row + NUM_CLUSTERS) for row in range(NUM_IMAGES - NUM_CLUSTERS)]
        dataset.images, dataset.clusters = list(vectors), clusters
        dataset.qpool, dataset.ppool = map(list, zip(*pool, strict=True))
        dataset.qsize, dataset.poolsize, dataset.nnum = NUM_QUERIES, POOL, NUM_NEGATIVES
        dataset.imsize = dataset.transform = None
        dataset.name, dataset.mode, dataset.print_freq = "made", "train", 1000
        torch.manual_seed(SEED)
        distance = dataset.create_epoch_tuples(GivenNet())
    finally:
        torch.randperm = permuted
    return {
        "pool": drawn[1][:POOL].tolist(),
        "tuples": [
            [int(query), int(positive), *map(int, negatives)]
            for query, positive, negatives in zip(dataset.qidxs, dataset.pidxs, dataset.nidxs, strict=True)
        ],
        "negative_distance": distance,
    }


def losses(vectors: torch.Tensor, tuples: list[list[int]]) -> list[dict[str, Any]]:
    """Return cirtorch's contrastive loss of all tuples and its gradient with respect to the vectors before they are normalised."""
    from cirtorch.layers.functional import contrastive_loss

    rows = torch.tensor(tuples).flatten()
    labels = torch.tensor([-1, 1] + [0] * NUM_NEGATIVES).repeat(len(tuples))
    answers = []
    for margin in MARGINS:
        raw = vectors.double()[rows].clone().requires_grad_()
        value = contrastive_loss(F.normalize(raw).T, labels, margin=margin)
        value.backward()
        answers.append({"margin": margin, "value": value.item(), "gradient": raw.grad.tolist()})
    return answers


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cirtorch", type=Path, required=True, help="checkout of filipradenovic/cnnimageretrieval-pytorch")
    checkout = parser.parse_args().cirtorch
    sys.path.insert(0, str(checkout))
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    vectors, clusters = made_vectors()
    epoch = mined(vectors, clusters)
    golden = {
        "origin": f"github filipradenovic/cnnimageretrieval-pytorch {commit}",
        "seed": SEED,
        "made": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "vectors": vectors.tolist(),
        "clusters": clusters,
        **epoch,
        "losses": losses(vectors, epoch["tuples"][:5]),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
