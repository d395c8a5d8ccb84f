"""Our measures of descriptors against the authors' own functions, scikit-learn and SciPy, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sightline.lens import embedding
from sightline.search.neighbours import nearest

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "lens.json").read_text(encoding="utf-8"))


def maker():
    spec = importlib.util.spec_from_file_location("make_lens_golden", HERE / "make_lens_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", sorted(GOLDEN["cases"]))
def test_same_numbers_as_the_reference(seed):
    expected = GOLDEN["cases"][seed]
    vectors, labels = maker().inputs(int(seed))
    neighbours = nearest(vectors, vectors, maker().NUM_NEIGHBOURS, np.arange(len(vectors))).rows
    assert embedding.alignment(vectors, labels) == pytest.approx(expected["alignment"], abs=1e-6)
    assert embedding.uniformity(vectors) == pytest.approx(expected["uniformity"], abs=1e-6)
    assert embedding.hubness(neighbours, len(vectors)) == pytest.approx(expected["hubness"], abs=1e-9)
    np.testing.assert_allclose(embedding.energy(embedding.spectrum(vectors)), expected["energy"], atol=1e-12)
