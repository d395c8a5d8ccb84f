"""IRT's other objectives answer as the code of others does; golden/irt_objectives.json says whose, and make_objectives_golden.py how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.methods.irt import IRT, folder
from sightline.nn.losses import normalised_softmax_loss, snca_loss

GOLDEN = json.loads((Path(__file__).parent / "golden" / "irt_objectives.json").read_text(encoding="utf-8"))
EMBEDDINGS = torch.tensor(GOLDEN["embeddings"], dtype=torch.float64)  # [4, 6, 8]
ROWS, LABELS = torch.tensor(GOLDEN["rows"]), torch.tensor(GOLDEN["labels"])  # [4, 6], [15]
SNCA = GOLDEN["snca"]


def close(found: torch.Tensor | None, wanted: list[Any], *, rtol: float = 1e-9) -> None:
    assert found is not None
    expected = torch.tensor(wanted, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


class Given(nn.Module):
    """An encoder of images that are descriptors already: [B, 1, 1, D] to unit length [B, D]."""

    dim = EMBEDDINGS.shape[2]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images.flatten(1))


@pytest.mark.parametrize("golden", GOLDEN["normalised_softmax"]["answers"], ids=lambda golden: f"temperature {golden['temperature']}")
def test_normalised_softmax_is_pytorch_metric_learnings(golden: dict[str, Any]) -> None:
    leaf, proxies = EMBEDDINGS[0].clone().requires_grad_(), torch.tensor(GOLDEN["proxies"], dtype=torch.float64, requires_grad=True)
    value = normalised_softmax_loss(F.normalize(leaf), LABELS[ROWS[0]], proxies, temperature=golden["temperature"])
    value.backward()
    assert value.item() == pytest.approx(golden["value"], rel=1e-9)
    close(leaf.grad, golden["gradient"])
    close(proxies.grad, golden["proxy_gradient"])


@pytest.mark.parametrize("step", range(len(ROWS)))
def test_snca_is_the_published_one(step: int) -> None:
    golden = SNCA["steps"][step]
    memory = torch.tensor(GOLDEN["memory"] if step == 0 else SNCA["steps"][step - 1]["memory"], dtype=torch.float64)
    leaf, rows = EMBEDDINGS[step].clone().requires_grad_(), ROWS[step]
    value = snca_loss(F.normalize(leaf), LABELS[rows], memory, LABELS, temperature=SNCA["temperature"], self_columns=rows)
    value.backward()
    assert value.item() == pytest.approx(golden["value"], rel=1e-9)
    close(leaf.grad, golden["gradient"])


def test_sncas_memory_moves_as_the_published_one() -> None:
    recipe = replace(folder(), objective="snca", koleo_weight=0.0)
    assert (recipe.temperature, recipe.memory_momentum) == (SNCA["temperature"], SNCA["memory_momentum"])
    method = IRT(recipe, Given(), of_labels(LABELS.numpy()))
    method.objective.memory_vectors.copy_(torch.tensor(GOLDEN["memory"]))
    for step, golden in enumerate(SNCA["steps"]):
        images = EMBEDDINGS[step].float()[:, None, None, :].requires_grad_()
        total = method.loss(Batch(images, LABELS[ROWS[step]], ROWS[step]), step).total
        total.backward()
        method.after_step(step)
        assert total.item() == pytest.approx(golden["value"], rel=1e-5)
        close(images.grad[:, 0, 0], golden["gradient"], rtol=1e-5)
        close(method.objective.memory_vectors, golden["memory"], rtol=1e-5)
