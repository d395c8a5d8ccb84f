"""Searching an index with a re-ranker: the order is its, the similarity is the cosine, and nobody else's question matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sightline.contracts import Hit, Hits, Ranking
from sightline.index.base import Index, Item
from sightline.search.engine import rerank_found
from sightline.search.neighbours import nearest
from sightline.search.page import write_page
from sightline.search.rerank import parse

RERANKER = parse("k-reciprocal,k1=6,k2=2")


def unit(num: int, seed: int) -> np.ndarray:
    made = np.random.RandomState(seed).randn(num, 8)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", dim=8, fingerprint="f") as made:
        made.upsert([Item(f"{row}.jpg") for row in range(50)], unit(50, 0))
        made.seal()
        made.upsert([Item(f"{row}.jpg") for row in range(50, 60)], unit(10, 1))
        yield made


def test_the_order_is_the_rerankers_among_what_was_found(index: Index) -> None:
    queries, vectors = unit(3, 2), np.concatenate([unit(50, 0), unit(10, 1)])
    found = index.search(queries, 30)
    answer = rerank_found(index, queries, found, RERANKER, 10)
    for query in range(3):
        near = found.rows[query] - 1  # ids count from 1 in the order of the rows
        expected = RERANKER(nearest(queries[query : query + 1], vectors[near], 30), queries[query : query + 1], vectors[near]).rows[0]
        assert answer.rows[query].tolist() == (near[expected[:10]] + 1).tolist()
        np.testing.assert_allclose(answer.similarity[query], vectors[answer.rows[query] - 1] @ queries[query], atol=1e-6)
    alone = rerank_found(index, queries[:1], index.search(queries[:1], 30), RERANKER, 10)
    np.testing.assert_array_equal(alone.rows[0], answer.rows[0])


def test_what_was_removed_meanwhile_is_left_out(index: Index) -> None:
    queries = unit(2, 3)
    found = index.search(queries, 30)
    gone = found.rows[0, :25]
    index.remove(ids=gone)
    answer = rerank_found(index, queries, found, RERANKER, 10)
    assert (answer.rows[0] >= 0).sum() == 5
    assert np.isneginf(answer.similarity[0, 5:]).all()
    assert not np.isin(answer.rows, gone).any()
    assert len(index.hits(answer)[0]) == 5


def test_nothing_found_is_nothing_reranked(index: Index) -> None:
    nothing = Ranking(np.full((1, 4), -1, np.int64), np.full((1, 4), -np.inf, np.float32))
    assert (rerank_found(index, unit(1, 4), nothing, RERANKER, 3).rows == -1).all()


def test_the_page_says_whose_order_it_is(tmp_path: Path) -> None:
    hits = Hits((Hit(1, "gone.jpg", 0.5),))
    text = write_page(tmp_path / "page.html", [tmp_path / "query.jpg"], [hits], reranked_by="diffusion,k=9").read_text(encoding="utf-8")
    assert "in the order of diffusion,k=9; similarity is a cosine" in text
