"""Our CKA, rollout and attention distance against the authors' functions and Keras's, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.lens.attention import probabilities, residual_flow
from sightline.lens.cka import cka
from sightline.lens.distance import apart_px, mean_distance_px

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "layers.json").read_text(encoding="utf-8"))


def maker():
    spec = importlib.util.spec_from_file_location("make_layers_golden", HERE / "make_layers_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", sorted(GOLDEN["cases"]))
def test_same_numbers_as_the_reference(seed):
    expected, make = GOLDEN["cases"][seed], maker()
    one, other = (part @ part.T for part in make.features(int(seed)))
    assert cka([one[None]], [other[None]]).item() == pytest.approx(expected["cka"], abs=1e-12)

    queries, keys = (torch.from_numpy(part) for part in make.queries_and_keys(int(seed)))
    first, second = (residual_flow(layer) for layer in probabilities(queries, keys))
    np.testing.assert_allclose((second @ first).numpy(), expected["rollout"], atol=1e-12)

    weights = probabilities(queries[..., 1:, :], keys[..., 1:, :])  # the patches' alone
    found = mean_distance_px(weights, apart_px(make.SIDE, make.PATCH_PX))
    np.testing.assert_allclose(found.numpy(), expected["distance_px"], rtol=1e-6)


def test_the_notebook_itself_printed_this():
    assert GOLDEN["cases"]["1337"]["cka"] == pytest.approx(0.51346, abs=5e-6)
