"""Calibration asks as many queries as it takes to tell whether a search parameter reaches the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sightline.contracts import FloatArray, IntArray
from sightline.index import ann
from sightline.index.ann import HNSW, LADDER, NO_DOUBT, SECOND_LOOK, Ann, Effort
from sightline.index.calibrate import MOST_QUERIES, NUM_QUERIES, calibrate
from sightline.index.scan import exact_top


@dataclass
class Losing:
    """A structure that finds all of most queries, and nothing of every ``one_in``-th."""

    one_in: int
    kind: str = HNSW
    most_asked: int = 0

    def top(self, queries: FloatArray, vectors: FloatArray, k: int, *, effort: Effort | None = None) -> tuple[IntArray, FloatArray]:
        self.most_asked = max(self.most_asked, len(queries))
        rows, similarity = exact_top(queries, vectors, k)
        rows[:: self.one_in] = -1
        return rows, similarity


def rows(num: int) -> FloatArray:
    vectors = np.random.default_rng(0).standard_normal((num, 8)).astype(np.float32)
    unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize(
    ("one_in", "num", "asked", "parameter"),
    [
        (2_000, 5_000, NUM_QUERIES, LADDER[HNSW][0]),  # 0.9995: told at once
        (200, 5_000, MOST_QUERIES, LADDER[HNSW][0]),  # 0.995 with 0.0022 of error: told by four times as many queries
        (200, 1_000, 1_000, LADDER[HNSW][-1]),  # there are no more to ask, so the structure is not trusted
        (90, 5_000, NUM_QUERIES, LADDER[HNSW][-1]),  # 0.989: more queries would not make it 0.99
    ],
)
def test_more_are_asked_where_the_first_queries_cannot_tell(one_in: int, num: int, asked: int, parameter: int) -> None:
    structure = Losing(one_in)
    found = calibrate(cast(Ann, cast(Any, structure)), rows(num), seed=1)
    assert (structure.most_asked, found.effort.parameter) == (asked, parameter)
    assert (found.effort.depth > 0) == (parameter == LADDER[HNSW][0])


@dataclass
class Unreached:
    """A structure that answers a few queries from elsewhere, unless the effort, or a second look, is large."""

    kind: str = HNSW
    least: int = 100

    def top(self, queries: FloatArray, vectors: FloatArray, k: int, *, effort: Effort) -> tuple[IntArray, FloatArray]:
        rows, similarity = exact_top(queries, vectors, k)
        lost = np.zeros(len(queries), np.bool_)
        lost[::50] = effort.at(k) < self.least and (effort.doubt <= -0.5 or SECOND_LOOK * effort.at(k) < self.least)
        rows[lost], similarity[lost] = -1, -0.5
        return rows, similarity


def test_a_second_look_at_the_least_similar_is_taken_before_a_larger_effort() -> None:
    found = calibrate(cast(Ann, cast(Any, Unreached())), rows(5_000), seed=1)
    assert found.effort.parameter == LADDER[HNSW][0]
    nearest = exact_top(rows(5_000), rows(5_000), 2)[1][:, 1]
    assert 0.005 < (nearest < found.effort.doubt).mean() < 0.04  # few rows are so far from all others
    assert found.recall_at_10 > 0.99
    assert calibrate(cast(Ann, cast(Any, Unreached(least=0))), rows(5_000), seed=1).effort.doubt == NO_DOUBT


def test_an_answer_from_elsewhere_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rows(500)
    near, far = exact_top(vectors[:4], vectors, 20)[0], exact_top(-vectors[:4], vectors, 20)[0]
    asked: list[tuple[int, int]] = []

    def candidates(self: Ann, queries: FloatArray, num: int, parameter: int) -> IntArray:
        asked.append((len(queries), parameter))
        return near[3:4] if len(queries) == 1 else np.concatenate([near[:3], far[3:]])

    monkeypatch.setattr(Ann, "_candidates", candidates)
    found, similarity = Ann(HNSW, 500, Effort(32, 0.0, 100, doubt=0.5), None).top(vectors[:4], vectors, 10)
    assert asked == [(4, 32), (1, 32 * SECOND_LOOK)]
    assert found.tolist() == near[:, :10].tolist()
    assert similarity[:, 0] == pytest.approx(1.0)
    asked.clear()
    assert Ann(HNSW, 500, Effort(32, 0.0, 100), None).top(vectors[:4], vectors, 10)[0][3].tolist() != near[3, :10].tolist()
    assert asked == [(4, 32)]


def test_what_a_walk_reads_at_random_is_put_on_large_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ann, "use_large_pages", lambda address, num_bytes: asked.append(num_bytes))
    built = ann.build(HNSW, rows(500))
    assert asked[0] == 500 * 8, "a byte for each dimension of each row"
    assert asked[1] >= 500 * 2 * ann.NUM_LINKS * 4, "the links of the lowest layer, and those above"
    sha256 = ann.write(built, tmp_path / "graph")
    assert ann.load(tmp_path / "graph", sha256, HNSW, 500, built.effort) is not None
    assert asked[2:] == asked[:2]
