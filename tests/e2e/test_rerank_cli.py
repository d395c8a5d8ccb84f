"""Re-ranking from the shell, on small real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main

MODEL = "random:vit_tiny_patch16_224@32"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for label in range(4):
        folder = tmp_path / "photos" / f"c{label}"
        folder.mkdir(parents=True)
        texture = random.integers(0, 255, (32, 32, 3))
        for number in range(5):
            noisy = np.clip(texture + random.integers(-60, 60, texture.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_search_reranks(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, query = tmp_path / "photos.index", photos / "c1" / "0.png"
    assert main(["index", str(store), "--model", MODEL, "--images", str(photos), "--device", "cpu"]) == 0
    capsys.readouterr()

    def hits(*more: str) -> tuple[dict, list[str]]:
        assert main(["search", str(store), "--image", str(query), "-k", "5", "--json", *more]) == 0
        answer = json.loads(capsys.readouterr().out)
        return answer, [Path(hit["path"]).parent.name for hit in answer["queries"][0]["hits"]]

    plain, _ = hits()
    assert (plain["order"], plain["similarity"]) == ("similarity", "cosine")
    answer, labels = hits("--rerank", "k-reciprocal,k1=4,k2=2", "--rerank-top", "12")
    assert answer["order"] == "k-reciprocal,k1=4,k2=2"
    assert labels == ["c1"] * 5
    assert answer["queries"][0]["hits"][0]["path"] == str(query)
    assert answer["queries"][0]["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    chained, _ = hits("--rerank", "query-expansion,num=2+diffusion,k=4,kq=2")
    assert len(chained["queries"][0]["hits"]) == 5

    assert main(["search", str(store), "--image", str(query), "--rerank", "superglobal", "--html", str(tmp_path / "page.html")]) == 0
    assert "in the order of superglobal" in capsys.readouterr().err
    assert "in the order of superglobal" in (tmp_path / "page.html").read_text(encoding="utf-8")

    assert main(["search", str(store), "--image", str(query), "--rerank", "k-reciprocl"]) == 2
    assert "did you mean 'k-reciprocal'" in capsys.readouterr().err
