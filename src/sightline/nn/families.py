"""Backbones that timm has the parts for and no name: hybrids, small families of equal compute, positions that are not learned.

They join timm's registry, so that every recipe, model folder and command takes them as it takes timm's own. ``vit_*_rNN_sS_PX`` is a ViT
of one-pixel patches on the map of a ResNet-NN that is S times smaller than the image, which is PX wide by default.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929, sections 3.1 (hybrids), 4.1 and appendix B.1 (ResNet "BiT", the two hybrids);
Kolesnikov et al. 2020, arXiv 1912.11370 (group norm and weight standardisation).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import HybridEmbed, StdConv2d, StdConv2dSame
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from sightline.errors import ModelError
from sightline.recipe import IMAGENET_MEAN, IMAGENET_STD

REGULAR_R50 = (3, 4, 6, 3)
HALF_WIDTH = {"stem_chs": 32, "channels": (128, 256, 512, 1024)}  # the narrowest that 32 groups of channels can norm
TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}

TEMPERATURE = 10_000.0
"""The longest wavelength of the fixed positions is this times 2 pi patches."""


def _untrained(image_px: int, first_conv: str, classifier: str = "head") -> dict[str, Any]:
    facts = {"input_size": (3, image_px, image_px), "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
    return facts | {"first_conv": first_conv, "classifier": classifier}


default_cfgs = generate_default_cfgs(  # the name is timm's: its registry reads the table off this module
    {
        "vit_base_r50_s32_224.untrained": _untrained(224, "patch_embed.backbone.stem.conv"),
        "vit_tiny_patch8_64.untrained": _untrained(64, "patch_embed.proj"),
        "vit_relpos_tiny_patch8_64.untrained": _untrained(64, "patch_embed.proj"),
        "vit_tiny_r14_s16_64.untrained": _untrained(64, "patch_embed.backbone.stem.conv"),
        "vit_tiny_r14_s8_64.untrained": _untrained(64, "patch_embed.backbone.stem.conv"),
        "resnetv2_26half_bit_64.untrained": _untrained(64, "stem.conv", "head.fc"),
        "resnetv2_50half_bit_64.untrained": _untrained(64, "stem.conv", "head.fc"),
        "swin_tiny_patch2_window4_64.untrained": _untrained(64, "patch_embed.proj", "head.fc"),
    }
)


def vit_base_r50_s32_224(pretrained: bool = False, **given: Any) -> VisionTransformer:
    """ViT-B on stage 4 of a regular ResNet-50, the first of the paper's two hybrids: 49 tokens at 224 px. The second is timm's ``vit_base_r50_s16_224``."""
    resnet = resnet_below(REGULAR_R50)
    return _vit("vit_base_r50_s32_224", pretrained, {"embed_dim": 768, "depth": 12, "num_heads": 12}, given, resnet)


def vit_tiny_patch8_64(pretrained: bool = False, **given: Any) -> VisionTransformer:
    """ViT-Ti/8 for images of 64 px: 64 tokens."""
    return _vit("vit_tiny_patch8_64", pretrained, TINY | {"patch_size": 8}, given)


def vit_tiny_r14_s16_64(pretrained: bool = False, **given: Any) -> VisionTransformer:
    """The first hybrid at the size of small images: nine blocks of ViT-Ti on stage 4 of a narrow ResNet, 16 tokens at 64 px."""
    return _vit("vit_tiny_r14_s16_64", pretrained, TINY | {"depth": 9}, given, _without_pool(resnet_below((1, 1, 1, 1), **HALF_WIDTH)))


def vit_tiny_r14_s8_64(pretrained: bool = False, **given: Any) -> VisionTransformer:
    """The second hybrid at the size of small images: stage 4 gone, its layer put into stage 3, so 64 tokens at 64 px.

    Nine blocks in place of twelve pay for the ResNet: within a tenth of the compute of ``vit_tiny_patch8_64``.
    """
    return _vit("vit_tiny_r14_s8_64", pretrained, TINY | {"depth": 9}, given, _without_pool(resnet_below((1, 1, 2), **HALF_WIDTH)))


def resnetv2_50half_bit_64(pretrained: bool = False, **given: Any) -> ResNetV2:
    """ResNet-50 (BiT) of half the width for images of 64 px, without the stem's max pool: a map of 4 x 4."""
    return _small_bit("resnetv2_50half_bit_64", pretrained, REGULAR_R50, given)


def resnetv2_26half_bit_64(pretrained: bool = False, **given: Any) -> ResNetV2:
    """The same with two blocks a stage: at a given size, the compute of a ViT-Ti/8 or its hybrid of a third to a half of the depth."""
    return _small_bit("resnetv2_26half_bit_64", pretrained, (2, 2, 2, 2), given)


