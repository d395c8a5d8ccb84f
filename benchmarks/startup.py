"""How long does the command line take to start, above Python itself?

    python benchmarks/startup.py [--repeats 15] [--json]

Wall-clock and processor seconds of whole processes, in turn; on a busy machine the processor seconds are the ones to trust. The search is one
of a photograph in an index of 60, by an untrained ViT-Ti/16 at 224 px: nearly all of it is loading, torch first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import Run, head, interleaved, machine, table
from PIL import Image

MODEL = "random:vit_tiny_patch16_224"


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of each process, after making the index that one of them searches in ``folder``."""
    photos, index = folder / "photos", str(folder / "photos.index")
    photos.mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(photos / f"{number}.jpg")
    made = ["-m", "sightline", "index", index, "--model", MODEL, "--images", str(photos)]
    subprocess.run([sys.executable, *made], check=True, capture_output=True)
    return {
        "python -c pass": ["-c", "pass"],
        "sightline --help": ["-m", "sightline", "--help"],
        "sightline train --help": ["-m", "sightline", "train", "--help"],
        "python -c 'import torch'": ["-c", "import torch"],
        "sightline search": ["-m", "sightline", "search", index, "--image", str(photos / "0.jpg")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            name: partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True)
            for name, arguments in commands(Path(folder)).items()
        }
        interleaved(calls, 1)  # the first finds the files on the disk
        runs = interleaved(calls, options.repeats)
    answer: dict[str, Any] = {"machine": machine(), "runs": {name: _summary(taken) for name, taken in runs.items()}}
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def _summary(taken: list[Run]) -> dict[str, float]:
    walls = [run.wall_s for run in taken]
    return {
        "median_wall_s": statistics.median(walls),
        "least_wall_s": min(walls),
        "most_wall_s": max(walls),
        "median_cpu_s": statistics.median(run.cpu_s for run in taken),
    }


def as_text(answer: dict[str, Any]) -> str:
    bare = answer["runs"]["python -c pass"]["median_wall_s"]
    rows = []
    for name, run in answer["runs"].items():
        wall = f"{run['median_wall_s']:.3f} ({run['least_wall_s']:.3f} to {run['most_wall_s']:.3f})"
        rows.append((name, wall, f"{run['median_cpu_s']:.3f}", f"{run['median_wall_s'] / bare:.1f}"))
    columns = ("command", "wall s (least to most)", "processor s", "times python")
    return f"{head(__doc__.splitlines()[0], answer['machine'])}\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
