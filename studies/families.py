"""ViT, hybrid and ResNet (BiT) at equal compute: Dosovitskiy et al. 2021, arXiv 2010.11929, sections 4.3 and 4.4, at the size of small data.

    python studies/families.py train runs/families --data cifar10/ tiny-imagenet/
    python studies/families.py table runs/families --data cifar10/ tiny-imagenet/
    python studies/families.py curves runs/families --data cifar10/ tiny-imagenet/ --out figures/    # as sightline compare draws them

``train`` goes on where it stopped. Each family learns from scratch from three shares of each data set, with as many steps as make its
counted training FLOPs equal to the others'; then each model is fine-tuned on the same images at its own resolution and at one and a half
times it, and the last data set's models on all of the first one's (transfer); and from all images also at a half and a quarter of the
compute. Nothing chooses among models: there is no validation, and the last weights are measured. ``table`` measures what is trained, into
each run's ``accuracy/``, and prints the tables: per cent and, in brackets, TFLOPs with those of pre-training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.contracts import Batch
from sightline.data.division import training_split
from sightline.data.images import BadFiles
from sightline.data.records import of_labels, read_records
from sightline.evaluation import compare_report
from sightline.evaluation.compare_report import Run
from sightline.methods.classify import Classify, ClassifyRecipe
from sightline.nn.encoder import Encoder
from sightline.settings import override
from sightline.training.compute import Compute
from sightline.workflows import comparing, evaluating, training

METRIC = "accuracy@1"
PX, LARGER_PX = 32, 48
SHARES = (0.1, 0.3, 1.0)
FAMILIES = {
    "vit": ("backbone=vit_tiny_patch8_64", "backbone_args=depth=6"),
    "hybrid": ("backbone=vit_tiny_r14_s8_64", "backbone_args=depth=3,class_token=false,global_pool=avg"),
    "resnet": ("backbone=resnetv2_26half_bit_64", "backbone_args={}"),
}
SHARED = ("images_per_batch=64", "validation=0", "pooling=mean", "drop_path=0", "validate_every=100000", "save_every=100")
SCRATCH = ("mixup=0", "cutmix=0", "rand_augment=0", "erase=0", "warmup_steps=30")
"""Passes are few here: what makes up for long training on few images only slows a model that sees each image a few times."""
TUNED = ("warmup_steps=10", "lr=0.03")


@dataclass(frozen=True)
class Job:
    """One run: its folder below the study's, family, data, share of it, compute and side of the images; the run that it starts from and that one's share."""

    name: str
    family: str
    data: Path
    share: float
    flops: float
    px: int
    start: str = ""
    way: str = "scratch"
    start_share: float = 1.0

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
    random = override(recipe, ["weights=random"])
    method = Classify(random, Encoder(random.model, random.image), of_labels(np.asarray(labels)))
    batch = Batch(torch.zeros(num, 3, px, px), torch.zeros(num, dtype=torch.int64), torch.arange(num))
    with compute.counting(1):
        method.loss(batch, 0).total.backward()
    return compute.flops_per_step


def jobs(sets: Sequence[Path], flops: float, tuning_flops: float) -> Iterator[Job]:
    """Yield the runs, what others start from first."""
    for data in sets:
        for share in reversed(SHARES):
            for family in FAMILIES:
                yield Job(f"{data.name}/{family}-{share:g}-scratch", family, data, share, flops, PX, start_share=share)
    for data in sets:
        for share in reversed(SHARES):
            for family in FAMILIES:
                yield from _tuned(data, data, family, share, share, tuning_flops)
    for part in (0.25, 0.5):
        for data in sets:
            for family in FAMILIES:
                name = f"{data.name}/{family}-1-scratch-compute{part:g}"
                yield Job(name, family, data, 1.0, part * flops, PX, way=f"scratch, compute x {part:g}")
    if len(sets) > 1:
        for share in reversed(SHARES):
            for family in FAMILIES:
                yield from _tuned(sets[-1], sets[0], family, share, 1.0, tuning_flops)


def _tuned(before: Path, data: Path, family: str, share_before: float, share: float, flops: float) -> Iterator[Job]:
    what = "tuned" if before == data else f"from-{before.name}"
    for px in (PX, LARGER_PX):
        start, cost = f"{before.name}/{family}-{share_before:g}-scratch", flops * (px / PX) ** 2  # as many images at both sizes
        name = f"{data.name}/{family}-{share_before:g}-{what}-{px}px"
        yield Job(name, family, data, share, cost, px, start, f"{what} {px} px", share_before)


def train(study: Path, planned: Sequence[Job]) -> None:
    for number, job in enumerate(planned, 1):
        if is_done(study / job.name):
            continue
        recipe = job.recipe(study)
        print(f"{number} of {len(planned)}: {job.name}, {recipe.train.steps} steps", flush=True)
        command = f"python studies/families.py train {study}"
        if training.train(recipe, job.data, study / job.name, resume=True, command=command).progress.stopped_by:
            raise SystemExit(130)


def accuracy(run: Path, data: Path) -> str:
    """Return accuracy@1 in per cent on the split that training did not see, measured once and kept with the run."""
    if not is_done(run):
        return "-"
    if not (run / "accuracy" / "metrics.json").exists():
        splits = set(read_records(data, on_bad=BadFiles().add).splits or ())
        evaluating.evaluate(str(run), data, protocol="accuracy", split="test" if "test" in splits else "val", report=run / "accuracy")
    return f"{100 * read(run / 'accuracy' / 'metrics.json')['metrics'][METRIC]:.1f}"


def is_done(run: Path) -> bool:
    """Return whether a run has seen all its images: one that was stopped has a model and a record of its compute too."""
    if not (run / "model").exists():
        return False
    recipe = read(run / "recipe.json")
    return read(run / "run.json").get("compute", {}).get("images") == recipe["train"]["steps"] * recipe["data"]["images_per_batch"]


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def table(study: Path, planned: Sequence[Job]) -> None:
    """Print the accuracy and, behind it, the TFLOPs of all training up to it; a row a family and share, a column a way of training."""
    for name in dict.fromkeys(job.name.partition("/")[0] for job in planned):
        own = [job for job in planned if job.name.startswith(f"{name}/")]
        columns = list(dict.fromkeys(job.way for job in own))
        print(f"\n{name}\n\n| family | share | {' | '.join(columns)} |\n|---|--:|{'--:|' * len(columns)}")
        for family, share in dict.fromkeys((job.family, job.start_share) for job in own):
            cells = {job.way: cell(study, job) for job in own if (job.family, job.start_share) == (family, share)}
            print(f"| {family} | {share:g} | {' | '.join(cells.get(column, '') for column in columns)} |")


def cell(study: Path, job: Job) -> str:
    found = accuracy(study / job.name, job.data)
    if found == "-":
        return found
    compute = read(study / job.name / "run.json")["compute"]
    return f"{found} ({(compute['flops'] + compute['flops_before']) / 1e12:.2f})"


def curves(study: Path, planned: Sequence[Job], out: Path) -> None:
    """Write what ``sightline compare`` draws of each data set's runs as PNGs."""
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(job.name.partition("/")[0] for job in planned):
        folders = [study / job.name for job in planned if job.name.startswith(f"{name}/") and is_done(study / job.name)]
        runs = [run for run in map(comparing.read_run, folders) if isinstance(run, Run)]
        points = compare_report.points(runs, METRIC)
        for kind, draw in (("compute", compare_report.by_compute), ("data", compare_report.by_data)):
            draw(points, METRIC).savefig(out / f"families-{name}-{kind}.png", dpi=110, facecolor="white")
            print(f"wrote {out / f'families-{name}-{kind}.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "curves"))
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="class folders in train/ and test/ or val/")
    parser.add_argument("--flops", type=float, default=6e12, help="of a training from scratch")
    parser.add_argument("--tuning-flops", type=float, default=1.5e12, help="of a fine-tuning at the resolution of pre-training")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="of the curves")
    asked = parser.parse_args()
    planned = list(jobs(asked.data, asked.flops, asked.tuning_flops))
    if asked.what == "curves":
        curves(asked.study, planned, asked.out)
    else:
        (train if asked.what == "train" else table)(asked.study, planned)


if __name__ == "__main__":
    main()
