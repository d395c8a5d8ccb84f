"""Our re-rankers against their authors' code, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sightline.search.neighbours import nearest
from sightline.search.rerank import parse
from sightline.search.rerank.expansion import DatabaseAugmentation

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "rerank.json").read_text(encoding="utf-8"))
ANSWERS = {name: np.array(answer) for name, answer in GOLDEN["answers"].items()}


@pytest.fixture(scope="module")
def vectors():
    spec = importlib.util.spec_from_file_location("make_rerank_golden", HERE / "make_rerank_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.inputs()


def similarity(text, queries, gallery):
    """The re-ranked similarity in the order of the gallery's rows, [Q, G]."""
    found = parse(text)(nearest(queries, gallery, len(gallery)), queries, gallery)
    by_row = np.empty(found.similarity.shape)
    np.put_along_axis(by_row, found.rows, found.similarity, axis=1)
    return by_row


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("k-reciprocal", "zhong"),
        ("k-reciprocal", "fast-reid"),
        ("k-reciprocal-torchreid", "torchreid"),
        ("k-reciprocal-transreid", "transreid"),
    ],
)
def test_k_reciprocal_distances_are_theirs(vectors, ours, theirs):
    np.testing.assert_allclose(1 - similarity(ours, *vectors), ANSWERS[theirs], rtol=0, atol=1e-6)


def test_the_named_variants_are_not_the_same_thing():
    assert np.abs(ANSWERS["zhong"] - ANSWERS["torchreid"]).max() > 0.01
    assert np.abs(ANSWERS["zhong"] - ANSWERS["transreid"]).max() > 0.01


def test_augmented_vectors_are_fast_reids(vectors):
    everything = np.concatenate(vectors)
    rows = np.arange(len(everything))
    num = GOLDEN["origin"]["settings"]["aqe"]["qe_k"] - 1  # theirs counts the vector itself
    ranking = nearest(everything, everything, 1, rows)
    queries, gallery = DatabaseAugmentation(num=num).refine(ranking, everything, everything, rows, "cpu")
    expected = ANSWERS["aqe"] / np.linalg.norm(ANSWERS["aqe"], axis=1, keepdims=True)
    np.testing.assert_allclose(gallery, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(queries, gallery)


def test_superglobal_leaves_the_same_order(vectors):
    top = GOLDEN["origin"]["settings"]["superglobal"]["top"]
    queries, gallery = vectors
    found = parse(f"superglobal,top={top}")(nearest(queries, gallery, len(gallery)), queries, gallery)
    np.testing.assert_array_equal(found.rows[:, :top], ANSWERS["superglobal"])


def test_diffusion_solves_the_same_system(vectors):
    settings = GOLDEN["origin"]["settings"]["diffusion"]
    text = f"diffusion,k={settings['k']},kq={settings['kq']},truncate=0,iterations=500,tolerance=1e-10"
    np.testing.assert_allclose(similarity(text, *vectors), ANSWERS["diffusion"], rtol=1e-4, atol=1e-6)
