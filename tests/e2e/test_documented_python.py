"""The Python that the documentation shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

ROOT = Path(__file__).parents[2]
PAGES = [page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if "```python" in page.read_text(encoding="utf-8")]
TINY = ModelSpec(
    backbone="vit_tiny_patch16_224",
    backbone_args=(("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2)),
    weights="random",
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures and the trained model that the documentation speaks of; the test runs in it."""
    for name in ("a.jpg", "b.jpg", "query.jpg"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    torch.manual_seed(0)
    model_folder.save(Encoder(TINY, ImageSpec(image_px=16)), tmp_path / "runs" / "mine" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_python_runs(page: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    np.testing.assert_allclose(np.linalg.norm(names["vectors"], axis=1), 1, atol=1e-5)


def test_what_the_package_offers_is_there() -> None:
    assert all(getattr(sightline, name) is not None for name in sightline._LAZY)
    with pytest.raises(AttributeError, match="has no attribute 'Indx'"):
        _ = sightline.Indx
