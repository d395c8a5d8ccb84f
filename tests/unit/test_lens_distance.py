"""Attention distance against cases worked by hand on 2 x 2 patches, and against its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline.errors import ModelError
from sightline.lens import distance
from sightline.lens.attention import AttentionCall, attention_hooks, residual_flow
from sightline.lens.distance import DistanceMeter, apart_px, mean_distance_px
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SWIN = {"depths": (2, 2), "embed_dim": 8, "num_heads": (1, 2), "window_size": 4, "patch_size": 4}
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
ROOT2 = 2**0.5


def make(backbone: str = "vit_tiny_patch16_224", px: int = 32, **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    model = ModelSpec(backbone=backbone, weights="random", pooling="mean", backbone_args=tuple(arguments.items()))
    encoder = Encoder(model, ImageSpec(image_px=px))
    for name, parameter in encoder.named_parameters():  # timm's own start makes attention all but even
        parameter.data.normal_(std=1.0 if "qkv" in name else 0.3)
    return encoder.eval()


def measured(encoder: Encoder, images: torch.Tensor, batch_size: int) -> DistanceMeter:
    meter = DistanceMeter(encoder)
    with torch.inference_mode(), attention_hooks(encoder, meter.see):
        for part in images.split(batch_size):
            meter.begin(len(part))
            encoder(part)
    return meter


def test_four_patches_by_hand() -> None:
    apart = apart_px(2, 10)
    expected = torch.tensor([[0, 10, 10, 10 * ROOT2], [10, 0, 10 * ROOT2, 10], [10, 10 * ROOT2, 0, 10], [10 * ROOT2, 10, 10, 0]])
    torch.testing.assert_close(apart, expected)
    stay, cross, even = torch.eye(4), torch.eye(4).flip(0), torch.full((4, 4), 0.25)
    found = mean_distance_px(torch.stack([stay, cross, even])[None], apart)
    torch.testing.assert_close(found, torch.tensor([[0.0, 10 * ROOT2, (20 + 10 * ROOT2) / 4]]))
    half = torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert mean_distance_px(half, apart).item() == pytest.approx(1.25), "one patch of four is 5 px away on average"


def test_attention_on_prefix_tokens_is_left_out_and_the_rest_sums_to_one() -> None:
    encoder = make(**SMALL | {"patch_size": 16}, reg_tokens=1)  # 2 x 2 patches of 16 px behind a class token and a register
    weights = torch.tensor([0.6, 0.1, 0.0, 0.15, 0.0, 0.15]).repeat(6, 1)  # of what patches get, half is on the second, half on the fourth
    queries = torch.eye(6).expand(1, 1, 6, 6)
    keys = weights.clamp_min(1e-30).log().T.expand(1, 1, 6, 6)
    meter = DistanceMeter(encoder)
    for _ in range(2):
        meter.begin(1)
        for _ in range(2):
            meter.see(AttentionCall(queries, keys, None, 1.0))
    # From the first patch to the second and the fourth: 16 and 16 sqrt 2; then 0 and 16; 16 sqrt 2 and 16; 16 and 0.
    expected = 16 * (1 + ROOT2 + 0 + 1 + ROOT2 + 1 + 1 + 0) / 8
    np.testing.assert_allclose(meter.distances_px(), [[expected], [expected]], rtol=1e-6)
    assert meter.even_px == pytest.approx([16 * (2 + ROOT2) / 4] * 2)


def test_rollout_by_hand() -> None:
    heads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    flow = residual_flow(heads)  # heads' mean [[.5, .5], [0, 1]], half of it and half of the identity
    torch.testing.assert_close(flow, torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    torch.testing.assert_close(flow @ flow, torch.tensor([[0.5625, 0.4375], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("backbone", "px", "arguments"),
    [
        ("vit_tiny_patch16_224", 32, SMALL),
        ("vit_tiny_patch16_224", 32, SMALL | {"class_token": False, "global_pool": "avg"}),
        ("vit_small_patch14_reg4_dinov2", 56, {"depth": 2, "embed_dim": 32, "num_heads": 2}),
        ("vit_relpos_small_patch16_224", 64, {"depth": 2, "embed_dim": 32, "num_heads": 2}),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_equals_its_definition_in_float64(
    backbone: str, px: int, arguments: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, images = make(backbone, px, **arguments), torch.randn(5, 3, px, px)
    for block in encoder.backbone.net.blocks:
        block.attn.fused_attn = fused
    monkeypatch.setattr(distance, "BLOCK_NUMBERS", 2 * 2 * 16**2)  # two images at a time, and one is left over
    meter = measured(encoder, images, 3)
    assert [block.attn.fused_attn for block in encoder.backbone.net.blocks] == [fused, fused], "the model is left as it was"

    calls: list[AttentionCall] = []
    with torch.inference_mode(), attention_hooks(encoder.double(), calls.append):
        encoder(images.double())
    side, num_prefix = px // (px // 4), encoder.backbone.num_prefix
    places = np.array([[row, column] for row in range(side) for column in range(side)]) * (px / side)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    for call, even, found in zip(calls, meter.even_px, meter.distances_px(), strict=True):
        logits = call.queries.numpy() @ call.keys.mT.numpy() * (call.scale or call.queries.shape[-1] ** -0.5)
        logits = logits if call.bias is None else logits + call.bias.numpy()
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        kept = weights[:, :, num_prefix:, num_prefix:]
        expected = (kept / kept.sum(axis=-1, keepdims=True) * apart).sum(axis=-1).mean(axis=(0, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert np.abs(found / even - 1).max() > 1e-2, "even attention would prove little"
        assert even == pytest.approx(apart.mean(), rel=1e-6)


def test_windows_measure_within_themselves_in_pixels_of_the_image() -> None:
    encoder = make("swin_tiny_patch4_window7_224", **SWIN)
    meter = measured(encoder, torch.randn(3, 3, 32, 32), 2)
    found = meter.distances_px()
    assert [len(heads) for heads in found] == [1, 1, 2, 2]
    places = np.array([[row, column] for row in range(4) for column in range(4)])
    even = np.linalg.norm(places[:, None] - places[None], axis=2).mean()
    np.testing.assert_allclose(meter.even_px, np.array([4, 4, 8, 8]) * even, rtol=1e-6)
    assert all((heads > 0).all() and (heads < 8 * 3 * ROOT2).all() for heads in found)


@pytest.mark.parametrize(
    ("backbone", "px", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", 64, {"depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2)}),  # 16 patches, windows of 7: padded
        ("resnet10t", 32, {}),
        ("cait_xxs24_224", 32, {"depth": 1, "embed_dim": 16, "num_heads": 2}),
    ],
)
def test_where_there_is_no_distance_one_line_says_so(backbone: str, px: int, arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="attention distance needs a plain Vision Transformer") as caught:
        measured(make(backbone, px, **arguments), torch.randn(2, 3, px, px), 2).distances_px()
    assert "\n" not in str(caught.value)


def test_the_kernel_answers_as_ever_while_it_is_watched() -> None:
    encoder, calls = make(**SMALL), []
    queries = torch.randn(1, 2, 5, 4)
    with attention_hooks(encoder, calls.append):
        seen = F.scaled_dot_product_attention(queries, queries, queries, scale=0.3)
    torch.testing.assert_close(seen, F.scaled_dot_product_attention(queries, queries, queries, scale=0.3))
    assert [call.scale for call in calls] == [0.3]
