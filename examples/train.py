"""Train a model on your own photographs and compare it with its start.

python examples/train.py photos/ runs/mine            # photos/CLASS/*.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import sightline


def main(photos: str, run: str, *settings: str) -> None:
    # A small ViT from scratch; "irt/folder" starts from pretrained weights and takes hours on a CPU.
    trained = sightline.train("irt/small", photos, run, settings=settings)
    print(f"{trained.progress.step} steps, chosen on {trained.held_out}")

    # The classes that training held out: queries and gallery of classes that the model has never seen.
    evaluation = sightline.evaluate(run, photos, report=Path(run) / "report")
    print(evaluation.to_text())
    print(f"pictures: {Path(run) / 'report' / 'index.html'}")

    # The model is a function from pictures to unit-length vectors.
    encoder = sightline.load(run)
    first, second, *_ = sorted(Path(photos).rglob("*.*"))
    one, other = encoder.embed([first, second])
    print(f"{first.name} and {second.name}: cosine {one @ other:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
