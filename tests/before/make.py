"""Keep what an earlier version made, so that a test can open, resume, replay and measure it: run at that version, never later.

    python tests/before/make.py          # writes tests/before/kept/

Everything is small: a ViT of one block on 16 px. ``test_before.py`` makes the same photographs again and compares what today's code does with
what is kept here.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline import catalog
from sightline.cli.main import main
from sightline.settings import to_plain

KEPT = Path(__file__).parent / "kept"

NET = [
    "backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2", "weights=random", "image_px=16",
    "workers=0", "precision=fp32", "steps=4", "save_every=2", "log_every=1", "validate_every=2", "warmup_steps=0",
]  # fmt: skip
PAIRS = ["classes_per_batch=2", "images_per_class=2"]
CROPS = ["images_per_batch=4", "crop_px=16", "num_crops=2", "crop_min_area=0.4", "crop_max_area=1"]
HEADS = ["num_prototypes=8", "head_hidden=16", "head_bottleneck=8", "freeze_last_steps=1"]
RUNS = {
    "contrastive": ["irt/small", *PAIRS, "memory=1", "memory_start=1", "koleo_weight=0.3"],
    "normalised_softmax": ["irt/small", *PAIRS, "objective=normalised_softmax"],
    "snca": ["irt/small", *PAIRS, "objective=snca", "memory=1"],
    "tuples": ["irt/tuples", "tuples_per_batch=2", "negatives=2", "query_size=4", "pool_size=10", "validation=0"],
    "whitened": ["irt/small", *PAIRS, "pooling=gem", "pca=8", "whiten=pca"],
    "classify": ["classify/small", "images_per_batch=4"],
    "dino": ["selfpatch/dino-small", *CROPS, *HEADS],
    "moby": ["moby/small", "images_per_batch=4", "crop_px=16", "projector_hidden=16", "projector_out=8", "queue_length=8"],
}
RESUMED = ("contrastive", "classify", "dino", "moby")
"""Runs of which the state after half of the steps is kept too."""

OF_THE_MACHINE = ("_s", "_mib", "_hours", "data_wait")
"""Endings of what is logged of the clock and of memory."""

SEARCHES = {
    "plain": ["photos.index"],
    "filtered": ["photos.index", "--where", 'label != "c0" and camera < 2'],
    "re-ranked": ["photos.index", "--rerank", "k-reciprocal,k1=4,k2=2"],
    "regions": ["patches.index", "--box", "0,0,12,12"],
}
MEASURED = {
    "leave-one-out": ["photos.csv", "--split", "all", "--protocol", "leave-one-out"],
    "query-gallery": ["photos.csv", "--protocol", "query-gallery"],
    "cross-camera": ["photos.csv"],
    "re-ranked": ["photos.csv", "--rerank", "query-expansion,num=2"],
}


def make_photos(folder: Path) -> None:
    """Write 5 classes of 4 photographs, as class folders and as a manifest with query, gallery and cameras, and one picture to search for."""
    random = np.random.default_rng(0)
    lines = ["path,label,split,camera"]
    for label in range(5):
        base = random.integers(110, 146, 3)
        for number in range(4):
            file = folder / "photos" / f"c{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(base + random.integers(-60, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file)
            lines.append(f"photos/c{label}/{number}.png,c{label},{'query' if number == 0 else 'gallery'},{number % 3}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "more").mkdir()
    Image.fromarray(np.clip(base + random.integers(-60, 60, (20, 24, 3)), 0, 255).astype(np.uint8)).save(folder / "more" / "query.png")


def run(*arguments: object) -> str:
    """Run a command of the shell in this process and return what it wrote to standard output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"sightline {' '.join(map(str, arguments))} ended with {code}")
    return out.getvalue()


def output_of(*arguments: object) -> dict[str, Any]:
    """Return the JSON that a command writes."""
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def figures(folder: Path, model: Path, classifier: Path) -> dict[str, Any]:
    """Return what a model, a classifier and the two indexes in ``folder`` give for the photographs."""
    found: dict[str, Any] = {}
    for name, (data, *options) in MEASURED.items():
        found[name] = output_of("evaluate", model, "--data", folder / data, "--device", "cpu", *options)["metrics"]
    accuracy = ["--split", "all", "--protocol", "accuracy", "--device", "cpu"]
    found["accuracy"] = output_of("evaluate", classifier, "--data", folder / "photos.csv", *accuracy)["metrics"]
    for name, (index, *options) in SEARCHES.items():
        answer = output_of("search", folder / index, folder / "more" / "query.png", "--model", model, "--device", "cpu", *options)
        found[f"search {name}"] = [
            [Path(hit["path"]).parts[-2:], hit["similarity"], hit.get("box")] for hit in answer["queries"][0]["hits"]
        ]
    return found


def losses(folder: Path) -> list[dict[str, float]]:
    """Return the losses, norms, rates and measures that a run logged at each step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(OF_THE_MACHINE)} for row in rows]


def make() -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    recipes = {name: to_plain(catalog.find("recipes", name)()) for name in catalog.names("recipes")}
    (KEPT / "recipes.json").write_text(json.dumps(recipes, indent=1) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photos(folder)
        logged = {}
        for name, (recipe, *settings) in RUNS.items():
            out = folder / "runs" / name
            with half_way(out, KEPT / "runs" / name if name in RESUMED else None):
                run("train", recipe, "--data", folder / "photos", "--out", out, "--device", "cpu", "--set", *NET, *settings)
            logged[name] = losses(out)
        shutil.copytree(folder / "runs/whitened", folder / "model")
        shutil.copytree(folder / "runs/whitened", KEPT / "model", ignore=shutil.ignore_patterns("checkpoint.pt", "tensorboard"))
        shutil.copytree(folder / "runs/classify", KEPT / "classifier", ignore=shutil.ignore_patterns("checkpoint.pt", "tensorboard"))
        for index, more in (("photos.index", []), ("patches.index", ["--patches", "--short-px", "32"])):
            run("index", folder / index, "--model", folder / "model", "--images", folder / "photos.csv", "--device", "cpu", *more)
            shutil.copytree(folder / index, KEPT / index, ignore=shutil.ignore_patterns("*-shm", "writer.lock"))
        fingerprints = {name: fingerprint(KEPT / name) for name in ("model", "classifier")}
        kept = {"fingerprints": fingerprints, "losses": logged, "figures": figures(folder, KEPT / "model", KEPT / "classifier")}
    (KEPT / "figures.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def fingerprint(model: Path) -> str:
    from sightline import load

    return load(model).fingerprint


@contextlib.contextmanager
def half_way(out: Path, kept: Path | None) -> Iterator[None]:
    """Copy the run as it was when its first checkpoint had been written."""
    from sightline.training import checkpoint

    save = checkpoint.save

    def saving(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if kept is not None and not kept.exists():
            shutil.copytree(out, kept, ignore=shutil.ignore_patterns("tensorboard"))

    checkpoint.save = saving
    try:
        yield
    finally:
        checkpoint.save = save


if __name__ == "__main__":
    sys.exit(make())
