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


_ASKING: dict[Pooling, tuple[int, ...]] = {"cls": (0,), "dist": (1,), "cls_dist_mean": (0, 1), "cls_dist_concat": (0, 1)}


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
    name = encoder.model.backbone
    was_training = encoder.training
    watch = _Watch(name)
    encoder.eval()
    try:
        with _fused(encoder), watch:
            tokens = encoder.tokens(image[None].to(encoder.device))
    finally:
        encoder.train(was_training)
    num_prefix, num_patches = tokens.prefix.shape[1], tokens.patches.shape[1]
    blocks = getattr(encoder.backbone.net, "blocks", None)
    num_blocks = len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else watch.num_blocks
    if watch.last is None or watch.rolled is None or watch.num_blocks != num_blocks or watch.last.shape[-1] != num_prefix + num_patches:
        raise no_attention(name)

    def asked(weights: torch.Tensor) -> torch.Tensor:
        """[..., tokens, tokens] -> [..., rows, columns]: the mean of the asking tokens' rows, the patches' columns."""
        rows = list(asking_tokens(encoder)) or slice(num_prefix, None)
        row = weights[..., rows, :].mean(dim=-2)
        return row[..., num_prefix:].reshape(*row.shape[:-1], *tokens.grid).float().cpu()

    return Attention(asked(watch.last), asked(watch.rolled))


def no_attention(backbone: str) -> ModelError:
    """Return the error that says, in one line, that there is nothing of this kind to see in a backbone."""
    return ModelError(
        f"{backbone} has no attention of every token to every token: attention maps need a plain Vision Transformer (ViT, DeiT, BEiT, EVA)"
    )


class _Watch(TorchFunctionMode):
    """Sees every call of the fused attention kernel; keeps the last block's probabilities and the product over the blocks."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.last: torch.Tensor | None = None  # [heads, tokens, tokens]
        self.rolled: torch.Tensor | None = None  # [tokens, tokens]
        self.num_blocks = 0

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            self._see(args[0], args[1], bias, kwargs.get("scale"))
        return function(*args, **kwargs)

    def _see(self, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None, scale: float | None) -> None:
        others = queries.shape[-2] if self.last is None else self.last.shape[-1]
        if queries.shape != keys.shape or queries.ndim != 4 or len(queries) != 1 or others != queries.shape[-2]:
            raise no_attention(self.backbone)  # windows, pooled keys, or a class token alone that asks
        weights = probabilities(queries[0], keys[0], bias=bias, scale=scale)
        num_tokens = weights.shape[-1]
        flow = (weights.mean(dim=0) + torch.eye(num_tokens, dtype=weights.dtype, device=weights.device)) / 2
        self.last = weights
        self.rolled = flow if self.rolled is None else flow @ self.rolled
        self.num_blocks += 1


def probabilities(
    queries: torch.Tensor, keys: torch.Tensor, *, bias: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """Return softmax(queries keys^T scale + bias) ``[heads, tokens, tokens]`` of ``[heads, tokens, width]``, in float32 or better.

    ``scale`` is width^-0.5 where not given. The bias, of one image, is added; of a boolean one what is False gets no attention.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(exact), keys.to(exact)
    logits = queries @ keys.mT * (queries.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None and bias.dtype == torch.bool:
        logits = logits.masked_fill(~bias.reshape(bias.shape[-3:]), -torch.inf)
    elif bias is not None:
        logits = logits + bias.reshape(bias.shape[-3:])
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
