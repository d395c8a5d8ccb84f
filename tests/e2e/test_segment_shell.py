"""Segmentation as a person asks for it: a folder of own images and masks, a page with pictures, errors in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("garden")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(3):
            mask = np.zeros((40, 56), np.uint8)
            mask[:, int(random.integers(16, 40)) :] = 1
            colours = np.array([[200, 60, 60], [60, 60, 200]])[mask] + random.normal(0, 15, (40, 56, 3))
            for kind, values in (("images", colours), ("masks", mask)):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(root / kind / part / f"{number}.png")
    (root / "classes.txt").write_text("rose\nsky\n")
    (root / "masks" / "train" / "2.png").write_bytes(b"not a mask")
    return root


def test_a_report_shows_classes_and_pictures(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "random:vit_tiny_patch16_224@64", "--data", str(garden), "--device", "cpu", "--protocol", "in-context,k=5"]
    assert main([*asked, "--json", "--report", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["metrics"]["miou"] > 0.6
    assert (told["settings"]["k"], told["settings"]["layout"], told["settings"]["image_px"]) == (5, "folders", 64)
    assert told["counts"] == {"training images": 2, "images": 3}
    assert "1 file could not be read (1 not a mask)" in captured.err
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3 * 3 + 1
    assert "rose" in page
    assert "sky" in page


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
    assert "leaves nothing for --no-verify to say" in capsys.readouterr().err
    assert main([*asked, str(garden), "--protocol", "in-context,image_px=50"]) == 2
    assert "cuts patches of 16 px" in capsys.readouterr().err
