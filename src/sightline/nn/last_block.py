"""The last block of a plain ViT for its prefix tokens alone: what a class token's descriptor needs of it, and no more.

Behind the last block nobody reads the patches of a network that is pooled by its class token. There they are needed as keys and values only:
no queries of theirs, no projection, no MLP. That is five sixths of the block's matrix products, so a fourteenth of a network of twelve
blocks, and the tokens that are read are the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


def can_stop_at_prefix(net: nn.Module) -> bool:
    """Return whether ``prefix_tokens`` gives what the network does: a plain ViT of timm's with a prefix, watched by nobody in its last block."""
    if not isinstance(net, VisionTransformer) or type(net).forward_features is not VisionTransformer.forward_features:
        return False
    if "forward_features" in vars(net) or not net.num_prefix_tokens or not isinstance(net.patch_drop, nn.Identity):
        return False
    last: Any = net.blocks[-1]
    if type(last) is not Block or type(last.attn) is not Attention or getattr(last.attn, "gate", None) is not None:
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in (net, *last.modules()))


def prefix_tokens(net: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the prefix tokens ``[B, P, D]`` behind the last norm, of a network that ``can_stop_at_prefix``, in evaluation mode."""
    x = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    for block in net.blocks[:-1]:
        x = block(x)
    last, num = net.blocks[-1], net.num_prefix_tokens
    prefix = x[:, :num] + last.ls1(_attended(last.attn, last.norm1(x), num))
    tokens: torch.Tensor = net.norm(prefix + last.ls2(last.mlp(last.norm2(prefix))))
    return tokens


def _attended(attention: Attention, x: torch.Tensor, num: int) -> torch.Tensor:
    """Return what the first ``num`` tokens take from all, ``[B, num, D]``."""
    width, weight, bias = attention.attn_dim, attention.qkv.weight, attention.qkv.bias
    of_queries, of_others = (None, None) if bias is None else (bias[:width], bias[width:])

    def heads(tokens: torch.Tensor) -> torch.Tensor:
        parts: torch.Tensor = tokens.unflatten(2, (-1, attention.num_heads, attention.head_dim))
        return parts.permute(2, 0, 3, 1, 4)  # [parts, B, heads, N, d]

    (queries,) = heads(F.linear(x[:, :num], weight[:width], of_queries))
    keys, values = heads(F.linear(x, weight[width:], of_others))
    mixed = F.scaled_dot_product_attention(attention.q_norm(queries), attention.k_norm(keys), values)
    attended: torch.Tensor = attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))
    return attended
