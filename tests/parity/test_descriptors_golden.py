"""Whitening, R-MAC, GeM and multi-scale extraction answer as cirtorch does; golden/descriptors.json says at which commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import Tokens
from sightline.nn.backbone import Backbone
from sightline.nn.encoder import Encoder
from sightline.nn.pooling import gem, rmac
from sightline.nn.reduction import fit_reduction
from sightline.recipe import ImageSpec, ModelSpec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "descriptors.json").read_text(encoding="utf-8"))
WHITENING, MULTISCALE = GOLDEN["whitening"], GOLDEN["multiscale"]


def name(golden: dict[str, Any]) -> str:
    return "-".join(str(golden[key]) for key in ("whiten", "dim", "pooling", "scales", "p") if key in golden)


@pytest.mark.parametrize("golden", WHITENING["answers"], ids=name)
@pytest.mark.parametrize("length", [1.0, 7.5], ids=["unit", "longer"])
def test_similarities_after_whitening(golden: dict[str, Any], length: float) -> None:
    vectors = length * torch.tensor(WHITENING["vectors"], dtype=torch.float64)  # whitening takes the length away
    fitted = fit_reduction(vectors, golden["dim"], golden["whiten"], torch.tensor(WHITENING["pairs"]))
    found = F.normalize(fitted(vectors), dim=1)
    wanted = torch.tensor(golden["similarity"])
    torch.testing.assert_close((found @ found.T)[: len(wanted)], wanted, atol=1e-6, rtol=0)
    assert golden["dim"] == found.shape[1]


@pytest.mark.parametrize("golden", GOLDEN["pooling"], ids=lambda golden: "x".join(map(str, torch.tensor(golden["features"]).shape[1:])))
def test_rmac_and_gem(golden: dict[str, Any]) -> None:
    features = torch.tensor(golden["features"])  # [4, rows, columns]
    tokens = Tokens(torch.zeros(1, 0, 4), features.flatten(1).T[None], (features.shape[1], features.shape[2]))
    wanted = torch.tensor(golden["rmac"])  # divides each region by its length + 1e-6
    torch.testing.assert_close(rmac(tokens)[0], wanted, atol=2e-5, rtol=2e-6)
    torch.testing.assert_close(gem(tokens.patches, 3.0)[0], torch.tensor(golden["gem"]), atol=1e-6, rtol=1e-6)


class Convolution(nn.Module):
    """The golden network: one convolution and a ReLU."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(MULTISCALE["weight"]))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, self.weight, stride=2).relu()


@pytest.mark.parametrize("golden", MULTISCALE["answers"], ids=name)
def test_multiscale_descriptors(golden: dict[str, Any]) -> None:
    pooling = {"mac": "max"}.get(golden["pooling"], golden["pooling"])
    model = ModelSpec(backbone="one convolution", pooling=pooling, scales=tuple(golden["scales"]), scale_p=golden["p"])
    encoder = Encoder(model, ImageSpec(image_px=24), Backbone(Convolution())).eval()
    found = encoder.embed_batch(torch.tensor(MULTISCALE["image"])[None], precision="fp32")
    torch.testing.assert_close(torch.from_numpy(found)[0], torch.tensor(golden["descriptor"]), atol=2e-6, rtol=0)
