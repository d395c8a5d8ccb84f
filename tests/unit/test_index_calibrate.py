"""Calibration asks as many queries as it takes to tell whether a search parameter reaches the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from sightline.contracts import FloatArray, IntArray
from sightline.index.ann import HNSW, LADDER, Ann
from sightline.index.calibrate import MOST_QUERIES, NUM_QUERIES, calibrate
from sightline.index.scan import exact_top


@dataclass
class Losing:
    """A structure that finds all of most queries, and nothing of every ``one_in``-th."""

    one_in: int
    kind: str = HNSW
    most_asked: int = 0

    def top(self, queries: FloatArray, vectors: FloatArray, k: int, *, parameter: int = 0) -> tuple[IntArray, FloatArray]:
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
