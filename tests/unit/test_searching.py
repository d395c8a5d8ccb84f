"""Looking after an index from the shell's side: what is removed, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import ModelError, UsageError
from sightline.index.base import Index, Item
from sightline.nn import model_folder
from sightline.search.engine import Searcher
from sightline.workflows import indexing


@pytest.fixture
def store(tmp_path: Path) -> Path:
    vectors = np.eye(8, dtype=np.float32)
    labels = ["1", "1", "2", "2", "2", "3", "3", "cup"]
    with Index.create(tmp_path / "photos.index", dim=8, fingerprint="f") as index:
        index.upsert([Item(f"/photos/{row}.png", {"label": label}) for row, label in enumerate(labels)], vectors)
    return tmp_path / "photos.index"


def left(store: Path) -> int:
    with Index.open(store, read_only=True) as index:
        return index.count()


def test_a_removal_says_how_many_of_how_many(store: Path) -> None:
    answer, text = indexing.index(store, remove="label = 2")
    assert (answer["removed"], text) == (3, "removed 3 of 8 items")
    assert left(store) == 5


def test_more_than_half_goes_only_with_yes_or_a_person_who_agrees(store: Path) -> None:
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    for ask in (None, no):
        with pytest.raises(UsageError, match=r"5 of 8 items, more than half, so nothing was removed: add --yes"):
            indexing.index(store, remove="label in [2, 3]", ask=ask)
    assert asked == ["--remove takes out 5 of 8 items, more than half: shall it?"]
    assert left(store) == 8
    assert indexing.index(store, remove="label in [1, 3]", ask=no)[0]["removed"] == 4  # a half is not more than half
    assert indexing.index(store, remove="label in [2]", yes=True)[0]["removed"] == 3
    assert indexing.index(store, remove='label = "cup"', ask=lambda question: True)[0]["removed"] == 1


def test_what_spares_nothing_by_a_slip_removes_nothing(store: Path) -> None:
    for where in ('label != "cupp"', 'label not in ["cup", "cupp"]', 'not (label = "cupp")'):
        with pytest.raises(
            UsageError, match=r'no item has label = "cupp", so .* leaves nothing out; did you mean .cup.\?: nothing was removed'
        ):
            indexing.index(store, remove=where, yes=True)
    with pytest.raises(UsageError, match="no label in the index is true or false"):
        indexing.index(store, remove="label != true", yes=True)
    assert left(store) == 8


def test_nothing_to_remove_is_a_sentence(store: Path) -> None:
    assert indexing.index(store, remove='label = "cupp"')[1] == "removed 0 of 8 items: no item has label = \"cupp\"; did you mean 'cup'?"


def test_a_filter_that_cannot_be_read_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="character 7"):
        indexing.index(tmp_path / "new.index", model="random:vit_tiny_patch16_224", images=tmp_path, remove="label cup")
    assert not (tmp_path / "new.index").exists()


def test_an_index_whose_model_has_moved_asks_where_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    model_folder.save(model_folder.load("random:vit_tiny_patch8_64", device="cpu"), tmp_path / "model")
    indexing.index(tmp_path / "i", model=str(tmp_path / "model"), images=tmp_path, device="cpu")
    (tmp_path / "model").rename(tmp_path / "moved")
    with Searcher.open(tmp_path / "i", device="cpu") as searcher:
        with pytest.raises(ModelError, match=r"cannot be loaded .*: if it has moved, add --model and where it is now"):
            searcher.search(tmp_path / "a.png")
    with Searcher.open(tmp_path / "i", device="cpu", model=str(tmp_path / "moved")) as searcher:
        assert len(searcher.search(tmp_path / "a.png").hits) == 1
