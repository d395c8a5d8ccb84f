"""Attention maps against attention worked out from the weights, in float64, block by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.errors import ModelError
from sightline.lens.attention import asking_tokens, attention, probabilities
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SIZE = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def make(backbone: str = "vit_tiny_patch16_224", pooling: str = "cls", **arguments: int | str | bool) -> Encoder:
    torch.manual_seed(0)
    given = tuple((SIZE | arguments).items())
    encoder = Encoder(ModelSpec(backbone=backbone, weights="random", pooling=pooling, backbone_args=given), ImageSpec(image_px=32))
    for parameter in encoder.parameters():  # timm's own start makes attention all but even
        parameter.data.normal_(std=0.3)
    return encoder.eval()


def by_hand(encoder: Encoder, image: torch.Tensor) -> list[np.ndarray]:
    """Return each block's attention [heads, tokens, tokens], from the inputs of its attention module and its own weights, in float64."""
    encoder = encoder.double()
    seen: list[torch.Tensor] = []
    hooks = [block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])) for block in encoder.backbone.net.blocks]
    with torch.no_grad():
        encoder(image[None].double())
    for hook in hooks:
        hook.remove()
    maps = []
    for block, tokens in zip(encoder.backbone.net.blocks, seen, strict=True):
        weight, bias = block.attn.qkv.weight.detach().numpy(), block.attn.qkv.bias.detach().numpy()
        width = weight.shape[1]
        queries, keys = (tokens[0].numpy() @ weight[at : at + width].T + bias[at : at + width] for at in (0, width))
        heads = []
        for head in range(2):
            part = slice(head * width // 2, (head + 1) * width // 2)
            logits = queries[:, part] @ keys[:, part].T / np.sqrt(width // 2)
            grown = np.exp(logits - logits.max(axis=1, keepdims=True))
            heads.append(grown / grown.sum(axis=1, keepdims=True))
        maps.append(np.stack(heads))
    encoder.float()
    return maps


@pytest.mark.parametrize("fused", [True, False])
def test_maps_equal_those_from_queries_and_keys_in_float64(fused: bool) -> None:
    encoder, image = make(), torch.randn(3, 32, 32)
    for block in encoder.backbone.net.blocks:
        block.attn.fused_attn = fused
    seen = attention(encoder, image)
    first, last = by_hand(encoder, image)

    assert seen.heads.shape == (2, 4, 4)
    np.testing.assert_allclose(seen.heads.numpy(), last[:, 0, 1:].reshape(2, 4, 4), atol=1e-6)
    np.testing.assert_allclose(seen.mean.numpy(), last[:, 0, 1:].mean(axis=0).reshape(4, 4), atol=1e-6)
    half = np.eye(17) / 2
    rolled = (half + last.mean(axis=0) / 2) @ (half + first.mean(axis=0) / 2)
    np.testing.assert_allclose(seen.rollout.numpy(), rolled[0, 1:].reshape(4, 4), atol=1e-6)
    assert seen.heads.std() > 0.01, "an even map would prove little"
    assert [block.attn.fused_attn for block in encoder.backbone.net.blocks] == [fused, fused], "the model is left as it was"


@pytest.mark.parametrize(("pooling", "arguments"), [("mean", {}), ("mean", {"class_token": False, "global_pool": "avg"})])
def test_without_a_class_token_the_patches_ask_together(pooling: str, arguments: dict[str, str | bool]) -> None:
    encoder, image = make(pooling=pooling, **arguments), torch.randn(3, 32, 32)
    num_prefix = encoder.backbone.num_prefix
    seen = attention(encoder, image)
    last = by_hand(encoder, image)[-1]
    assert asking_tokens(encoder) == ()
    np.testing.assert_allclose(seen.heads.numpy(), last[:, num_prefix:, num_prefix:].mean(axis=1).reshape(2, 4, 4), atol=1e-6)


@pytest.mark.parametrize(("pooling", "asking"), [("cls", [0]), ("dist", [1]), ("cls_dist_mean", [0, 1]), ("cls_dist_concat", [0, 1])])
def test_the_tokens_that_make_the_descriptor_ask(pooling: str, asking: list[int]) -> None:
    encoder, image = make("deit_tiny_distilled_patch16_224", pooling), torch.randn(3, 32, 32)
    seen = attention(encoder, image)
    last = by_hand(encoder, image)[-1]
    assert asking_tokens(encoder) == tuple(asking)
    np.testing.assert_allclose(seen.heads.numpy(), last[:, asking, 2:].mean(axis=1).reshape(2, 4, 4), atol=1e-6)


def test_register_tokens_are_not_patches() -> None:
    seen = attention(make(reg_tokens=3), torch.randn(3, 32, 32))
    assert seen.rollout.shape == (4, 4)
    assert (seen.heads.sum(dim=(1, 2)) < 1).all(), "the rest is on the class token and the registers"


def test_probabilities_take_bias_mask_and_scale() -> None:
    queries, keys, bias = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 5)
    expected = torch.softmax(queries @ keys.mT * 0.3 + bias, dim=-1)
    torch.testing.assert_close(probabilities(queries, keys, bias=bias, scale=0.3), expected)
    kept = torch.ones(5, 5, dtype=torch.bool).tril()
    masked = probabilities(queries, keys, bias=kept[None])
    assert masked.triu(1).abs().max() == 0
    torch.testing.assert_close(masked.sum(dim=-1), torch.ones(2, 5))


def test_windows_and_convolutions_are_refused_in_one_line() -> None:
    swin = (("depths", (1, 1)), ("embed_dim", 8), ("num_heads", (1, 2)), ("window_size", 4), ("patch_size", 4))
    for backbone, arguments in (("swin_tiny_patch4_window7_224", swin), ("resnet10t", ())):
        model = ModelSpec(backbone=backbone, weights="random", pooling="mean", backbone_args=arguments)
        encoder = Encoder(model, ImageSpec(image_px=32)).eval()
        with pytest.raises(ModelError, match="need a plain Vision Transformer") as caught:
            attention(encoder, torch.randn(3, 32, 32))
        assert backbone in str(caught.value)
        assert "\n" not in str(caught.value)


# --- class attention ----------------------------------------------------------------------------------------------------------------


def class_attention_by_hand(encoder: Encoder, patches: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return each block's softmax(q k^T / sqrt d) [heads, 1 + N] and the vector [D] that its weighted values lead to, for patches [N, D]."""
    pooling = encoder.class_attention
    token, looks = pooling.class_token[0], []
    for block in pooling.blocks:
        everything = block.norm1(torch.cat([token, patches]))
        queries, keys, values = block.attn.q(everything[:1]), block.attn.k(everything), block.attn.v(everything)
        answer = []
        for head in (slice(0, 16), slice(16, 32)):
            grown = torch.exp((queries[:, head] * keys[:, head]).sum(dim=1) / 4)
            looks.append(grown / grown.sum())
            answer.append((looks[-1][:, None] * values[:, head]).sum(dim=0))
        token = token + block.attn.proj(torch.cat(answer)[None])
        token = token + block.mlp(block.norm2(token))
    return [torch.stack(looks[:2]), torch.stack(looks[2:])], pooling.norm(token)[0]


def made_by_class_attention(**arguments: int | str | bool) -> Encoder:
    encoder = make(pooling="class_attention", **arguments)
    for name, parameter in encoder.class_attention.named_parameters():
        if "gamma_" in name:
            parameter.data.fill_(1.0)  # as they are in every model
    return encoder


@pytest.mark.parametrize("arguments", [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 3}])
def test_class_attention_shows_its_own_token_and_rolls_on_through_the_backbone(arguments: dict[str, int | str | bool]) -> None:
    encoder, image = made_by_class_attention(**arguments), torch.randn(3, 32, 32)
    seen, exact, num_prefix = attention(encoder, image), by_hand(encoder, image), encoder.backbone.num_prefix
    with torch.no_grad():
        tokens = encoder.double().tokens(image[None].double())
        looks, vector = class_attention_by_hand(encoder, tokens.patches[0])
        torch.testing.assert_close(encoder.class_attention(tokens.patches)[0], vector)  # these weights are what makes the descriptor
    last = looks[-1].numpy()
    np.testing.assert_allclose(seen.heads.numpy(), last[:, 1:].reshape(2, 4, 4), atol=1e-5)
    np.testing.assert_allclose(1 - seen.heads.sum(dim=(1, 2)).numpy(), last[:, 0], atol=1e-5)
    assert seen.heads.std() > 0.01, "an even map would prove little"

    num_patches = tokens.patches.shape[1]
    whole = np.eye(1 + num_patches)  # the token and the patches, which the class attention leaves as they are
    for weights in looks:
        block = np.eye(1 + num_patches)
        block[0] = (block[0] + weights.mean(dim=0).numpy()) / 2
        whole = block @ whole
    half = np.eye(num_prefix + num_patches) / 2
    backbone = (half + exact[1].mean(axis=0) / 2) @ (half + exact[0].mean(axis=0) / 2)
    expected = whole[0, 1:] @ backbone[num_prefix:, num_prefix:]
    assert seen.rollout is not None
    np.testing.assert_allclose(seen.rollout.numpy(), expected.reshape(4, 4), atol=1e-5)


def test_class_attention_is_shown_on_a_network_without_attention() -> None:
    encoder = Encoder(ModelSpec(backbone="resnet10t", weights="random", pooling="class_attention"), ImageSpec(image_px=64))
    seen = attention(encoder, torch.randn(3, 64, 64))
    assert seen.rollout is None
    assert seen.mean.shape == (2, 2)
    assert ((seen.heads > 0) & (seen.heads < 1)).all()
