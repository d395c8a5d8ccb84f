"""What does a classification step cost above a bare timm loop, and how long does it wait for its data?

    python benchmarks/classify_step.py [--repeats 15] [--batch 64] [--image-px 64 224] [--workers 2] [--steps 20] [--device cpu] [--json]

The bare loop is timm's ViT-Ti on the same mixed images and in the same precision: forward, cross-entropy against soft targets, backward,
clipping, AdamW. The full step is the training loop's own, mixing and all; both in turn. Then the loop runs on photographs made for the
purpose (JPEG, a seventh larger than the input), with every augmentation of classify/small, and its share of time spent waiting is told.
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
import timm
import torch
from _common import head, interleaved, machine, median_ratio, table
from PIL import Image
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy

from sightline.contracts import Batch
from sightline.data.loading import train_batches
from sightline.data.records import Records, of_labels, read_records
from sightline.data.samplers import ShuffleSampler
from sightline.data.transforms import train_transform
from sightline.methods.classify import Classify, ClassifyRecipe, small
from sightline.nn.encoder import Encoder
from sightline.progress import Meter
from sightline.training.loop import Loop

NUM_CLASSES = 100
BACKBONES = {64: "vit_tiny_patch8_64", 224: "vit_tiny_patch16_224"}


def recipe_for(image_px: int, batch: int) -> ClassifyRecipe:
    base = small()
    return replace(
        base,
        model=replace(base.model, backbone=BACKBONES[image_px], backbone_args=(), pooling="cls", drop_path=0.0),
        image=replace(base.image, image_px=image_px),
        data=replace(base.data, images_per_batch=batch),
        train=replace(base.train, precision="fp32"),
    )


def make_loop(recipe: ClassifyRecipe, batches: Any, folder: Path, device: torch.device) -> Loop:
    torch.manual_seed(0)
    method = Classify(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(NUM_CLASSES)))
    return Loop(method, batches, recipe.train, folder, device=device)


class Bare:
    """timm's network, mixing, loss and torch's AdamW, and nothing else."""

    def __init__(self, recipe: ClassifyRecipe, batch: Batch) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.net = timm.create_model(recipe.model.backbone, num_classes=NUM_CLASSES, img_size=recipe.image.image_px).to(batch.images.device)
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=NUM_CLASSES)
        self.loss = SoftTargetCrossEntropy()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.train.lr, weight_decay=recipe.train.weight_decay, fused=True)

    def step(self) -> None:
        images, targets = self.mixup(self.batch.images.clone(), self.batch.labels)  # timm mixes in place
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.net(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()


def compare(image_px: int, size: int, repeats: int, folder: Path, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of both steps and their ratio, by the clock and by processor time."""
    recipe, generator = recipe_for(image_px, size), torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, image_px, image_px, generator=generator)
    batch = Batch(images, torch.arange(size) % NUM_CLASSES, torch.arange(size)).to(device)
    loop, stream, meter = make_loop(recipe, lambda start: itertools.repeat(batch), folder, device), itertools.repeat(batch), Meter()
    bare = Bare(recipe, batch)

    def full_step() -> None:
        loop._step(stream, meter)
        _wait_for(device)

    def bare_step() -> None:
        bare.step()
        _wait_for(device)

    steps = {"bare": bare_step, "full": full_step}
    interleaved(steps, 1)  # warm; the loop counts its FLOPs on this one
    times = interleaved(steps, repeats)
    return {
        "bare_ms": 1000 * statistics.median(run.wall_s for run in times["bare"]),
        "full_ms": 1000 * statistics.median(run.wall_s for run in times["full"]),
        "ratio": median_ratio([run.wall_s for run in times["full"]], [run.wall_s for run in times["bare"]]),
        "cpu_ratio": median_ratio([run.cpu_s for run in times["full"]], [run.cpu_s for run in times["bare"]]),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def photographs(folder: Path, image_px: int, num: int) -> Records:
    random, side = np.random.default_rng(0), round(image_px / 0.875)
    for number in range(num):
        name = folder / f"{number % NUM_CLASSES:03}"
        name.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(name / f"{number}.jpg", quality=90)
    return read_records(folder)


def data_wait(image_px: int, size: int, num_steps: int, workers: int, folder: Path, device: torch.device) -> float:
    """Return the share of the steps' time that the loop waits for its next batch, in 0..1, once the first has come."""
    recipe, records = recipe_for(image_px, size), photographs(folder / f"{image_px}", image_px, 2 * size)
    stream = train_batches(
        records,
        ShuffleSampler(len(records), size),
        train_transform(recipe.augment, recipe.image),
        num_steps=num_steps + 1,
        num_workers=workers,
        device=device,
    )
    loop, meter = make_loop(recipe, lambda start: stream, folder, device), Meter()
    loop._step(stream, meter)  # the workers start
    meter.reset()
    for _ in range(num_steps):
        loop._step(stream, meter)
    _wait_for(device)
    return meter.waited_s / meter.elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-px", type=int, nargs="+", default=sorted(BACKBONES), choices=sorted(BACKBONES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="over which waiting is measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    answer: dict[str, Any] = {"machine": machine(), "batch": options.batch, "workers": options.workers, "sizes": {}}
    with tempfile.TemporaryDirectory() as name:
        for image_px in options.image_px:
            found = compare(image_px, options.batch, options.repeats, Path(name), device)
            wait = data_wait(image_px, options.batch, options.steps, options.workers, Path(name), device)
            answer["sizes"][image_px] = {**found, "data_wait": wait}
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def as_text(answer: dict[str, Any]) -> str:
    rows = [
        (
            f"{image_px} px, {BACKBONES[image_px]}",
            f"{found['bare_ms']:.1f}",
            f"{found['full_ms']:.1f}",
            f"{found['ratio']:.3f}",
            f"{found['cpu_ratio']:.3f}",
            f"{found['data_wait']:.1%}",
        )
        for image_px, found in answer["sizes"].items()
    ]
    text = head(__doc__.splitlines()[0], answer["machine"])
    text += f"\nbatch {answer['batch']}, {answer['workers']} loader processes\n\n"
    return text + table(("images", "bare ms", "full ms", "by the clock", "by processor time", "waiting for data"), rows)


if __name__ == "__main__":
    main()
