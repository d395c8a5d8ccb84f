"""Class attention: one vector from patch tokens, of the whole image or of each patch's closest neighbours.

A learned token asks, through a few blocks, the patches and itself; the patches do not change. Asked of all patches it gives the image's
vector; asked of the neighbours of one patch that resemble it most, a summary of what lies around that patch (SelfPatch).

Keys and values of a patch do not depend on who asks, so they are computed once a patch and gathered, where the published code computes
them again for every neighbourhood a patch is in: five times the arithmetic for four neighbours.

Source: Touvron et al. 2021, arXiv 2103.17239, section 3 (class attention); Yun et al. 2022, arXiv 2206.07990, section 3 (neighbours).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.cait import LayerScaleBlockClassAttn
from torch import nn

from sightline.errors import ModelError

Wrap = Literal["clip", "torus"]

INIT_STD = 0.02


class ClassAttention(nn.Module):
    """Patches ``[B, N, D]`` -> one vector an image ``[B, D]``, and on request one a patch ``[B, N, D]``, all behind one norm."""

    def __init__(self, width: int, num_heads: int, depth: int = 2) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            LayerScaleBlockClassAttn(width, num_heads, qkv_bias=True, norm_layer=norm, init_values=1.0) for _ in range(depth)
        )
        self.norm = norm(width)
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        for name, parameter in self.blocks.named_parameters():
            if "gamma_" in name:
                parameter.requires_grad_(False)  # SelfPatch's blocks have no layer scale: ones that stay are none
            elif parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the image's vector ``[B, D]``."""
        token = self.class_token.expand(len(patches), -1, -1)
        for block in self.blocks:
            token = _ask(block, token, *_keys_values(block, patches))
        image: torch.Tensor = self.norm(token[:, 0])
        return image

    def with_neighbours(self, patches: torch.Tensor, chosen: Neighbours) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image's vector ``[B, D]`` and each patch's summary of its ``chosen`` neighbours ``[B, N, D]``; the patch itself is not asked."""
        token = self.class_token.expand(len(patches), -1, -1)
        around = self.class_token.expand(*patches.shape[:2], -1)
        for block in self.blocks:
            keys, values = _keys_values(block, patches)
            token = _ask(block, token, keys, values)
            around = _ask_neighbours(block, around, keys, values, chosen)
        return self.norm(token[:, 0]), self.norm(around)

    def mean_of_neighbours(self, patches: torch.Tensor, chosen: Neighbours) -> torch.Tensor:
        """Return the mean of each patch's ``chosen`` neighbours behind the norm, ``[B, N, D]``: what is left without aggregation."""
        total = torch.zeros_like(patches)
        for place in range(chosen.rows.shape[2]):
            total += _at(patches, chosen.rows[:, :, place]) * chosen.is_there[:, :, place, None]
        mean: torch.Tensor = self.norm(total / chosen.is_there.sum(dim=2, keepdim=True))
        return mean


