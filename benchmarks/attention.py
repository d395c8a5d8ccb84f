"""What does it cost to capture the attention of every layer, beside the plain forward pass?

    python benchmarks/attention.py [--repeats 5] [--images 128] [--batch 32] [--models vit_small_patch16_224 ...] [--px 224] [--json]

All run over the same normalised images in the same batches, in float32. "plain" is the encoder's forward pass under inference_mode, with
the fused kernel; "distance" adds the mean attention distance of every head and layer; "walk" is all that `inspect` takes on its way:
distance, the lengths of the tokens, and a Gram matrix a layer for CKA. Ratios are medians over neighbouring runs. The last column is how
much more memory the walk held at its highest than the plain pass did at its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import head, interleaved, machine, median_ratio, table
from embed import make_encoder


def passes(encoder: Any, images: Any, batch_size: int) -> dict[str, Callable[[], object]]:
    import torch

    from sightline.lens.attention import attention_hooks
    from sightline.lens.distance import DistanceMeter
    from sightline.lens.layers import walk

    batches = [(np.arange(len(part)), part) for part in images.split(batch_size)]

    def plain() -> None:
        with torch.inference_mode():
            for _, part in batches:
                encoder(part)

    def distance() -> None:
        meter = DistanceMeter(encoder)
        with torch.inference_mode(), attention_hooks(encoder, meter.see):
            for _, part in batches:
                meter.begin(len(part))
                encoder(part)
        meter.distances_px()

    return {"plain": plain, "distance": distance, "walk": lambda: walk(encoder, batches)}


def measure(name: str, image_px: int, num_images: int, batch_size: int, repeats: int) -> dict[str, Any]:
    import torch

    encoder = make_encoder(name, image_px)
    images = torch.randn(num_images, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))
    calls = passes(encoder, images, batch_size)
    peaks = {}
    for way, call in calls.items():  # and all are warm; the process's peak only rises, so the lightest goes first
        call()
        peaks[way] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB, on Linux
    runs = interleaved(calls, repeats)
    walls = {way: [run.wall_s for run in taken] for way, taken in runs.items()}
    processor = {way: [run.cpu_s for run in taken] for way, taken in runs.items()}
    return {
        "model": name,
        "images": num_images,
        **{f"{way}_s": statistics.median(taken) for way, taken in walls.items()},
        **{f"{way}_ratio": median_ratio(walls[way], walls["plain"]) for way in ("distance", "walk")},
        **{f"{way}_cpu_ratio": median_ratio(processor[way], processor["plain"]) for way in ("distance", "walk")},
        "extra_mib": (peaks["walk"] - peaks["plain"]) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224"])
    parser.add_argument("--px", type=int, default=224, help="side of the images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    facts = machine()
    found = [measure(name, options.px, options.images, options.batch, options.repeats) for name in options.models]
    print(json.dumps({"machine": facts, "runs": found}, indent=2) if options.json else as_text(facts, found))


def as_text(facts: dict[str, Any], found: list[dict[str, Any]]) -> str:
    rows = []
    for run in found:
        times = [f"{run[f'{way}_s']:.2f}" for way in ("plain", "distance", "walk")]
        ratios = [f"{run[f'{way}_ratio']:.2f} ({run[f'{way}_cpu_ratio']:.2f})" for way in ("distance", "walk")]
        rows.append((run["model"], run["images"], *times, *ratios, f"{run['extra_mib']:.0f}"))
    columns = (
        "model",
        "images",
        "plain s",
        "distance s",
        "walk s",
        "distance ratio (processor)",
        "walk ratio (processor)",
        "walk adds MiB",
    )
    return f"{head(__doc__.splitlines()[0], facts)}\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
