"""Feature pyramids: maps at several strides, finest first, from whatever a backbone gives.

Source: Li et al. 2022, arXiv 2203.16527, section 3 (the simple pyramid over a plain ViT); Lin et al. 2017, arXiv 1612.03144 (the pyramid over stages);
El-Nouby et al. 2021, arXiv 2106.09681 (XCiT), and Bao et al. 2021, arXiv 2106.08254 (BEiT), for four blocks brought to four scales.

Departs: attention stays global in every block and no relative positions are added: the network is measured as it was pre-trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from sightline.contracts import Tokens
from sightline.errors import ModelError
from sightline.nn.encoder import Encoder, evaluating

STRIDES = (4, 8, 16, 32)
"""What the levels of a pyramid over tokens come to for patches of 16 px, and as near as their size allows for others."""

Maps = list[torch.Tensor]

Taps = Literal["even", "late", "last"]
"""Which blocks of a plain ViT a pyramid begins at: its four quarters, those from a third of its depth on (BEiT's 3, 5, 7, 11 of 12), or the last alone."""

TAPPED = {"even": (1 / 4, 1 / 2, 3 / 4, 1.0), "late": (1 / 3, 1 / 2, 2 / 3, 1.0)}


class SimpleFeaturePyramid(nn.Module):
    """Four maps ``[B, channels, h, w]`` from the last tokens of a plain ViT, and a fifth, every second pixel of the fourth, for proposals.

    Each is the token map brought to its scale (transposed convolutions with a norm and GELU between them, the map itself, or a max-pool), then
    1 x 1 -> norm -> 3 x 3 -> norm. The norm is a LayerNorm over channels.
    """

    def __init__(self, width: int, patch_px: int, channels: int = 256) -> None:
        """``width`` is the tokens' D; the scales are 4, 2, 1 and 1/2 for patches of 16 px, 2, 1, 1/2 and 1/4 for 8."""
        super().__init__()
        self.powers = powers_of(patch_px)
        self.strides = (*(patch_px / 2**power for power in self.powers), 2 * patch_px / 2 ** self.powers[-1])
        self.levels = nn.ModuleList(_level(width, power, channels) for power in self.powers)

    def forward(self, tokens: Tokens) -> Maps:
        """Return the maps, finest first; map l has stride ``strides[l]`` in pixels."""
        patches = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).contiguous()  # [B, D, rows, columns]
        maps = [level(patches) for level in self.levels]
        return [*maps, _every_second(maps[-1])]


class StagePyramid(nn.Module):
    """A feature pyramid network over the stages of a hierarchical or convolutional backbone (those of stride 4 and more), and one map more for proposals."""

    def __init__(self, widths: list[int], strides: list[int], channels: int = 256) -> None:
        super().__init__()
        self.strides = (*(float(stride) for stride in strides), 2.0 * strides[-1])
        self.merge = FeaturePyramidNetwork(widths, channels)

    def forward(self, stages: Maps) -> Maps:
        """Return the maps ``[B, channels, h, w]``, finest first."""
        maps = list(self.merge({str(place): stage for place, stage in enumerate(stages)}).values())
        return [*maps, _every_second(maps[-1])]


class PyramidFeatures(nn.Module):
    """An encoder's backbone and the pyramid that suits it: images ``[B, 3, H, W]`` -> maps.

    A network whose stages have several strides (ResNet, Swin, ConvNeXt) is taken at its stages, any other at its last tokens. Statistics of batch
    norms stay as they were pre-trained: a detector's batches are too small to renew them.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = stages_of(encoder)
        self.pyramid: SimpleFeaturePyramid | StagePyramid
        if self.stages:
            widths, strides = widths_and_strides(encoder, self.stages)
            self.pyramid = StagePyramid(widths, strides, channels)
        else:
            self.pyramid = SimpleFeaturePyramid(encoder.backbone.width, _patch_px(encoder), channels)
        self.multiple_px = multiple_px(encoder, self.stages)
        self.strides = self.pyramid.strides

    def forward(self, images: torch.Tensor) -> Maps:
        """Return the maps of normalised images, float32, finest first."""
        if isinstance(self.pyramid, StagePyramid):
            maps = self.pyramid(intermediates(self.encoder, images, self.stages))
        else:
            maps = self.pyramid(self.encoder.tokens(images))
        return [found.float() for found in maps]

    def train(self, mode: bool = True) -> PyramidFeatures:
        """Switch to training, but for the statistics of the backbone's batch norms."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        return self


