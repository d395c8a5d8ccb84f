"""Where a Vision Transformer looks: the attention of its last block, and attention rolled out over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from sightline.errors import ModelError
from sightline.nn.encoder import Encoder
from sightline.recipe import Pooling


@dataclass(frozen=True)
class Attention:
    """How much each patch of one image is attended to, float32, by what the descriptor is pooled from (see ``asking_tokens``).

    ``heads`` ``[heads, rows, columns]`` are the last block's heads, each at most 1 in sum (the rest is on prefix tokens); ``rollout``
    ``[rows, columns]`` follows attention through every block down to the input patches.
    """

    heads: torch.Tensor
    rollout: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """The mean over the last block's heads, ``[rows, columns]``."""
        return self.heads.mean(dim=0)


_ASKING: dict[Pooling, tuple[int, ...]] = {"cls": (0,), "dist": (1,), "cls_dist_mean": (0, 1), "cls_dist_concat": (0, 1), "cls_gem": (0,)}


def asking_tokens(encoder: Encoder) -> tuple[int, ...]:
    """Return the prefix tokens whose attention is shown (0 is the class token, 1 the distillation token), or none: then the patches' is.

    They are those that the descriptor is made from. Nothing has taught the others where to look.
    """
    return _ASKING.get(encoder.model.pooling, ())


@torch.inference_mode()
def attention(encoder: Encoder, image: torch.Tensor) -> Attention:
    """Return where the encoder looks in one normalised image ``[3, H, W]``.

    The probabilities are computed again from the queries and keys that reach the fused kernel, in float32 or better, so position
    biases, rotary positions and query norms are all in them. One image at a time: memory is that of a few [heads, tokens, tokens].

    Raises:
        ModelError: the backbone has no attention of every token to every token, once a block.
    Source: Caron et al. 2021, arXiv 2104.14294, section 4.2.2 (class-token attention of the last block); rollout: Abnar and
        Zuidema 2020, arXiv 2005.00928, section 3 (heads averaged, half of each block's flow from its residual connection).
    """
    flow = _Flow(encoder.model.backbone)
    with watching(encoder, flow.see):
        tokens = encoder.tokens(image[None].to(encoder.device))
    num_prefix, num_patches = tokens.prefix.shape[1], tokens.patches.shape[1]
    if flow.last is None or flow.rolled is None or flow.num_blocks != num_blocks(encoder, flow.num_blocks):
        raise no_attention(encoder.model.backbone)
    if flow.last.shape[-1] != num_prefix + num_patches:
        raise no_attention(encoder.model.backbone)

    def asked(weights: torch.Tensor) -> torch.Tensor:
        """[..., tokens, tokens] -> [..., rows, columns]: the mean of the asking tokens' rows, the patches' columns."""
        rows = list(asking_tokens(encoder)) or slice(num_prefix, None)
        row = weights[..., rows, :].mean(dim=-2)
        return row[..., num_prefix:].reshape(*row.shape[:-1], *tokens.grid).float().cpu()

    return Attention(asked(flow.last), asked(flow.rolled))


def no_attention(backbone: str) -> ModelError:
    """Return the error that says, in one line, that there is nothing of this kind to see in a backbone."""
    return ModelError(
        f"{backbone} has no attention of every token to every token: attention maps need a plain Vision Transformer (ViT, DeiT, BEiT, EVA)"
    )


class _Flow:
    """Keeps the last block's probabilities of one image, and the product over the blocks."""

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone
        self.last: torch.Tensor | None = None  # [heads, tokens, tokens]
        self.rolled: torch.Tensor | None = None  # [tokens, tokens]
        self.num_blocks = 0

    def see(self, call: AttentionCall) -> None:
        others = call.num_queries if self.last is None else self.last.shape[-1]
        if not call.is_square or len(call.queries) != 1 or others != call.num_queries:
            raise no_attention(self.backbone)  # windows, pooled keys, or a class token alone that asks
        self.last = probabilities(call.queries, call.keys, bias=call.bias, scale=call.scale)[0]
        flow = residual_flow(self.last)
        self.rolled = flow if self.rolled is None else flow @ self.rolled
        self.num_blocks += 1


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
def watching(encoder: Encoder, see: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Show ``see`` every attention layer's call, in order, of an encoder that is in evaluation mode for as long; then it is as it was."""
    was_training = encoder.training
    encoder.eval()
    try:
        with _fused(encoder), _Watch(see):
            yield
    finally:
        encoder.train(was_training)


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
