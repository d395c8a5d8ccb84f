"""Positions at another resolution: the JAX original's numbers, recorded by ``make_positions_golden.py``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.nn.positions import resize_positions

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "positions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made() -> Any:
    spec = importlib.util.spec_from_file_location("make_positions_golden", HERE / "make_positions_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("side", GOLDEN["resized"])
def test_resizing_equals_the_jax_originals(side: str, made: Any) -> None:
    expected = torch.tensor(GOLDEN["resized"][side])[None]
    resized = resize_positions(torch.from_numpy(made.inputs()), (int(side), int(side)), num_prefix=1)
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)
