"""An index of patches: grids come back as they went in, replaced and removed as wholes; the rest is held by the conformance suite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.contracts import PatchFeatures
from sightline.errors import IndexStoreError
from sightline.index import patches as engine
from sightline.index.base import Index, Item
from sightline.index.header import HEADER, read_header
from sightline.index.patches import PLACE_BITS, PatchIndex
from sightline.index.writer import Limits

DIM = 8


def grid(rows: int, columns: int, seed: int = 0, frame: tuple[float, float, float, float] = (0, 0, 100, 50)) -> PatchFeatures:
    vectors = np.random.default_rng(seed).normal(size=(rows * columns, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return PatchFeatures(vectors.astype(np.float16).astype(np.float32), (rows, columns), frame)


def create(path: Path, **options: object) -> PatchIndex:
    made = Index.create(path, dim=DIM, fingerprint="f" * 64, engine="patches", short_px=64, **options)
    assert isinstance(made, PatchIndex)
    return made


def same(found: PatchFeatures, given: PatchFeatures) -> bool:
    return np.array_equal(found.vectors, given.vectors) and (found.grid, found.frame) == (given.grid, given.frame)


def test_grids_come_back_from_log_and_segment_and_after_opening_again(tmp_path: Path) -> None:
    given = [grid(2, 3, 1), grid(1, 1, 2, (5, 6, 7, 8)), grid(4, 2, 3)]
    with create(tmp_path / "index") as index:
        ids = index.upsert_patches([Item(f"{number}.jpg", {"camera": number}) for number in range(3)], given)
        before = dict(index.patches(ids))
        index.seal()
        assert all(same(before[id], one) for id, one in zip(ids.tolist(), given, strict=True))
    with PatchIndex.open(tmp_path / "index", read_only=True) as index:
        assert isinstance(index, PatchIndex)
        after = dict(index.patches([*ids[::-1], 999, ids[0]]))
        assert list(after) == sorted(ids.tolist()), "those that exist, ascending and once each"
        assert all(same(after[id], one) for id, one in zip(ids.tolist(), given, strict=True))
        assert index.header.short_px == 64
        assert index.verify() == []
        assert (index.info().items, index.info().rows) == (3, 6 + 1 + 8)
        (file,) = (tmp_path / "index" / "segments").glob("*.vectors.npy")
        assert np.load(file).dtype == np.float16
        found = index.search_patches(given[2].vectors[5:6], 1, where="camera != 1")
        assert found.rows[0, 0] == (ids[2] << PLACE_BITS) + 5
        assert index.search_patches(given[2].vectors[5:6], 1, where="camera = 1").rows[0, 0] == ids[1] << PLACE_BITS


def test_a_picture_is_replaced_and_removed_with_all_its_patches(tmp_path: Path) -> None:
    with create(tmp_path / "index", limits=Limits(log_rows=10)) as index:
        first = index.upsert_patches([Item("a"), Item("b")], [grid(3, 3, 1), grid(2, 2, 2)])  # 13 rows: sealed by themselves
        again = index.upsert_patches([Item("a")], [grid(1, 2, 3)])  # fewer than before, and in the log
        assert again[0] == first[0]
        assert index.info().rows == 2 + 4
        assert same(dict(index.patches(again))[int(again[0])], grid(1, 2, 3))
        once_more = index.upsert_patches([Item("a"), Item("a")], [grid(1, 1, 4), grid(2, 1, 5)])  # in the log before; the last counts
        assert once_more.tolist() == [first[0], first[0]]
        assert same(dict(index.patches(first))[int(first[0])], grid(2, 1, 5))
        assert index.remove(paths=["b"]) == 1
        assert list(dict(index.patches(first))) == [first[0]]
        index.compact()
        assert (index.info().rows, index.count(), index.verify()) == (2, 1, [])


def test_an_item_with_a_lost_patch_is_found_out(tmp_path: Path) -> None:
    with create(tmp_path / "index") as index:
        (id,) = index.upsert_patches([Item("a")], [grid(2, 2)])
        store = index._writable()
        with store.writing("losing a patch"):
            store.connection.execute("DELETE FROM log WHERE id = ?", [(int(id) << PLACE_BITS) + 3])
        assert index.verify() == ["1 items have another number of vectors than their grids have cells"]
        assert dict(index.patches([id])) == {}


def test_search_finds_pictures_though_one_has_all_the_closest_patches(tmp_path: Path) -> None:
    crowd = grid(1, 1, 1)
    many = PatchFeatures(np.repeat(crowd.vectors, 50, axis=0), (5, 10), (0, 0, 1, 1))
    with create(tmp_path / "index") as index:
        ids = index.upsert_patches([Item("many"), Item("b"), Item("c")], [many, grid(2, 2, 2), grid(2, 2, 3)])
        found = index.search(crowd.vectors, 3)
        assert found.rows[0, 0] == ids[0]
        assert sorted(found.rows[0].tolist()) == ids.tolist()
        assert index.search(crowd.vectors, 5).rows[0, 3:].tolist() == [-1, -1]
        np.testing.assert_allclose(index.vector(int(ids[0])), crowd.vectors[0], atol=1e-4)  # float16 has left its length a little off
        mean = grid(2, 2, 2).vectors.mean(axis=0)
        np.testing.assert_allclose(index.vector(int(ids[1])), mean / np.linalg.norm(mean), atol=1e-6)


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "index") as index:
        with pytest.raises(IndexStoreError, match="2 items came with the patches of 1 pictures"):
            index.upsert_patches([Item("a"), Item("b")], [grid(1, 1)])
        with pytest.raises(IndexStoreError, match="float32 vectors"):
            index.upsert_patches([Item("a")], [PatchFeatures(np.ones((1, 1), np.float32), (1, 1), (0, 0, 1, 1))])
        monkeypatch.setattr(engine, "MAX_PATCHES", 5)
        with pytest.raises(IndexStoreError, match="make short_px smaller"):
            index.upsert_patches([Item("a")], [grid(2, 3)])
        assert index.count() == 0


def test_the_header_of_other_indexes_is_as_it_was(tmp_path: Path) -> None:
    Index.create(tmp_path / "index", dim=DIM, fingerprint="f").close()
    assert "short_px" not in json.loads((tmp_path / "index" / HEADER).read_text(encoding="utf-8"))
    assert read_header(tmp_path / "index").short_px == 0
