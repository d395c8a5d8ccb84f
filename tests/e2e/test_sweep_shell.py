"""A sweep as a person runs it: every run made once, a broken-off one gone on with, a diverged one noted, the table and page there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.nn import model_folder
from sightline.training import loop
from sightline.workflows import training

SETTINGS = [
    "backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2", "image_px=16", "classes_per_batch=2", "images_per_class=2", "steps=2", "workers=0",
    "validation=0", "augment=square", "jitter=0", "rotate_deg=0", "lr=0.01",
]  # fmt: skip
GRID = ["margin=0.1,0.5", "koleo_weight=0,0.3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    rows = ["path,label,split"]
    for label in range(8):
        for number in range(5):
            pixels = np.clip(random.normal(20 * label + 40, 30, (20, 18, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{label}-{number}.png")
            rows.append(f"{label}-{number}.png,class{label},{'train' if label < 4 else 'test'}")
    (root / "metric.csv").write_text("\n".join(rows) + "\n")
    return root / "metric.csv"


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    return ["sweep", "irt/small", "--data", str(photos), "--out", str(out), "--device", "cpu", "--set", *SETTINGS, "--grid", *GRID, *more]


@pytest.fixture(scope="module")
def swept(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep")
    assert main(arguments(photos, out, "--seeds", "2")) == 0
    return out


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}


def test_a_sweep_leaves_runs_a_table_and_a_page(swept: Path) -> None:
    assert set(times(swept)) == {f"margin={m}_koleo_weight={k}_seed={s}" for m in (0.1, 0.5) for k in (0, 0.3) for s in (0, 1)}
    told = json.loads((swept / "sweep.json").read_text())
    assert (told["runs_done"], told["runs"], told["stopped_by"]) == (8, 8, "")
    assert [row["variant"] for row in told["table"]] == [f"margin={m} koleo_weight={k}" for m in (0.1, 0.5) for k in (0, 0.3)]
    assert all(row["runs"] == 2 and 0 <= row["metrics"]["recall@1"]["mean"] <= 1 for row in told["table"])
    result = json.loads((swept / "runs" / "margin=0.1_koleo_weight=0_seed=1" / "result.json").read_text())
    assert (result["part"], result["protocol"], result["num_queries"]) == ("split test", "leave-one-out", 20)
    page = (swept / "index.html").read_text()
    assert page.count("<svg") == 2  # recall@1 and map@r
    assert "koleo_weight" in page
    assert (swept / "sweep.csv").read_text().count("\n") == 9
    assert "| margin=0.1 koleo_weight=0 |" in (swept / "sweep.md").read_text()
    assert not list(swept.rglob("checkpoint.pt"))


def test_only_what_is_missing_is_made_and_it_comes_out_the_same(swept: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, table = times(swept), json.loads((swept / "sweep.json").read_text())["table"]
    lost = "margin=0.5_koleo_weight=0_seed=1"
    shutil.rmtree(swept / "runs" / lost)
    assert main(arguments(photos, swept, "--seeds", "2", "--metric", "recall@2", "--json")) == 0
    captured = capsys.readouterr()
    assert {name for name, time_ns in times(swept).items() if time_ns != before[name]} == {lost}
    assert "run 7 of 8: margin=0.5 koleo_weight=0, seed 1" in captured.err
    assert json.loads(captured.out)["table"] == table
    assert (swept / "index.html").read_text().count("<svg") == 1


def test_other_settings_or_data_are_refused(swept: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(arguments(photos, swept, "--set", "lr=0.1")) == 2
    assert "made with other settings or data" in capsys.readouterr().err
    assert main(arguments(photos, swept, "--metric", "recall@3")) == 2
    assert "the runs were not measured by 'recall@3'; did you mean 'recall@" in capsys.readouterr().err


def test_the_ladder_begins_at_the_untrained_model(photos: Path, tmp_path: Path) -> None:
    asked = [
        "sweep",
        "irt/ladder",
        "--recipe",
        "irt/small",
        "--data",
        str(photos),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--set",
        *SETTINGS,
    ]
    assert main(asked) == 0
    training.train(training.named_recipe("irt/small", [*SETTINGS, "steps=0"]), photos, tmp_path / "own", device="cpu")
    prints = [
        model_folder.load(tmp_path / where).fingerprint for where in ("own", "runs/IRT_O_seed=0", "runs/IRT_L_seed=0", "runs/IRT_R_seed=0")
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert [row["runs"] for row in json.loads((tmp_path / "sweep.json").read_text())["table"]] == [1, 1, 1]


def test_a_diverged_run_is_noted_and_the_sweep_goes_on(photos: Path, tmp_path: Path) -> None:
    asked = [*arguments(photos, tmp_path)[:-2], "lr=1e30,0.01"]
    made = []
    for _ in range(2):
        assert main(asked) == 0
        made.append(times(tmp_path))
        assert set(made[0]) == {"lr=1e30_seed=0", "lr=0.01_seed=0"}
        table = json.loads((tmp_path / "sweep.json").read_text())["table"]
        assert [(row["variant"], row["runs"], row["diverged"]) for row in table] == [("lr=1e30", 0, 1), ("lr=0.01", 1, 0)]
        assert "training diverged at step 1" in (tmp_path / "index.html").read_text()
    assert made[1] == made[0]  # nothing is made anew: it would diverge again


def test_a_stopped_sweep_goes_on_in_the_middle_of_a_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = loop.Loop._step, []

    def interrupted(self: loop.Loop, *given: object) -> object:
        calls.append(self.progress.step)
        if len(calls) == 3:
            self.signal = 2  # Ctrl-C in the first step of the second run
        return step(self, *given)

    monkeypatch.setattr(loop.Loop, "_step", interrupted)
    asked = [*arguments(photos, tmp_path)[:-2], "margin=0.5,0.1"]
    assert main(asked) == 130
    assert list(times(tmp_path)) == ["margin=0.5_seed=0"]
    assert main(asked) == 0
    assert calls == [0, 1, 0, 1]  # the second run went on from its second step
