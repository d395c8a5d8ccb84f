"""`sightline explain`: a page or a picture about two pictures, and the numbers of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.cli.main import main
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

ARGS = (("patch_size", 8), ("embed_dim", 48), ("depth", 2), ("num_heads", 2))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    model_folder.save(
        Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGS, weights="random"), ImageSpec(image_px=32)), root / "model"
    )
    random = np.random.default_rng(0)
    one, other = (Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(2))
    other.paste(one.crop((16, 8, 48, 40)), (56, 24))
    one.save(root / "one.png")
    other.save(root / "<other>.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return root


def run(capsys: pytest.CaptureFixture[str], work: Path, *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["explain", str(work / "model"), *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_was_pasted_answers_where_it_is(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = (work / "one.png", work / "<other>.png")
    code, out, _ = run(
        capsys, work, *pictures, "--short-px", "64", "--box", "16,8,48,40", "--out", tmp_path / "new" / "match.html", "--json"
    )
    told = json.loads(out)
    assert code == 0
    assert told["region"]["box"] == [56, 24, 88, 56]
    assert told["pictures"][0] == {"path": str(work / "one.png"), "size_px": [96, 64], "grid": [8, 12]}
    shifts = [np.subtract(match["boxes"][1], match["boxes"][0]).tolist() for match in told["matches"]]
    assert shifts.count([40, 16, 40, 16]) > 0.8 * 16, "most of the sixteen patches, each at its place"
    assert told["metrics"]["num_matches"] == len(told["matches"]) <= 16
    similarities = [match["similarity"] for match in told["matches"]]
    assert similarities == sorted(similarities, reverse=True)
    page = (tmp_path / "new" / "match.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2
    assert "<other>" not in page
    assert (
        run(capsys, work, *pictures, "--short-px", "64", "--box", "16,8,48,40", "--out", tmp_path / "b.html")[1].count(
            "the box again at 56,24,88,56"
        )
        == 1
    )


def test_a_picture_alone_and_without_a_box(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, work, work / "one.png", work / "<other>.png", "--out", tmp_path / "match.png", "--most", "3", "--json")
    told = json.loads(out)
    assert (code, told["box"], told["region"]) == (0, None, None)
    assert told["num_drawn"] <= 3 < told["metrics"]["num_matches"]
    with Image.open(tmp_path / "match.png") as drawn:
        assert drawn.width > 1000
    code, out, _ = run(capsys, work, work / "one.png", work / "<other>.png", "--out", tmp_path / "none.html", "--least", "1", "--json")
    told = json.loads(out)
    assert (code, told["matches"], told["metrics"]["mean_similarity"]) == (0, [], None)


def test_mistakes_are_one_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = work / "one.png"
    for arguments, reason in [
        ((one, work / "broken.jpg"), "broken.jpg' cannot be read as an image"),
        ((one, one, "--box", "100,0,120,20", "--out", tmp_path / "m.html"), "the box 100,0,120,20 is empty or outside the picture"),
        ((one, one, "--out", tmp_path / "m.pdf"), "--out must end in .html (a page), .png or .jpg"),
    ]:
        code, _, err = run(capsys, work, *arguments)
        assert (code, reason in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "m.html").exists()
