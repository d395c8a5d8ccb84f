"""Files of the JAX ViT, its hybrid and DINO answer here as their authors' code does; golden/checkpoints.json says at which commits."""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import HybridEmbed
from torch import nn

from sightline.nn.checkpoints import load_weights, read_weights
from sightline.nn.families import resnet_below, sine_positions

GOLDEN = json.loads((Path(__file__).parent / "golden" / "checkpoints.json").read_text(encoding="utf-8"))
PX = GOLDEN["image_px"]
TINY = {"img_size": PX, "num_classes": 0, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}


def wave(name: str, shape: list[int]) -> np.ndarray[Any, Any]:
    """The numbers of make_checkpoints_golden.py."""
    values = np.sin(zlib.crc32(name.encode()) % 1000 + 0.7 * np.arange(int(np.prod(shape)), dtype=np.float64) ** 2).reshape(shape)
    values = values.astype(np.float32)
    if name == "images":
        return values
    return 1 + 0.2 * values if name.endswith("scale") or ("norm" in name and name.endswith("weight")) else 0.2 * values


IMAGES = torch.from_numpy(wave("images", [2, 3, PX, PX]))


def as_published(name: str) -> str:
    """The name that the published files have where today's Flax counts otherwise."""
    renamed = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "MlpBlock_0": "MlpBlock_3"}
    return "/".join(renamed.get(part, part) for part in name.split("/"))


@pytest.mark.parametrize("published", [False, True], ids=["linen", "published"])
@pytest.mark.parametrize("golden", GOLDEN["jax"], ids=["vit", "hybrid"])
def test_a_jax_file_answers_as_jax(golden: dict[str, Any], published: bool, tmp_path: Path) -> None:
    arrays = {name: wave(name, shape) for name, shape in golden["shapes"].items()}
    np.savez(tmp_path / "w.npz", **{as_published(name) if published else name: array for name, array in arrays.items()})
    arguments: dict[str, Any] = TINY | {"act_layer": "gelu_tanh"}  # JAX's GELU is the approximate one
    if golden["resnet_layers"]:
        arguments |= {"patch_size": 1, "embed_layer": partial(HybridEmbed, backbone=resnet_below(golden["resnet_layers"]))}
    net = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    assert sorted(load_weights(net, tmp_path / "w.npz")) == ["head.bias", "head.weight", "pre_logits.bias", "pre_logits.weight"]
    head = read_weights(tmp_path / "w.npz")
    with torch.inference_mode():
        class_tokens = net.forward_features(IMAGES)[:, 0]
        hidden = torch.tanh(nn.functional.linear(class_tokens, head["pre_logits.weight"], head["pre_logits.bias"]))
        logits = nn.functional.linear(hidden, head["head.weight"], head["head.bias"])
    torch.testing.assert_close(class_tokens, torch.tensor(golden["class_tokens"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), atol=1e-5, rtol=0)


def test_a_dino_file_answers_as_dino(tmp_path: Path) -> None:
    golden = GOLDEN["dino"]
    teacher = {f"backbone.{name}": torch.from_numpy(wave(name, shape)) for name, shape in golden["shapes"].items()}
    torch.save({"teacher": teacher, "epoch": 100}, tmp_path / "w.pth")
    net = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
    assert load_weights(net, tmp_path / "w.pth") == []
    with torch.inference_mode():
        torch.testing.assert_close(net.forward_features(IMAGES)[:, 0], torch.tensor(golden["class_tokens"]), atol=3e-6, rtol=0)


def test_fixed_positions_are_those_of_moco_v3() -> None:
    golden = torch.tensor(GOLDEN["moco_positions"])
    assert golden[0].tolist() == [0.0] * 16
    torch.testing.assert_close(sine_positions((3, 3), 16), golden[1:], atol=1e-6, rtol=0)
