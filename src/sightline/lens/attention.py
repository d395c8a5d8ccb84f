"""Where a Vision Transformer looks: the attention of its last block, and attention rolled out over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from sightline.errors import ModelError
from sightline.nn.class_attention import ClassAttention
from sightline.nn.encoder import Encoder, evaluating
from sightline.recipe import Pooling


@dataclass(frozen=True)
class Attention:
    """How much each patch of one image is attended to, float32, by what the descriptor is pooled from (see ``asking_tokens``).

    ``heads`` ``[heads, rows, columns]`` are the last block's heads, each at most 1 in sum (the rest is on prefix tokens); ``rollout``
    ``[rows, columns]`` follows attention through every block down to the input patches. Where class attention makes the descriptor, both
    are its own token's: ``heads`` of its last block, and ``rollout`` through its blocks and then the backbone's, None where those have none.
    """

    heads: torch.Tensor
    rollout: torch.Tensor | None

    @property
    def mean(self) -> torch.Tensor:
        """The mean over the last block's heads, ``[rows, columns]``."""
        return self.heads.mean(dim=0)


_ASKING: dict[Pooling, tuple[int, ...]] = {"cls": (0,), "dist": (1,), "cls_dist_mean": (0, 1), "cls_dist_concat": (0, 1), "cls_gem": (0,)}


def asking_tokens(encoder: Encoder) -> tuple[int, ...]:
    """Return the backbone's prefix tokens whose attention is shown (0 is the class token, 1 the distillation token), or none.

    They are those that the descriptor is made from; other prefix tokens are untrained. With none it is the patches' that is
    shown, or of class attention, whose token is no part of the backbone, its own.
    """
    return _ASKING.get(encoder.model.pooling, ())


@torch.inference_mode()
def attention(encoder: Encoder, image: torch.Tensor) -> Attention:
    """Return where the encoder looks in one normalised image ``[3, H, W]``.

    The probabilities are computed again from the queries and keys that reach the fused kernel, in float32 or better, so position
    biases, rotary positions and query norms are all in them. One image at a time: memory is that of a few [heads, tokens, tokens].

    Raises:
        ModelError: the backbone has no attention of every token to every token, once a block, and no class attention is on it.
    Source: Caron et al. 2021, arXiv 2104.14294, section 4.2.2 (class-token attention of the last block); rollout: Abnar and
        Zuidema 2020, arXiv 2005.00928, section 3 (heads averaged, half of each block's flow from its residual connection).
    """
    flow = _Flow()
    with attention_hooks(encoder, flow.see):
        tokens = encoder.tokens(image[None].to(encoder.device))
    num_prefix, num_patches = tokens.prefix.shape[1], tokens.patches.shape[1]
    is_seen = flow.is_whole(num_prefix + num_patches, num_blocks(encoder, flow.num_blocks))

    def on_grid(row: torch.Tensor) -> torch.Tensor:
        """[..., N] -> [..., rows, columns]."""
        return row.reshape(*row.shape[:-1], *tokens.grid).float().cpu()

    if isinstance(encoder.class_attention, ClassAttention):
        asked = _asked_by_class_attention(encoder, tokens.patches)
        rolled = _rolled(asked) @ flow.rolled[num_prefix:, num_prefix:] if is_seen else None
        return Attention(on_grid(asked[-1][:, 1:]), None if rolled is None else on_grid(rolled))
    if not is_seen:
        raise no_attention(encoder.model.backbone)
    rows = list(asking_tokens(encoder)) or slice(num_prefix, None)
    heads, rollout = (weights[..., rows, num_prefix:].mean(dim=-2) for weights in (flow.last, flow.rolled))
    return Attention(on_grid(heads), on_grid(rollout))


def no_attention(backbone: str) -> ModelError:
    """Return the error that says, in one line, that there is nothing of this kind to see in a backbone."""
    return ModelError(
        f"{backbone} has no attention of every token to every token: attention maps need a plain Vision Transformer (ViT, DeiT, BEiT, EVA)"
    )


def _asked_by_class_attention(encoder: Encoder, patches: torch.Tensor) -> list[torch.Tensor]:
    """Return of each block of the class attention what its token attends to, ``[heads, 1 + N]``: itself, then the patches ``[1, N, D]``."""
    asked: list[torch.Tensor] = []
    with attention_hooks(encoder, lambda call: asked.append(probabilities(call.queries, call.keys)[0, :, 0])):
        encoder.class_attention(patches)
    return asked


