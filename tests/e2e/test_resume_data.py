"""A run that goes on is held to the data that it began with, whatever the method; and what the refusal advises works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.cli.main import main
from sightline.training import checkpoint

NET = [
    "backbone=vit_tiny_patch16_224",
    "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2",
    "image_px=16",
    "workers=0",
    "validation=0",
]
PAIRS = ["classes_per_batch=2", "images_per_class=2"]
CROPS = ["images_per_batch=4", "warmup_steps=0", "crop_px=16"]
METHODS = {
    "classify/small": ["images_per_batch=4"],
    "irt/small": PAIRS,
    "irt/small memory": [*PAIRS, "memory=1"],
    "irt/small snca": [*PAIRS, "objective=snca"],
    "irt/small proxies": [*PAIRS, "objective=normalised_softmax"],
    "irt/tuples": ["tuples_per_batch=2", "negatives=2", "query_size=4", "pool_size=10"],
    "moby/small": [*CROPS, "projector_hidden=16", "projector_out=8", "queue_length=8"],
    "selfpatch/dino-small": [*CROPS, "num_crops=2", "crop_min_area=0.4", "crop_max_area=1", "num_prototypes=8", "head_hidden=16", "head_bottleneck=8"],
}  # fmt: skip


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, name in enumerate(("c0", "c1", "c2", "c3")):
        for number in range(4):
            paint(tmp_path / "photos" / name / f"{number}.png", 10 * label + number)
    return tmp_path / "photos"


def train(method: str, photos: Path, run: Path, *more: str) -> int:
    settings = [] if "--resume" in more else ["--set", *NET, *METHODS[method], "steps=1", *more]
    recipe = [] if "--resume" in more else [method.split()[0]]
    return main(
        ["train", *recipe, "--data", str(photos), "--out", str(run), "--device", "cpu", *settings, *(["--resume"] if not recipe else [])]
    )


def refusal(capsys: pytest.CaptureFixture[str], method: str, photos: Path, run: Path) -> str:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(method, photos, run, "--resume") == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    return said[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_held_to_its_data(method: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(method, photos, run) == 0
    (photos / "c0").rename(photos / "zz")
    assert "1 class gone ('c0'), 1 class new ('zz'), 4 images new" in refusal(capsys, method, photos, run)
    (photos / "zz").rename(photos / "c0")
    paint(photos / "c1" / "extra.png", 99)
    assert "run' began: 1 image new ('c1/extra.png'); put" in refusal(capsys, method, photos, run)
    (photos / "c1" / "extra.png").unlink()
    (photos / "c2" / "0.png").rename(tmp_path / "away.png")
    assert "1 image gone (1 of 'c2')" in refusal(capsys, method, photos, run)
    (tmp_path / "away.png").rename(photos / "c2" / "0.png")
    photos.rename(tmp_path / "elsewhere")
    assert train(method, tmp_path / "elsewhere", run, "--resume") == 0


def test_what_the_refusal_advises_works(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train("classify/small", photos, run) == 0
    (photos / "c0").rename(photos / "zz")
    line = refusal(capsys, "classify/small", photos, run)
    advised = line.partition("--set ")[2].split()
    assert len(advised) == 2
    assert train("classify/small", photos, tmp_path / "new", *advised) == 0
    config = json.loads((tmp_path / "new/model/config.json").read_text())
    assert config["classifier"]["class_names"] == ["c1", "c2", "c3", "zz"]


def test_a_checkpoint_of_before_goes_on_with_a_word(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    assert train("irt/small", photos, run) == 0
    state = checkpoint.load(run)
    assert state is not None
    del state["rows"]
    checkpoint.save(run, state)
    assert train("irt/small", photos, run, "--resume") == 0
    assert "did not note its data" in caplog.text


def test_a_checkpoint_of_before_that_does_not_fit_the_data_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("irt/small memory", photos, run) == 0
    state = checkpoint.load(run)
    assert state is not None
    del state["rows"]
    state["method"]["objective.memory_vectors"] = torch.cat([state["method"]["objective.memory_vectors"]] * 2)
    checkpoint.save(run, state)
    assert train("irt/small memory", photos, run, "--resume") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the checkpoint in ")


def test_a_sweep_is_held_to_its_data(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sweep() -> int:
        asked = ["sweep", "irt/small", "--data", str(photos), "--out", str(tmp_path / "sweep"), "--device", "cpu"]
        return main([*asked, "--grid", "margin=0.1,0.5", "--set", *NET, *PAIRS, "steps=0", "validation=0.5"])

    assert sweep() == 0
    assert sweep() == 0  # all is kept
    paint(photos / "c1" / "extra.png", 99)
    capsys.readouterr()
    assert sweep() == 2
    assert f"the data of '{photos}' changed since the run in " in capsys.readouterr().err
    for result in (tmp_path / "sweep").rglob("result.json"):  # of a version that did not note the rows
        plain = json.loads(result.read_text())
        del plain["rows"]
        result.write_text(json.dumps(plain))
    assert sweep() == 0
