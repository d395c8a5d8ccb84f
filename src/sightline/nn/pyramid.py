"""Feature pyramids: maps at several strides, finest first, from whatever a backbone gives.

Source: Li et al. 2022, arXiv 2203.16527, section 3 (the simple pyramid over a plain ViT); Lin et al. 2017, arXiv 1612.03144 (the pyramid over stages).

Departs: attention stays global in every block and no relative positions are added: the network is measured as it was pre-trained.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from sightline.contracts import Tokens
from sightline.errors import ModelError
from sightline.nn.encoder import Encoder

STRIDES = (4, 8, 16, 32)
"""What the levels of a pyramid over tokens come to for patches of 16 px, and as near as their size allows for others."""

Maps = list[torch.Tensor]


class SimpleFeaturePyramid(nn.Module):
    """Four maps ``[B, channels, h, w]`` from the last tokens of a plain ViT, and a fifth, every second pixel of the fourth, for proposals.

    Each is the token map brought to its scale (transposed convolutions with a norm and GELU between them, the map itself, or a max-pool), then
    1 x 1 -> norm -> 3 x 3 -> norm. The norm is a LayerNorm over channels.
    """

    def __init__(self, width: int, patch_px: int, channels: int = 256) -> None:
        """``width`` is the tokens' D; the scales are 4, 2, 1 and 1/2 for patches of 16 px, 2, 1, 1/2 and 1/4 for 8."""
        super().__init__()
        finest = 2 - round(math.log2(16 / patch_px))  # as a power of two
        self.powers = tuple(finest - level for level in range(len(STRIDES)))
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
        net: Any = encoder.backbone.net
        reductions = [int(stage["reduction"]) for stage in getattr(net, "feature_info", None) or ()]
        first = _of_each_stride(reductions)
        self.stages = [place for place in first if reductions[place] >= STRIDES[0]] if hasattr(net, "forward_intermediates") else []
        self.pyramid: SimpleFeaturePyramid | StagePyramid
        if len(self.stages) > 1:
            chosen = [reductions[place] for place in self.stages]
            self.pyramid = StagePyramid([int(net.feature_info[place]["num_chs"]) for place in self.stages], chosen, channels)
            self.multiple_px = math.lcm(max(chosen), encoder.backbone.multiple_px)
        else:
            self.stages = []
            self.pyramid = SimpleFeaturePyramid(encoder.backbone.width, _patch_px(encoder), channels)
            self.multiple_px = encoder.backbone.multiple_px
        self.strides = self.pyramid.strides

    def forward(self, images: torch.Tensor) -> Maps:
        """Return the maps of normalised images, float32, finest first."""
        if isinstance(self.pyramid, StagePyramid):
            net: Any = self.encoder.backbone.net
            with self.encoder.any_size(images):
                stages = net.forward_intermediates(images, indices=self.stages, output_fmt="NCHW", intermediates_only=True)
            maps = self.pyramid(stages)
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
    was_training = encoder.training
    with torch.no_grad():
        rows, _ = encoder.eval().tokens(torch.zeros(1, 3, side, side, device=encoder.device)).grid
    encoder.train(was_training)
    if side < rows:
        raise ModelError(f"{encoder.model.backbone} gives more tokens than pixels: a detector needs a map of features")
    return round(side / rows)
