"""Regions by hand: where a box's patches lie in another grid, which pictures patches speak for, and a paste found in pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.contracts import Box, Hits, PatchFeatures, Ranking
from sightline.errors import DataError
from sightline.index.base import Index, Item
from sightline.index.patches import PLACE_BITS, PatchIndex
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.search import regions
from sightline.search.engine import Query, Searcher
from sightline.search.regions import best_window, candidates, group, query_patches, running_max


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def noise(rows: int, columns: int, seed: int, dim: int = 32) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, columns, dim)))


def features(cells: np.ndarray, frame: tuple[float, float, float, float] = (0, 0, 1, 1)) -> PatchFeatures:
    return PatchFeatures(cells.reshape(-1, cells.shape[-1]), cells.shape[:2], frame)


@pytest.mark.parametrize("num", [1, 2, 3, 5, 6, 7])
def test_running_max_is_that_of_every_window(num: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    expected = np.stack([values[:, start : start + num].max(axis=1) for start in range(8 - num)], axis=1)
    np.testing.assert_array_equal(running_max(values, num, 1), expected)


def test_a_part_of_one_grid_is_found_at_its_place_in_another() -> None:
    query, other = noise(3, 2, 1), noise(8, 9, 2)
    other[4:7, 5:7] = query
    gallery = features(other, (100, 0, 280, 80))  # cells of 20 x 10 px
    found = best_window(query.reshape(6, -1), (3, 2), gallery)
    assert found.cells == (4, 5, 7, 7)
    assert found.similarity == pytest.approx(1, abs=1e-6)
    assert gallery.box_of(found.cells) == (200, 40, 240, 70)


def test_a_part_at_twice_the_size_is_found_at_its_size() -> None:
    query, other = noise(2, 2, 1), noise(9, 9, 2)
    other[3:7, 2:6] = query.repeat(2, axis=0).repeat(2, axis=1)
    found = best_window(query.reshape(4, -1), (2, 2), features(other))
    assert found.similarity == pytest.approx(1, abs=1e-6)
    assert found.cells == (4, 3, 6, 5), "the window of the box's own size in its middle is as good, and comes first"
    other[3:7, 2:6] = noise(4, 4, 3)
    other[3:6, 2:5] = query[0, 0]
    other[3, 4], other[5, 2], other[5, 4] = query[0, 1], query[1, 0], query[1, 1]  # no window of two by two has all four
    assert best_window(query.reshape(4, -1), (2, 2), features(other)).cells == (3, 2, 6, 5)


def test_the_similarity_is_the_mean_of_both_directions_by_hand() -> None:
    axes = np.eye(3, dtype=np.float32)
    query = axes[[0, 1]]  # two patches beside each other
    gallery = features(axes[[0, 2]][None])  # one of them, and something else
    found = best_window(query, (1, 2), gallery)
    # 1 x 1 (scale 1/2): has one of two (1/2) and nothing else (1): 3/4. 1 x 2: half of it, and half something else: 1/2.
    assert found.cells == (0, 0, 1, 1)
    assert found.similarity == pytest.approx(0.75)


def test_a_box_larger_than_the_other_grid_takes_all_of_it() -> None:
    query = noise(6, 6, 1)
    found = best_window(query.reshape(36, -1), (6, 6), features(query[1:3, 2:5]))
    assert found.cells == (0, 0, 2, 3)


def test_patches_speak_for_pictures_by_hand() -> None:
    def row(id: int, place: int) -> int:
        return (id << PLACE_BITS) + place

    rows = np.array([[row(7, 3), row(7, 0), row(2, 1)], [row(2, 9), row(5, 0), -1], [-1, -1, -1]])
    similarity = np.array([[0.9, 0.8, 0.5], [0.7, 0.4, -np.inf], [-np.inf] * 3], np.float32)
    # over the last of each list: picture 7 has 0.4 of the first, picture 2 has 0 of it and 0.3 of the second, picture 5 nothing
    assert group(Ranking(rows, similarity), 9).tolist() == [7, 2, 5]
    assert group(Ranking(rows, similarity), 1).tolist() == [7]


@pytest.mark.parametrize("rounds", [1, 2])
def test_as_many_pictures_are_compared_as_were_asked_for_though_one_has_all_the_closest(
    rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "CLOSEST", 3)
    monkeypatch.setattr(regions, "ROUNDS", rounds)
    monkeypatch.setattr(regions, "FEW", 0)
    query = noise(1, 1, 1)
    crowd = features(np.repeat(query, 30, axis=1))
    with Index.create(tmp_path / "index", dim=32, fingerprint="f", engine="patches", short_px=64) as index:
        assert isinstance(index, PatchIndex)
        ids = index.upsert_patches(
            [Item(f"{number}", {"even": number % 2 == 0}) for number in range(6)],
            [crowd, *(features(noise(2, 2, seed)) for seed in range(2, 7))],
        )
        found, how = candidates(index, query.reshape(1, -1), 4, where=None, exact=False)
        assert (len(set(found.tolist())), how) == (4, "approximate")
        assert found[0] == ids[0], "the first round finds nothing but it"
        if rounds == 2:
            similarity = [float((index_patches.vectors @ query.reshape(-1)).max()) for _, index_patches in index.patches(ids[1:])]
            assert found[1] == ids[1 + int(np.argmax(similarity))]
        assert candidates(index, query.reshape(1, -1), 4, where="even = true", exact=False)[0].tolist() == ids[::2].tolist()
        assert candidates(index, query.reshape(1, -1), 2, where=None, exact=True)[0].tolist() == ids.tolist()


def test_large_boxes_are_thinned_out_and_keep_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_QUERY", 6)
    cells = noise(4, 6, 1)
    query, shape = query_patches(features(cells), None)
    assert shape == (4, 6)
    np.testing.assert_array_equal(query, cells[::2, ::2].reshape(6, -1))


def regions_of(
    index: Index, encoder: Encoder, picture: Image.Image, box: Box | None, k: int, *, where: str | None = None, exact: bool = False
) -> Hits:
    encoder.fingerprint = index.header.fingerprint
    return Searcher(index, encoder=encoder).search(Query(picture=picture, box=box), k, where=where, exact=exact).hits


def test_a_part_of_a_photograph_is_found_where_it_was_pasted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = (("patch_size", 8), ("embed_dim", 48), ("depth", 2), ("num_heads", 2))
    encoder = Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=args, weights="random"), ImageSpec(image_px=64)).eval()
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(4)]
    query = pictures[0]
    pictures[2].paste(query.crop((16, 8, 48, 40)), (56, 24))
    with Index.create(tmp_path / "index", dim=48, fingerprint="f", engine="patches", short_px=64) as index:
        assert isinstance(index, PatchIndex)
        index.upsert_patches([Item(f"{number}.png") for number in range(1, 4)], list(encoder.patches(pictures[1:], short_px=64)))
        hits = regions_of(index, encoder, query, (16, 8, 48, 40), 2)
        assert [hit.path for hit in hits][:1] == ["2.png"]
        assert hits[0].box == (56, 24, 88, 56)
        assert hits[0].similarity > hits[1].similarity + 0.1
        assert len(regions_of(index, encoder, query, None, 9)) == 3
        with pytest.raises(DataError, match="the box 96,0,120,20 is empty or outside the picture, which is 96 x 64 pixels"):
            regions_of(index, encoder, query, (96, 0, 120, 20), 2)


@pytest.mark.parametrize("few", [0, 200])
def test_a_filter_that_leaves_out_the_best_regions_leaves_the_next_best(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "FEW", few)  # 0: patches propose the pictures; else all that match are compared
    monkeypatch.setattr(regions, "CANDIDATES", 4)
    torch.manual_seed(0)
    args = (("patch_size", 8), ("embed_dim", 48), ("depth", 2), ("num_heads", 2))
    encoder = Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=args, weights="random"), ImageSpec(image_px=64)).eval()
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(40)]
    query, box = pictures.pop(), (16, 8, 48, 40)
    for number in range(12):  # twelve pictures hold what is looked for, ten of them are left out
        pictures[number].paste(query.crop(box), (8 * number, 24) if number < 8 else (8 * (number - 8), 0))
    with Index.create(tmp_path / "index", dim=48, fingerprint="f", engine="patches", short_px=64) as index:
        assert isinstance(index, PatchIndex)
        items = [Item(f"{number}.png", {"shelf": number}) for number in range(len(pictures))]
        index.upsert_patches(items, list(encoder.patches(pictures, short_px=64)))
        assert {int(hit.metadata["shelf"]) for hit in regions_of(index, encoder, query, box, 12)} == set(range(12))
        for where, best in (("shelf >= 10", {10, 11}), ("shelf != 3 and shelf < 5", {0, 1, 2, 4}), ("shelf >= 12", set())):
            found = regions_of(index, encoder, query, box, 4, where=where)
            truth = regions_of(index, encoder, query, box, 4, where=where, exact=True)
            shelves = [int(hit.metadata["shelf"]) for hit in found]
            assert set(shelves[: len(best)]) == best
            assert shelves[: len(best)] == [int(hit.metadata["shelf"]) for hit in truth][: len(best)]
            assert len(found) == 4
            assert all(shelf in index_shelves(index, where) for shelf in shelves)
            assert found.how == ("exact" if few else "approximate" if len(index_shelves(index, where)) > 16 else "exact")


def index_shelves(index: PatchIndex, where: str) -> set[int]:
    return {int(index.get(int(id)).metadata["shelf"]) for id in index.ids(where)}
