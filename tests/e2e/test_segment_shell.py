"""Segmentation as a person asks for it: a folder of own images and masks, a page with pictures, errors in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.nn.model_folder import load
from sightline.training.loop import Loop
from sightline.workflows import training


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("garden")
    random = np.random.default_rng(0)
    for part, num in (("train", 6), ("val", 3)):
        for number in range(num):
            mask = np.zeros((40, 56), np.uint8)
            mask[:, int(random.integers(16, 40)) :] = 1
            colours = np.array([[200, 60, 60], [60, 60, 200]])[mask] + random.normal(0, 15, (40, 56, 3))
            for kind, values in (("images", colours), ("masks", mask)):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(root / kind / part / f"{number}.png")
    (root / "classes.txt").write_text("rose\nsky\n")
    (root / "masks" / "train" / "5.png").write_bytes(b"not a mask")
    return root


def test_a_report_shows_classes_and_pictures(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "random:vit_tiny_patch16_224@64", "--data", str(garden), "--device", "cpu", "--protocol", "in-context,k=5"]
    assert main([*asked, "--json", "--report", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["metrics"]["miou"] > 0.6
    assert (told["settings"]["k"], told["settings"]["layout"], told["settings"]["image_px"]) == (5, "folders", 64)
    assert told["counts"] == {"training images": 5, "images": 3}
    assert "1 file could not be read (1 not a mask)" in captured.err
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3 * 3  # image, truth and prediction of each
    assert "rose" in page
    assert "sky" in page


def test_the_train_part_may_lie_elsewhere(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = tmp_path / "measured"
    shutil.copytree(garden, measured)
    for kind in ("images", "masks"):
        shutil.rmtree(measured / kind / "train")
    asked = ["evaluate", "random:vit_tiny_patch16_224@64", "--device", "cpu", "--data", str(measured), "--protocol", "in-context,k=5"]
    assert main(asked) == 2
    assert "images/train/ and masks/train/ belong there" in capsys.readouterr().err
    assert main([*asked, "--train-data", str(garden)]) == 0
    told = capsys.readouterr().out
    assert f"val, in-context (fitted on {garden}), 5 training images, 3 images" in told
    whole = [*asked]
    whole[whole.index(str(measured))] = str(garden)
    assert main(whole) == 0
    assert capsys.readouterr().out.splitlines()[1:] == told.splitlines()[1:]
    (measured / "classes.txt").write_text("rose\ncloud\n")
    assert main([*asked, "--train-data", str(garden)]) == 2
    assert "differ: take two parts of one set" in capsys.readouterr().err
    for protocol, line in (("davis", "learns from nothing: leave --train-data out"), ("auto", "does not use --train-data: leave it out")):
        assert main([*asked[:-1], protocol, "--train-data", str(garden)]) == 2
        assert line in capsys.readouterr().err


def test_what_cannot_be_is_told_in_a_line(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "random:vit_tiny_patch16_224@64", "--device", "cpu", "--data"]
    assert main([*asked, str(tmp_path), "--protocol", "segment-knn"]) == 2
    assert "is no segmentation set" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "segment-linear,crop=9"]) == 2
    assert "did you mean 'crop_px'?" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "in-context,part=test"]) == 2
    assert "images/test/ and masks/test/ belong there" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "in-context", "--split", "test"]) == 2
    assert "images/test/ and masks/test/ belong there" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "in-context", "--no-verify"]) == 2
    assert "does not use --no-verify: leave it out" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "in-context,image_px=50"]) == 2
    assert "cuts patches of 16 px" in capsys.readouterr().err


TINY = [
    "backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2", "weights=random", "image_px=32", "resize_px=32",
    "pyramid_channels=16", "head_channels=16", "images_per_batch=2", "lr=0.003", "warmup_steps=0", "log_every=8", "validate_every=8", "save_every=8",
    "validation=0.4", "precision=fp32",
]  # fmt: skip


def train(garden: Path, out: Path, *settings: str) -> int:
    return main(["train", "segment/small", "--data", str(garden), "--out", str(out), "--device", "cpu", "--set", *TINY, *settings])


@pytest.fixture(scope="module")
def run(garden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(garden, out, "steps=32") == 0
    return out


def test_a_fine_tuned_head_is_kept_measured_and_shown(run: Path, garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--data", str(garden), "--device", "cpu", "--json", "--report", str(tmp_path / "report")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["protocol"], told["counts"], told["settings"]["part"]) == ("segment", {"images": 3}, "val")
    assert told["metrics"]["miou"] > 0.7  # of any one colour alone: under 0.4
    assert told["metrics"]["pixel_accuracy"] > 0.8
    assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8").count("data:image/jpeg") == 3 * 3
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (facts["images"], facts["training_classes"], facts["validation_images"]) == (4, ["rose", "sky"], 2)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "encoder.segmentation(images)" in card
    assert "mIoU **" in card
    assert "sightline evaluate" in card


def test_a_model_with_a_head_still_ranks_and_another_run_starts_from_its_backbone(
    run: Path, garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, label in enumerate("aabb"):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / label / f"{number}.png").write_bytes((garden / "images" / "train" / f"{number}.png").read_bytes())
    assert main(["evaluate", str(run), "--data", str(tmp_path / "photos"), "--device", "cpu", "--json"]) == 0
    assert "recall@1" in json.loads(capsys.readouterr().out)["metrics"]
    assert train(garden, tmp_path / "next", "steps=0", f"weights={run}", "backbone=auto", "head=upernet") == 0


def test_a_sweep_over_masks_is_measured_by_miou_and_held_to_them(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(garden, tmp_path / "garden")
    asked = [
        "sweep",
        "segment/small",
        "--data",
        str(moved),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--grid",
        "steps=0",
        "--set",
        *TINY,
    ]
    assert main([*asked, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["table"]
    assert 0 < row["metrics"]["miou"]["mean"] < 1
    assert main(asked) == 0  # what is there already is kept
    shutil.copyfile(moved / "masks" / "train" / "0.png", moved / "masks" / "train" / "9.png")
    shutil.copyfile(moved / "images" / "train" / "0.png", moved / "images" / "train" / "9.png")
    assert main(asked) == 2
    assert "changed since the run in" in capsys.readouterr().err


def test_segmentation_goes_on_exactly_where_it_stopped(
    run: Path, garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def once(self: Loop, *arguments: object) -> None:
        seen.append(self.progress.step)
        if self.progress.step == 12:
            raise InterruptedError  # dies in the thirteenth step; the last checkpoint is of the eighth

    with monkeypatch.context() as patched:
        before = Loop._after_step
        patched.setattr(Loop, "_after_step", lambda self, *arguments: (before(self, *arguments), once(self))[0])
        with pytest.raises(InterruptedError):
            training.train(training.named_recipe("segment/small", [*TINY, "steps=32"]), garden, tmp_path / "run", device="cpu")
    assert main(["train", "--data", str(garden), "--out", str(tmp_path / "run"), "--device", "cpu", "--resume"]) == 0
    assert load(tmp_path / "run").fingerprint == load(run).fingerprint
    moved = shutil.copytree(garden, tmp_path / "moved")
    (moved / "classes.txt").write_text("rose\nsea\n")
    assert main(["train", "--data", str(moved), "--out", str(tmp_path / "run"), "--device", "cpu", "--resume"]) == 2
    assert "began: 1 class gone ('sky'), 1 class new ('sea'); put" in capsys.readouterr().err


def test_what_cannot_be_segmented_is_told_in_a_line(run: Path, garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, tmp_path / "out") == 2
    assert "is no segmentation set" in capsys.readouterr().err
    assert train(garden, tmp_path / "out", "images_per_batch=1") == 2
    assert "images_per_batch to 2 or more" in capsys.readouterr().err
    asked = ["evaluate", "random:vit_tiny_patch16_224@64", "--device", "cpu", "--data", str(garden), "--protocol", "segment"]
    assert main(asked) == 2
    assert "train one with sightline train segment/" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--device", "cpu", "--data", str(garden), "--rerank", "k-reciprocal"]) == 2
    assert "does not use --rerank" in capsys.readouterr().err
