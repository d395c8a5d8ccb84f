"""Heads through the shell: fitted on a few images, kept in the model folder, used by measuring, indexing and searching alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.cli.main import main

TINY = "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2"
SETTINGS = [TINY, "image_px=32", "classes_per_batch=3", "images_per_class=2", "steps=2", "validation=0.34", "validate_every=2", "workers=0"]
NUM_CLASSES, PER_CLASS = 6, 8

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        coarse = random.integers(0, 200, (4, 4, 3))
        for number in range(PER_CLASS):
            noisy = np.kron(coarse, np.ones((10, 10, 1))) + random.integers(0, 55, (40, 40, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes(b"junk")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    head = ["whiten=supervised", "pca=6", "scales=1,0.5"]
    assert main(["train", "irt/small", *SETTINGS, *head, "--data", str(photos), "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_training_ends_with_the_head_that_its_recipe_names(shell: Shell, run: Path, photos: Path) -> None:
    encoder = sightline.load(run)
    assert (encoder.dim, encoder.width, encoder.model.whiten, encoder.model.scales) == (6, 16, "supervised", (1.0, 0.5))
    assert encoder.reduction.whiten == "supervised"  # type: ignore[union-attr]
    fingerprint = encoder.fingerprint
    assert shell("train", "--data", photos, "--out", run, "--resume")[0] == 0  # nothing left to do but the head, fitted anew
    assert sightline.load(run).fingerprint == fingerprint


def test_a_whitened_model_of_several_scales_measures_indexes_and_searches(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "whitened", tmp_path / "photos.index"
    code, told, err = shell(
        "reduce", run, "--data", photos, "--whiten", "supervised", "--pca", "8", "--scales", "1,0.75,0.5", "--out", out, "--json"
    )
    assert code == 0, err
    facts = json.loads(told)
    assert (facts["dim"], facts["width"], facts["scales"]) == (8, 16, [1.0, 0.75, 0.5])
    assert (facts["images"], facts["bad_files"]) == (32, 4)  # of the four classes that the run learnt from
    assert "whitening learned from positive pairs" in (out / "README.md").read_text()

    code, told, _ = shell("evaluate", out, "--data", photos, "--json")
    assert code == 0
    assert json.loads(told)["part"].startswith("classes held out of training")  # the new folder still tells them
    assert shell("index", store, "--model", out, "--images", photos)[0] == 0
    query = photos / "class 3" / "2.png"
    code, told, _ = shell("search", store, "--image", query, "-k", "3", "--json")
    hits = json.loads(told)["queries"][0]["hits"]
    assert hits[0]["path"].endswith("class 3/2.png")
    assert hits[0]["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert hits[1]["similarity"] < 0.9999
    vectors = sightline.load(out).embed([query, photos / "class 1" / "0.png"])
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_scales_alone_need_no_images(shell: Shell, run: Path, tmp_path: Path) -> None:
    code, told, _ = shell("reduce", run, "--scales", "1,0.5", "--out", tmp_path / "scaled", "--json")
    assert code == 0
    assert (json.loads(told)["dim"], json.loads(told)["images"]) == (16, 0)


def test_dinos_descriptor_for_copies_is_a_reduction_too(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    own = ["--pooling", "cls_gem", "--gem-p", "4", "--whiten", "pca", "--pca", "8"]
    code, told, err = shell("reduce", run, *own, "--data", photos, "--out", tmp_path / "copies", "--json")
    assert code == 0, err
    facts = json.loads(told)
    assert (facts["pooling"], facts["gem_p"], facts["width"], facts["dim"]) == ("cls_gem", 4.0, 32, 8)
    assert sightline.load(tmp_path / "copies").embed([photos / "class 1" / "0.png"]).shape == (1, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is asked for"),
        (["--pooling", "class_attention"], "class attention has weights of its own"),
        (["--pca", "4"], "give --data"),
        (["--pca", "400", "--data", "PHOTOS"], "needs descriptors of width 400"),
        (["--scales", "0"], "positive factors"),
        (["--scales", "1,0.5", "--scale-p", "3"], "pooling=gem"),
        (["--whiten", "supervised", "--data", "FLAT"], "label the images"),
        (["--pca", "4", "--data", "PHOTOS", "--out", "RUN/model"], "already holds a model"),
    ],
)
def test_a_head_that_cannot_be_fitted_is_one_line(
    shell: Shell, run: Path, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(30):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(flat / f"{number}.png")
    words = [word.replace("PHOTOS", str(photos)).replace("FLAT", str(flat)).replace("RUN", str(run)) for word in arguments]
    code, out, err = shell("reduce", run, *([] if "--out" in words else ["--out", tmp_path / "x"]), *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_too_few_images_for_the_head_are_refused_before_training(shell: Shell, photos: Path, tmp_path: Path) -> None:
    code, _, err = shell("train", "irt/small", *SETTINGS, "pca=400", "--data", photos, "--out", tmp_path / "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "pca=400 needs descriptors" in err
    assert not (tmp_path / "x").exists()
