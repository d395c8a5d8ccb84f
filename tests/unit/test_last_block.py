"""A last block for the prefix alone: what the whole network gives, of every plain ViT that may stop there, and nobody else's."""

from __future__ import annotations

import pytest
import torch

from sightline.nn import backbone as backbones
from sightline.nn.encoder import Encoder
from sightline.nn.last_block import can_stop_at_prefix, prefix_tokens
from sightline.recipe import ImageSpec, ModelSpec

SMALL = (("depth", 3), ("embed_dim", 24), ("num_heads", 3))
OTHERS = (("qk_norm", True), ("scale_attn_norm", True), ("qkv_bias", False), ("init_values", 0.1), ("reg_tokens", 2), ("pre_norm", True))


def encoder(backbone: str, arguments: tuple[tuple[str, object], ...] = SMALL, px: int = 32, **changes: object) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(ModelSpec(backbone=backbone, backbone_args=arguments, weights="random", **changes), ImageSpec(image_px=px)).eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # attention far from even
    return made


@pytest.mark.parametrize(
    ("backbone", "arguments", "px"),
    [
        ("vit_tiny_patch16_224", (), 32),
        ("vit_tiny_patch16_224", OTHERS, 32),
        ("deit_tiny_distilled_patch16_224", (), 32),
        ("vit_small_patch14_dinov2", (), 28),
    ],
)
@torch.no_grad()
def test_the_prefix_is_that_of_the_whole_network(backbone: str, arguments: tuple[tuple[str, object], ...], px: int) -> None:
    net, images = encoder(backbone, (*SMALL, *arguments), px).backbone, torch.randn(2, 3, px, px)
    assert can_stop_at_prefix(net.net)
    torch.testing.assert_close(prefix_tokens(net.net, images), net(images).prefix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_gem", "dist", "cls_dist_concat"])
def test_descriptors_are_the_same_and_only_those_of_the_prefix_are_short_of_patches(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, asked = encoder("deit_tiny_distilled_patch16_224", pooling=pooling), torch.randn(2, 3, 32, 32), []
    whole = model(images).detach()  # with gradients, as in training
    monkeypatch.setattr(backbones, "prefix_tokens", lambda net, batch: (asked.append(len(batch)), prefix_tokens(net, batch))[1])
    torch.testing.assert_close(torch.from_numpy(model.embed_batch(images, precision="fp32")), whole, rtol=1e-4, atol=1e-5)
    assert asked == ([2] if pooling in ("cls", "dist", "cls_dist_concat") else [])
    asked.clear()
    model.train()(images)
    assert asked == []


def test_who_looks_into_the_last_block_sees_all_of_it() -> None:
    model, seen = encoder("vit_tiny_patch16_224"), []
    handle = model.backbone.net.blocks[-1].mlp.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    model.embed_batch(torch.randn(1, 3, 32, 32))
    handle.remove()
    model.embed_batch(torch.randn(1, 3, 32, 32))
    assert seen == [5]


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("vit_tiny_patch16_224", (*SMALL, ("class_token", False), ("global_pool", "avg"))),
        ("vit_tiny_patch16_224", (*SMALL, ("patch_drop_rate", 0.5))),
        ("vit_relpos_small_patch16_224", SMALL),
        ("beit_base_patch16_224", SMALL),
        ("resnet10t", ()),
    ],
)
def test_others_go_all_the_way(backbone: str, arguments: tuple[tuple[str, object], ...]) -> None:
    assert not can_stop_at_prefix(encoder(backbone, arguments, pooling="mean").backbone.net)
