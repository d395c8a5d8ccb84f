"""Learning without labels from the shell, with tiny networks: any folder, k-NN where labels are there, what follows a run, a collapse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.cli.main import main
from sightline.nn import model_folder
from sightline.training import checkpoint

ARGS = "backbone_args=patch_size=4,depth=2,embed_dim=16,num_heads=2,class_token=false,final_norm=false,global_pool="
TINY = ["backbone=vit_tiny_patch16_224", ARGS, "image_px=16", "images_per_batch=4", "workers=0", "steps=2", "warmup_steps=0"]
CROPS = ["crop_px=16,8", "num_crops=2,2", "crop_min_area=0.4,0.1", "crop_max_area=1.0,0.4"]
HEADS = ["num_prototypes=8", "num_patch_prototypes=8", "head_hidden=16", "head_bottleneck=8", "freeze_last_steps=1"]


def photos(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 28, 3), dtype=np.uint8)).save(root / name)
    return root


def train(data: Path, out: Path, *settings: str) -> int:
    return main(
        ["train", "selfpatch/tiny", "--data", str(data), "--out", str(out), "--device", "cpu", "--set", *TINY, *CROPS, *HEADS, *settings]
    )


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("classes"), *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)))


@pytest.fixture(scope="module")
def run(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "taught"
    assert train(classes, out, "validate_every=1") == 0
    return out


def test_neighbours_are_asked_where_labels_are_there(run: Path, classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [line["validation/knn"] for line in lines(run) if "validation/knn" in line]
    assert len(told) == 3  # the start is asked too
    assert all(0 <= value <= 1 for value in told)
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["validation_images"] == 2
    assert main(["train", "--data", str(classes), "--out", str(run), "--device", "cpu", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"] == {"knn": told[-1], "step": 2}  # of the model, which is the last


@pytest.mark.parametrize("names", [[f"{number}.png" for number in range(6)], ["0.png", "a/1.png", "a/2.png", "a/b/3.png", "a/b/c/4.png"]])
def test_a_folder_of_any_layout_is_learnt_from(tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(photos(tmp_path / "photos", *names), tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert f"the model is in {tmp_path / 'run' / 'model'}" in said
    assert "knn" not in said
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (facts["images"], facts["training_classes"], facts["validation_images"]) == (len(names), [], 0)


def test_the_network_of_a_run_goes_on_in_another_method(run: Path, classes: Path, tmp_path: Path) -> None:
    settings = ["backbone=auto", f"weights={run}", "steps=0", "image_px=16", "classes_per_batch=2", "images_per_class=2", "validation=0"]
    asked = ["train", "irt/folder", "--data", str(classes), "--out", str(tmp_path / "run"), "--device", "cpu", "--set", *settings]
    assert main(asked) == 0
    taken, own = model_folder.load(tmp_path / "run"), model_folder.load(run)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert taken.model.pooling == "class_attention"
    assert np.array_equal(taken.embed_batch(images), own.embed_batch(images))


def test_a_collapse_ends_in_a_line_and_leaves_what_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = photos(tmp_path / "photos", *(f"{number}.png" for number in range(6))), tmp_path / "run"
    even = ["teacher_temp=1000", "teacher_temp_start=1000", "watch_from=0", "log_every=1", "steps=40", "save_every=4"]
    assert train(data, out, *even) == 1
    said = capsys.readouterr().err
    diagnosis = said.splitlines()[-1]
    assert "the run has collapsed at step 10: the teacher gives all images the same answer" in diagnosis
    assert "try a lower lr, a lower teacher_temp" in diagnosis
    assert (said.count("collapsed"), "Traceback" in said) == (1, False)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(model_folder.load(out).embed_batch(images)).all()
    assert checkpoint.load(out)["progress"]["step"] == 8
    assert main(["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--resume"]) == 1
    assert "collapsed at step 10" in capsys.readouterr().err  # the looks that had found it before the checkpoint count
    assert [line["step"] for line in lines(out)] == list(range(1, 10))
