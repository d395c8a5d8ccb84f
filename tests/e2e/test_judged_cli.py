"""Judged benchmarks from the shell, on small real files: settings, distractors, a re-ranker, the report, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main

MODEL = "random:vit_tiny_patch16_224@32"


def paint(path: Path, seed: int, *, crop: bool = False) -> None:
    """A picture of coloured fields; cropped it lies in the middle of grey."""
    fields = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(fields).resize((32, 32), Image.Resampling.NEAREST)
    if crop:
        around = Image.new("RGB", (96, 96), (120, 120, 120))
        around.paste(image, (32, 32))
        image = around
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three queries whose boxes hold exactly the picture that is to be found, and a folder of distractors."""
    where = tmp_path_factory.mktemp("judged")
    for number in range(3):
        paint(where / "mine" / "jpg" / f"query{number}.jpg", number, crop=True)
        paint(where / "mine" / "jpg" / f"same{number}.jpg", number)
        paint(where / "mine" / "jpg" / f"other{number}.jpg", 100 + number)
        paint(where / "more" / f"{number}.jpg", 200 + number)
    truth = {
        "qimlist": [f"query{number}" for number in range(3)],
        "imlist": [f"{kind}{number}" for number in range(3) for kind in ("same", "other")],
        "gnd": [{"bbx": [32, 32, 64, 64], "easy": [2 * number], "hard": [], "junk": [2 * number + 1]} for number in range(3)],
    }
    (where / "mine" / "gnd_mine.json").write_text(json.dumps(truth), encoding="utf-8")
    return where


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["evaluate", MODEL, "--device", "cpu", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_revisited_collection_with_distractors_and_a_report(capsys, root: Path, tmp_path: Path) -> None:
    page = tmp_path / "report"
    arguments = ("--data", root / "mine", "--protocol", "revisited", "--distractors", root / "more", "--report", page, "--json")
    code, out, err = evaluate(capsys, *arguments)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["protocol"] == "revisited gnd_mine +3 distractors"
    assert answer["num_gallery"] == 9
    assert answer["metrics"]["map/easy"] == answer["metrics"]["mp@1/medium"] == 1.0  # the box is cropped, so the query is the picture
    assert answer["metrics"]["map/hard"] is None
    assert answer["num_skipped"] == {"easy": 0, "medium": 0, "hard": 3}
    assert json.loads((page / "metrics.json").read_text()) == answer
    assert "+3 distractors" in (page / "index.html").read_text()


def test_a_reranker_is_named_and_neutral_settings_change_nothing(capsys, root: Path) -> None:
    plain = evaluate(capsys, "--data", root / "mine", "--protocol", "revisited", "--json")[1]
    code, out, err = evaluate(
        capsys, "--data", root / "mine", "--protocol", "revisited", "--rerank", "query-expansion,num=0", "--rerank-top", "4", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert (answer.pop("rerank"), answer.pop("rerank_top")) == ("query-expansion,num=0", 4)
    assert answer == json.loads(plain)
    text = evaluate(capsys, "--data", root / "mine", "--protocol", "revisited", "--rerank", "query-expansion")[1]
    assert "query-expansion over the 6 closest" in text
    assert "map/easy" in text


def test_class_folders_take_distractors_and_rerankers_too(capsys, root: Path, tmp_path: Path) -> None:
    for label in range(2):
        for number in range(2):
            paint(tmp_path / "photos" / str(label) / f"{number}.jpg", label)
    code, out, err = evaluate(
        capsys, "--data", tmp_path / "photos", "--distractors", root / "more", "--rerank", "k-reciprocal,k1=2,k2=1", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["num_queries"], answer["num_gallery"], answer["num_classes"]) == (4, 6, 2)
    assert answer["metrics"]["recall@1"] == 1.0


def test_what_is_missing_is_one_line(capsys, root: Path) -> None:
    for arguments, expected in (
        (("--data", root, "--protocol", "roxford5k"), "gnd_roxford5k.pkl"),
        (("--data", root / "mine", "--protocol", "revisited", "--split", "test"), "leave out --dataset and --split"),
        (("--data", root / "mine", "--protocol", "revisted"), "did you mean 'revisited'"),
        (("--data", root / "mine", "--protocol", "revisited", "--distractors", root / "mine" / "jpg"), "among what is measured too"),
        (("--data", root / "mine", "--protocol", "revisited", "--rerank", "k-reciprocl"), "did you mean 'k-reciprocal'"),
    ):
        code, out, err = evaluate(capsys, *arguments)
        assert (code, out) == (2, "")
        assert expected in err
        assert err.count("\n") == 1


def test_folders_of_a_benchmark_are_not_taken_for_classes(capsys, tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / "original" / f"200{number}00.jpg", number)
        paint(tmp_path / "strong" / f"200{number}01.jpg", number)
    code, out, err = evaluate(capsys, "--data", tmp_path, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "looks like copydays: add --protocol copydays" in err
    by_labels = json.loads(evaluate(capsys, "--data", tmp_path, "--protocol", "leave-one-out", "--json")[1])
    assert (by_labels["protocol"], by_labels["num_queries"]) == ("leave-one-out", 4)
    answer = json.loads(evaluate(capsys, "--data", tmp_path, "--protocol", "copydays", "--no-verify", "--json")[1])
    assert (answer["protocol"], answer["metrics"]["map/strong"]) == ("copydays (not verified)", 1.0)
