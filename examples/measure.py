"""Measure descriptors of your own making: vectors and labels in, the numbers of the papers out.

python examples/measure.py vectors.npy labels.npy
"""

from __future__ import annotations

import sys

import numpy as np

from sightline.evaluation import metrics
from sightline.search.neighbours import nearest
from sightline.search.rerank import parse


def main(vectors_file: str, labels_file: str) -> None:
    vectors = np.load(vectors_file).astype(np.float32)  # [M, D]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.load(labels_file).astype(np.int64)  # [M]

    # Leave-one-out: every image is a query, all others are its gallery. No M x M matrix is built.
    ranks = metrics.positive_ranks(vectors, labels)
    for name, value in metrics.summarise(ranks, labels).metrics.items():
        print(f"{name:12} {value:.4f}")

    # Re-ranking: the 100 nearest of each image in another order.
    rows = np.arange(len(vectors))
    ranking = nearest(vectors, vectors, min(100, len(vectors) - 1), rows)
    reranked = parse("k-reciprocal,k1=10,k2=3")(ranking, vectors, vectors, rows)
    first = labels[reranked.rows[:, 0]] == labels
    print(f"recall@1 after re-ranking {first.mean():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
