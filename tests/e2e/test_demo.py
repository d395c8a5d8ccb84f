"""The demo from end to end, cut to two steps: real photographs, unseen identities, a report and an index that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.cli.main import main

pytest.importorskip("skimage", reason="the demo's photographs come with the extra 'demo'")


def test_the_demo_leaves_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_demo_touches_nothing_that_is_not_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--steps", "2"]) == 2
    assert "holds something that is not the demo's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
