"""Mining and the loss over tuples answer as cirtorch does; golden/tuples_cirtorch.json says at which commit, make_tuples_golden.py how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline.search.mining import hardest_negatives

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tuples_cirtorch.json").read_text(encoding="utf-8"))
VECTORS = np.array(GOLDEN["vectors"], np.float32)  # [60, 8]
CLUSTERS = np.array(GOLDEN["clusters"])
POOL, TUPLES = np.array(GOLDEN["pool"]), np.array(GOLDEN["tuples"])  # [45], [14, 7]


def test_the_hard_negatives_are_cirtorchs() -> None:
    anchors = TUPLES[:, 0]
    found = hardest_negatives(VECTORS[anchors], CLUSTERS[anchors], VECTORS[POOL], CLUSTERS[POOL], 5)
    np.testing.assert_array_equal(POOL[found.rows], TUPLES[:, 2:])
    assert np.sqrt(2 - 2 * found.similarity).mean() == pytest.approx(GOLDEN["negative_distance"], abs=1e-5)