def _rolled(asked: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the attention rollout ``[N]`` of the query token over the patches; 1 minus its sum is the token's own residual share."""
    share = torch.zeros_like(asked[0][0, 1:])
    for weights in asked:
        mean = weights.mean(dim=0)
        share = ((1 + mean[0]) * share + mean[1:]) / 2
    return share


class _Flow:
    """Keeps the last block's probabilities of one image, and the product over the blocks, as long as all tokens ask all."""

    def __init__(self) -> None:
        self.last = torch.empty(0)  # [heads, tokens, tokens]
        self.rolled = torch.empty(0)  # [tokens, tokens]
        self.num_blocks = 0
        self.num_others = 0  # windows, pooled keys, or a class token alone that asks

    def see(self, call: AttentionCall) -> None:
        if not call.is_square or len(call.queries) != 1 or (self.num_blocks and len(self.rolled) != call.num_queries):
            self.num_others += 1
            return
        self.last = probabilities(call.queries, call.keys, bias=call.bias, scale=call.scale)[0]
        flow = residual_flow(self.last)
        self.rolled = flow @ self.rolled if self.num_blocks else flow
        self.num_blocks += 1

    def is_whole(self, num_tokens: int, num_blocks: int) -> bool:
        """Return whether every block was one attention of all these tokens to all."""
        return not self.num_others and self.num_blocks == num_blocks and len(self.rolled) == num_tokens


def residual_flow(weights: torch.Tensor) -> torch.Tensor:
    """Return the share ``[tokens, tokens]`` of each input in each output of a block, for attention ``[heads, tokens, tokens]``; rows sum to 1."""
    return (weights.mean(dim=0) + torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)) / 2


# --- the calls of the fused kernel ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionCall:
    """What one attention layer hands to the fused kernel: ``queries`` and ``keys`` ``[B, heads, tokens, width]``, ``bias``, ``scale``."""

    queries: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor | None
    scale: float | None

    @property
    def num_queries(self) -> int:
        """How many tokens ask."""
        return self.queries.shape[-2]

    @property
    def is_square(self) -> bool:
        """Whether the tokens that ask are as many as those that are asked."""
        return self.queries.ndim == 4 and self.queries.shape == self.keys.shape


@contextmanager
def attention_hooks(encoder: Encoder, see: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Context manager: call ``see`` for each attention layer's forward, in evaluation mode."""
    with evaluating(encoder), _fused(encoder), _Watch(see):
        yield


def num_blocks(encoder: Encoder, otherwise: int) -> int:
    """Return how many blocks the backbone has, each with one attention layer; ``otherwise`` where it has no list of them."""
    blocks = getattr(encoder.backbone.net, "blocks", None)
    return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else otherwise


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[AttentionCall], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            self.see(AttentionCall(args[0], args[1], bias, kwargs.get("scale")))
        return function(*args, **kwargs)


def probabilities(
    queries: torch.Tensor, keys: torch.Tensor, *, bias: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """Return softmax(queries keys^T scale + bias) ``[..., tokens, tokens]`` of ``[..., tokens, width]``, in float32 or better.

    ``scale`` is width^-0.5 where not given. The bias, which broadcasts, is added; of a boolean one what is False gets no attention.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    logits = (queries.to(exact) * (queries.shape[-1] ** -0.5 if scale is None else scale)) @ keys.to(exact).mT
    if bias is not None and bias.dtype == torch.bool:
        logits.masked_fill_(~bias, -torch.inf)
    elif bias is not None:
        logits += bias
    return logits.softmax(dim=-1)


@contextmanager
def _fused(encoder: Encoder) -> Iterator[None]:
    """Have every attention module call the fused kernel for a while: that call is what is watched."""
    before = [(module, module.fused_attn) for module in encoder.modules() if hasattr(module, "fused_attn")]
    for module, _ in before:
        setattr(module, "fused_attn", True)  # noqa: B010 (timm's own attribute, unknown to nn.Module)
    try:
        yield
    finally:
        for module, value in before:
            setattr(module, "fused_attn", value)  # noqa: B010
