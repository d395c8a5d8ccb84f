"""The ladder of the IRT paper on your data: O (not trained), L (contrastive), R (contrastive + KoLeo), over several seeds.

Prints one table in Markdown: mean and standard deviation over the seeds, measured leave-one-out on the test split. Runs that are
finished are not run again, so the study can be stopped and started.

    python studies/irt_ladder.py --data grocery/metric.csv --out runs/ladder-grocery --recipe irt/small steps=300 image_px=48
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.workflows import measuring, training

RUNGS = {"O": ["steps=1"], "L": ["koleo_weight=0"], "R": []}
METRICS = ("recall@1", "recall@10", "map@r", "map")


def untrained(recipe_name: str, settings: list[str], seed: int, folder: Path) -> None:
    """Save the encoder as it is before its first step: the same weights that L and R of this seed start from."""
    recipe = training.named_recipe(recipe_name, [*settings, f"seed={seed}"])
    torch.manual_seed(seed)
    model_folder.save(Encoder(recipe.model, recipe.image), folder / "model")


def measure(rung: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    run = arguments.out / f"{rung}-{seed}"
    kept = run / "test.json"
    if not kept.exists():
        if rung == "O":
            untrained(arguments.recipe, arguments.settings, seed, run)
        else:
            settings = [*arguments.settings, *RUNGS[rung], f"seed={seed}"]
            trained = training.train(training.named_recipe(arguments.recipe, settings), arguments.data, run, resume=run.exists())
            if trained.progress.stopped_by:
                raise SystemExit(f"stopped by {trained.progress.stopped_by}: the same command goes on")
        found = measuring.evaluate(str(run), arguments.data, split=arguments.split)
        model_folder.write_text(kept, json.dumps(found.to_json()))
    metrics: dict[str, float] = json.loads(kept.read_text())["metrics"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder or manifest with train and test splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--recipe", default="irt/small")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    rows = []
    for rung in RUNGS:
        found = [measure(rung, seed, arguments) for seed in range(arguments.seeds)]
        cells = [
            f"{100 * np.mean([f[name] for f in found]):.1f} ± {100 * np.std([f[name] for f in found], ddof=min(1, len(found) - 1)):.1f}"
            for name in METRICS
        ]
        rows.append(f"| IRT_{rung} | " + " | ".join(cells) + " |")
    print(f"| {arguments.seeds} seeds | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
