"""Segmentation heads, their side head, the pyramid under them and the loss against mmsegmentation, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from sightline.data.sets import segmentation
from sightline.methods.segment import pixel_cross_entropy
from sightline.nn.projection import GlobalMapNorm
from sightline.nn.segmenter import SemanticFpn, UperNet, classification, convolution

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "segmenter.json").read_text(encoding="utf-8"))


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


filling = sys.modules.setdefault("filling", _load("filling"))  # what the other imports by this name
made_there = _load("make_segmenter_golden")
CHANNELS, NUM_CLASSES, PYRAMID, WIDTHS = made_there.CHANNELS, made_there.NUM_CLASSES, made_there.PYRAMID, made_there.WIDTHS
STRIDES = (4.0, 8.0, 16.0, 32.0)
THEIRS = {
    "fpn": ((r"^ways\.", "scale_heads."), (r"^classify\.1\.", "conv_seg.")),
    "upernet": (
        (r"^pools\.", "psp_modules."), (r"^lateral\.", "lateral_convs."), (r"^smooth\.", "fpn_convs."), (r"^fuse\.", "fpn_bottleneck."),
        (r"^classify\.1\.", "conv_seg."),
    ),
    "fcn": ((r"^0\.", "convs.0."), (r"^2\.", "conv_seg.")),
    "neck": ((r"^inner_blocks\.(\d)\.0\.", r"lateral_convs.\1.conv."), (r"^layer_blocks\.(\d)\.0\.", r"fpn_convs.\1.conv.")),
}  # fmt: skip
"""What the beginning of our name for a weight is there; of a convolution with its norm, 0 is conv and 1 is bn."""


class Named(nn.Module):
    """Shows a module's parameters and buffers under the names that mmsegmentation has for them."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.own, self.kind = module, kind

    def named_parameters(self, *args, **options):
        return [(self.theirs(name), value) for name, value in self.own.named_parameters()]

    def named_buffers(self, *args, **options):
        return [(self.theirs(name), value) for name, value in self.own.named_buffers()]

    def theirs(self, name: str) -> str:
        for pattern, there in THEIRS[self.kind]:
            name = re.sub(pattern, there, name)
        if self.kind != "neck" and not name.startswith("conv_seg"):
            name = re.sub(r"\.0\.(weight)$", r".conv.\1", name)
            name = re.sub(r"\.1\.(weight|bias|running_mean|running_var|num_batches_tracked)$", r".bn.\1", name)
        return name


def head(kind: str) -> tuple[nn.Module, int]:
    norm = GlobalMapNorm
    if kind == "fpn":
        made, width = SemanticFpn([PYRAMID] * 4, STRIDES, NUM_CLASSES, CHANNELS, 0.0, norm), PYRAMID
    elif kind == "upernet":
        made, width = UperNet(WIDTHS, STRIDES, NUM_CLASSES, CHANNELS, 0.0, norm), WIDTHS[0]
    else:
        made, width = nn.Sequential(convolution(WIDTHS[0], CHANNELS, 3, norm), *classification(CHANNELS, NUM_CLASSES, 0.0)), WIDTHS[0]
    made_there.filled(Named(made, kind), kind)
    return made, width


def assert_close(found: torch.Tensor, wanted: dict[str, object]) -> None:
    mine = filling.fingerprint(found)
    assert mine["shape"] == wanted["shape"]
    np.testing.assert_allclose(mine["at"], wanted["at"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine["norm"], wanted["norm"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["fpn", "upernet", "fcn"])
def test_a_head_gives_what_theirs_gives_in_evaluation_and_in_training(kind: str) -> None:
    made, width = head(kind)
    given = [one.requires_grad_() for one in made_there.maps(kind, (width,) * 4)]
    run = made if kind != "fcn" else lambda found: made(found[2])
    made.eval()
    assert_close(run(given), GOLDEN[kind]["eval"])
    made.train()
    truth = made_there.masks()
    truth[truth == made_there.VOID] = segmentation.VOID
    loss = pixel_cross_entropy(run(given), truth)
    assert float(loss.detach()) == pytest.approx(GOLDEN[kind]["loss"], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [given[2 if kind == "fcn" else 0]])
    assert_close(
        1e3 * gradient, {**GOLDEN[kind]["gradient"], **{name: 1e3 * np.array(GOLDEN[kind]["gradient"][name]) for name in ("at", "norm")}}
    )


def test_the_pyramid_under_semantic_fpn_is_theirs() -> None:
    made = FeaturePyramidNetwork(list(WIDTHS), PYRAMID)
    made_there.filled(Named(made, "neck"), "neck")
    found = made({str(level): one for level, one in enumerate(made_there.maps("neck", WIDTHS))})
    for mine, wanted in zip(found.values(), GOLDEN["neck"], strict=True):
        assert_close(mine, wanted)
