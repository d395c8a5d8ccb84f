"""Our probes against the ViT authors' few-shot evaluator and DINO's k-NN classifier, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sightline.evaluation import probes

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "probes.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("make_probes_golden", HERE / "make_probes_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shots", GOLDEN["few_shots"])
def test_few_shot_regression_is_the_vit_authors(made, shots) -> None:
    train, labels, test, _ = made.inputs()
    rows = probes.draw_shots(labels, int(shots), seed=0)
    assert rows.tolist() == GOLDEN["few_shots"][shots]["rows"]
    ours = probes.ridge(train[rows], labels[rows], made.NUM_CLASSES)
    np.testing.assert_allclose(test @ ours.weight + ours.bias, GOLDEN["few_shots"][shots]["logits"], atol=1e-9)


@pytest.mark.parametrize("k", GOLDEN["knn_top1_top5"])
def test_nearest_neighbours_vote_as_in_dino(made, k) -> None:
    train, labels, test, truth = made.inputs()
    found = probes.knn(train.astype(np.float32), labels, test.astype(np.float32), k=int(k))
    assert 100 * np.mean(found == truth) == pytest.approx(GOLDEN["knn_top1_top5"][k][0])
