"""Learned positions at another resolution, as the JAX original and the DINO code have them; timm's own way is in timm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def resize_positions(table: torch.Tensor, grid: tuple[int, int], num_prefix: int) -> torch.Tensor:
    """Return the positions ``[1, P + N', D]`` of a new ``grid`` (rows, columns) of patches; ``table`` ``[1, P + N, D]`` is of a square one.

    Each new position lies between its old neighbours, corners on corners, with no smoothing where the grid shrinks: what
    ``scipy.ndimage.zoom(order=1)`` does, which the authors' code calls. timm interpolates bicubically, pixels on pixels. The first
    ``num_prefix`` positions (class token, registers) stay.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.2, as in google-research/vision_transformer.
    """
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    side = math.isqrt(patches.shape[1])
    as_image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, rows, columns]
    resized = F.interpolate(as_image, grid, mode="bilinear", align_corners=True)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def resize_positions_as_dino(table: torch.Tensor, grid: tuple[int, int], num_prefix: int) -> torch.Tensor:
    """Return the positions ``[1, P + N', D]`` of a new ``grid`` (rows, columns) of patches; ``table`` ``[1, P + N, D]`` is of a square one.

    Bicubic without smoothing, by a scale of (rows + 0.1) / old rows instead of by size: the published weights were trained with it.
    From random positions the tokens of a 96 px crop differ from timm's resampling by a cosine of 0.88, so it decides about parity.

    Source: facebookresearch/dino, ``interpolate_pos_encoding``.
    """
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    side = math.isqrt(patches.shape[1])
    if grid == (side, side):
        return table
    as_image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, rows, columns]
    scales = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    resized = F.interpolate(as_image, scale_factor=scales, mode="bicubic")
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2)], dim=1)
