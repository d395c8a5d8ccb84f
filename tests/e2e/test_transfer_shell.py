"""Probing and comparing as a person does: real files, two tiny runs, a table and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.nn.model_folder import load

# float32: on a processor with bfloat16, oneDNN's gradient of a 3 x 3 convolution on a map of one pixel reads memory that nobody wrote (torch 2.15).
SETTINGS = [
    "image_px=16", "classes_per_batch=2", "images_per_class=2", "steps=3", "workers=0", "validation=0.34", "augment=square", "jitter=0",
    "rotate_deg=0", "log_every=1", "precision=fp32",
]  # fmt: skip
TINY_VIT = ["backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2"]
TINY_RESNET = ["backbone=resnet10t", "backbone_args=[]"]


def paint(folder: Path, label: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(100 * label + number)
    pixels = np.clip(random.normal([60 + 40 * label, 200 - 40 * label, 128], 12, (20, 18, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label in range(4):
        for number in range(6):
            paint(root / f"class{label}", label, number)
    (root / "class0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return root


@pytest.fixture(scope="module")
def vit(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos, tmp_path_factory.mktemp("runs") / "vit", *TINY_VIT)


def train(photos: Path, out: Path, *settings: str) -> Path:
    assert main(["train", "irt/small", "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *SETTINGS, *settings]) == 0
    return out


def test_a_model_is_probed_on_two_data_sets(vit: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(4):
        for number in range(4):
            paint(tmp_path / "split" / ("test" if number == 0 else "train") / f"class{label}", label, number)
    asked = ["probe", str(vit), "--data", str(photos), "--data", str(tmp_path / "split"), "--device", "cpu"]
    assert main([*asked, "--json", "--report", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == told
    assert "1 of 41" in captured.err
    assert list(told["metrics"]) == ["knn", "linear", "5-shot", "10-shot"]
    for name, value in told["metrics"].items():
        assert value == pytest.approx(np.mean([one["metrics"][name] for one in told["datasets"]]))
        assert told["intervals"][name][0] <= value <= told["intervals"][name][1]
    assert [(one["num_classes"], one["num_train"], one["num_test"]) for one in told["datasets"]] == [(4, 20, 4), (4, 12, 4)]
    assert told["metrics"]["linear"] > 0.7  # the classes differ in colour
    assert main([*asked, "--kind", "knn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| % | knn | classes | train | test |"
    assert re.fullmatch(r"\| mean \| \d+\.\d \[\d+\.\d, \d+\.\d\] \| \| \| \|", lines[-1])


@pytest.fixture(scope="module")
def runs(vit: Path, photos: Path) -> list[Path]:
    """Two ViTs that differ by their seed, one of them on half of the data too, and a ResNet, each measured."""
    folder = vit.parent
    made = [
        vit,
        train(photos, folder / "vit-again", *TINY_VIT, "seed=1"),
        train(photos, folder / "vit-half", *TINY_VIT, "share=0.5", "steps=2"),
        train(photos, folder / "resnet", *TINY_RESNET, "steps=2"),
    ]
    for run in made:
        assert main(["probe", str(run), "--data", str(photos), "--kind", "knn", "--report", str(run / "probe"), "--device", "cpu"]) == 0
    return made


def test_a_probe_takes_the_last_folder_where_it_is_told_to(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(4):
        for number in range(2):
            paint(tmp_path / f"alphabet{label % 2}" / f"character{label}", label, number)
    asked = ["probe", str(vit), "--data", str(tmp_path), "--kind", "knn", "--json"]
    assert main(asked) == 0
    told = capsys.readouterr()
    assert "add --dataset last-folder" in told.err
    assert json.loads(told.out)["datasets"][0]["num_classes"] == 2
    assert main([*asked, "--dataset", "last-folder"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["num_classes"] == 4


def test_a_run_tells_what_it_cost(runs: list[Path]) -> None:
    whole, half = (json.loads((run / "run.json").read_text()) for run in (runs[0], runs[2]))
    assert (whole["family"], json.loads((runs[3] / "run.json").read_text())["family"]) == ("vit", "resnet")
    assert whole["compute"]["images"] == 3 * 4
    assert half["compute"]["flops"] * 3 == whole["compute"]["flops"] * 2 > 0  # two steps and three of the same network
    assert 0 < half["images"] <= whole["images"] / 2 + 2  # rounded up in each of two classes
    assert half["validation_classes"] == whole["validation_classes"]
    assert 0 < whole["compute"]["device_hours"] < 1
    last = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["flops"] == whole["compute"]["flops"]


def test_runs_are_compared_by_compute_and_data(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    capsys.readouterr()
    assert main(["compare", *map(str, runs), str(tmp_path / "nothing"), "--out", str(tmp_path / "page"), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert f"left out: {tmp_path / 'nothing'}: no run is here" in captured.err
    assert [(row["family"], row["runs"]) for row in told["variants"]] == [
        ("vit", ["vit-half"]),
        ("vit", ["vit", "vit-again"]),
        ("resnet", ["resnet"]),
    ]
    measured = [json.loads((run / "probe" / "metrics.json").read_text())["metrics"]["knn"] for run in runs]
    assert told["variants"][1]["mean"] == pytest.approx((measured[0] + measured[1]) / 2)
    assert told["variants"][1]["deviation"] is not None
    assert told["variants"][0]["images"] < told["variants"][1]["images"]
    assert {**json.loads((tmp_path / "page" / "comparison.json").read_text()), "command": ""} == {**told, "command": ""}
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert main(["compare", str(runs[0]), "--metric", "kn", "--out", str(tmp_path / "page")]) == 2
    assert "no run was measured by 'kn'; did you mean 'knn'?" in capsys.readouterr().err


def test_what_weights_had_cost_is_added(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    tuned = train(photos, tmp_path / "tuned", *TINY_VIT, f"weights={runs[0] / 'model'}", "steps=1")
    own = json.loads((runs[0] / "run.json").read_text())["compute"]["flops"]
    compute = json.loads((tuned / "run.json").read_text())["compute"]
    assert (compute["flops_before"], compute["flops"] * 3) == (own, own)


def test_a_run_without_a_record_or_measures_is_left_out_with_what_to_do(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "recipe.json").write_text((runs[0] / "recipe.json").read_text())
    facts = json.loads((runs[0] / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({name: value for name, value in facts.items() if name != "compute"}))
    assert main(["compare", str(old), "--out", str(tmp_path / "page")]) == 2
    assert "it has no record of its compute" in capsys.readouterr().err
    (old / "run.json").write_text(json.dumps(facts))
    assert main(["compare", str(old), "--out", str(tmp_path / "page")]) == 2
    assert "it was not measured: sightline evaluate" in capsys.readouterr().err
    (old / "run.json").write_text("{")
    assert main(["compare", str(old), "--out", str(tmp_path / "page")]) == 2
    assert "run.json' cannot be read" in capsys.readouterr().err


def test_what_else_lies_among_the_runs_is_left_out_and_named(
    runs: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's own layout: ``reduce ... --out runs/mine-128``, then ``compare runs/*``."""
    reduced, damaged = tmp_path / "mine-128", tmp_path / "damaged"
    assert main(["reduce", str(runs[0]), "--data", str(photos), "--pca", "2", "--out", str(reduced), "--device", "cpu"]) == 0
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    (damaged / "recipe.json").write_text("{}")
    (tmp_path / "notes.txt").touch()
    folders = [str(runs[0]), str(reduced), str(damaged), str(tmp_path / "notes.txt")]
    capsys.readouterr()
    assert main(["compare", *folders, "--out", str(tmp_path / "page")]) == 0
    told = capsys.readouterr().err
    assert f"left out: {reduced}: it was not trained here but made from another model (sightline reduce)" in told
    assert f"left out: {damaged}: '{damaged / 'run.json'}' cannot be read" in told
    assert f"left out: {tmp_path / 'notes.txt'}: no run is here" in told
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "1 run compared" in page
    assert "3 runs left out" in page


def test_a_model_is_fine_tuned_on_a_data_set_at_a_larger_size(vit: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["probe", str(vit), "--data", str(photos), "--kind", "finetune", "--device", "cpu", "--image-px", "32", "--json"]
    before = load(vit).fingerprint
    assert main([*asked, "--steps", "60"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["metrics"]) == ["finetune"]
    (one,) = told["datasets"]
    assert (one["num_classes"], one["num_train"], one["num_test"]) == (4, 20, 4)
    assert told["metrics"]["finetune"] > 0.7  # the classes differ in colour
    assert (told["fingerprint"], load(vit).fingerprint) == (before, before), "the model itself learns nothing"