class Levels(nn.Module):
    """An encoder's maps at four strides or so, before anything joins them: its stages, or of a plain ViT four blocks brought to four scales.

    A block's map is brought to its scale by transposed convolutions (a norm and GELU between two of them) or a max-pool. ``taps`` says which
    blocks; ``last`` makes all levels of the last tokens, as a detector's pyramid does. A network with stages is taken at them, whatever it says.
    """

    def __init__(self, encoder: Encoder, taps: Taps, channels: int, norm: Callable[[int], nn.Module]) -> None:
        """``channels`` is the width of the levels of ``last``; all others have the network's own.

        Raises:
            ModelError: the network has no stages and does not give its blocks.
        """
        super().__init__()
        width = encoder.backbone.width
        self.stages = stages_of(encoder)
        self.multiple_px = multiple_px(encoder, self.stages)
        self.blocks: list[int] = []
        self.strides: tuple[float, ...]
        if self.stages:
            self.widths, strides = widths_and_strides(encoder, self.stages)
            self.strides = tuple(float(stride) for stride in strides)
        elif taps == "last":
            self.scales: nn.Module = SimpleFeaturePyramid(width, _patch_px(encoder), channels)
            self.widths, self.strides = [channels] * len(STRIDES), self.scales.strides[:-1]
        else:
            net: Any = encoder.backbone.net
            depth = len(getattr(net, "blocks", ()))
            if not depth or not hasattr(net, "forward_intermediates"):
                raise ModelError(f"{encoder.model.backbone} does not give its blocks one by one: set taps=last, or take a plain ViT")
            self.blocks = [max(0, round(share * depth) - 1) for share in TAPPED[taps]]
            powers = powers_of(patch_px := _patch_px(encoder))
            self.scales = nn.ModuleList(_scaled(width, power, norm) for power in powers)
            self.widths, self.strides = [width] * len(powers), tuple(patch_px / 2**power for power in powers)

    def forward(self, encoder: Encoder, images: torch.Tensor) -> Maps:
        """Return the maps ``[B, widths[l], h, w]`` of normalised images, finest first; map l has stride ``strides[l]`` in pixels."""
        if self.stages:
            return intermediates(encoder, images, self.stages)
        if not self.blocks:
            maps: Maps = self.scales(encoder.tokens(images))[:-1]
            return maps
        found = dict(zip(sorted(set(self.blocks)), intermediates(encoder, images, sorted(set(self.blocks))), strict=True))
        return [scale(found[block]) for scale, block in zip(self.scales, self.blocks, strict=True)]  # type: ignore[call-overload]


def intermediates(encoder: Encoder, images: torch.Tensor, places: list[int]) -> Maps:
    """Return what the stages or blocks at ``places`` give for normalised images, ``[B, D, h, w]`` each, before any last norm."""
    net: Any = encoder.backbone.net
    with encoder.any_size(images):
        maps: Maps = net.forward_intermediates(images, indices=places, output_fmt="NCHW", intermediates_only=True)
    return maps


def stages_of(encoder: Encoder) -> list[int]:
    """Return the places of the last stage of each stride from 4 on, of a network with stages of several strides; of others none."""
    net: Any = encoder.backbone.net
    reductions = [int(stage["reduction"]) for stage in getattr(net, "feature_info", None) or ()]
    stages = [place for place in _of_each_stride(reductions) if reductions[place] >= STRIDES[0]]
    return stages if len(stages) > 1 and hasattr(net, "forward_intermediates") else []


def widths_and_strides(encoder: Encoder, stages: list[int]) -> tuple[list[int], list[int]]:
    """Return the channels of these stages, and their strides in pixels."""
    info: Any = encoder.backbone.net.feature_info
    return [int(info[place]["num_chs"]) for place in stages], [int(info[place]["reduction"]) for place in stages]


def multiple_px(encoder: Encoder, stages: list[int]) -> int:
    """Return what the sides of an image must be multiples of, for the network and for these stages of it."""
    own = encoder.backbone.multiple_px
    return math.lcm(max(widths_and_strides(encoder, stages)[1]), own) if stages else own


def powers_of(patch_px: int) -> tuple[int, ...]:
    """Return the scale of each level over the tokens' map as a power of two: 2, 1, 0, -1 for patches of 16 px, 1, 0, -1, -2 for 8."""
    finest = 2 - round(math.log2(16 / patch_px))
    return tuple(finest - level for level in range(len(STRIDES)))


def _scaled(width: int, power: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    if power <= 0:
        return nn.MaxPool2d(2**-power) if power else nn.Identity()
    layers: list[nn.Module] = [nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)]
    for _ in range(power - 1):
        layers += [norm(width), nn.GELU(), nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)]
    return nn.Sequential(*layers)


def _level(width: int, power: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(power):
        if layers:
            layers += [LayerNorm2d(width), nn.GELU()]
        narrower = max(1, width // 2)
        layers.append(nn.ConvTranspose2d(width, narrower, kernel_size=2, stride=2))
        width = narrower
    if power < 0:
        layers.append(nn.MaxPool2d(2**-power))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


def _every_second(finest_but: torch.Tensor) -> torch.Tensor:
    return nn.functional.max_pool2d(finest_but, kernel_size=1, stride=2)


def _of_each_stride(reductions: list[int]) -> list[int]:
    """Return the place of the last stage of each stride, or none where there is one stride only."""
    last = {stride: place for place, stride in enumerate(reductions)}
    return sorted(last.values()) if len(last) > 1 else []


def _patch_px(encoder: Encoder) -> int:
    """Return the stride of the tokens in pixels."""
    side = encoder.image.image_px
    if encoder.backbone.multiple_px > 1:
        return encoder.backbone.multiple_px
    with torch.no_grad(), evaluating(encoder):
        rows, _ = encoder.tokens(torch.zeros(1, 3, side, side, device=encoder.device)).grid
    if side < rows:
        raise ModelError(f"{encoder.model.backbone} gives more tokens than pixels: a detector needs a map of features")
    return round(side / rows)
