"""`sightline inspect` on networks of every kind: what each has is shown, and one sentence stands for what it has not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"embed_dim": 24, "window_size": 4, "depths": (1, 1, 2, 1)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in one folder, without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{number}.jpg")
    return folder


@pytest.mark.parametrize(
    ("backbone", "px", "arguments", "lacks", "num_prefix"),
    [
        ("vit_tiny_patch16_224", 32, SMALL | {"patch_size": 8}, set(), 1),
        ("vit_tiny_patch16_224", 32, SMALL | {"patch_size": 8, "class_token": False, "global_pool": "avg"}, set(), 0),
        ("vit_small_patch14_reg4_dinov2", 56, SMALL, set(), 5),
        ("swin_tiny_patch4_window7_224", 64, SWIN, {"positions", "attention"}, 0),
        ("resnet10t", 32, {}, {"positions", "attention_distance", "attention"}, 0),
    ],
)
def test_each_kind_of_network(
    backbone: str,
    px: int,
    arguments: dict[str, object],
    lacks: set[str],
    num_prefix: int,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = ModelSpec(backbone=backbone, weights="random", pooling="mean", backbone_args=tuple(arguments.items()))
    model_folder.save(Encoder(spec, ImageSpec(image_px=px)), tmp_path / "model")
    code = main(["inspect", str(tmp_path / "model"), "--images", str(photos), "--out", str(tmp_path / "page"), "--json", "--device", "cpu"])
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "page" / "numbers.json").read_text(encoding="utf-8"))
    parts = ("filters", "positions", "attention_distance", "attention", "patches", "token_norms", "cka")
    assert {part for part in parts if not told[part]} == lacks
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert page.count("None to show") == len(lacks), "one sentence for each"
    pictures = {file.stem for file in (tmp_path / "page").glob("*.png")} - {"duplicates"}
    assert pictures == set(parts) - lacks
    assert len(told["token_norms"]["prefix"]) == num_prefix
    assert told["classes"] is None
