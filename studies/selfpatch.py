"""Scratch, DINO and DINO + SelfPatch at equal images seen, on one pool of photographs and frames, by dense and by whole-image measures.

    python studies/selfpatch.py train OUT --pool tiny-imagenet/train DAVIS/JPEGImages coco256/images imagenet1k \
        [--seeds 0 1 2] [--set backbone_args.depth=4 steps=500 ...]
    python studies/selfpatch.py measure OUT --davis DAVIS --camvid CamVid --labelled tiny-imagenet --grocery grocery/metric.csv [--seeds 0 1 2] [--set irt.steps=300]
    python studies/selfpatch.py table OUT
    python studies/selfpatch.py pictures OUT IMAGE [IMAGE ...] --to docs/figures/selfpatch.png

Every image of the pool is learnt from without its label. "scratch" is what DINO + SelfPatch begins with, "scratch, class token" what DINO does.
"DINO + class attention" is DINO + SelfPatch without patches that learn: what the network alone is worth.
A run that is there is not made again, and every measure is kept as it comes, so a study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.data.records import IMAGE_SUFFIXES
from sightline.recipe import Recipe
from sightline.workflows.evaluating import evaluate
from sightline.workflows.training import named_recipe, train
from sightline.workflows.transferring import transfer

VARIANTS = {
    "scratch, class token": ("selfpatch/dino-small", ("steps=0",)),
    "scratch": ("selfpatch/small", ("steps=0",)),
    "DINO": ("selfpatch/dino-small", ()),
    "DINO + class attention": ("selfpatch/small", ("patch_weight=0",)),
    "DINO + SelfPatch": ("selfpatch/small", ()),
}


def folder_of(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant.replace(' + ', '-').replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def write_pool(out: Path, folders: Sequence[Path]) -> Path:
    """Write the manifest of all images below the folders and return it."""
    files = sorted(file.resolve() for folder in folders for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pool.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["path"], *([str(file)] for file in files)])
    print(f"{len(files):,} images")
    return out / "pool.csv"


def finish(recipe: Recipe, data: Path, run: Path) -> None:
    """Train to the end, from where the run stands, and note that it is done; end the study where a signal asked to."""
    if train(recipe, data, run, resume=run.exists()).progress.stopped_by:
        raise SystemExit(f"stopped in {run}: the same command goes on")
    (run / "done").touch()


def train_all(out: Path, pool: Path, seeds: Sequence[int], settings: Sequence[str]) -> None:
    for seed in seeds:
        for variant, (recipe, own) in VARIANTS.items():
            run = folder_of(out, variant, seed)
            if not (run / "done").exists():
                finish(named_recipe(recipe, [*settings, f"seed={seed}", *own]), pool, run)


def measure_all(out: Path, options: argparse.Namespace) -> None:
    irt = [setting.removeprefix("irt.") for setting in options.set]

    def grocery(run: Path) -> dict[str, float]:
        tuned = run / "irt"
        if not (tuned / "done").exists():
            recipe = named_recipe("irt/small", [*irt, "backbone=auto", f"weights={run}", f"seed={run.name[-1]}"])
            finish(recipe, options.grocery, tuned)
        found = evaluate(str(tuned), options.grocery)
        return {"grocery recall@1": found.metrics["recall@1"], "grocery map@r": found.metrics["map@r"]}

    measures: dict[str, Callable[[Path], dict[str, float]]] = {
        "k-NN": lambda run: {"knn": transfer(str(run), [options.labelled], kinds=("knn",)).metrics["knn"]},
        "CamVid": lambda run: {"miou": evaluate(str(run), options.camvid, protocol=options.in_context).metrics["miou"]},
        "grocery": grocery,
        "DAVIS": lambda run: dict(evaluate(str(run), options.davis, protocol=options.propagation).metrics),
    }
    for name, take in measures.items():
        for run in sorted(path.parent for seed in options.seeds for path in out.glob(f"*-{seed}/done")):
            kept = run / "measures.json"
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
            if name not in found:
                found[name] = take(run)
                kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(run.name, found[name], flush=True)


def table(out: Path) -> str:
    """Return the measures in per cent, mean and sample deviation over the seeds."""
    columns = ["j&f", "j", "f", "miou", "knn", "grocery recall@1", "grocery map@r"]
    rows = []
    for variant in VARIANTS:
        own = [
            path
            for path in out.glob("*/measures.json")
            if path.parent.name.rpartition("-")[0] == folder_of(out, variant, 0).name.rpartition("-")[0]
        ]
        held = [
            {name: value for part in json.loads(path.read_text(encoding="utf-8")).values() for name, value in part.items()} for path in own
        ]
        cells = []
        for column in columns:
            values = [100 * one[column] for one in held if column in one]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
        rows.append(f"| {variant} | {len(held)} | {' | '.join(cells)} |")
    return "\n".join([f"| | seeds | {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) + 1)}", *rows])


def pictures(out: Path, images: Sequence[Path], to: Path, seed: int, px: int) -> None:
    """Write one picture: a row an image; the image, then of each model its attention and its patches' first three components as colours."""
    import torch
    from matplotlib import colormaps

    from sightline.data.transforms import eval_transform
    from sightline.lens.attention import attention
    from sightline.nn import model_folder
    from sightline.recipe import ImageSpec

    cells: list[list[Image.Image]] = [[] for _ in images]
    for variant in ("scratch", "DINO", "DINO + SelfPatch"):
        encoder = model_folder.load(folder_of(out, variant, seed))
        look = eval_transform(ImageSpec(image_px=px, resize_px=px, mean=encoder.image.mean, std=encoder.image.std))
        inputs = torch.stack([look(Image.open(path).convert("RGB")) for path in images])
        with torch.inference_mode():
            tokens = encoder.tokens(inputs)
            flat = tokens.patches.flatten(0, 1).double()
            _, _, axes = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
            shown = ((flat - flat.mean(dim=0)) @ axes[:3].T).unflatten(0, tokens.patches.shape[:2])
            low, high = torch.quantile(shown.flatten(0, 1), torch.tensor([0.02, 0.98], dtype=torch.float64), dim=0)
            colours = ((shown - low) / (high - low)).clamp(0, 1).mul(255).byte().unflatten(1, tokens.grid).numpy()
        for row, image in enumerate(inputs):
            if not cells[row]:
                cells[row].append(Image.open(images[row]).convert("RGB"))
            heads = attention(encoder, image).mean.numpy()
            heat = (255 * colormaps["magma"](heads / heads.max())[..., :3]).astype(np.uint8)
            cells[row] += [Image.fromarray(heat), Image.fromarray(colours[row])]
    side = 128
    sheet = Image.new("RGB", (side * len(cells[0]), side * len(cells)), "white")
    for row, drawn in enumerate(cells):
        for column, cell in enumerate(drawn):
            short = min(cell.size)
            left, top = (cell.width - short) // 2, (cell.height - short) // 2
            square = cell.crop((left, top, left + short, top + short))
            sheet.paste(
                square.resize((side - 4, side - 4), Image.Resampling.BICUBIC if column == 0 else Image.Resampling.NEAREST),
                (side * column, side * row),
            )
    to.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    training, measuring, showing, drawing = (kinds.add_parser(name) for name in ("train", "measure", "table", "pictures"))
    for one in (training, measuring, showing, drawing):
        one.add_argument("out", type=Path)
    training.add_argument("--pool", type=Path, nargs="+", required=True)
    for one in (training, measuring):
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="processes side by side can take different ones")
    training.add_argument("--set", nargs="*", default=[])
    for name in ("davis", "camvid", "labelled", "grocery"):
        measuring.add_argument(f"--{name}", type=Path, required=True)
    measuring.add_argument("--set", nargs="*", default=[], help="settings of irt/small")
    measuring.add_argument("--propagation", default="davis", help="the protocol on DAVIS, with settings")
    measuring.add_argument("--in-context", default="in-context", help="the protocol on CamVid, with settings")
    drawing.add_argument("images", type=Path, nargs="+")
    drawing.add_argument("--to", type=Path, required=True)
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--px", type=int, default=128)
    options = parser.parse_args()
    if options.kind == "train":
        train_all(options.out, write_pool(options.out, options.pool), options.seeds, options.set)
    elif options.kind == "measure":
        measure_all(options.out, options)
    elif options.kind == "table":
        print(table(options.out))
    else:
        pictures(options.out, options.images, options.to, options.seed, options.px)


if __name__ == "__main__":
    main()
