"""A finished run that is trained on, and what is said, and left, where a run diverges: each remedy that is named is followed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.nn import model_folder

SETTINGS = [
    "backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2", "image_px=16", "workers=0", "classes_per_batch=2",
    "images_per_class=2", "validation=0", "schedule=constant", "warmup_steps=0", "log_every=1", "precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label in range(3):
        (root / f"c{label}").mkdir()
        for number in range(3):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"c{label}" / f"{number}.png")
    return root


def train(photos: Path, out: Path, *more: str) -> int:
    return main(["train", "irt/small", "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *SETTINGS, *more])


def train_on(photos: Path, source: Path, out: Path, *settings: str) -> int:
    return main(["train", "--from", str(source), "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *settings])


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(photos, out, "steps=3") == 0
    return out


def test_trained_on_is_trained_longer(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model_folder.load(run).fingerprint
    assert train_on(photos, run, tmp_path / "more", "steps=5") == 0
    assert f"going on after step 3 of the run in {run}" in capsys.readouterr().err
    assert train(photos, tmp_path / "whole", "steps=5") == 0
    assert losses(tmp_path / "more") == losses(tmp_path / "whole")
    assert model_folder.load(tmp_path / "more").fingerprint == model_folder.load(tmp_path / "whole").fingerprint
    assert model_folder.load(run).fingerprint == before
    facts = [json.loads((where / "run.json").read_text())["compute"]["images"] for where in (tmp_path / "more", tmp_path / "whole")]
    assert facts[0] == facts[1]


def test_another_rate_holds_from_there_on(run: Path, photos: Path, tmp_path: Path) -> None:
    assert train_on(photos, run, tmp_path / "still", "steps=5", "lr=1e-30") == 0
    assert model_folder.load(tmp_path / "still").fingerprint == model_folder.load(run).fingerprint


def test_what_would_not_fit_is_refused_and_the_recipe_alone_is_replayed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on(photos, run, tmp_path / "other", "steps=5", "margin=0.1") == 2
    said = capsys.readouterr().err
    assert "of its settings margin cannot change on the way" in said
    assert not (tmp_path / "other").exists()
    (recipe,) = re.findall(r"--from (\S+recipe\.json)", said)
    assert train_on(photos, Path(recipe), tmp_path / "other", "steps=5", "margin=0.1") == 0
    assert len(losses(tmp_path / "other")) == 5
    assert train_on(photos, run, tmp_path / "again", "steps=3") == 0  # without more steps a run is replayed, as ever
    assert losses(tmp_path / "again") == losses(run)


def test_resuming_with_more_steps_says_how_to_train_on(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(photos), "--out", str(run), "--resume", "--set", "steps=4", "--device", "cpu"]) == 2
    (source,) = re.findall(r"--from (\S+) --set steps=N", capsys.readouterr().err)
    assert train_on(photos, Path(source), tmp_path / "more", "steps=4") == 0
    assert len(losses(tmp_path / "more")) == 4


def test_a_run_that_is_trained_on_is_held_to_its_data(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = photos / "c1" / "extra.png"
    extra.write_bytes((photos / "c1" / "0.png").read_bytes())
    try:
        assert train_on(photos, run, tmp_path / "more", "steps=5") == 2
    finally:
        extra.unlink()
    assert "1 image new ('c1/extra.png')" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("save_every", [100, 1])
def test_a_run_that_diverges_says_what_is_left_and_what_helps(
    save_every: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train(photos, tmp_path / "wild", "steps=30", "lr=1e9", "optimizer=sgd", "weight_decay=0", "clip_norm=0", f"save_every={save_every}")
        == 1
    )
    said = capsys.readouterr().err.splitlines()[-1]
    saved = re.search(r"keeps it as it was after step (\d+)", said)
    if saved is None:
        assert "No step of it was saved" in said
        assert not (tmp_path / "wild" / "checkpoint.pt").exists()
    else:
        assert (tmp_path / "wild" / "checkpoint.pt").exists()
        assert (tmp_path / "wild" / "model" / "config.json").exists()
        assert int(saved.group(1)) > 0
    assert (saved is None) == (save_every == 100)
    assert "clip_norm=1" in said
    (rate,) = re.findall(r"--set lr=(\S+?),", said)
    assert float(rate) < 1e9
    assert train(photos, tmp_path / "tame", "steps=1", f"lr={rate}", "clip_norm=1", "precision=fp32") == 0  # all that it advises can be set
