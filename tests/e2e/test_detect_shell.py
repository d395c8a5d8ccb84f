"""Detection from the shell, on a tiny set made here: one command fine-tunes and measures, the same twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main

MODEL = "random:vit_tiny_patch16_224@64"
SETTINGS = "detect,steps=2,batch=2,image_px=64,channels=16,proposals=20,samples=8"


def make(root: Path, *, masks: bool) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "images" / f"{split}2017").mkdir(parents=True)
        images, objects = [], []
        for number in range(3):
            pixels = random.integers(90, 110, (64, 80, 3), dtype=np.uint8)
            x, y = (int(value) for value in random.integers(0, 30, 2))
            pixels[y : y + 28, x : x + 24] = (230, 30, 30)
            Image.fromarray(pixels).save(root / "images" / f"{split}2017" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
            outline = {"segmentation": [[x, y, x + 24, y, x + 24, y + 28, x, y + 28]]} if masks else {}
            objects.append(
                {"id": number, "image_id": number, "category_id": 5, "bbox": [x, y, 24, 28], "area": 672, "iscrowd": 0, **outline}
            )
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": objects, "categories": [{"id": 5, "name": "box"}]}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["evaluate", MODEL, "--device", "cpu", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_boxes_and_masks_with_a_report_the_same_twice(capsys, tmp_path: Path) -> None:
    data, page = make(tmp_path / "data", masks=True), tmp_path / "report"
    (data / "images/val2017/2.png").write_bytes(b"not an image")
    code, out, err = evaluate(capsys, "--data", data, "--protocol", SETTINGS, "--report", page, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["settings"]["detector"] == "Mask R-CNN"
    assert answer["counts"] == {"images": 2, "objects": 2, "classes": 1, "training images": 3}
    assert {"ap", "ap50", "ap75", "ap_mask", "ap_mask50"} <= answer["metrics"].keys()
    assert all(0 <= value <= 1 for value in answer["metrics"].values())
    assert "2.png" in (page / "bad_files.jsonl").read_text()
    html = (page / "index.html").read_text()
    assert html.count("found: ") >= 2
    assert html.count("truth: ") >= 2
    again = json.loads(evaluate(capsys, "--data", data, "--protocol", SETTINGS, "--json")[1])
    assert (again["metrics"], again["groups"]) == (answer["metrics"], answer["groups"])


def test_boxes_alone_train_faster_rcnn(capsys, tmp_path: Path) -> None:
    data = make(tmp_path, masks=False)
    code, out, err = evaluate(capsys, "--data", data, "--protocol", SETTINGS + ",frozen=true,steps=1,resize=square", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["settings"]["detector"] == "Faster R-CNN"
    assert "ap_mask" not in answer["metrics"]


def test_a_set_without_an_image_is_measured_on_demand_and_marked(capsys, tmp_path: Path) -> None:
    data = make(tmp_path, masks=False)
    (data / "images/val2017/2.png").unlink()
    asked = ("--data", data, "--protocol", "detect,steps=0,image_px=64,channels=16,proposals=20", "--json")
    code, _, err = evaluate(capsys, *asked)
    assert (code, "1 of 3 images of instances_val2017.json are missing" in err) == (2, True)
    code, out, err = evaluate(capsys, *asked, "--no-verify")
    assert code == 0, err
    assert (json.loads(out)["protocol"], json.loads(out)["counts"]["images"]) == ("detect (not verified)", 2)


def test_what_is_missing_is_one_line(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol, expected in (
        (SETTINGS, "is no COCO-format set"),
        ("detect,step=3", "did you mean 'steps'"),
        ("detect,head=big", "head cannot be 'big'"),
    ):
        code, out, err = evaluate(capsys, "--data", tmp_path, "--protocol", protocol)
        assert (code, out) == (2, "")
        assert expected in err
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    code, out, err = evaluate(capsys, "--data", tmp_path, "--protocol", SETTINGS)
    assert (code, out) == (2, "")
    assert err == "error: detection needs pycocotools, which is not installed: pip install 'sightline[detect]'\n"
