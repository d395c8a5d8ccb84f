"""A searcher: pictures, vectors, items and examples as queries, of one index that stays open, for several threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.contracts import Hits
from sightline.errors import IndexStoreError, ModelError, UsageError
from sightline.index.base import Index, Item
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.search import engine
from sightline.search.engine import NEGATIVE_WEIGHT, POSITIVE_WEIGHT, Query, Searcher
from sightline.workflows import indexing

ARGS = (("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(40, 6)))


@pytest.fixture(scope="module")
def path(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "photos.index"
    with Index.create(folder, dim=6, fingerprint="f") as index:
        index.upsert([Item(f"/{row}.png", {"shelf": row % 4}) for row in range(40)], vectors)
        index.seal()
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model_folder.save(
        Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGS, weights="random"), ImageSpec(image_px=16)),
        tmp_path / "model",
    )
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def ids(hits: Hits) -> list[int]:
    return [hit.id for hit in hits]


def order(vectors: np.ndarray, query: np.ndarray, *without: int) -> list[int]:
    """Return the ids (from 1) of all vectors, closest to the query first, without some."""
    return [row + 1 for row in np.argsort(-(vectors @ query), kind="stable").tolist() if row + 1 not in without]


def test_an_item_finds_the_others_and_not_itself(path: Path, vectors: np.ndarray) -> None:
    with Searcher.open(path) as searcher:
        answer = searcher.search(Query(id=7), 5)
        assert ids(answer.hits) == order(vectors, vectors[6], 7)[:5]
        assert (answer.searched, answer.order) == ("exact", "similarity")
        assert [*answer.timings_ms] == ["embed", "search", "read"]
        assert all(ms > 0 for ms in answer.timings_ms.values())
        assert ids(searcher.search(Query(vector=vectors[6]), 1).hits) == [7], "a vector names no item"
        assert len(searcher.search(Query(id=7), 60).hits) == 39


def test_examples_move_the_query_by_rocchios_formula(path: Path, vectors: np.ndarray) -> None:
    moved = vectors[6] + POSITIVE_WEIGHT * (vectors[2] + vectors[3]) / 2 - NEGATIVE_WEIGHT * vectors[10]
    with Searcher.open(path) as searcher:
        answer = searcher.search(Query(id=7, positives=(3, 4), negatives=(11,)), 6)
        assert ids(answer.hits) == order(vectors, moved, 7, 3, 4, 11)[:6]
        assert answer.hits[0].similarity == pytest.approx(float(vectors[answer.hits[0].id - 1] @ unit(moved)), abs=1e-6)
        assert ids(searcher.search(Query(positives=(3, 4)), 6).hits) == order(vectors, vectors[2] + vectors[3], 3, 4)[:6]
        several = searcher.search_many([Query(id=7, positives=(3, 4), negatives=(11,)), Query(id=1)], 6)
        assert [ids(one.hits) for one in several] == [ids(answer.hits), order(vectors, vectors[0], 1)[:6]]


def test_filters_and_rerankers_do_not_bring_named_items_back(path: Path, vectors: np.ndarray) -> None:
    with Searcher.open(path) as searcher:
        kept = searcher.search(Query(id=7, negatives=(3,)), 40, where="shelf = 2").hits
        assert {hit.id % 4 for hit in kept} == {3}
        assert len(kept) == 8, "ten items of the shelf, of which the query names two"
        reranked = searcher.search(Query(id=7), 10, rerank="k-reciprocal,k1=4,k2=2", num_candidates=10)
        assert sorted(ids(reranked.hits)) == sorted(order(vectors, vectors[6], 7)[:10])
        assert reranked.order == "k-reciprocal,k1=4,k2=2"
        assert [*reranked.timings_ms] == ["embed", "search", "rerank", "read"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "a query is one of picture=, vector= and id="),
        ({"id": 1, "picture": "a.png"}, "a query is one of picture=, vector= and id="),
        ({"negatives": (1,)}, "or positives= alone"),
        ({"vector": np.ones(6, np.float32), "box": (0.0, 0.0, 1.0, 1.0)}, "a box is a part of a picture or item"),
    ],
)
def test_what_is_no_query(query: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Query(**query)  # type: ignore[arg-type]


def test_what_an_index_cannot_answer_is_one_line(path: Path, vectors: np.ndarray) -> None:
    with Searcher.open(path) as searcher:
        with pytest.raises(IndexStoreError, match="the index has no item 99"):
            searcher.search(Query(id=99))
        with pytest.raises(IndexStoreError, match="the index has no item 98"):
            searcher.search(Query(id=1, positives=(98,)))
        with pytest.raises(UsageError, match="cancel each other"):
            searcher.search(Query(vector=-POSITIVE_WEIGHT * vectors[0], positives=(1,)))
        with pytest.raises(UsageError, match="does not say where its model is"):
            searcher.search("a.png")
        with pytest.raises(UsageError, match="an index of whole images, and a box asks for regions"):
            searcher.search(Query(id=1, box=(0.0, 0.0, 1.0, 1.0)))
        with pytest.raises(IndexStoreError, match="does not have unit length"):
            searcher.search(Query(vector=2 * vectors[0]))


def test_the_model_is_loaded_once_and_must_be_the_indexs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexing.index(photos / "i", model=str(photos / "model"), images=photos / "photos", device="cpu")
    loaded: list[str] = []
    load = model_folder.load
    monkeypatch.setattr(model_folder, "load", lambda source, **options: loaded.append(str(source)) or load(source, **options))
    with sightline.open(photos / "i", device="cpu") as searcher:
        assert repr(searcher).endswith(")")
        assert "model loaded" not in repr(searcher)
        first = searcher.search(photos / "photos" / "3.png", 3)
        assert Path(first.hits[0].path).name == "3.png"
        assert first.hits[0].similarity == pytest.approx(1, abs=1e-5)
        item = first.hits[0].id
        assert ids(searcher.search(Query(id=item), 2).hits) == ids(first.hits)[1:], "more like this"
        assert not searcher.encoder.training
        assert len(loaded) == 1
        assert "model loaded" in repr(searcher)
    torch.manual_seed(1)
    other = Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGS, weights="random"), ImageSpec(image_px=16))
    model_folder.save(other, photos / "other")
    with (
        Searcher.open(photos / "i", model=str(photos / "other"), device="cpu") as searcher,
        pytest.raises(IndexStoreError, match="use that model"),
    ):
        searcher.search(photos / "photos" / "3.png")
    with Searcher.open(photos / "i", model=str(photos / "gone"), device="cpu") as searcher, pytest.raises(ModelError, match="gone"):
        searcher.search(photos / "photos" / "3.png")


def test_regions_of_an_item_of_the_index(photos: Path) -> None:
    indexing.index(photos / "i", model=str(photos / "model"), images=photos / "photos", device="cpu", patches=True, short_px=32)
    with Searcher.open(photos / "i", device="cpu") as searcher:
        box = (0.0, 0.0, 12.0, 10.0)
        hits = searcher.search(Query(id=4, box=box), 3).hits
        assert 4 not in ids(hits)
        path = searcher.index.get(4).path
        of_picture = searcher.search(Query(picture=path, box=box), 4).hits
        assert of_picture[0].id == 4, "the picture itself comes first where it is no item by name"
        assert [(hit.id, hit.box) for hit in hits] == [(hit.id, hit.box) for hit in of_picture if hit.id != 4]
        with pytest.raises(UsageError, match="leave out the re-ranker"):
            searcher.search(Query(id=4), rerank="k-reciprocal")
        with pytest.raises(UsageError, match="leave out vector=, positives= and negatives="):
            searcher.search(Query(id=4, positives=(1,)))
        with pytest.raises(IndexStoreError, match="no item 77"):
            searcher.search(Query(id=77))


def test_threads_get_what_one_gets(photos: Path) -> None:
    indexing.index(photos / "i", model=str(photos / "model"), images=photos / "photos", device="cpu")
    queries = [*(photos / "photos").glob("*.png"), *(Query(id=number) for number in range(1, 9))] * 4
    with Searcher.open(photos / "i", device="cpu") as searcher:
        alone = [searcher.search(query, 4) for query in queries]
    with Searcher.open(photos / "i", device="cpu") as searcher, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: searcher.search(query, 4), queries))
    assert [ids(answer.hits) for answer in together] == [ids(answer.hits) for answer in alone]


def test_an_item_is_found_without_the_network_library(path: Path) -> None:
    script = f"import sys; from sightline.search.engine import *; print(len(Searcher.open({str(path)!r}).search(Query(id=3)).hits), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "10 False\n"


def test_the_clock_adds_what_a_stage_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 2.0, 2.25])
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(times))
    clock = engine._Clock()
    for _ in range(2):
        with clock.stage("embed"):
            pass
    assert clock.timings_ms == {"embed": 750.0}
