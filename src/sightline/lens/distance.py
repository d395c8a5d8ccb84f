"""How far attention reaches: the mean distance in the image between a patch and those that it attends to, for every head of every layer."""

from __future__ import annotations

import math

import torch
from timm.models.swin_transformer import SwinTransformer

from sightline.errors import ModelError
from sightline.lens.attention import AttentionCall, num_blocks, probabilities
from sightline.lens.embedding import Float64Array
from sightline.nn.encoder import Encoder

BLOCK_NUMBERS = 2**20
"""Probabilities made at a time (4 MB): they stay in a core's cache, and memory does not grow with the batch."""


def apart_px(side: int, patch_px: float) -> torch.Tensor:
    """Return the distances between the centres of ``side`` x ``side`` patches, float32 ``[N, N]``, in pixels of the image."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float() * patch_px
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def mean_distance_px(weights: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """Return the distance ``[...]`` that attention ``[..., N, N]`` among patches spans on average over the patches that ask.

    Each row of the weights sums to 1; ``apart`` ``[N, N]`` are the distances between the patches.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.5 and figure 7 (right); appendix D.7.
    """
    return weights.flatten(-2) @ apart.flatten().to(weights.dtype) / len(apart)


class DistanceMeter:
    """Adds up the mean distance of each layer's heads over the images that pass while ``see`` watches.

    Attention on prefix tokens is left out and the rest made to sum to 1, which is the softmax over the patches alone. Within windows
    (Swin) distances are those within the window, in pixels of the image.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.num_images = 0
        self.even_px: list[float] = []
        self._totals: list[torch.Tensor] = []  # float64 [heads] for each layer
        self._apart: dict[tuple[int, float], torch.Tensor] = {}
        self._layer = 0
        self._batch = 0
        self._refused = False

    def begin(self, num_images: int) -> None:
        """Say that a batch is about to pass."""
        self._layer, self._batch = 0, num_images
        self.num_images += num_images

    def see(self, call: AttentionCall) -> None:
        """Take in one layer's attention; of another kind than patches to patches on a grid, nothing more is taken in."""
        layout = self._layout(call)
        if layout is None or self._refused:
            self._refused = True
            return
        num_prefix, apart = layout
        means = _means(call, num_prefix, apart).double() / (call.queries.shape[0] // self._batch)
        if self._layer == len(self._totals):
            self._totals.append(torch.zeros_like(means))
            self.even_px.append(float(apart.double().mean()))
        self._totals[self._layer] += means
        self._layer += 1

    def distances_px(self) -> list[Float64Array]:
        """Return the mean distance of each head, float64 ``[heads]``, layer by layer.

        Raises:
            ModelError: not every block attends among patches on a grid, once.
        """
        net = self.encoder.backbone.net
        blocks = sum(len(stage.blocks) for stage in net.layers) if isinstance(net, SwinTransformer) else num_blocks(self.encoder, 0)
        if self._refused or not self._totals or len(self._totals) != blocks:
            raise ModelError(
                f"{self.encoder.model.backbone} has no attention among patches on a grid once a block: attention distance needs a plain "
                "Vision Transformer (ViT, DeiT, BEiT, EVA), or a Swin whose windows divide the image"
            )
        return [(total / self.num_images).cpu().numpy() for total in self._totals]

    def _layout(self, call: AttentionCall) -> tuple[int, torch.Tensor] | None:
        """Return the number of prefix tokens and the distances between the patches of one attention call; None where they have none."""
        backbone, image_px = self.encoder.backbone, self.encoder.image.image_px
        windows, rest = divmod(call.queries.shape[0], self._batch)
        num_prefix = backbone.num_prefix if windows == 1 else 0
        side = math.isqrt(max(0, call.num_queries - num_prefix))
        across = math.isqrt(windows) * side
        fits = call.is_square and not rest and side > 0 and side**2 == call.num_queries - num_prefix
        if windows > 1:  # only Swin's are known to be whole squares of the image; where the map is padded, its tokens have no place
            fits = fits and isinstance(backbone.net, SwinTransformer) and across**2 == windows * call.num_queries and image_px % across == 0
        if not fits:
            return None
        key = side, image_px / across
        if key not in self._apart:
            self._apart[key] = apart_px(*key).to(call.queries.device)
        return num_prefix, self._apart[key]


def _means(call: AttentionCall, num_prefix: int, apart: torch.Tensor) -> torch.Tensor:
    """Return the sum over the batch of each head's mean distance, ``[heads]``."""
    queries, keys = (part[..., num_prefix:, :] for part in (call.queries, call.keys))
    bias = call.bias
    if bias is not None:
        bias = bias.expand(*bias.shape[:-2], call.num_queries, call.num_queries)[..., num_prefix:, num_prefix:]
    heads, num = queries.shape[1:3]
    rows = max(1, BLOCK_NUMBERS // (heads * num * num))
    total = torch.zeros(heads, dtype=torch.promote_types(queries.dtype, torch.float32), device=queries.device)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        of_part = bias[part] if bias is not None and bias.ndim == 4 and len(bias) > 1 else bias
        weights = probabilities(queries[part], keys[part], bias=of_part, scale=call.scale)
        total += mean_distance_px(weights, apart).sum(dim=0)
    return total
