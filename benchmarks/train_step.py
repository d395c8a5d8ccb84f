"""What does an IRT training step cost above the bare forward and backward of its backbone?

    python benchmarks/train_step.py [--repeats 7] [--batch 64] [--memory 60000] [--width 384] [--threads 1] [--json]

The bare step is timm's ViT-Ti/16 at 224 px, float32, the sum of its class token as the loss. The full step is the training loop's own:
projection, contrastive loss against the batch and the memory, KoLeo, gradient clipping, finiteness check, AdamW. Both in turn.
On a busy machine use --threads 1: with more, every small operation waits a time slice for a thread that is not running, which is no work
of the step's. The parts are then measured by themselves; they need not add up to the difference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import head, interleaved, machine, median_ratio, table

from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.methods.irt import IRT, sop
from sightline.nn.encoder import Encoder
from sightline.nn.losses import contrastive_loss, koleo_loss
from sightline.progress import Meter
from sightline.training.loop import Loop

BACKBONE = "vit_tiny_patch16_224"


def make_loop(batch: Batch, num_images: int, width: int, folder: Path) -> Loop:
    """Return a loop whose memory is full and in use, on the CPU."""
    base = sop()
    recipe = replace(
        base,
        memory_start=0,
        model=replace(base.model, backbone=BACKBONE, weights="random", projection=width),
        train=replace(base.train, precision="fp32", clip_norm=1.0),
    )
    torch.manual_seed(0)
    method = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(num_images) // 5))
    method.objective.memory_vectors.copy_(torch.nn.functional.normalize(torch.randn(num_images, width), dim=1))
    method.objective.memory_labels.copy_(torch.arange(num_images) // 5)
    return Loop(method, lambda start: itertools.repeat(batch), recipe.train, folder, device=torch.device("cpu"))


def make_batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 224, 224, generator=generator), torch.arange(size) // 4, torch.arange(size))


def bare_step(net: torch.nn.Module, images: torch.Tensor) -> None:
    net.zero_grad(set_to_none=True)
    net.forward_features(images)[:, 0].sum().backward()


def parts(loop: Loop, size: int, width: int) -> dict[str, Any]:
    """Return what the full step adds, each as a call."""
    method, z = loop.method, torch.nn.functional.normalize(torch.randn(size, width), dim=1).requires_grad_()
    labels, columns = torch.arange(size) // 4, torch.arange(size)
    vectors, vector_labels = method.objective.memory_vectors, method.objective.memory_labels
    return {
        "loss against the memory": lambda: contrastive_loss(z, labels, vectors, vector_labels, margin=0.5, self_columns=columns).backward(),
        "loss against the batch": lambda: contrastive_loss(z, labels, margin=0.5).backward(),
        "KoLeo": lambda: koleo_loss(z).backward(),
        "filling the memory": lambda: method.objective._enqueue(z, labels),
        "clipping": lambda: torch.nn.utils.clip_grad_norm_(loop.trained, 1.0),
        "AdamW": loop.optimizer.step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--memory", type=int, default=60_000, help="descriptors in the memory")
    parser.add_argument("--width", type=int, default=384, help="of a descriptor")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0 is one a core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    facts, batch = machine(), make_batch(options.batch)
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(batch, options.memory, options.width, Path(folder))
        net, stream, meter = loop.method.encoder().backbone.net, itertools.repeat(batch), Meter()
        steps = {"bare": lambda: bare_step(net, batch.images), "full": lambda: loop._step(stream, meter)}
        interleaved(steps, 1)  # warm
        times = interleaved(steps, options.repeats)
        details = interleaved(parts(loop, options.batch, options.width), 3 * options.repeats)
    answer: dict[str, Any] = {"machine": facts, "batch": options.batch, "memory": [options.memory, options.width], "parts": {}}
    for name, runs in (times | details).items():
        walls = [run.wall_s for run in runs]
        answer["parts"][name] = {
            "median_s": statistics.median(walls),
            "least_s": min(walls),
            "most_s": max(walls),
            "median_cpu_s": statistics.median(run.cpu_s for run in runs),
        }
    answer["ratio"] = median_ratio([run.wall_s for run in times["full"]], [run.wall_s for run in times["bare"]])
    answer["cpu_ratio"] = median_ratio([run.cpu_s for run in times["full"]], [run.cpu_s for run in times["bare"]])
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def as_text(answer: dict[str, Any]) -> str:
    bare = answer["parts"]["bare"]
    rows = []
    for name, part in answer["parts"].items():
        wall = f"{1000 * part['median_s']:.1f} ({1000 * part['least_s']:.1f} to {1000 * part['most_s']:.1f})"
        shares = (
            f"{part['median_s'] / bare['median_s']:.1%}",
            f"{1000 * part['median_cpu_s']:.1f}",
            f"{part['median_cpu_s'] / bare['median_cpu_s']:.1%}",
        )
        rows.append((name, wall, *shares))
    memory = " x ".join(f"{length:,}" for length in answer["memory"])
    text = head(__doc__.splitlines()[0], answer["machine"])
    text += f"\n{BACKBONE}, batch {answer['batch']}, memory {memory}\n"
    text += (
        f"full over bare, median of neighbouring pairs: {answer['ratio']:.3f} by the clock, {answer['cpu_ratio']:.3f} by processor time\n\n"
    )
    return text + table(("step", "wall ms (least to most)", "of bare", "processor ms", "of bare"), rows)


if __name__ == "__main__":
    main()
