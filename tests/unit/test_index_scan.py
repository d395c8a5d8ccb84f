from __future__ import annotations

import numpy as np
import pytest

from sightline.index import scan
from sightline.index.ann import Effort
from sightline.index.calibrate import NUM_QUERIES, calibrate, held_out_queries, recalls
from sightline.index.plan import first_rank


def unit(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block_rows", [7, 64, 10_000])
@pytest.mark.parametrize("k", [1, 10, 400])
@pytest.mark.parametrize("share", [None, 0.5, 0.0])
def test_exact_top_in_blocks_is_a_sort(monkeypatch: pytest.MonkeyPatch, block_rows: int, k: int, share: float | None) -> None:
    monkeypatch.setattr(scan, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(scan, "MAX_CELLS", block_rows * 3)  # several groups of queries too
    vectors, queries = unit(300, 8, 0), unit(7, 8, 1)
    vectors[50:90] = vectors[3]  # many ties
    allowed = None if share is None else np.random.default_rng(2).random(300) < share
    rows, similarity = scan.exact_top(queries, vectors, k, allowed)
    truth = np.einsum("qd,md->qm", queries, vectors)
    for query in range(7):
        kept = [row for row in range(300) if allowed is None or allowed[row]]
        order = sorted(kept, key=lambda row: (-truth[query, row], row))[:k]
        assert rows[query].tolist() == order + [-1] * (k - len(order))
        assert np.allclose(similarity[query, : len(order)], truth[query, order], atol=1e-6)
        assert np.all(np.isneginf(similarity[query, len(order) :]))


def test_copies_of_a_vector_tie_wherever_they_are() -> None:
    vectors = np.repeat(unit(1, 387, 0), 1_001, axis=0)
    found = scan.similarities_of(unit(3, 387, 1), np.broadcast_to(vectors, (3, 1_001, 387)))
    assert all(len(set(row)) == 1 for row in found.tolist())


def test_merge_puts_the_lower_id_first_and_pads_last() -> None:
    rows, similarity = scan.merge(
        [np.array([[7, -1]]), np.array([[3, 9]])], [np.array([[0.5, -np.inf]], np.float32), np.array([[0.5, -0.9]], np.float32)], 4
    )
    assert rows.tolist() == [[3, 7, 9, -1]]
    assert similarity[0, 3] == -np.inf


def test_recalls_counts_pads_neither_way() -> None:
    assert recalls(np.array([[1, 2], [5, -1]]), np.array([[2, 3], [5, -1]])).tolist() == [0.5, 1.0]


def test_held_out_queries_are_new_unit_vectors() -> None:
    vectors = unit(NUM_QUERIES + 76, 8, 0)
    queries, closest = held_out_queries(vectors, seed=1)
    assert np.isin(closest.round(5), scan.exact_top(vectors, vectors, 2)[1][:, 1].round(5)).all()
    assert queries.shape == (NUM_QUERIES, 8)
    assert len(held_out_queries(vectors[:50], seed=1)[0]) == 50
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    assert scan.exact_top(queries, vectors, 1)[1].max() < 1 - 1e-4
    assert np.array_equal(queries, held_out_queries(vectors, seed=1)[0])


class Blind:
    """A search structure that finds every fifth of the closest only, whatever the effort."""

    kind = "ivf-rabitq"

    def top(self, queries: np.ndarray, vectors: np.ndarray, k: int, *, effort: Effort | None = None) -> tuple[np.ndarray, np.ndarray]:
        rows, similarity = scan.exact_top(queries, vectors, k)
        return np.where(np.arange(k) % 5 == 0, rows, -1), similarity


def test_a_structure_that_never_reaches_its_recall_is_not_asked() -> None:
    found = calibrate(Blind(), unit(400, 8, 0), seed=1)  # type: ignore[arg-type]
    assert (found.effort.depth, found.recall_at_10, found.recall_filtered) == (0, 1.0, 1.0)


def test_first_rank_leaves_room_for_chance() -> None:
    assert first_rank(1, 100, 100) == 10, "where recall itself was measured"
    assert first_rank(40, 100, 100) == 40
    assert first_rank(1, 99, 100) == 30, "under a filter, where the ranks themselves were measured"
    assert first_rank(10, 500, 1_000) == 34  # (10 + 3 sqrt(10 / 2)) * 2
    random = np.random.default_rng(0)
    within = [(random.random(34) < 0.5).sum() >= 10 for _ in range(2_000)]
    assert np.mean(within) > 0.99
