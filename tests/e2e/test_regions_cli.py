"""Regions from the shell: an index of patches made, brought up to date, asked with a box; every mistake in one line."""

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
    """A model, a query, and a folder of pictures in one of which a part of the query is pasted."""
    root = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    model_folder.save(
        Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGS, weights="random"), ImageSpec(image_px=32)), root / "model"
    )
    random = np.random.default_rng(0)
    (root / "photos").mkdir()
    pictures = [Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(4)]
    pictures[2].paste(pictures[0].crop((16, 8, 48, 40)), (56, 24))
    pictures[0].save(root / "query.png")
    for number, picture in enumerate(pictures[1:], 1):
        picture.save(root / "photos" / f"{number}.png")
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([*map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_box_is_found_in_another_picture(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, query = tmp_path / "regions.index", work / "query.png"
    made = run(
        capsys, "index", index, "--model", work / "model", "--images", work / "photos", "--patches", "--short-px", 64, "--info", "--json"
    )
    told = json.loads(made[1])
    assert (told["update"]["added"], told["info"]["items"], told["info"]["rows"]) == (3, 3, 3 * 96)
    asked = ("search", index, "--image", query, "--box", "16,8,48,40", "-k", "2")
    code, out, _ = run(capsys, *asked, "--html", tmp_path / "page.html", "--json")
    hits = json.loads(out)["queries"][0]["hits"]
    assert code == 0
    assert (Path(hits[0]["path"]).name, hits[0]["box"], len(hits)) == ("2.png", [56, 24, 88, 56], 2)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3
    assert "2.png  56,24,88,56" in page
    code, out, _ = run(capsys, *asked, "--exact")
    assert "56,24,88,56" in out
    code, out, _ = run(capsys, "search", index, "--image", query)
    assert code == 0, "all of the picture without a box"

    assert "3 images, 288 patches" in run(capsys, "index", index, "--info")[1]
    assert run(capsys, "index", index, "--verify")[0] == 0
    assert run(capsys, "index", index, "--images", work / "photos", "--json")[1].count('"unchanged": 3') == 1


def test_every_mistake_is_one_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regions, whole, query = tmp_path / "regions.index", tmp_path / "photos.index", work / "query.png"
    assert run(capsys, "index", regions, "--model", work / "model", "--images", work / "photos", "--patches")[0] == 0
    assert run(capsys, "index", whole, "--model", work / "model", "--images", work / "photos")[0] == 0
    mistakes = [
        (("search", regions, "--image", query, "--box", "200,0,300,50"), "the box 200,0,300,50 is empty or outside the picture, which is 96 x 64"),
        (("search", regions, "--image", query, "--box", "1,2,3"), "the box '1,2,3' is not four numbers"),
        (("search", regions, "--image", query, "--box", "9,9,3,3"), "the box '9,9,3,3' is empty"),
        (("search", whole, "--image", query, "--box", "1,1,30,30"), "is an index of whole images, and a box asks for regions"),
        (("search", regions, "--image", query, "--image", query, "--box", "1,1,30,30"), "one box goes with one picture, and 2 were given"),
        (("search", regions, "--image", query, "--rerank", "k-reciprocal"), "leave out the re-ranker"),
        (("index", whole, "--images", work / "photos", "--patches"), "is an index of whole images: choose a new folder"),
        (("index", regions, "--images", work / "photos", "--short-px", "96"), "holds the patches of images at 32 px, not 96"),
        (("index", tmp_path / "new", "--patches"), "nothing to do:"),
    ]  # fmt: skip
    for arguments, reason in mistakes:
        code, _, err = run(capsys, *arguments)
        assert (code, reason in err, err.count("\n")) == (2, True, 1), err
