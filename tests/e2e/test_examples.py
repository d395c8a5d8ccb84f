"""The scripts of examples/ run as a reader runs them, on small pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGS = "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2"
SHORT = [ARGS, "image_px=16", "steps=2", "workers=0", "classes_per_batch=2", "images_per_class=2", "warmup_steps=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("examples"), np.random.default_rng(0)
    for label in range(5):
        for number in range(4):
            file = root / "photos" / f"c{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(50 * label + random.integers(0, 60, (20, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    torch.manual_seed(0)
    spec = ModelSpec(backbone="vit_tiny_patch8_64", backbone_args=(("depth", 1), ("embed_dim", 16), ("num_heads", 2)), weights="random")
    model_folder.save(Encoder(spec, ImageSpec(image_px=16)), root / "model")
    np.save(root / "vectors.npy", random.normal(size=(20, 6)) + 5 * np.eye(6)[np.arange(20) // 4])
    np.save(root / "labels.npy", np.arange(20) // 4)
    return root


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train.py", ["photos", "run", *SHORT], ["2 steps, chosen on held-out classes", "recall@1", "cosine"]),
        ("search.py", ["photos", "photos.index", "model", "photos/c1/2.png"], ["20 images in photos.index", "searched: exact", "1.000"]),
        ("measure.py", ["vectors.npy", "labels.npy"], ["map@r", "recall@1 after re-ranking 1.0000"]),
        ("own_method.py", ["photos", "triplet", *SHORT], ["2 steps", "recall@1"]),
    ],
)
def test_an_example_runs(script: str, arguments: list[str], words: list[str], place: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script, *arguments], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [word for word in words if word not in done.stdout] == []


def test_examples_are_short() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["measure.py", "own_method.py", "search.py", "train.py"]
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 65 for path in EXAMPLES.glob("*.py"))
