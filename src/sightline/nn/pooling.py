"""Poolings: from Tokens to one vector per image."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from sightline.contracts import Tokens
from sightline.errors import ModelError
from sightline.recipe import Pooling

TWICE_AS_WIDE: frozenset[Pooling] = frozenset(("cls_dist_concat", "cls_gem"))
"""The poolings that put two vectors of the backbone's width side by side."""

GEM_FLOOR = 1e-6
"""Token features are clamped to at least this before the power: GeM is defined for positive features only."""

RMAC_LEVELS, RMAC_OVERLAP = 3, 0.4
RMAC_MOST = 7
"""Most regions along the longer side at the first level of R-MAC."""

OF_DISTILLATION: frozenset[Pooling] = frozenset(("dist", "cls_dist_mean", "cls_dist_concat"))
"""The poolings that read the distillation token: token 1 of a distilled DeiT. Elsewhere token 1 may be a register, which nothing taught."""


OF_PREFIX: frozenset[Pooling] = frozenset(("cls", *OF_DISTILLATION))
"""The poolings that read no patch: a plain ViT's last block is then asked for its prefix tokens alone."""


def pool(tokens: Tokens, pooling: Pooling, gem_p: float = 3.0) -> torch.Tensor:
    """Return one vector per image, ``[B, D]`` (``[B, 2 D]`` for ``TWICE_AS_WIDE``), of the prefix tokens or of the patch tokens.

    - ``cls``: token 0. On a distilled backbone too: timm's own head averages it with the distillation token, which is not what IRT
      measured.
    - ``dist``: token 1, the distillation token.
    - ``cls_dist_mean``: the mean of the two, timm's features before its heads; it keeps the width.
    - ``cls_dist_concat``: both side by side, each at unit length, so that the similarity of two images is the mean of the two tokens'
      similarities: the late fusion by which DeiT adds up the answers of its two heads.
    - ``mean``, ``max``, ``gem``, ``rmac``: the mean, maximum, generalised mean and regional maxima of the patch tokens alone.
    - ``cls_gem``: token 0 and ``gem`` side by side, each as long as it is: what DINO finds copies by (with ``gem_p=4``).

    Raises:
        ModelError: the backbone has no such prefix token.
    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.2; GeM: Radenovic et al. 2018, arXiv 1711.02512, eq. 3; the two heads of
        DeiT: Touvron et al. 2021, arXiv 2012.12877, section 4; copies: Caron et al. 2021, arXiv 2104.14294, section 4.2.1.
    """
    if pooling in OF_DISTILLATION:
        return _of_distillation(tokens, pooling)
    if pooling in {"cls", "cls_gem"}:
        if tokens.prefix.shape[1] == 0:
            raise ModelError("this backbone has no class token: choose pooling=mean, max or gem")
        first = tokens.prefix[:, 0]  # [B, D]
        return first if pooling == "cls" else torch.cat([first.float(), gem(tokens.patches, gem_p)], dim=1)
    if pooling == "mean":
        return tokens.patches.mean(dim=1)
    if pooling == "max":
        return tokens.patches.amax(dim=1)
    return rmac(tokens) if pooling == "rmac" else gem(tokens.patches, gem_p)


def _of_distillation(tokens: Tokens, pooling: Pooling) -> torch.Tensor:
    if tokens.prefix.shape[1] < 2:
        raise ModelError(
            f"pooling={pooling} needs a distillation token: take a distilled backbone such as deit_small_distilled_patch16_224"
        )
    both = tokens.prefix[:, :2]  # [B, 2, D]
    if pooling == "dist":
        return both[:, 1]
    if pooling == "cls_dist_mean":
        return both.mean(dim=1)
    return F.normalize(both.float(), dim=2).flatten(1)  # [B, 2 D]


def gem(patches: torch.Tensor, p: float) -> torch.Tensor:
    """Return the generalised mean over the tokens ``[B, N, D]`` -> ``[B, D]``: the mean for p = 1, towards the maximum as p grows."""
    return patches.float().clamp_min(GEM_FLOOR).pow(p).mean(dim=1).pow(1.0 / p)


def rmac(tokens: Tokens) -> torch.Tensor:
    """Return the sum of the maxima over square regions of the grid, each given unit length first, ``[B, D]``.

    Source: Tolias, Sicre & Jegou 2016, arXiv 1511.05879.
    Departs: as in the published code, the maximum over the whole grid is one more region; the regions are not whitened one by one (a
        whitening of the model is of the sum).
    """
    rows, columns = tokens.grid
    grid = tokens.patches.unflatten(1, (rows, columns))  # [B, rows, columns, D]
    total = F.normalize(tokens.patches.float().amax(dim=1), dim=1)
    for top, left, side in rmac_regions(rows, columns):
        total = total + F.normalize(grid[:, top : top + side, left : left + side].float().amax(dim=(1, 2)), dim=1)
    return total


@cache
def rmac_regions(rows: int, columns: int) -> tuple[tuple[int, int, int], ...]:
    """Return (top, left, side) of R-MAC's square regions of a grid: at level l about l by l of side 2 min(rows, columns) / (l + 1).

    Along the longer side each level has as many regions more as make neighbours of the first level overlap by closest to 40 %.

    Source: Tolias, Sicre & Jegou 2016, arXiv 1511.05879.
    Departs: of two numbers of regions equally far from that overlap the smaller is taken, and places are divided in whole numbers;
        the published code leaves both to the rounding of float32 (20 of the 1,600 grids up to 40 x 40 come out otherwise there, none
        of them squarer than 3 x 11).
    """
    short, longer = sorted((rows, columns))
    off = {more: round(abs(1 - (longer - short) / (short * more) - RMAC_OVERLAP), 9) for more in range(1, RMAC_MOST)}
    more = min(off, key=lambda count: off[count]) if rows != columns else 0
    regions = []
    for level in range(1, RMAC_LEVELS + 1):
        side = 2 * short // (level + 1)
        if side:
            down, across = (_starts(length, side, level + (more if length > short else 0)) for length in (rows, columns))
            regions += [(top, left, side) for top in down for left in across]
    return tuple(regions)


def _starts(length: int, side: int, num: int) -> list[int]:
    """Return where ``num`` regions of ``side`` begin along ``length``, from its one end to the other."""
    return [place * (length - side) // max(1, num - 1) for place in range(num)]
