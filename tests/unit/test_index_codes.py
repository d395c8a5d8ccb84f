"""Exact search through bytes: what it calls proven is the truth, and it calls nothing proven that bytes cannot tell."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from sightline.index import ann, codes, plan
from sightline.index.base import Index, Item
from sightline.index.codes import Codes
from sightline.index.filters import Compare
from sightline.index.local import LocalIndex
from sightline.index.scan import exact_top
from sightline.index.writer import Limits

DIM = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(num: int, seed: int, spread: float = 1.0) -> np.ndarray:
    """Return vectors around one direction: the less ``spread``, the less their bytes tell them apart."""
    random = np.random.default_rng(seed)
    return unit(np.eye(1, DIM) + spread * random.normal(size=(num, DIM)))


def codes_of(vectors: np.ndarray) -> Codes | None:
    return ann.build(ann.HNSW, vectors).codes


@pytest.mark.parametrize("spread", [1.0, 0.03, 0.01, 0.003])
@pytest.mark.parametrize("k", [1, 10])
def test_what_is_proven_is_true(monkeypatch: pytest.MonkeyPatch, spread: float, k: int) -> None:
    monkeypatch.setattr(codes, "FIRST_FEW", (1, 4))
    monkeypatch.setattr(codes, "MOST", 60)
    vectors = np.concatenate([drawn(900, 0, spread), drawn(100, 1)])  # the others give the range of the bytes
    queries = drawn(200, 2, spread)
    part = plan.Part(None, np.random.default_rng(4).random(1_000) < 0.7)  # type: ignore[arg-type]
    found = codes_of(vectors)
    assert found is not None
    rows, similarity, proven = found.top(queries, vectors, k, part.mask, part.selection)
    truth, cosine = exact_top(queries, vectors, k, part.mask)
    assert np.array_equal(rows[proven], truth[proven])
    assert np.allclose(similarity[proven], cosine[proven], atol=1e-6)
    if spread == 1.0:
        assert proven.mean() > 0.9
    if spread == 0.003:
        assert not np.array_equal(rows, truth), "the case is hard: rows that bytes put first are not the closest"
        assert not proven.any()


def test_all_allowed_rows_are_proof_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(1_000, 0, 0.003)
    mask = np.arange(1_000) < 30
    found = codes_of(vectors)
    assert found is not None
    part = plan.Part(None, mask)  # type: ignore[arg-type]
    rows, _, proven = found.top(drawn(5, 2, 0.003), vectors, 10, mask, part.selection)
    assert proven.all()
    assert np.array_equal(rows, exact_top(drawn(5, 2, 0.003), vectors, 10, mask)[0])


@pytest.mark.parametrize("sample_rows", [1_000, 20])
def test_no_cosine_exceeds_its_bound(monkeypatch: pytest.MonkeyPatch, sample_rows: int) -> None:
    monkeypatch.setattr(ann, "TRAINING_ROWS", sample_rows)
    vectors = np.concatenate([drawn(980, 0, 0.05), drawn(20, 1)])
    np.random.default_rng(3).shuffle(vectors)
    found = codes_of(vectors)
    assert found is not None
    queries = np.concatenate([drawn(30, 2, 0.05), drawn(30, 4)])
    numbers = found.turn.as_bytes(queries)
    asked = np.floor(numbers)
    outside = ((found.turn.as_bytes(vectors) == 255) | (found.turn.as_bytes(vectors) == 0)).any(axis=1)
    assert outside.any() == (sample_rows == 20), "the case has rows outside the range that a few others gave"
    distance, rows = found.storage.search(asked, 1_000)
    cosine = np.take_along_axis(queries @ vectors.T, rows, axis=1)
    bound = np.stack([found.bound(queries, asked + 0.5 - numbers, column) for column in distance.T], axis=1)
    assert np.all(cosine <= bound)
    if sample_rows == 1_000:
        assert np.median(bound - cosine) < 0.1, "and it says something"


class Rounded:
    """A storage of one row, whose bytes are as far as rounding can take them from (0.8, 0.6): asked with (0.6, 0.8)."""

    def search(self, asked: np.ndarray, num: int, *, params: object) -> tuple[np.ndarray, np.ndarray]:
        assert asked.tolist() == [[10, 20]]
        return np.full((1, num), np.float32(200)), np.zeros((1, num), np.int64)  # from (20, 10)


@pytest.mark.parametrize(("cosine", "is_proven"), [(0.9605, False), (0.9620, True)])
def test_the_bound_by_hand(cosine: float, is_proven: bool) -> None:
    transform = faiss.LinearTransform(2, 2, True)
    faiss.copy_array_to_vector(45.01 * np.eye(2, dtype=np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector(np.full(2, -16.007, np.float32), transform.b)
    transform.is_trained = True
    turn = codes.Turn.of(transform)
    query = np.array([[0.6, 0.8]], np.float32)  # its numbers are 10.999 and 20.001, those of (0.8, 0.6) the same: 0.96 is 200 away
    side = np.array([0.8, -0.6], np.float32)
    found = (cosine * query + (1 - cosine**2) ** 0.5 * side).astype(np.float32)
    # away = 14.142 - 0.706 (the query's rounding) - 0.721 (a row's); (1 + 1.002 - (away / 45.01) ** 2) / 2 = 0.9611
    assert Codes(None, Rounded(), turn).top(query, found, 1, np.ones(1, np.bool_), None)[2].tolist() == [is_proven]


def test_more_answers_than_rows_are_left_to_the_scan() -> None:
    vectors = drawn(50, 0)
    found = codes_of(vectors)
    assert found is not None
    assert not found.top(drawn(2, 1), vectors, 60, np.ones(50, np.bool_), None)[2].any()


@pytest.fixture
def index(tmp_path: Path) -> LocalIndex:
    limits = Limits(ann_rows=500, exact_rows=20, tidy_rows=10_000)
    vectors = drawn(1_500, 0)
    near = np.argsort(np.argsort(-(vectors @ drawn(1, 5)[0])))
    texts = {0: "1", 1: "true"}
    items = [Item(f"{row}.jpg", {"near": int(near[row]), "label": texts.get(row % 3, "no")}) for row in range(1_500)]
    made = Index.create(tmp_path / "index", dim=DIM, fingerprint="f", limits=limits)
    made.upsert(items, vectors)
    made.seal()
    assert isinstance(made, LocalIndex)
    return made


@pytest.mark.parametrize("few_bytes", [0, 1 << 20])
def test_one_call_under_a_correlated_filter_is_exact(monkeypatch: pytest.MonkeyPatch, index: LocalIndex, few_bytes: int) -> None:
    monkeypatch.setattr(plan, "FEW_BYTES", few_bytes)
    proofs: list[bool] = []
    top = Codes.top

    def spied(self: Codes, *given: object) -> object:
        found = top(self, *given)  # type: ignore[arg-type]
        proofs.extend(found[2].tolist())
        return found

    monkeypatch.setattr(Codes, "top", spied)
    for where in ("near >= 600", "near >= 300", "near >= 1400"):
        found = index.search(drawn(1, 5), 10, where=where)
        assert found.how == ("exact",)
        assert np.array_equal(found.rows, index.search(drawn(1, 5), 10, where=where, exact=True).rows)
    assert len(proofs) == (0 if few_bytes else 3), "few vectors are remembered, many are found by their bytes"
    index.close()


def test_what_bytes_do_not_prove_is_scanned(monkeypatch: pytest.MonkeyPatch, index: LocalIndex) -> None:
    monkeypatch.setattr(plan, "FEW_BYTES", 0)
    nothing = (np.zeros((1, 10), np.int64), np.ones((1, 10), np.float32), np.zeros(1, np.bool_))
    monkeypatch.setattr(Codes, "top", lambda *_: tuple(part.copy() for part in nothing))
    found = index.search(drawn(1, 5), 10, where="near >= 600")
    assert np.array_equal(found.rows, index.search(drawn(1, 5), 10, where="near >= 600", exact=True).rows)
    index.close()


def test_one_and_true_are_two_filters(index: LocalIndex) -> None:
    one, true = (Compare("label", "=", value) for value in (1, True))
    rows = [set(index.search(drawn(1, 5), 500, where=where).rows[0].tolist()) for where in (one, true)]
    assert rows == [set(index.ids(one).tolist()), set(index.ids(true).tolist())]
    assert not rows[0] & rows[1]
    index.close()
