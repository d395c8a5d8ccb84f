"""Particular objects through the shell: a manifest of clusters and pairs, trained on tuples, stopped within an epoch and gone on."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sightline.cli.main import main
from sightline.training.loop import Loop

NUM_PLACES = 9
SETTINGS = [
    "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2", "image_px=24", "tuples_per_batch=2", "negatives=3", "query_size=6", "pool_size=20",
    "steps=8", "validation=0.2", "validate_every=4", "log_every=1", "save_every=100", "workers=0", "precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of each place: its two colours in a noise of its own; the second is the first's positive. One file is damaged."""
    root = tmp_path_factory.mktemp("places")
    random = np.random.default_rng(0)
    rows = [("path", "cluster", "positive")]
    for place in range(NUM_PLACES):
        near, far = (tuple(int(value) for value in random.integers(60, 255, 3)) for _ in range(2))
        for view in range(3):
            image = Image.fromarray(random.integers(0, 60, (40, 48, 3), dtype=np.uint8))
            pen = ImageDraw.Draw(image)
            x, y = (int(value) for value in random.integers(0, 12, 2))
            pen.rectangle((x, y, x + 14, y + 20), fill=near)
            pen.ellipse((x + 16, y + 4, x + 32, y + 20), fill=far)
            image.save(root / f"{place}-{view}.jpg")
            rows.append((f"{place}-{view}.jpg", str(place), f"{place}-1.jpg" if view == 0 else ""))
    (root / "4-2.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with (root / "places.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return root / "places.csv"


def train(places: Path, out: Path, *more: str) -> int:
    recipe = [] if "--resume" in more else ["irt/tuples", *SETTINGS]
    return main(["train", *recipe, "--data", str(places), "--out", str(out), "--device", "cpu", *more])


def log(out: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


def test_a_run_stopped_within_an_epoch_goes_on_as_if_it_had_not_been(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(places, tmp_path / "whole") == 0
    assert "epoch 2: negative_distance" in capsys.readouterr().err
    after = Loop._after_step

    def interrupted(self: Loop, *arguments: Any) -> None:
        after(self, *arguments)
        if self.progress.step == 4:  # an epoch has three steps
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_after_step", interrupted)
        assert train(places, tmp_path / "parts") == 130
    assert len(log(tmp_path / "parts", "loss")) == 4
    assert train(places, tmp_path / "parts", "--resume") == 0
    for key in ("loss", "koleo", "epoch/negative_distance", "validation/map@r"):
        assert log(tmp_path / "parts", key) == log(tmp_path / "whole", key), key
    assert [step for step, _ in log(tmp_path / "whole", "epoch/negative_distance")] == [1, 4, 7]
    assert "4-2.jpg" in (tmp_path / "whole" / "bad_files.jsonl").read_text()


def test_the_model_is_measured_by_cluster(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(places, tmp_path / "run", "tuple_metric=cosine") == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(places), "--protocol", "leave-one-out", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["metrics"]["recall@1"] <= 1


def test_class_folders_give_pairs_of_a_class(places: Path, tmp_path: Path) -> None:
    for file in places.parent.glob("[0-7]-*.jpg"):
        folder = tmp_path / "photos" / file.name[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).hardlink_to(file)
    assert train(tmp_path / "photos", tmp_path / "run", "steps=1") == 0


def in_splits(places: Path, first_of_val: int, name: str) -> Path:
    """The manifest again, its places from a number on in the val split."""
    header, *lines = places.read_text().splitlines()
    written = [f"{line},{'val' if int(line[0]) >= first_of_val else 'train'}" for line in lines]
    places.with_name(name).write_text("\n".join([f"{header},split", *written]) + "\n")
    return places.with_name(name)


def test_the_val_split_chooses_the_model_and_nothing_is_held_out(places: Path, tmp_path: Path) -> None:
    assert train(in_splits(places, 6, "splits.csv"), tmp_path / "run", "steps=1") == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["training_classes"] == ["0", "1", "2", "3", "4", "5"]
    assert facts["validation_classes"] == ["6", "7", "8"]


def test_a_val_split_in_which_nothing_can_be_found_is_one_line(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = in_splits(places, 8, "single.csv").read_text().splitlines()
    (places.parent / "single.csv").write_text(
        "\n".join(line for line in lines if not line.startswith(("8-1", "8-2"))).replace("8-1.jpg", "")
    )
    assert train(places.parent / "single.csv", tmp_path / "run") == 2
    assert "no class of the val split" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("negatives=8", "8 negatives of different clusters need 9 clusters, but 7 are left for training: lower negatives"),
        ("tuples_per_batch=9", "a step takes 9 positive pairs, but there are 7 to train on"),
        ("memory=1", "a tuple forms its pairs within itself: set memory=0"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    places: Path, tmp_path: Path, setting: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(places, tmp_path / "run", setting) == 2
    error = capsys.readouterr().err
    assert wanted in " ".join(error.split())
