"""ViT, hybrid and ResNet (BiT) at equal compute: Dosovitskiy et al. 2021, arXiv 2010.11929, sections 4.3 and 4.4, at the size of small data.

    python studies/families.py train runs/families --data cifar10/ tiny-imagenet/
    python studies/families.py table runs/families --data cifar10/ tiny-imagenet/
    sightline compare runs/families/cifar10/*-scratch* --metric accuracy@1 --out comparison/

``train`` goes on where it stopped. Each family learns from scratch from three shares of each data set, with as many steps as make its
counted training FLOPs equal to the others'; then each model is fine-tuned on the same images at its own resolution and at one and a half
times it, and the last data set's models on all of the first one's (transfer); and from all images also at a half and a quarter of the
compute. Nothing chooses among models: there is no validation, and the last weights are measured. ``table`` measures what is trained, into
each run's ``accuracy/metrics.json``, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sightline.contracts import Batch
from sightline.data.images import BadFiles
from sightline.data.records import read_records
from sightline.methods.classify import Classify, ClassifyRecipe
from sightline.nn.encoder import Encoder
from sightline.train.compute import Compute
from sightline.workflows import classifying, training
from sightline.workflows.common import training_split

PX, LARGER_PX = 32, 48
SHARES = (0.1, 0.3, 1.0)
FAMILIES = {
    "vit": ("backbone=vit_tiny_patch8_64", "backbone_args=depth=6"),
    "hybrid": ("backbone=vit_tiny_r14_s8_64", "backbone_args=depth=3"),
    "resnet": ("backbone=resnetv2_26half_bit_64", "backbone_args={}"),
}
SHARED = ("images_per_batch=64", "validation=0", "pooling=mean", "drop_path=0", "validate_every=100000", "save_every=100")
SCRATCH = ("mixup=0", "cutmix=0", "rand_augment=0", "erase=0", "warmup_steps=30")
"""Passes are few here: what makes up for long training on few images only slows a model that sees each image a few times."""
TUNED = ("warmup_steps=10", "lr=0.03")


@dataclass(frozen=True)
class Job:
    """One run: its folder below the study's, family, data, share of it, compute and settings, and the run that it starts from."""

    name: str
    family: str
    data: Path
    share: float
    flops: float
    px: int
    start: str = ""

    def recipe(self, study: Path) -> ClassifyRecipe:
        """Return the recipe, with as many steps as its compute buys."""
        base, own = ("classify/finetune-small", TUNED) if self.start else ("classify/small", SCRATCH)
        settings = [*SHARED, *own, *FAMILIES[self.family], f"image_px={self.px}", f"share={self.share}"]
        if self.start:
            settings.append(f"weights={study / self.start / 'model'}")
        found = training.named_recipe(base, settings)
        assert isinstance(found, ClassifyRecipe)
        steps = max(20, round(self.flops / flops_of_step(found, self.data)))
        replaced = training.named_recipe(base, [*settings, f"steps={steps}"])
        assert isinstance(replaced, ClassifyRecipe)
        return replaced


def flops_of_step(recipe: ClassifyRecipe, data: Path) -> int:
    """Return what one step of the recipe computes, counted as every run counts it."""
    labels = training_split(read_records(data)).labels
    assert labels is not None
    num, px, compute = recipe.data.batch, recipe.image.image_px, Compute()
    random = training.override(recipe, ["weights=random"])
    method = Classify(random, Encoder(random.model, random.image), labels=np.asarray(labels))
    batch = Batch(torch.zeros(num, 3, px, px), torch.zeros(num, dtype=torch.int64), torch.arange(num))
    with compute.counting(1):
        method.loss(batch, 0).total.backward()
    return compute.flops_per_step


def jobs(sets: Sequence[Path], flops: float, tuning_flops: float) -> Iterator[Job]:
    """Yield the runs, what others start from first."""
    for data in sets:
        for share in reversed(SHARES):
            yield from (Job(f"{data.name}/{family}-{share:g}-scratch", family, data, share, flops, PX) for family in FAMILIES)
    for data in sets:
        for share in reversed(SHARES):
            for family in FAMILIES:
                yield from _tuned(data, data, family, share, share, tuning_flops)
    for part in (0.25, 0.5):
        for data in sets:
            for family in FAMILIES:
                yield Job(f"{data.name}/{family}-1-scratch-compute{part:g}", family, data, 1.0, part * flops, PX)
    if len(sets) > 1:
        for share in reversed(SHARES):
            for family in FAMILIES:
                yield from _tuned(sets[-1], sets[0], family, share, 1.0, tuning_flops)


def _tuned(before: Path, data: Path, family: str, share_before: float, share: float, flops: float) -> Iterator[Job]:
    what = "tuned" if before == data else f"from-{before.name}"
    for px in (PX, LARGER_PX):
        start, cost = f"{before.name}/{family}-{share_before:g}-scratch", flops * (px / PX) ** 2  # as many images at both sizes
        yield Job(f"{data.name}/{family}-{share_before:g}-{what}-{px}px", family, data, share, cost, px, start)


def train(study: Path, planned: Sequence[Job]) -> None:
    for number, job in enumerate(planned, 1):
        if (study / job.name / "model").exists() and "compute" in json.loads((study / job.name / "run.json").read_text(encoding="utf-8")):
            continue
        recipe = job.recipe(study)
        print(f"{number} of {len(planned)}: {job.name}, {recipe.train.steps} steps", flush=True)
        command = f"python studies/families.py train {study}"
        if training.train(recipe, job.data, study / job.name, resume=True, command=command).progress.stopped_by:
            raise SystemExit(130)


def accuracy(run: Path, data: Path) -> float:
    """Return accuracy@1 on the split that training did not see, and keep it with the run."""
    file = run / "accuracy" / "metrics.json"
    if not file.exists():
        records = read_records(data, on_bad=BadFiles().add)
        split = "test" if "test" in set(records.splits or ()) else "val"
        found = classifying.classify(str(run), data, split=split).to_json()
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["accuracy@1"])


def table(study: Path, planned: Sequence[Job]) -> None:
    print("| run | accuracy@1, % | images learnt from | images seen | TFLOP | of them before |\n|---|--:|--:|--:|--:|--:|")
    for job in planned:
        run = study / job.name
        if not (run / "model").exists():
            continue
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        cost, before = facts["compute"]["flops"] / 1e12, facts["compute"]["flops_before"] / 1e12
        print(
            f"| {job.name} | {100 * accuracy(run, job.data):.1f} | {facts['images']:,} | {facts['compute']['images']:,} | {cost + before:.2f} | {before:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="class folders in train/ and test/ or val/")
    parser.add_argument("--flops", type=float, default=6e12, help="of a training from scratch")
    parser.add_argument("--tuning-flops", type=float, default=1.5e12, help="of a fine-tuning at the resolution of pre-training")
    asked = parser.parse_args()
    planned = list(jobs(asked.data, asked.flops, asked.tuning_flops))
    (train if asked.what == "train" else table)(asked.study, planned)


if __name__ == "__main__":
    main()