def vit_relpos_tiny_patch8_64(pretrained: bool = False, **given: Any) -> VisionTransformerRelPos:
    """``vit_tiny_patch8_64`` with a learned bias for every offset between two patches (a table a block and head) in place of positions.

    timm's ``vit_relpos_*`` differ in more: layer scale, a mean in the class token's place, an MLP that makes the table.
    """
    arguments = TINY | {
        "patch_size": 8,
        "rel_pos_type": "bias",
        "class_token": True,
        "global_pool": "token",
        "init_values": None,
        "weight_init": "",
    }
    return build_model_with_cfg(VisionTransformerRelPos, "vit_relpos_tiny_patch8_64", pretrained, **(arguments | given))


def swin_tiny_patch2_window4_64(pretrained: bool = False, **given: Any) -> SwinTransformer:
    """Swin for images of 64 px: stages of 32, 16 and 8 patches a side, in windows of four, which divide each; 64 tokens, as ``vit_tiny_patch8_64``.

    timm's smallest has windows of seven and four stages: at 64 px the last is a map of 2 x 2, one window and no shift.
    """
    arguments = {"patch_size": 2, "window_size": 4, "embed_dim": 48, "depths": (2, 2, 8), "num_heads": (2, 4, 8)}
    return build_model_with_cfg(SwinTransformer, "swin_tiny_patch2_window4_64", pretrained, **(arguments | given))


for entry in (
    vit_base_r50_s32_224,
    vit_tiny_patch8_64,
    vit_tiny_r14_s16_64,
    vit_tiny_r14_s8_64,
    resnetv2_26half_bit_64,
    resnetv2_50half_bit_64,
    vit_relpos_tiny_patch8_64,
    swin_tiny_patch2_window4_64,
):
    register_model(entry)


def _vit(
    name: str, pretrained: bool, arguments: dict[str, Any], given: dict[str, Any], resnet: ResNetV2 | None = None
) -> VisionTransformer:
    if resnet is not None:
        arguments = arguments | {"patch_size": 1, "embed_layer": partial(HybridEmbed, backbone=resnet)}
    return build_model_with_cfg(VisionTransformer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **(arguments | given))


def _small_bit(name: str, pretrained: bool, layers: tuple[int, ...], given: dict[str, Any]) -> ResNetV2:
    arguments = {"layers": layers, "stem_type": "fixed", "conv_layer": partial(StdConv2d, eps=1e-8), **HALF_WIDTH}
    return _without_pool(build_model_with_cfg(ResNetV2, name, pretrained, **(arguments | given)))


def resnet_below(layers: tuple[int, ...], **widths: Any) -> ResNetV2:
    """Return the ResNet of a hybrid as timm's own hybrids have it: norms behind the convolutions, padding as TensorFlow's."""
    convolution = partial(StdConv2dSame, eps=1e-8)
    return ResNetV2(layers, num_classes=0, global_pool="", preact=False, stem_type="same", conv_layer=convolution, **widths)


def _without_pool(resnet: ResNetV2) -> ResNetV2:
    """Take the max pool off the stem: a small image's map would shrink to a point."""
    for name in ("pad", "pool"):
        if hasattr(resnet.stem, name):
            setattr(resnet.stem, name, nn.Identity())
    resnet.feature_info = [{**stage, "reduction": max(2, stage["reduction"] // 2)} for stage in resnet.feature_info]
    return resnet


def sine_positions(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Return the fixed positions ``[rows * columns, width]`` of a grid of patches: sines and cosines of the row, then of the column.

    A quarter each is ``sin(w r)``, ``cos(w r)``, ``sin(w c)``, ``cos(w c)``, for frequencies w from 1 down to nearly ``1 / TEMPERATURE``, in
    radians a patch. Nothing is learned, and another grid is no resampling but the same formula.

    Source: Chen, Xie and He 2021 (MoCo v3), arXiv 2104.02057, in the order of their code. The ViT paper's own 2-D positions are learned.

    Raises:
        ModelError: the width is no multiple of four.
    """
    if width % 4:
        raise ModelError(f"fixed 2-D sine positions need a width that four divides, and this backbone's is {width}")
    frequencies = TEMPERATURE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def fix_positions(net: nn.Module) -> None:
    """Put fixed 2-D sine positions in the place of a ViT's learned ones; class token and registers get none (zeros).

    They are a buffer that no file holds: what they are follows from the grid.

    Raises:
        ModelError: the network adds no table of positions to its patches.
    """
    learned = getattr(net, "pos_embed", None)
    if not isinstance(net, VisionTransformer) or learned is None:
        raise ModelError(f"pos_embed=sine2d is for a plain or hybrid ViT, and {type(net).__name__} adds no positions to its patches")
    table = sine_positions(net.patch_embed.grid_size, learned.shape[2])
    prefix = table.new_zeros(learned.shape[1] - len(table), learned.shape[2])
    del net.pos_embed
    net.register_buffer("pos_embed", torch.cat([prefix, table])[None], persistent=False)