def _keys_values(block: Any, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normed = block.norm1(patches)
    return block.attn.k(normed), block.attn.v(normed)


def _after_attention(block: Any, token: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    token = token + block.gamma_1 * block.attn.proj(answer)
    after: torch.Tensor = token + block.gamma_2 * block.mlp(block.norm2(token))
    return after


def _ask(block: Any, token: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the token ``[B, 1, D]`` after one block in which it asks itself and all patches, keys and values ``[B, N, D]``."""
    attn, (own_key, own_value) = block.attn, _keys_values(block, token)

    def by_head(x: torch.Tensor) -> torch.Tensor:
        split: torch.Tensor = x.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # [B, heads, tokens, D / heads]
        return split

    keys, values = torch.cat([own_key, keys], dim=1), torch.cat([own_value, values], dim=1)
    answer = F.scaled_dot_product_attention(by_head(attn.q(block.norm1(token))), by_head(keys), by_head(values))
    return _after_attention(block, token, answer.transpose(1, 2).flatten(2))


def _ask_neighbours(block: Any, around: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chosen: Neighbours) -> torch.Tensor:
    """Return the tokens ``[B, N, D]`` after one block in which each asks itself and its patch's chosen neighbours.

    Slot by slot: [B, N, K, D] of gathered keys and as much of values would be the largest tensors of the step.
    """
    attn = block.attn
    heads = attn.num_heads
    # In the first block all tokens are the class token, expanded: one row is worth all.
    first = around if around.stride(0) else around[:1, :1]
    normed = block.norm1(first)
    query, own_key, own_value = (layer(normed).unflatten(2, (heads, -1)) for layer in (attn.q, attn.k, attn.v))
    query = query * attn.scale
    logits = [(query * own_key).sum(dim=3).expand(*around.shape[:2], heads)]
    for place in range(chosen.rows.shape[2]):
        key = _at(keys, chosen.rows[:, :, place]).unflatten(2, (heads, -1))
        logit = (query * key).sum(dim=3)  # [B, N, heads]
        logits.append(logit.masked_fill(~chosen.is_there[:, :, place, None], -torch.inf))
    weights = torch.stack(logits, dim=3).softmax(dim=3)[..., None]  # [B, N, heads, 1 + K, 1]
    answer = weights[:, :, :, 0] * own_value
    for place in range(chosen.rows.shape[2]):
        answer = answer + weights[:, :, :, 1 + place] * _at(values, chosen.rows[:, :, place]).unflatten(2, (heads, -1))
    return _after_attention(block, around, answer.flatten(2))


def _at(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the tokens ``[B, N, D]`` in the places ``rows`` ``[B, N]``."""
    first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (rows + first).flatten()).view(tokens.shape)


# --- neighbours -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The K patches that were chosen for each patch: ``rows`` int64 ``[B, N, K]``, and ``is_there`` bool ``[B, N, K]``, False at the border's gaps."""

    rows: torch.Tensor
    is_there: torch.Tensor


@cache
def window(grid: tuple[int, int], size: int, wrap: Wrap) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each patch's neighbours in a window of ``size`` x ``size`` patches, itself left out: rows int64 ``[N, S]`` and which there are, bool ``[N, S]``.

    ``torus`` goes on at the opposite border, as the published SelfPatch does; ``clip`` has nothing there (the row is then the patch's own).

    Raises:
        ModelError: on a torus, a grid smaller than the window, in which a patch would be its own neighbour.
    """
    num_rows, num_columns = grid
    if wrap == "torus" and min(grid) < size:
        raise ModelError(f"a grid of {num_rows} x {num_columns} patches is smaller than the window of {size}: take wrap=clip")
    row, column = (place.flatten() for place in torch.meshgrid(torch.arange(num_rows), torch.arange(num_columns), indexing="ij"))
    rows, is_there = [], []
    for down, right in _offsets(size):
        to_row, to_column = row + down, column + right
        inside = (to_row >= 0) & (to_row < num_rows) & (to_column >= 0) & (to_column < num_columns)
        wrapped = to_row % num_rows * num_columns + to_column % num_columns
        rows.append(wrapped if wrap == "torus" else torch.where(inside, wrapped, row * num_columns + column))
        is_there.append(torch.ones_like(inside) if wrap == "torus" else inside)
    return torch.stack(rows, dim=1), torch.stack(is_there, dim=1)


def _offsets(size: int) -> list[tuple[int, int]]:
    reach = range(-(size // 2), size // 2 + 1)
    return [(down, right) for down in reach for right in reach if (down, right) != (0, 0)]


def closest_neighbours(patches: torch.Tensor, grid: tuple[int, int], *, size: int = 3, num: int = 4, wrap: Wrap = "clip") -> Neighbours:
    """Return of each patch the ``num`` neighbours in its window with the highest cosine to it (all, where there are fewer).

    Source: Yun et al. 2022, arXiv 2206.07990, section 3.2 (positive matching).
    """
    rows, is_there = (table.to(patches.device) for table in window(grid, size, wrap))  # [N, S]
    unit = F.normalize(patches if patches.dtype == torch.float64 else patches.float(), dim=2).unflatten(1, grid)  # [B, rows, columns, D]
    offsets = _offsets(size)
    similarity: dict[tuple[int, int], torch.Tensor] = {}
    for down, right in offsets[len(offsets) // 2 :]:  # a pair is alike seen from either end: half of the offsets tell the other half
        alike = (unit * torch.roll(unit, (-down, -right), dims=(1, 2))).sum(dim=3)
        similarity[down, right] = alike
        similarity[-down, -right] = torch.roll(alike, (down, right), dims=(1, 2))
    found = torch.stack([similarity[offset] for offset in offsets], dim=3).flatten(1, 2)  # [B, N, S]
    chosen = found.masked_fill(~is_there, -torch.inf).topk(min(num, len(offsets)), dim=2).indices
    places = torch.arange(len(rows), device=patches.device)[None, :, None]
    return Neighbours(rows[places, chosen], is_there[places, chosen])
