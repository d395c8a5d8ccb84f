"""The demo from end to end, cut to two steps: real photographs, unseen identities, a report and an index that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sightline import demo
from sightline.cli.main import main

pytest.importorskip("skimage", reason="the demo's photographs come with the extra 'demo'")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "hub_is_reachable", lambda: False)
    monkeypatch.delenv("SIGHTLINE_WEIGHTS", raising=False)


def test_the_demo_leaves_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_hub: None) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "2", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["before"]["part"] == told["after"]["part"] == "split test"
    assert told["before"]["fingerprint"] != told["after"]["fingerprint"]
    assert "training never saw" in captured.err
    train, test = ({path.name.split("-")[0] for path in (out / "photos" / split).iterdir()} for split in ("train", "test"))
    assert not train & test
    assert Path(told["report"]).stat().st_size > 100_000
    assert len(told["search"]) == 5
    assert (out / "search.html").exists()
    assert (out / "run" / "model" / "README.md").exists()
    assert told["start"] == "untrained"
    assert "starting from random weights" in captured.err
    page = Path(told["page"]).read_text(encoding="utf-8")
    for words in ("recall@1, untrained", "recall@1, trained", "The same query before and after", "Photographs that are all different"):
        assert words in page
    assert told["photographs"].keys() == {Path(name).with_suffix(".jpg").name for name in demo.FRIENDLY}
    for query, found in told["photographs"].items():
        assert len(found) == 5
        assert query not in found


def test_the_demo_starts_from_weights_that_are_at_hand(tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder of weights both rows are of the pretrained network; of several the first that is there is taken."""
    torch.manual_seed(1)
    (tmp_path / "weights").mkdir()
    save_file(timm.create_model("mobilenetv2_100", num_classes=0).state_dict(), tmp_path / "weights" / "mobilenetv2_100.safetensors")
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path / "weights"))
    recipe, command = demo._recipe(7)
    assert (recipe.name, recipe.model.backbone, recipe.model.weights, recipe.train.steps) == ("irt/folder", "mobilenetv2_100", "hub", 7)
    assert command.startswith("sightline train irt/folder --set backbone=mobilenetv2_100 weights=hub")
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", "")
    assert demo._recipe(7)[0].model.weights == "random"


def test_the_demo_touches_nothing_that_is_not_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--steps", "2"]) == 2
    assert "holds something that is not the demo's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
