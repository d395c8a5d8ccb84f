"""What every re-ranker of the catalog must do, whatever it makes of its neighbourhoods."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from sightline import catalog
from sightline.contracts import Ranking
from sightline.search import neighbours
from sightline.search.neighbours import nearest
from sightline.search.rerank import parse, sparse
from sightline.search.rerank.base import Chain

# Small enough that 60 of 90 candidates are more than any of them looks at beyond the neighbourhoods.
SMALL = {
    "k-reciprocal": "k1=8,k2=3",
    "k-reciprocal-transreid": "k1=12",
    "k-reciprocal-torchreid": "k1=8,k2=3",
    "query-expansion": "num=4",
    "database-augmentation": "num=4",
    "diffusion": "k=9,kq=4,truncate=40,iterations=200,tolerance=1e-9",
    "superglobal": "top=40,num=4",
}
NEUTRAL = {
    "k-reciprocal": "weight=1",
    "k-reciprocal-transreid": "weight=1",
    "k-reciprocal-torchreid": "weight=1",
    "query-expansion": "num=0",
    "database-augmentation": "num=0",
    "diffusion": "alpha=0",
    "superglobal": "top=0",
}


@pytest.fixture(params=catalog.names("rerankers"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def vectors(num: int, seed: int, dim: int = 8) -> np.ndarray:
    generator = np.random.RandomState(seed)
    made = generator.randn(6, dim)[generator.randint(0, 6, num)] + generator.randn(num, dim)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def small(name: str):
    return parse(f"{name},{SMALL[name]}")


def by_row(ranking: Ranking, num: int) -> np.ndarray:
    """The similarity of every gallery row, NaN where it is no candidate, [Q, G]."""
    found = np.full((len(ranking.rows), num + 1), np.nan)  # the last column takes the padding
    np.put_along_axis(found, ranking.rows, ranking.similarity, axis=1)
    return found[:, :num]


def test_its_settings_are_a_frozen_dataclass_with_defaults(name: str) -> None:
    assert type(parse(name)).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(item.kw_only for item in dataclasses.fields(parse(name)))  # type: ignore[arg-type]


def test_it_is_documented_with_its_settings(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reranking.md").read_text(encoding="utf-8")
    names = [name, *(item.name for item in dataclasses.fields(parse(name)))]  # type: ignore[arg-type]
    assert [word for word in names if not re.search(rf"(`|## ){re.escape(word)}(`|$)", page, re.MULTILINE)] == []


def test_the_same_candidates_come_back_in_falling_order_and_nothing_given_is_changed(name: str) -> None:
    queries, gallery = vectors(7, 1), vectors(90, 2)
    ranking = nearest(queries, gallery, 60)
    given = [array.copy() for array in (queries, gallery, ranking.rows, ranking.similarity)]
    found = small(name)(ranking, queries, gallery)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.sort(ranking.rows, axis=1))
    assert np.all(np.diff(found.similarity, axis=1) <= 0)
    assert found.similarity.dtype == np.float32
    assert np.isfinite(found.similarity).all()
    assert (found.rows != ranking.rows).any()
    for before, now in zip(given, (queries, gallery, ranking.rows, ranking.similarity), strict=True):
        np.testing.assert_array_equal(before, now)


def test_its_neutral_setting_keeps_the_ranking(name: str) -> None:
    queries, gallery = vectors(7, 3), vectors(90, 4)
    ranking = nearest(queries, gallery, 60)
    found = parse(f"{name},{NEUTRAL[name]}")(ranking, queries, gallery)
    np.testing.assert_array_equal(found.rows, ranking.rows)


def test_the_order_of_gallery_and_queries_does_not_matter(name: str) -> None:
    queries, gallery = vectors(7, 5), vectors(90, 6)
    generator = np.random.RandomState(0)
    other_queries, other_gallery = generator.permutation(7), generator.permutation(90)
    expected = by_row(small(name)(nearest(queries, gallery, 60), queries, gallery), 90)
    moved = nearest(queries[other_queries], gallery[other_gallery], 60)
    found = by_row(small(name)(moved, queries[other_queries], gallery[other_gallery]), 90)
    np.testing.assert_allclose(found, expected[other_queries][:, other_gallery], rtol=0, atol=3e-6)


def test_fewer_candidates_keep_the_order_they_have_among_all(name: str) -> None:
    queries, gallery = vectors(7, 7), vectors(90, 8)
    few, everything = (small(name)(nearest(queries, gallery, k), queries, gallery).rows for k in (60, 90))
    for some, all_of_them in zip(few, everything, strict=True):
        np.testing.assert_array_equal(some, all_of_them[np.isin(all_of_them, some)])


def test_blocks_of_any_size_make_the_same_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = vectors(7, 9), vectors(90, 10)
    ranking = nearest(queries, gallery, 60)
    expected = by_row(small(name)(ranking, queries, gallery), 90)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 1)
    monkeypatch.setattr(sparse, "CHUNK_ENTRIES", 1)
    monkeypatch.setattr("sightline.search.rerank.expansion.GATHERED_BYTES", 1)
    np.testing.assert_allclose(by_row(small(name)(ranking, queries, gallery), 90), expected, rtol=0, atol=3e-6)


def test_padding_stays_last(name: str) -> None:
    queries, gallery = vectors(3, 11), vectors(90, 12)
    whole = nearest(queries, gallery, 50)
    padded = Ranking(np.insert(whole.rows, 20, -1, axis=1), np.insert(whole.similarity, 20, -np.inf, axis=1))
    padded.rows[2], padded.similarity[2] = -1, -np.inf
    found = small(name)(padded, queries, gallery)
    assert (found.rows[:2, -1] == -1).all()
    assert np.isneginf(found.similarity[:2, -1]).all()
    assert (found.rows[:2, :-1] >= 0).all()
    assert (found.rows[2] == -1).all()


def test_a_query_that_is_a_row_is_looked_at_once(name: str) -> None:
    gallery = vectors(90, 13)
    self_rows = np.array([4, 40, 7])
    queries = gallery[self_rows]
    ranking = nearest(queries, gallery, 60, self_rows)
    found = small(name)(ranking, queries, gallery, self_rows)
    assert not (found.rows == self_rows[:, None]).any()
    forgotten = gallery.copy()
    forgotten[self_rows] = vectors(3, 14)  # the query's vector stands in the row's place
    np.testing.assert_array_equal(small(name)(ranking, queries, forgotten, self_rows).rows, found.rows)


@pytest.mark.parametrize("num_gallery", [1, 2, 3])
def test_a_gallery_smaller_than_every_neighbourhood_will_do(name: str, num_gallery: int) -> None:
    queries, gallery = vectors(2, 15), vectors(num_gallery, 16)
    found = parse(name)(nearest(queries, gallery, 1_000), queries, gallery)
    assert np.isfinite(found.similarity).all()
    assert parse(name)(Ranking(np.empty((2, 0), np.int64), np.empty((2, 0), np.float32)), queries, gallery).rows.shape == (2, 0)


def test_duplicates_break_nothing_and_what_ties_stays_in_its_order(name: str) -> None:
    queries, gallery = vectors(4, 17)[:1].repeat(2, axis=0), vectors(1, 18).repeat(40, axis=0)
    found = parse(name)(nearest(queries, gallery, 40), queries, gallery)
    assert np.isfinite(found.similarity).all()
    tied = np.diff(found.similarity, axis=1) == 0
    assert tied.any()
    assert (np.diff(found.rows, axis=1)[tied] > 0).all()
    same = parse(name)(nearest(gallery, gallery, 40, np.arange(40)), gallery, gallery, np.arange(40))
    assert np.isfinite(same.similarity).all()


def test_it_chains_with_itself(name: str) -> None:
    queries, gallery = vectors(7, 19), vectors(90, 20)
    twice = parse(f"{name},{SMALL[name]}+{name},{SMALL[name]}")
    assert isinstance(twice, Chain)
    found = twice(nearest(queries, gallery, 60), queries, gallery)
    assert np.all(np.diff(found.similarity, axis=1) <= 0)


def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    queries, gallery = vectors(7, 21), vectors(90, 22)
    ranking = nearest(queries, gallery, 5)
    with pytest.raises(ValueError, match="does not fit"):
        parse(name)(ranking, queries[:3], gallery)
    with pytest.raises(ValueError, match="row"):
        parse(name)(ranking, queries, gallery[: ranking.rows.max()])
    with pytest.raises(ValueError, match="self_rows"):
        parse(name)(ranking, queries, gallery, np.zeros(7, np.int64))
