"""Poolings: from Tokens to one vector per image."""

from __future__ import annotations

import torch

from sightline.contracts import Tokens
from sightline.errors import ModelError

GEM_FLOOR = 1e-6
"""Token features are clamped to at least this before the power: GeM is defined for positive features only."""


def pool(tokens: Tokens, pooling: str, gem_p: float = 3.0) -> torch.Tensor:
    """Return one vector per image, ``[B, D]``: the class token, or the mean, maximum or generalised mean of the patch tokens.

    Prefix tokens never enter mean, max and GeM. On a distilled backbone ``cls`` is token 0: timm's own head averages it with the
    distillation token, which is not what IRT measured.

    Raises:
        ModelError: ``cls`` on a backbone without a class token.
    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.1; GeM: Radenovic et al. 2018, arXiv 1711.02512, eq. 3.
    """
    if pooling == "cls":
        if tokens.prefix.shape[1] == 0:
            raise ModelError("this backbone has no class token: choose pooling=mean, max or gem")
        return tokens.prefix[:, 0]  # [B, D]
    if pooling == "mean":
        return tokens.patches.mean(dim=1)
    if pooling == "max":
        return tokens.patches.amax(dim=1)
    return gem(tokens.patches, gem_p)


def gem(patches: torch.Tensor, p: float) -> torch.Tensor:
    """Return the generalised mean over the tokens ``[B, N, D]`` -> ``[B, D]``: the mean for p = 1, towards the maximum as p grows."""
    return patches.float().clamp_min(GEM_FLOOR).pow(p).mean(dim=1).pow(1.0 / p)
