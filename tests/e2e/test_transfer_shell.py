"""Probing and comparing as a person does: real files, two tiny runs, a table and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main

SETTINGS = [
    "image_px=16", "classes_per_batch=2", "images_per_class=2", "steps=3", "workers=0", "validation=0.34", "augment=square", "jitter=0",
    "rotate_deg=0", "log_every=1",
]  # fmt: skip
TINY_VIT = ["backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2"]
TINY_RESNET = ["backbone=resnet10t", "backbone_args=none"]


def paint(folder: Path, label: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(100 * label + number)
    pixels = np.clip(random.normal([60 + 40 * label, 200 - 40 * label, 128], 12, (20, 18, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label in range(4):
        for number in range(6):
            paint(root / f"class{label}", label, number)
    (root / "class0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return root


@pytest.fixture(scope="module")
def vit(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos, tmp_path_factory.mktemp("runs") / "vit", *TINY_VIT)


def train(photos: Path, out: Path, *settings: str) -> Path:
    assert main(["train", "irt/small", "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *SETTINGS, *settings]) == 0
    return out


def test_a_model_is_probed_on_two_data_sets(vit: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(4):
        for number in range(4):
            paint(tmp_path / "split" / ("test" if number == 0 else "train") / f"class{label}", label, number)
    asked = ["probe", str(vit), "--data", str(photos), "--data", str(tmp_path / "split"), "--device", "cpu"]
    assert main([*asked, "--json", "--report", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == told
    assert "1 of 41" in captured.err
    assert list(told["metrics"]) == ["knn", "linear", "5-shot", "10-shot"]
    for name, value in told["metrics"].items():
        assert value == pytest.approx(np.mean([one["metrics"][name] for one in told["datasets"]]))
        assert told["intervals"][name][0] <= value <= told["intervals"][name][1]
    assert [(one["num_classes"], one["num_train"], one["num_test"]) for one in told["datasets"]] == [(4, 20, 4), (4, 12, 4)]
    assert told["metrics"]["linear"] > 0.7  # the classes differ in colour
    assert main([*asked, "--kind", "knn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| % | knn | classes | train | test |"
    assert re.fullmatch(r"\| mean \| \d+\.\d \[\d+\.\d, \d+\.\d\] \| \| \| \|", lines[-1])
