"""Filters, positions, token norms and CKA against cases worked by hand and against their formulas, and the walk that gathers them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.errors import ModelError
from sightline.lens.cka import cka, hsic, u_centred
from sightline.lens.filters import first_filters, principal_filters
from sightline.lens.inside import common_batches
from sightline.lens.layers import gram, layer_names, walk
from sightline.lens.positions import neighbourhood, position_grid, position_similarity
from sightline.lens.tokens import far_out, share_above
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
SWIN = {"depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2), "window_size": 4, "patch_size": 4}


def make(backbone: str = "vit_tiny_patch16_224", px: int = 32, **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    model = ModelSpec(backbone=backbone, weights="random", pooling="mean", backbone_args=tuple(arguments.items()))
    return Encoder(model, ImageSpec(image_px=px)).eval()


def batches(px: int, *sizes: int) -> list[tuple[np.ndarray, torch.Tensor]]:
    generator, start, made = torch.Generator().manual_seed(0), 0, []
    for size in sizes:
        made.append((np.arange(start, start + size), torch.randn(size, 3, px, px, generator=generator)))
        start += size
    return made


# --- filters and positions --------------------------------------------------------------------------------------------------------


def test_components_are_the_directions_that_filters_were_made_of() -> None:
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.standard_normal((3 * 4 * 4, 3)))[0].T
    amounts = random.standard_normal((40, 3))
    amounts = np.linalg.qr(amounts - amounts.mean(axis=0))[0] * np.array([5.0, 2.0, 1.0])
    filters = (amounts @ directions + 7.0).reshape(40, 3, 4, 4).astype(np.float32)
    components, shares = principal_filters(filters)
    np.testing.assert_allclose(shares[:3], np.array([25, 4, 1]) / 30, atol=1e-5)
    assert shares.sum() == pytest.approx(1.0)
    assert len(components) == 28
    for component, direction in zip(components, directions, strict=False):
        assert abs(component.ravel() @ direction) == pytest.approx(1.0, abs=1e-4)
        assert component.max() == np.abs(component).max(), "its largest entry is positive"
    assert len(principal_filters(filters[:5])[0]) == 4, "five filters differ in four directions"


@pytest.mark.parametrize(
    ("backbone", "arguments", "shape"),
    [
        ("vit_tiny_patch16_224", SMALL, (32, 3, 8, 8)),
        ("resnet10t", {}, (24, 3, 3, 3)),
        ("swin_tiny_patch4_window7_224", SWIN, (8, 3, 4, 4)),
    ],
)
def test_the_first_convolution_is_found(backbone: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    net = make(backbone, **arguments).backbone.net
    filters = first_filters(net)
    assert filters.shape == shape
    assert any(np.array_equal(filters, weight.detach().numpy()) for weight in net.parameters())


def test_a_network_that_reads_no_colours_has_no_filters() -> None:
    for name, net in (("first", nn.Sequential()), ("0", nn.Sequential(nn.Conv2d(1, 2, 3))), ("", nn.Sequential())):
        net.default_cfg = {"first_conv": name}
        with pytest.raises(ModelError, match="no first convolution"):
            first_filters(net)


@pytest.mark.parametrize(("arguments", "num_prefix"), [({}, 1), ({"class_token": False, "global_pool": "avg"}, 0), ({"reg_tokens": 2}, 3)])
def test_positions_are_those_of_patches(arguments: dict[str, Any], num_prefix: int) -> None:
    net = make(**SMALL | arguments).backbone.net
    positions = position_grid(net)
    assert positions.shape == (4, 4, 32)
    np.testing.assert_array_equal(positions[2, 1], net.pos_embed[0, num_prefix + 2 * 4 + 1].detach().numpy())


def test_positions_of_two_by_two_patches_by_hand() -> None:
    positions = np.array([[[1, 0], [2, 0]], [[0, 3], [-1, 0]]], np.float32)
    similarity = position_similarity(positions)
    np.testing.assert_allclose(similarity[0, 0], [[1, 1], [0, -1]])
    np.testing.assert_allclose(similarity[1, 0], [[0, 0], [1, 0]])
    assert neighbourhood(similarity) == {"beside": 0.0, "same_row": None, "same_column": None, "elsewhere": pytest.approx(-0.5)}
    row = position_similarity(np.array([[[1, 0], [1, 0], [0, 1]]], np.float32))
    assert neighbourhood(row) == {"beside": 0.5, "same_row": 0.0, "same_column": None, "elsewhere": None}


def test_positions_that_are_no_table_are_refused_in_one_line() -> None:
    for backbone, arguments in (("swin_tiny_patch4_window7_224", SWIN), ("resnet10t", {})):
        with pytest.raises(ModelError, match="no table of positions") as caught:
            position_grid(make(backbone, **arguments).backbone.net)
        assert "\n" not in str(caught.value)


# --- norms and CKA ----------------------------------------------------------------------------------------------------------------


def test_a_few_long_tokens_are_far_out_and_none_of_a_normal_crowd() -> None:
    norms = np.random.default_rng(0).normal(50, 5, (8, 14, 14)).astype(np.float32)
    assert share_above(norms, far_out(norms)) == 0
    norms.ravel()[::40] = 200
    assert share_above(norms, far_out(norms)) == pytest.approx(40 / norms.size, abs=1e-3)
    assert far_out(np.array([1.0, 2, 3, 4, 5], np.float32)) == 10, "quartiles 2 and 4, and three times 2 above"


def song(one: np.ndarray, other: np.ndarray) -> float:
    """Return the unbiased HSIC by equation 5 of Song et al. 2012, which is written in another way."""
    num, ones = len(one), np.ones(len(one))
    k, l = (gram - np.diag(np.diag(gram)) for gram in (one, other))  # noqa: E741
    whole = np.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((num - 1) * (num - 2)) - 2 / (num - 2) * (ones @ k @ l @ ones)
    return float(whole / (num * (num - 3)))


def test_hsic_is_the_published_estimator() -> None:
    random = np.random.default_rng(0)
    one, other = (np.stack([x @ x.T for x in random.standard_normal((num, 9, 5))]) for num in (2, 3))
    expected = [[song(k, l) for l in other] for k in one]  # noqa: E741
    np.testing.assert_allclose(hsic(one, other), expected, atol=1e-12)
    np.testing.assert_allclose(u_centred(one).sum(axis=1), 0, atol=1e-12)


def test_cka_sees_through_rotation_scale_and_shift_and_tells_noise_apart() -> None:
    random = np.random.default_rng(0)
    x, noise = random.standard_normal((64, 10)), random.standard_normal((64, 10))
    turned = 3 * x @ np.linalg.qr(random.standard_normal((10, 10)))[0] + 5
    grams = [np.stack([f[part] @ f[part].T for f in (x, turned, noise, np.ones((64, 2)))]) for part in (slice(32), slice(32, 64))]
    alike = cka(grams, grams)
    assert alike[0, 1] == pytest.approx(1.0, abs=1e-9)
    assert abs(alike[0, 2]) < 0.15
    assert np.isnan(alike[3]).all(), "a layer that is constant is like nothing"


# --- the walk ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "px", "arguments", "num_layers", "num_prefix"),
    [
        ("vit_tiny_patch16_224", 32, SMALL, 3, 1),
        ("vit_tiny_patch16_224", 32, SMALL | {"class_token": False, "global_pool": "avg"}, 3, 0),
        ("vit_small_patch14_reg4_dinov2", 56, {"depth": 3, "embed_dim": 32, "num_heads": 2}, 3, 5),
        ("swin_tiny_patch4_window7_224", 32, SWIN, 2, 0),
        ("resnet10t", 32, {}, 5, 0),
    ],
)
def test_a_walk_sees_what_hooks_see(backbone: str, px: int, arguments: dict[str, Any], num_layers: int, num_prefix: int) -> None:
    encoder = make(backbone, px, **arguments).train()
    given = batches(px, 5, 4)
    seen = walk(encoder, given)
    assert encoder.training, "the model is left as it was"
    assert not any(module._forward_hooks for module in encoder.modules())
    assert len(seen.names) == num_layers
    assert [gram.shape for gram in seen.grams] == [(num_layers, 5, 5), (num_layers, 4, 4)]
    assert seen.prefix_norms.shape == (9, num_prefix)

    encoder.eval()
    for images, at in ((given[0][1], slice(0, 5)), (given[1][1], slice(5, 9))):
        with torch.no_grad():
            found = encoder.backbone.net.forward_intermediates(images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True)[0]
        np.testing.assert_allclose(seen.norms[at], found.norm(dim=1).numpy(), rtol=1e-4)
    whole = encoder.backbone.net.get_submodule(seen.names[0])
    kept: list[torch.Tensor] = []
    with whole.register_forward_hook(lambda module, inputs, output: kept.append(output.clone())), torch.no_grad():
        encoder(given[1][1])
    flat = kept[0].flatten(1).double().numpy()
    centred = flat - flat.mean(axis=0)
    np.testing.assert_allclose(seen.grams[1][0], centred @ centred.T, rtol=1e-3, atol=1e-3 * np.abs(centred @ centred.T).max())


def test_a_layer_is_most_like_itself_and_batches_pair_by_their_images() -> None:
    one, other = make(**SMALL), make(**SMALL | {"embed_dim": 16})
    first, second = walk(one, batches(32, 8, 8)), walk(other, batches(32, 8, 8))
    alike = cka(*zip(*common_batches(first, second), strict=True))
    assert alike.shape == (3, 3)
    own = cka(*zip(*common_batches(first, first), strict=True))
    np.testing.assert_allclose(np.diagonal(own), 1, atol=1e-9)
    np.testing.assert_allclose(own, own.T, atol=1e-9)
    second.rows[1], second.grams[1] = second.rows[1][2:], second.grams[1][:, 2:, 2:]  # two files went before the other model's turn
    assert [gram.shape[1] for gram, _ in common_batches(first, second)] == [8, 6]
    np.testing.assert_array_equal(common_batches(first, second)[1][0], first.grams[1][:, 2:, 2:])
    second.rows[1], second.grams[1] = second.rows[1][4:], second.grams[1][:, 4:, 4:]
    assert len(common_batches(first, second)) == 1, "two images are too few"


def test_grams_keep_small_differences_beside_a_large_mean() -> None:
    x = torch.randn(6, 3, 4)
    torch.testing.assert_close(gram(x + 1000), gram(x), rtol=1e-2, atol=1e-2)


def test_a_network_without_a_table_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no table of its layers"):
        layer_names(nn.Sequential())
