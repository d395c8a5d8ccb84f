"""Does mining hard negatives take less time than embedding their pool, and does tuple training wait for its data?

    python benchmarks/mining.py [--pool 1000] [--steps 40] [--model vit_tiny_patch16_224] [--workers 2] [--repeats 5] [--json]

Mining is measured at full size, 2,000 queries in a pool of 22,000 vectors of width 384 and 551 clusters, made up and of unit length, beside
the published way: sort each query's whole list, then walk down it. Both must give the same rows. Embedding is measured on ``--pool``
photographs of 1024 x 768 (made as benchmarks/embed.py makes them) and its rate taken for the 24,000 images of an epoch. Tuple training is
that of irt/sfm120k-224 with the smaller model, from scratch, on the same files; its wait is the share of the time between two log lines
in which the model stood still for want of a batch, the epochs' mining not counted in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import head, interleaved, machine, median_ratio, seconds, table
from embed import make_photos

QUERIES, POOL, WIDTH, CLUSTERS, NEGATIVES = 2_000, 22_000, 384, 551, 5
PHOTO_PX = (1024, 768)


def made_vectors(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors loosely clustered, and the cluster of each."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    generator = np.random.default_rng(seed)
    clusters = generator.integers(0, CLUSTERS, num)
    vectors = centres[clusters] + 2 * generator.standard_normal((num, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), clusters


def sorted_and_walked(queries: np.ndarray, own: np.ndarray, pool: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the negatives the published way."""
    import torch

    lists = torch.sort(torch.from_numpy(pool) @ torch.from_numpy(queries).T, dim=0, descending=True).indices.numpy()
    rows = np.empty((len(queries), NEGATIVES), np.int64)
    for query in range(len(queries)):
        taken, found, place = {own[query]}, [], 0
        while len(found) < NEGATIVES:
            row = lists[place, query]
            if clusters[row] not in taken:
                found.append(row)
                taken.add(clusters[row])
            place += 1
        rows[query] = found
    return rows


def mining(repeats: int) -> dict[str, Any]:
    from sightline.search.mining import hardest_negatives

    (queries, own), (pool, clusters) = made_vectors(QUERIES, 1), made_vectors(POOL, 2)
    ours, theirs = (
        hardest_negatives(queries, own, pool, clusters, NEGATIVES).rows,
        sorted_and_walked(queries, own, pool, clusters),
    )
    runs = interleaved(
        {
            "ours": lambda: hardest_negatives(queries, own, pool, clusters, NEGATIVES),
            "sorted and walked": lambda: sorted_and_walked(queries, own, pool, clusters),
        },
        repeats,
    )
    return {
        "same_rows": float((ours == theirs).mean()),
        "median_s": {name: statistics.median(run.wall_s for run in taken) for name, taken in runs.items()},
        "ratio": median_ratio([run.wall_s for run in runs["sorted and walked"]], [run.wall_s for run in runs["ours"]]),
    }


def embedding(folder: Path, model: str) -> float:
    """Return images a second."""
    from sightline.data.images import BadFiles
    from sightline.data.records import read_records
    from sightline.nn.encoder import Encoder
    from sightline.recipe import ImageSpec, ModelSpec
    from sightline.search.embed import embed_records

    encoder = Encoder(ModelSpec(backbone=model, weights="random"), ImageSpec(resize="square", resize_px=224))
    records = read_records(folder)
    embed_records(encoder, records.select(np.arange(32)), BadFiles(), show=False)  # warm
    return len(records) / seconds(lambda: embed_records(encoder, records, BadFiles(), show=False))


def data_wait(manifest: Path, out: Path, options: argparse.Namespace) -> list[float]:
    """Return the share of waiting at every log line of a short training but the first, in which the loader starts."""
    from sightline.workflows import training

    settings = (
        f"dataset=auto weights=random backbone={options.model} steps={options.steps} query_size={5 * options.steps} pool_size=64 "
        f"log_every={max(1, options.steps // 5)} validation=0 workers={options.workers}"
    )
    training.train(training.named_recipe("irt/sfm120k-224", settings.split()), manifest, out)
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["data_wait"] for line in lines if "data_wait" in line][1:]


def write_manifest(folder: Path, num_photos: int) -> Path:
    """Write pairs of neighbouring photographs, four to a cluster."""
    lines = ["path,cluster,positive"]
    for row in range(num_photos // 4 * 4):
        lines.append(f"photos/{row:05}.jpg,{row // 4},photos/{row ^ 1:05}.jpg")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=1_000, help="photographs to embed and to train on, 64 at least")
    parser.add_argument("--steps", type=int, default=40, help="of tuple training")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of the training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    facts, found = machine(), mining(options.repeats)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photos(folder / "photos", *PHOTO_PX, options.pool)
        rate = embedding(folder / "photos", options.model)
        waits = data_wait(write_manifest(folder, options.pool), folder / "run", options)
    found |= {"images_per_s": rate, "epoch_embedding_s": (QUERIES + POOL) / rate, "data_wait": waits}
    found["mining_of_embedding"] = found["median_s"]["ours"] / found["epoch_embedding_s"]
    print(json.dumps({"machine": facts, "model": options.model, **found}, indent=2) if options.json else as_text(facts, found, options))


def as_text(facts: dict[str, Any], found: dict[str, Any], options: argparse.Namespace) -> str:
    rows = [
        (f"mining {QUERIES:,} in {POOL:,}", f"{found['median_s']['ours']:.2f} s"),
        ("the same, sorted and walked", f"{found['median_s']['sorted and walked']:.2f} s ({found['ratio']:.1f} x)"),
        ("rows in which both agree", f"{found['same_rows']:.2%}"),
        (f"embedding, {options.model}", f"{found['images_per_s']:.1f} images/s"),
        (f"so {QUERIES + POOL:,} images of an epoch", f"{found['epoch_embedding_s']:.0f} s"),
        ("mining, share of it", f"{found['mining_of_embedding']:.2%}"),
        (
            f"waiting for data, {options.workers} workers",
            f"{statistics.median(found['data_wait']):.1%} (most {max(found['data_wait']):.1%})",
        ),
    ]
    return head(__doc__.splitlines()[0], facts) + "\n" + table(("what", "took"), rows)


if __name__ == "__main__":
    main()
