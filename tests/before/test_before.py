"""What an earlier version made still opens, resumes, replays and measures the same: ``kept/`` is its, ``make.py`` wrote it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sightline import catalog, load
from sightline.settings import from_plain

HERE = Path(__file__).parent
KEPT = HERE / "kept"


def _made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_before", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _made()
BEFORE: dict[str, Any] = json.loads((KEPT / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("before")
    made.make_photos(root)
    for name in ("model", "classifier", "photos.index", "patches.index", "runs"):
        shutil.copytree(KEPT / name, root / name)
    return root


def assert_close(found: Any, kept: Any, *, rel: float) -> None:
    """Compare nested numbers: processors differ in the last digits of a sum, and four steps of training carry them on."""
    if isinstance(kept, dict):
        assert {*kept} <= {*found}, "nothing is left out; something may come"
        for name in kept:
            assert_close(found[name], kept[name], rel=rel)
    elif isinstance(kept, list):
        assert len(found) == len(kept)
        for one, other in zip(found, kept, strict=True):
            assert_close(one, other, rel=rel)
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=rel, abs=1e-6)
    else:
        assert found == kept


def test_a_model_keeps_its_fingerprint() -> None:
    assert {name: load(KEPT / name).fingerprint for name in BEFORE["fingerprints"]} == BEFORE["fingerprints"]


def test_measures_and_searches_are_what_they_were(folder: Path) -> None:
    found = made.figures(folder, folder / "model", folder / "classifier")
    assert_close(json.loads(json.dumps(found)), BEFORE["figures"], rel=1e-4)


@pytest.mark.parametrize("name", made.RUNS)
def test_a_run_learns_as_it_did(name: str, folder: Path) -> None:
    recipe, *settings = made.RUNS[name]
    out = folder / "again" / name
    made.run("train", recipe, "--data", folder / "photos", "--out", out, "--device", "cpu", "--set", *made.NET, *settings)
    assert_close(made.losses(out), BEFORE["losses"][name], rel=1e-3)


@pytest.mark.parametrize("name", made.RESUMED)
def test_a_stopped_run_goes_on_as_it_did(name: str, folder: Path) -> None:
    made.run("train", "--data", folder / "photos", "--out", folder / "runs" / name, "--device", "cpu", "--resume")
    assert_close(made.losses(folder / "runs" / name), BEFORE["losses"][name], rel=1e-3)


@pytest.mark.parametrize("name", ["model", "classifier"])
def test_a_run_replays(name: str, folder: Path) -> None:
    out = folder / "replayed" / name
    made.run("train", "--from", folder / name, "--data", folder / "photos", "--out", out, "--device", "cpu")
    assert_close(made.losses(out), BEFORE["losses"][{"model": "whitened", "classifier": "classify"}[name]], rel=1e-3)


@pytest.mark.parametrize(("name", "plain"), json.loads((KEPT / "recipes.json").read_text(encoding="utf-8")).items())
def test_a_saved_recipe_means_what_it_did(name: str, plain: dict[str, Any]) -> None:
    recipe = catalog.find("recipes", name)()
    assert from_plain(type(recipe), plain) == recipe


@pytest.mark.parametrize("name", ["photos.index", "patches.index"])
def test_an_index_can_be_written_to(name: str, folder: Path, tmp_path: Path) -> None:
    index = shutil.copytree(KEPT / name, tmp_path / name)
    assert made.output_of("index", index, "--verify")["problems"] == []
    made.run("index", index, "--model", folder / "model", "--images", folder / "more", "--device", "cpu")
    assert made.output_of("index", index, "--info")["info"]["items"] == 21
