"""Pictures of one by thousands of pixels go through every command that takes a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.data.thumbnails import contained, shown_file
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SIZES = ((1, 3000), (3000, 2), (1, 1), (2, 700))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))
    spec = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=arguments, weights="random")
    folder = tmp_path_factory.mktemp("thin") / "model"
    model_folder.save(Encoder(spec, ImageSpec(image_px=16)), folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thin") / "photos"
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        for label in ("a", "b"):
            (root / label).mkdir(parents=True, exist_ok=True)
            noise = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{number}.png")
    return root


def run(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0, arguments


def test_thin_pictures_are_explained(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [photos / "a" / f"{number}.png" for number in range(len(SIZES))]
    for number, (one, other) in enumerate(((files[0], files[1]), (files[1], files[2]), (files[2], files[0]), (files[3], files[3]))):
        run("explain", model, one, other, "--out", tmp_path / f"{number}.html")
    run("explain", model, files[0], files[1], "--box", "0,100,1,900", "--out", tmp_path / "box.png", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["size_px"] for one in told["pictures"]] == [[1, 3000], [3000, 2]]
    with Image.open(tmp_path / "box.png") as drawn:
        assert drawn.height > 480


def test_thin_pictures_are_measured_indexed_searched_and_inspected(model: Path, photos: Path, tmp_path: Path) -> None:
    thin = photos / "a" / "0.png"
    run("evaluate", model, "--data", photos, "--report", tmp_path / "report")
    run("embed", model, "--images", photos, "--out", tmp_path / "v.npy")
    run("inspect", model, "--images", photos, "--out", tmp_path / "inspection")
    run("index", tmp_path / "i", "--model", model, "--images", photos)
    run("search", tmp_path / "i", thin, "--html", tmp_path / "i.html")
    run("index", tmp_path / "p", "--model", model, "--images", photos, "--patches")
    run("search", tmp_path / "p", thin, "--box", "0,0,1,1500", "--html", tmp_path / "p.html")
    for page in ("i.html", "p.html"):
        assert "not readable" not in (tmp_path / page).read_text(encoding="utf-8")


def test_of_a_thread_a_pixel_is_left(photos: Path) -> None:
    assert contained(Image.new("RGB", (1, 3000)), (160, 160)).size == (1, 160)
    assert contained(Image.new("RGB", (300, 30)), (160, 80)).size == (160, 16)
    drawn = shown_file(photos / "a" / "1.png", 640, (0, 0, 1000, 2))
    assert drawn is not None
    assert drawn.size == (640, 1)
