"""The families of backbones: hybrids, ResNets and ViTs of equal compute, and positions that are not learned."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from sightline.errors import ModelError
from sightline.nn import backbone as backbones
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.nn.families import sine_positions
from sightline.recipe import ImageSpec, ModelSpec

SMALL = [
    "vit_tiny_patch8_64",
    "vit_relpos_tiny_patch8_64",
    "vit_tiny_r14_s16_64",
    "vit_tiny_r14_s8_64",
    "resnetv2_50half_bit_64",
    "swin_tiny_patch2_window4_64",
]
TINY_VIT = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))


def built(name: str, px: int, **arguments: int | float | bool | str) -> backbones.Backbone:
    return backbones.build(ModelSpec(backbone=name, weights="random", backbone_args=tuple(arguments.items())), px).eval()


@pytest.mark.parametrize(
    ("name", "px", "prefix", "grid"),
    [
        ("vit_tiny_patch8_64", 64, 1, (8, 8)),
        ("vit_relpos_tiny_patch8_64", 64, 1, (8, 8)),
        ("vit_tiny_r14_s16_64", 64, 1, (4, 4)),
        ("vit_tiny_r14_s8_64", 64, 1, (8, 8)),
        ("vit_tiny_r14_s8_64", 32, 1, (4, 4)),
        ("resnetv2_50half_bit_64", 64, 0, (4, 4)),
        ("resnetv2_50half_bit_64", 32, 0, (2, 2)),
        ("swin_tiny_patch2_window4_64", 64, 0, (8, 8)),
        ("swin_tiny_patch2_window4_64", 32, 0, (4, 4)),
        ("resnetv2_26half_bit_64", 32, 0, (2, 2)),
        ("vit_base_r50_s32_224", 224, 1, (7, 7)),
        ("vit_base_r50_s16_224", 224, 1, (14, 14)),
    ],
)
def test_families_have_the_papers_sequence_lengths(name: str, px: int, prefix: int, grid: tuple[int, int]) -> None:
    thin = {"depth": 1, "embed_dim": 32, "num_heads": 2} if name.startswith("vit_base") else {}
    backbone = built(name, px, **thin)
    with torch.inference_mode():
        tokens = backbone(torch.zeros(1, 3, px, px))
    assert (tokens.prefix.shape[1], tokens.grid, tokens.patches.shape[-1]) == (prefix, grid, backbone.width)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit_base_r50_s32_224", [3, 4, 6, 3]),
        ("vit_base_r50_s16_224", [3, 4, 9]),
        ("vit_tiny_r14_s16_64", [1, 1, 1, 1]),
        ("vit_tiny_r14_s8_64", [1, 1, 2]),
    ],
)
def test_the_first_hybrid_holds_a_regular_resnet_and_the_second_its_layers_in_three_stages(name: str, layers: list[int]) -> None:
    resnet = built(name, 32, depth=1, embed_dim=16, num_heads=2).net.patch_embed.backbone
    assert [len(stage.blocks) for stage in resnet.stages] == layers


def test_small_families_cost_the_same() -> None:
    flops = {}
    for name in (
        "vit_tiny_patch8_64",
        "vit_relpos_tiny_patch8_64",
        "vit_tiny_r14_s8_64",
        "resnetv2_50half_bit_64",
        "swin_tiny_patch2_window4_64",
    ):
        backbone = built(name, 64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(torch.zeros(1, 3, 64, 64))
        flops[name] = counter.get_total_flops()
    base = flops["vit_tiny_patch8_64"]
    assert 0.7e9 < base < 0.75e9
    assert {name: round(value / base, 2) for name, value in flops.items() if not 0.89 < value / base < 1.11} == {}


def test_the_smaller_resnet_costs_what_shallower_transformers_do() -> None:
    flops = []
    for backbone in (
        built("vit_tiny_patch8_64", 64, depth=6),
        built("vit_tiny_r14_s8_64", 64, depth=3),
        built("resnetv2_26half_bit_64", 64),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(torch.zeros(1, 3, 64, 64))
        flops.append(counter.get_total_flops())
    assert max(flops) < 1.12 * min(flops)


def test_a_resnet_norms_groups_and_standardises_its_kernels() -> None:
    backbone = built("resnetv2_50half_bit_64", 32)
    names = {type(module).__name__ for module in backbone.net.modules()}
    assert {"StdConv2d", "GroupNormAct"} <= names
    assert not {name for name in names if "BatchNorm" in name or "MaxPool" in name}
    backbone.double()  # in float32 a processor's own order of sums shows in the standardised kernels
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        before = backbone(image).patches
        for module in backbone.net.modules():
            if type(module).__name__ == "StdConv2d":
                module.weight.mul_(3).add_(0.5)
        torch.testing.assert_close(backbone(image).patches, before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_trains_in_layers_freezes_and_comes_back_from_its_folder(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pooling = "mean" if name.startswith(("resnet", "swin")) else "cls"
    encoder = Encoder(ModelSpec(backbone=name, weights="random", pooling=pooling, frozen=("embed",)), ImageSpec(image_px=32)).eval()
    layers = encoder.backbone.layer_of()
    assert set(layers) == {parameter for parameter, _ in encoder.backbone.net.named_parameters()}
    assert len(set(layers.values())) > 5
    assert {depth == 0 for parameter, depth in layers.items() if not encoder.backbone.net.get_parameter(parameter).requires_grad} == {True}
    model_folder.save(encoder, tmp_path)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model_folder.load(tmp_path)(images), encoder(images))


def test_a_family_is_loaded_by_name_at_its_own_size() -> None:
    assert model_folder.load("random:vit_tiny_r14_s8_64").image.image_px == 64
    assert model_folder.load("random:resnetv2_50half_bit_64@32").model.pooling == "mean"
    assert set(SMALL) <= set(timm.list_models())


# --- positions ------------------------------------------------------------------------------------------------------------------


def test_sine_positions_by_hand() -> None:
    table = sine_positions((2, 3), 8)
    assert table.shape == (6, 8)
    slow = 10_000**-0.5
    row, column = 1, 2
    expected = [math.sin(row), math.sin(row * slow), math.cos(row), math.cos(row * slow)]
    expected += [math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow)]
    torch.testing.assert_close(table[row * 3 + column], torch.tensor(expected))
    assert table[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    with pytest.raises(ModelError, match="a width that four divides, and this backbone's is 6"):
        sine_positions((2, 2), 6)


def test_fixed_positions_are_not_learned_not_saved_and_recomputed_at_another_size() -> None:
    arguments = dict(TINY_VIT) | {"pos_embed": "sine2d"}
    small, large = (built("vit_tiny_patch16_224", px, **arguments) for px in (32, 48))
    assert "pos_embed" not in dict(small.net.named_parameters())
    assert "pos_embed" not in small.net.state_dict()
    assert torch.equal(small.net.pos_embed[0, 0], torch.zeros(16))
    assert torch.equal(small.net.pos_embed[0, 1:], sine_positions((4, 4), 16))
    large.net.load_state_dict(small.net.state_dict())
    assert torch.equal(large.net.pos_embed[0, 1:], sine_positions((6, 6), 16))
    free = built("vit_tiny_patch16_224", 32, **(arguments | {"class_token": False, "global_pool": "avg"}))
    assert torch.equal(free.net.pos_embed[0], sine_positions((4, 4), 16))


@pytest.mark.parametrize("name", ["resnetv2_50half_bit_64", "swin_tiny_patch4_window7_224", "vit_relpos_tiny_patch8_64"])
def test_what_adds_no_positions_refuses_fixed_ones(name: str) -> None:
    with pytest.raises(ModelError, match=r"pos_embed"):
        built(name, 64, pos_embed="sine2d")


def shuffled(images: torch.Tensor, order: torch.Tensor, side: int) -> torch.Tensor:
    """The images ``[B, 3, H, W]`` with their patches in another order."""
    cells = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, rows, columns, side, side]
    rows, columns = cells.shape[2:4]
    cells = cells.flatten(2, 3)[:, :, order].unflatten(2, (rows, columns))
    return cells.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


@pytest.mark.parametrize(
    ("name", "arguments", "knows_where"),
    [
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, False),
        ("vit_tiny_patch16_224", {"pos_embed": "learn"}, True),
        ("vit_tiny_patch16_224", {"pos_embed": "sine2d"}, True),
        ("vit_relpos_tiny_patch8_64", {}, True),
    ],
)
def test_only_a_vit_without_positions_takes_its_patches_in_any_order(name: str, arguments: dict[str, str], knows_where: bool) -> None:
    torch.manual_seed(0)
    backbone = built(name, 32, **(dict(TINY_VIT) | arguments))
    with torch.no_grad():
        for parameter in backbone.net.parameters():
            parameter.normal_(std=0.3)  # positions of a fresh network are too small to tell
        images = torch.randn(2, 3, 32, 32)
        order = torch.randperm(16)
        class_tokens = [backbone(given).prefix[:, 0] for given in (images, shuffled(images, order, 8))]
    assert torch.allclose(*class_tokens, atol=1e-4) != knows_where
