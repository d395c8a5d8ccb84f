"""In-context segmentation against open-hummingbird-eval, from recorded numbers: label shares, bounded memory, label transfer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sightline.evaluation.dense.incontext import label_shares, rare_first, transfer
from sightline.evaluation.dense.segmenting import patches_of

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "segmentation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("make_segmentation_golden", HERE / "make_segmentation_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_patch_has_the_label_shares_that_it_has_there(made) -> None:
    masks = made.inputs()["masks"].astype(np.int16)
    shares = label_shares(patches_of(masks, (made.GRID, made.GRID)), made.NUM_CLASSES)
    np.testing.assert_allclose(shares, GOLDEN["shares"], atol=1e-7)


def test_a_bounded_memory_takes_the_same_patches(made) -> None:
    for shares, chance, sampled in zip(GOLDEN["shares"], GOLDEN["chance"], GOLDEN["sampled"], strict=True):
        rows = rare_first(np.array(shares, np.float32), made.NUM_SAMPLED, np.array(chance, np.float32))
        assert sorted(rows.tolist()) == sampled


def test_labels_are_transferred_as_there(made) -> None:
    given = made.inputs()
    queries = given["queries"] / np.linalg.norm(given["queries"], axis=1, keepdims=True)
    scores = transfer(queries, given["memory"], given["labels"], k=made.K, temperature=0.02)
    np.testing.assert_allclose(scores, GOLDEN["scores"], atol=1e-5)
