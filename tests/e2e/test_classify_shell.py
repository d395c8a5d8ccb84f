"""Classification through the shell: train, measure, go on after a stop exactly as without one, and what is said where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.cli.main import main
from sightline.nn.model_folder import load
from sightline.training import checkpoint

SETTINGS = [
    "backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=2,embed_dim=32,num_heads=2", "image_px=16", "images_per_batch=8", "lr=0.003",
    "workers=0", "warmup_steps=0", "log_every=4", "validate_every=8", "save_every=4", "precision=fp32",
]  # fmt: skip
CLASSES = {"dark": 40, "light": 215}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, num in (("train", 12), ("test", 5)):
        for name, value in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(num):
                pixels = (value + random.integers(-40, 40, (20, 24, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def train(photos: Path, out: Path, *settings: str, recipe: str = "classify/small") -> int:
    return main(["train", recipe, "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *SETTINGS, *settings])


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(photos, out, "steps=24", "ema=0.5") == 0
    return out


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_dark_is_told_from_light_on_the_test_split(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "evaluate", str(run), "--data", str(photos), "--protocol", "accuracy")
    assert found["metrics"]["accuracy@1"] == 1.0
    assert (found["part"], found["num_images"], found["num_classes"]) == ("split test", 10, 2)
    assert (
        told(capsys, "evaluate", str(run), "--data", str(photos))["metrics"]["recall@1"] == 1.0
    )  # its descriptors are searched like any other's
    card = (run / "model" / "README.md").read_text()
    assert "on held-out images of the classes that were learnt from: 2 images of 2 classes" in card
    facts = json.loads((run / "run.json").read_text())
    assert (facts["training_classes"], facts["images"], facts["validation_images"]) == (["dark", "light"], 22, 2)


@pytest.mark.parametrize("how", ["timm", "jax"])
def test_fine_tuning_begins_with_the_pretrained_network_at_another_size(how: str, run: Path, photos: Path, tmp_path: Path) -> None:
    resized = ["image_px=32", "steps=0", f"weights={run / 'model'}", f"positions_resize={how}"]
    assert train(photos, tmp_path, *resized, recipe="classify/finetune-small") == 0
    before, after = load(run), load(tmp_path)
    grids = [
        encoder.state_dict()["backbone.net.pos_embed"][0, 1:].unflatten(0, (side, side)) for encoder, side in ((before, 2), (after, 4))
    ]
    assert torch.equal(grids[0][0, 0], grids[1][0, 0]) == (how == "jax")  # its corners lie on corners
    assert (grids[0].mean((0, 1)) - grids[1].mean((0, 1))).abs().max() < 0.02
    assert (tmp_path / "model" / "config.json").read_text().count("positions_resize") == 0
    weights = {name: value for name, value in after.state_dict().items() if "pos_embed" not in name}
    assert not any(value.any() for name, value in weights.items() if name.startswith("classifier."))  # a linear layer of zeros
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in weights.items() if name.startswith("backbone."))


def test_fine_tuning_without_weights_says_which_to_give(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(photos, tmp_path, "steps=1", recipe="classify/finetune-small") == 2
    assert "pass a weights file, a model folder" in capsys.readouterr().err


def test_going_on_equals_never_having_stopped(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.training.loop import Loop

    step = Loop._step

    def stops_at_12(loop: Loop, *given: Any) -> Any:
        loop.signal = 15 if loop.progress.step == 11 else loop.signal
        return step(loop, *given)

    monkeypatch.setattr(Loop, "_step", stops_at_12)
    assert train(photos, tmp_path, "steps=24", "ema=0.5") == 143
    monkeypatch.undo()
    assert main(["train", "--data", str(photos), "--out", str(tmp_path), "--device", "cpu", "--resume"]) == 0
    whole, resumed = checkpoint.load(run), checkpoint.load(tmp_path)
    assert whole is not None
    assert resumed is not None
    for part in ("method", "average"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())


def test_the_report_of_accuracy_is_a_page_and_what_compare_reads(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run / "accuracy"
    found = told(capsys, "evaluate", str(run), "--data", str(photos), "--protocol", "accuracy", "--report", str(report))
    assert json.loads((report / "metrics.json").read_text()) == found
    page = (report / "index.html").read_text()
    assert page.count("<h2") == 6  # numbers, classes, confusions, worst, best, method
    assert page.count("data:image/jpeg") == 2  # nothing is wrong, and the best are one of a class
    compared = told(capsys, "compare", str(run), "--out", str(tmp_path / "page"))
    assert compared["metrics"] == ["accuracy@1"]
    assert compared["variants"][0]["mean"] == 1.0


def test_a_sweep_of_classification_is_measured_by_accuracy(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sweep", "classify/small", "--out", str(tmp_path / "sweep"), "--device", "cpu", "--grid", "mixup=0,0.8", "--set", *SETTINGS]
    found = told(capsys, *asked, "steps=8", "--data", str(photos))
    assert [(row["variant"], list(row["metrics"])) for row in found["table"]] == [
        ("mixup=0", ["accuracy@1"]),
        ("mixup=0.8", ["accuracy@1"]),
    ]
    runs = sorted(map(str, (tmp_path / "sweep" / "runs").iterdir()))
    assert told(capsys, "compare", *runs, "--out", str(tmp_path / "page"))["metrics"] == ["accuracy@1"]
    assert main([*asked, "--data", str(photos / "train")]) == 2
    assert "no test or val split to measure accuracy on" in capsys.readouterr().err


def test_what_accuracy_cannot_be_asked_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(photos)]
    assert main(["evaluate", str(run), *data, "--protocol", "accuracy", "--rerank", "alpha-qe"]) == 2
    assert "--protocol accuracy does not use --rerank: leave it out" in capsys.readouterr().err
    assert main(["evaluate", "random:vit_tiny_patch8_64", *data, "--protocol", "accuracy"]) == 2
    assert "no classifier, so no accuracy" in capsys.readouterr().err


def test_a_val_split_of_other_classes_is_refused_before_training(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, name in (("train", "dark"), ("train", "light"), ("val", "grey")):
        (tmp_path / "data" / split / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / split / name / "0.png")
    assert train(tmp_path / "data", tmp_path / "run", "steps=1") == 2
    assert "1 classes of the val split" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
