"""One image at several scales: resizing the model's input, and the mean of what comes back.

Source: Radenovic et al. 2018, arXiv 1711.02512 (multi-scale representation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rescale(images: torch.Tensor, scale: float, multiple_px: int = 1) -> torch.Tensor:
    """Return ``[B, 3, H, W]`` resized by ``scale``, bilinear, without antialiasing as the published code has it.

    Departs: where the backbone cuts patches, each side is rounded to a multiple of the patch's (at least one patch); elsewhere
        it is cut to whole pixels, as there.
    """
    if scale == 1:
        return images
    if multiple_px == 1:
        return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
    height, width = (max(1, round(side * scale / multiple_px)) * multiple_px for side in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def power_mean(vectors: torch.Tensor, p: float) -> torch.Tensor:
    """Return the p-mean over the first dimension of ``[S, B, D]``, ``[B, D]``; entries must be positive unless p is 1."""
    return vectors.mean(dim=0) if p == 1 else vectors.pow(p).mean(dim=0).pow(1.0 / p)
