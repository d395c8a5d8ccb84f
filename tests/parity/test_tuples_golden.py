"""Mining and the loss over tuples answer as cirtorch does; golden/tuples_cirtorch.json says at which commit, make_tuples_golden.py how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline.nn.losses import tuple_loss
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


@pytest.mark.parametrize("golden", GOLDEN["losses"], ids=lambda golden: f"margin {golden['margin']}")
def test_the_euclidean_loss_and_its_gradient_are_cirtorchs(golden: dict[str, Any]) -> None:
    raw = torch.from_numpy(np.array(GOLDEN["vectors"])[TUPLES[:5].reshape(-1)]).requires_grad_()
    loss = tuple_loss(F.normalize(raw), 5, margin=golden["margin"], metric="euclidean")
    loss.backward()
    torch.testing.assert_close(loss.item(), golden["value"], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(raw.grad, torch.tensor(golden["gradient"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
