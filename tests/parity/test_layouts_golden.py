"""Weights as Hugging Face transformers saves them answer here as they do there; golden/layouts.json says by which version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sightline.nn.checkpoints import load_weights
from tests.parity.filling import fill, fingerprint

GOLDEN = json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text(encoding="utf-8"))
TINY = {"img_size": GOLDEN["image_px"], "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
GELU_OF_SIGLIP = {"act_layer": "gelu_tanh"}

CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {  # the timm network, its arguments, and the beginnings of what is left out
    "vit": ("vit_tiny_patch16_224", {}, {"pooler"}),
    "vit_classifier": ("vit_tiny_patch16_224", {}, {"classifier"}),
    "deit": ("deit_tiny_distilled_patch16_224", {}, {"cls_classifier", "distillation_classifier"}),
    "dinov2": ("vit_small_patch14_dinov2", {}, set()),
    "dinov2_classifier": ("vit_small_patch14_dinov2", {}, {"classifier"}),
    "dinov2_gated": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2 * 88 / 32}, set()),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {}, set()),
    "dinov3": ("vit_small_patch16_dinov3", {}, set()),
    "dinov3_qkvb": ("vit_small_patch16_dinov3_qkvb", {}, set()),
    "dinov3_gated": ("vit_huge_plus_patch16_dinov3_qkvb", {"mlp_ratio": 4}, set()),
    "clip_vision": ("vit_base_patch32_clip_quickgelu_224", {}, set()),
    "clip": ("vit_base_patch32_clip_quickgelu_224", {}, {"text_model", "text_projection", "visual_projection", "logit_scale"}),
    "clip_gelu": ("vit_base_patch32_clip_224", {}, set()),
    "siglip_vision": ("vit_base_patch16_siglip_224", GELU_OF_SIGLIP, set()),
    "siglip": ("vit_base_patch16_siglip_224", GELU_OF_SIGLIP, {"text_model", "logit_scale", "logit_bias"}),
}


def test_every_layout_of_the_golden_file_is_tried() -> None:
    assert CASES.keys() == GOLDEN["cases"].keys()


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_transformers_answers_as_transformers(case: str, tmp_path: Path) -> None:
    golden, (name, arguments, beside) = GOLDEN["cases"][case], CASES[case]
    weights = {key: torch.from_numpy(np.asarray(fill(key, shape))) for key, shape in golden["shapes"].items()}
    save_file(weights, tmp_path / "model.safetensors")
    net = timm.create_model(name, **(TINY | arguments)).eval()
    left_out = load_weights(net, tmp_path / "model.safetensors")
    assert {part.partition(".")[0] for part in left_out} == beside
    with torch.inference_mode():
        tokens = net.forward_features(torch.from_numpy(fill("images", (2, 3, GOLDEN["image_px"], GOLDEN["image_px"]))))
        if "pooled" in golden:
            _agrees(net.attn_pool(tokens), golden["pooled"])
    _agrees(tokens, golden["tokens"])


def _agrees(values: torch.Tensor, golden: dict[str, Any]) -> None:
    found = fingerprint(values)
    assert found["shape"] == golden["shape"]
    np.testing.assert_allclose(found["at"], golden["at"], atol=2e-5, rtol=0)
    assert found["norm"] == pytest.approx(golden["norm"], rel=1e-5)
