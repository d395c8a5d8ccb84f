"""IRT's losses answer as the code of others does; golden/irt_losses.json says whose, at which version, and make_irt_golden.py how."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.methods.irt import IRT, folder
from sightline.nn.losses import contrastive_loss, koleo_loss
from sightline.recipe import DataSpec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "irt_losses.json").read_text(encoding="utf-8"))
EMBEDDINGS = torch.tensor(GOLDEN["embeddings"], dtype=torch.float64)  # [5, 16, 8]
LABELS = torch.tensor(GOLDEN["labels"])  # [5, 16]
PML, XBM, KOLEO = GOLDEN["metric_learning"], GOLDEN["cross_batch_memory"], GOLDEN["koleo"]
Loss = Callable[[torch.Tensor], torch.Tensor]
STEPS = range(len(EMBEDDINGS))


def assert_answers(loss: Loss, raw: torch.Tensor, golden: dict[str, Any], *, offset: float = 0.0, rtol: float = 1e-9) -> None:
    """The loss of the normalised rows has the golden value (less ``offset``) and the golden gradient with respect to the raw ones."""
    leaf = raw.clone().requires_grad_()
    value = loss(F.normalize(leaf))
    value.backward()
    wanted = torch.tensor(golden["gradient"], dtype=raw.dtype)
    torch.testing.assert_close(value.item(), golden["value"] - offset, rtol=rtol, atol=0.0)
    torch.testing.assert_close(leaf.grad, wanted, rtol=rtol, atol=rtol * wanted.abs().max().item())


class Given(nn.Module):
    """An encoder of images that are descriptors already: [B, 1, 1, D] to unit length [B, D]."""

    dim = EMBEDDINGS.shape[2]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images.flatten(1))


def memory_losses(reduction: str, size: int) -> list[Loss]:
    """The memory's loss at each golden step, of one IRT that lives through them all (float32, as it trains)."""
    data = DataSpec(classes_per_batch=4, images_per_class=4)
    recipe = replace(folder(), reduction=reduction, margin=0.5, koleo_weight=0.0, memory_start=0, data=data)
    method = IRT(recipe, Given(), of_labels(np.zeros(size, np.int64)))

    def at(step: int) -> Loss:
        def loss(z: torch.Tensor) -> torch.Tensor:
            images = z.float()[:, None, None, :]
            total = method.loss(Batch(images, LABELS[step], torch.arange(len(z))), step).total
            return total.double() - contrastive_loss(F.normalize(z.float()), LABELS[step], margin=0.5, reduction=reduction).double()

        return loss

    return [at(step) for step in STEPS]


@pytest.mark.parametrize("golden", PML["batch"], ids=lambda golden: f"margin {golden['margin']}")
def test_mean_over_costly_pairs_is_pytorch_metric_learnings(golden: dict[str, Any]) -> None:
    assert_answers(lambda z: contrastive_loss(z, LABELS[0], margin=golden["margin"], reduction="mean_nonzero"), EMBEDDINGS[0], golden)


def test_the_memory_is_pytorch_metric_learnings_while_it_fills_and_wraps() -> None:
    losses = memory_losses("mean_nonzero", GOLDEN["memory_size"])
    assert GOLDEN["memory_size"] % LABELS.shape[1] != 0  # else no batch would straddle the end
    for step, loss in zip(STEPS, losses, strict=True):
        assert_answers(loss, EMBEDDINGS[step], PML["memory"][step], rtol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_the_sum_over_n_differs_from_the_published_memorys_by_the_margin_alone(step: int) -> None:
    golden = XBM["steps"][step]["batch"]
    offset = golden["num_negatives"] * XBM["margin"] / LABELS.shape[1]  # it adds s where equation 1 adds s - beta
    assert_answers(lambda z: contrastive_loss(z, LABELS[step], margin=XBM["margin"]), EMBEDDINGS[step], golden, offset=offset)


def test_the_memorys_sum_over_n_differs_from_the_published_memorys_by_the_margin_alone() -> None:
    for step, loss in zip(STEPS, memory_losses("sum_over_n", EMBEDDINGS.shape[0] * EMBEDDINGS.shape[1]), strict=True):
        golden = XBM["steps"][step]["memory"]
        offset = golden["num_negatives"] * XBM["margin"] / LABELS.shape[1]
        assert_answers(loss, EMBEDDINGS[step], golden, offset=offset, rtol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_koleo_is_dinov2s(step: int) -> None:
    # DINOv2 adds 1e-8 to each coordinate's difference and to the distance: its answers carry 1e-8 that the equation does not
    assert_answers(koleo_loss, EMBEDDINGS[step], KOLEO["float64"][step], rtol=1e-6)
    assert_answers(koleo_loss, EMBEDDINGS[step].float(), KOLEO["float32"][step], rtol=1e-5)
