"""Segmentation heads over an encoder's maps: Semantic FPN and UPerNet, from images to the class of each pixel.

Source: Kirillov et al. 2019, arXiv 1901.02446 (Semantic FPN); Xiao et al. 2018, arXiv 1807.10221 (UPerNet), Zhao et al. 2017,
arXiv 1612.01105 (its pyramid pooling). Both compute what mmsegmentation's heads do, number for number (tests/parity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from sightline.errors import ModelError, RecipeError
from sightline.nn.encoder import Encoder
from sightline.nn.projection import GlobalMapNorm
from sightline.nn.pyramid import Levels, Maps, Taps

POOLED = (1, 2, 3, 6)
"""The sides of the grids that UPerNet pools its coarsest map to."""

NUM_GROUPS = 32

Head = Literal["fpn", "upernet"]
Norm = Literal["batch", "group"]
Norms = Callable[[int], nn.Module]
"""From a number of channels to the norm over them."""


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """What a segmentation head is, but for its weights and its classes; a model folder keeps it."""

    head: Head = "fpn"  # Semantic FPN, or UPerNet
    taps: Taps = "even"  # the blocks of a plain ViT that the four levels begin at: even, late, or the last alone
    pyramid_channels: int = 256  # of the feature pyramid under Semantic FPN, and of the levels of taps=last
    head_channels: int = 128  # of the head's own maps
    head_norm: Norm = "batch"  # batch: over the batch of all processes; group: by 32 groups of channels, for small batches
    dropout: float = 0.1  # of whole channels, before the last layer
    slide_px: int = 0  # at test a window of image_px moves by so much; 0 takes the whole image at once

    def __post_init__(self) -> None:
        if min(self.pyramid_channels, self.head_channels) < 1 or self.slide_px < 0 or not 0 <= self.dropout < 1:
            raise RecipeError("pyramid_channels and head_channels are positive, slide_px is 0 or more, dropout in [0, 1)")


class Segmenter(nn.Module):
    """Levels and head: an encoder and normalised images ``[B, 3, H, W]`` -> logits ``[B, C, h, w]`` along ``class_names``.

    It holds what is put on the encoder's backbone, and is given the encoder: that holds the segmenter.
    """

    def __init__(self, encoder: Encoder, spec: SegmenterSpec, class_names: Sequence[str]) -> None:
        """``class_names`` ``[C]`` name the logits.

        Raises:
            ModelError: the network gives no levels of this kind, or images of its size are smaller than the coarsest stride.
        """
        super().__init__()
        self.spec, self.class_names = spec, tuple(class_names)
        self.levels = Levels(encoder, spec.taps, spec.pyramid_channels, self.norm)
        if encoder.image.image_px < self.levels.strides[-1]:
            raise ModelError(
                f"the coarsest map has a stride of {self.levels.strides[-1]:g} px: images of {encoder.image.image_px} px are too small, set a larger image_px"
            )
        widths, joined = self.levels.widths, spec.head == "fpn" and (spec.taps != "last" or bool(self.levels.stages))
        self.neck = FeaturePyramidNetwork(widths, spec.pyramid_channels) if joined else None
        widths = [spec.pyramid_channels] * len(widths) if joined else widths
        kind = SemanticFpn if spec.head == "fpn" else UperNet
        self.head = kind(widths, self.levels.strides, len(self.class_names), spec.head_channels, spec.dropout, self.norm)

    def norm(self, channels: int) -> nn.Module:
        """Return a norm over so many channels, of the kind that the head has."""
        if self.spec.head_norm == "batch":
            return GlobalMapNorm(channels)
        return nn.GroupNorm(math.gcd(NUM_GROUPS, max(1, channels // 2)), channels)  # the paper's 32 groups from 64 channels on

    def maps(self, encoder: Encoder, images: torch.Tensor) -> Maps:
        """Return what the head takes, finest first."""
        maps = self.levels(encoder, images)
        return maps if self.neck is None else list(self.neck({str(level): found for level, found in enumerate(maps)}).values())

    def forward(self, encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
        """Return the logits at the finest stride."""
        logits: torch.Tensor = self.head(self.maps(encoder, images))
        return logits


class SemanticFpn(nn.Module):
    """Each level brought to the finest by 3 x 3 convolutions, each followed by a bilinear doubling; their sum; one layer."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[float], num_classes: int, channels: int, dropout: float, norm: Norms
    ) -> None:
        super().__init__()
        self.ways = nn.ModuleList()
        for width, stride in zip(widths, strides, strict=True):
            doublings = round(math.log2(stride / strides[0]))
            layers: list[nn.Module] = []
            for number in range(max(1, doublings)):
                layers.append(convolution(width if number == 0 else channels, channels, 3, norm))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.ways.append(nn.Sequential(*layers))
        self.classify = classification(channels, num_classes, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        """Return logits ``[B, C, h, w]`` at the size of the first map."""
        total = self.ways[0](maps[0])
        for way, found in zip(self.ways[1:], maps[1:], strict=True):
            total = total + _to_size(way(found), total)
        logits: torch.Tensor = self.classify(total)
        return logits


class UperNet(nn.Module):
    """Pyramid pooling on the coarsest level, a way down through all of them, all levels at the finest size side by side, one layer."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[float], num_classes: int, channels: int, dropout: float, norm: Norms
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(side), convolution(widths[-1], channels, 1, norm)) for side in POOLED)
        self.bottleneck = convolution(widths[-1] + len(POOLED) * channels, channels, 3, norm)
        self.lateral = nn.ModuleList(convolution(width, channels, 1, norm) for width in widths[:-1])
        self.smooth = nn.ModuleList(convolution(channels, channels, 3, norm) for _ in widths[:-1])
        self.fuse = convolution(len(widths) * channels, channels, 3, norm)
        self.classify = classification(channels, num_classes, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        """Return logits ``[B, C, h, w]`` at the size of the first map."""
        coarsest = maps[-1]
        context = [coarsest, *(_to_size(pool(coarsest), coarsest) for pool in self.pools)]
        down = [layer(found) for layer, found in zip(self.lateral, maps[:-1], strict=True)]
        down.append(self.bottleneck(torch.cat(context, dim=1)))
        for level in range(len(down) - 1, 0, -1):
            down[level - 1] = down[level - 1] + _to_size(down[level], down[level - 1])
        outs = [layer(found) for layer, found in zip(self.smooth, down[:-1], strict=True)]
        outs.append(down[-1])
        fused = self.fuse(torch.cat([outs[0], *(_to_size(out, outs[0]) for out in outs[1:])], dim=1))
        logits: torch.Tensor = self.classify(fused)
        return logits


def convolution(inputs: int, outputs: int, side: int, norm: Norms) -> nn.Sequential:
    """Return a convolution of ``side`` x ``side`` that keeps the map's size, a norm and ReLU."""
    kernel = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(kernel.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(kernel, norm(outputs), nn.ReLU(inplace=True))


def classification(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return dropout of whole channels and a 1 x 1 convolution to one logit a class."""
    layer = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout2d(dropout), layer)


def _to_size(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)
