"""DAVIS from the shell on a tiny made-up video: the numbers, the page, the masks, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main

MODEL = "random:vit_tiny_patch16_224@64"


def make(root: Path) -> Path:
    """Two videos of four frames: a bright square goes over a dark, uneven ground; masks are 0 and 255, as in the 480p copy of 2016."""
    ground = np.random.default_rng(0).integers(0, 90, (64, 128, 3), dtype=np.uint8)
    for name, step_px in (("still", 0), ("moving", 6)):
        for number in range(4):
            mask = np.zeros((64, 128), np.uint8)
            mask[16:48, 16 + step_px * number : 48 + step_px * number] = 255
            for part, picture in (("JPEGImages", np.where(mask[..., None], np.uint8(220), ground)), ("Annotations", mask)):
                path = root / part / "480p" / name / f"{number:05d}.{'jpg' if part == 'JPEGImages' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    (root / "ImageSets" / "2016").mkdir(parents=True)
    (root / "ImageSets" / "2016" / "val.txt").write_text("still\nmoving\n")
    return root


def test_a_video_is_followed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, page = make(tmp_path / "DAVIS"), tmp_path / "page"
    protocol = f"davis,short_px=64,context=2,masks={tmp_path / 'masks'}"
    assert main(["evaluate", MODEL, "--data", str(root), "--protocol", protocol, "--report", str(page), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["protocol"] == "davis 2016 val 480p (2 sequences, not 20)"
    assert answer["counts"] == {"sequences": 2, "objects": 2, "frames": 8}
    assert list(answer["metrics"]) == ["j&f", "j", "f", "j_recall", "j_decay", "f_recall", "f_decay"]
    assert answer["groups"]["still_1"]["j"] > answer["groups"]["moving_1"]["j"] > 0.4
    assert answer["groups"]["still_1"]["j_decay"] == pytest.approx(0, abs=0.02)
    assert answer["settings"]["context"] == 2
    assert json.loads((page / "metrics.json").read_text()) == answer
    shown = (page / "index.html").read_text()
    assert shown.count("<img") == 2 * 2 * 3  # a sequence: found and true, each of its first, middle and last frame
    assert "moving_1" in shown
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 8


def test_what_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "DAVIS")
    for data, protocol, expected in (
        (tmp_path / "DAVIS", "davis,split=train", "has no ImageSets/2017 or 2016/train.txt"),
        (tmp_path / "DAVIS", "davis,contxt=3", "did you mean 'context'"),
        (tmp_path / "masks", "davis", "davis is not there"),
    ):
        assert main(["evaluate", MODEL, "--data", str(data), "--protocol", protocol]) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1


def test_a_sweep_without_labels_is_measured_by_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, flat, out = make(tmp_path / "DAVIS"), tmp_path / "flat", tmp_path / "sweep"
    flat.mkdir()
    for path in (root / "JPEGImages").rglob("*.jpg"):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    tiny = [*["image_px=32", "crop_px=32,16", "num_crops=2,1", "steps=1", "images_per_batch=4", "head_hidden=8", "head_bottleneck=4", "workers=0"],
            "backbone_args.depth=1", "backbone_args.embed_dim=16", "backbone_args.num_heads=2"]  # fmt: skip
    asked = ["sweep", "selfpatch/tiny", "--grid", "patch_weight=0,0.1", "--data", str(flat), "--out", str(out), "--set", *tiny]
    asked += ["--device", "cpu", "--json"]
    assert main(asked) == 2
    assert "has no labels to measure the runs by: name labelled data with --measure-on" in capsys.readouterr().err
    assert not out.exists()  # nothing was trained for that
    assert main([*asked, "--protocol", "davis,short_px=64,contxt=2", "--measure-on", str(root)]) == 2
    assert "did you mean 'context'" in capsys.readouterr().err
    assert main([*asked, "--protocol", "daviss", "--measure-on", str(root)]) == 2
    assert "did you mean 'davis'" in capsys.readouterr().err
    assert main([*asked, "--protocol", "davis", "--measure-on", str(root / "not")]) == 2
    assert "is not there: --measure-on names the data" in capsys.readouterr().err
    assert not out.exists()
    assert main([*asked, "--protocol", "davis,short_px=64,context=2", "--measure-on", str(root)]) == 0
    rows = json.loads(capsys.readouterr().out)["table"]
    assert [0.4 < row["metrics"]["j&f"]["mean"] <= 1 for row in rows] == [True, True]
    assert main([*asked, "--protocol", "davis,short_px=64", "--measure-on", str(root)]) == 2
    assert "was made with other settings or data" in capsys.readouterr().err


def test_the_split_of_the_command_is_the_list_and_the_rest_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", MODEL, "--device", "cpu", "--data", str(make(tmp_path))]
    (tmp_path / "ImageSets/2016/mine.txt").write_text("still\n")
    assert main([*asked, "--protocol", "davis,short_px=64", "--split", "mine", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["protocol"], answer["counts"]["sequences"], answer["settings"]["split"]) == ("davis 2016 mine 480p", 1, "mine")
    for protocol, options, expected in (
        ("davis", ["--split", "test"], "has no ImageSets/2017 or 2016/test.txt"),
        ("davis,split=mine", ["--split", "val"], "--protocol davis has split=mine already: say it once"),
        ("davis", ["--dataset", "cub", "--no-verify"], "--protocol davis does not use --dataset and --no-verify: leave them out"),
    ):
        assert main([*asked, "--protocol", protocol, *options]) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
