"""Projection heads of self-supervised methods: a small MLP and, for DINO, a last layer of unit-length prototypes."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sightline.nn.collectives import sum_over_ranks, world_size

INIT_STD = 0.02


def as_float32(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or as it is in float64: what unit lengths, softmax and losses are computed in."""
    return x if x.dtype == torch.float64 else x.float()


class PrototypeHead(nn.Module):
    """Vectors ``[..., D]`` -> logits ``[..., K]``: an MLP, unit length, and the cosine with each of K prototypes (times the prototype's gain).

    The last layer is weight-normed: ``original0`` are the gains, which stay 1 unless ``learn_gains``, and ``original1`` the directions.

    Source: Caron et al. 2021, arXiv 2104.14294, section 3.1 and appendix; the head of facebookresearch/dino.
    """

    def __init__(
        self,
        width: int,
        num_prototypes: int,
        *,
        hidden: int = 2_048,
        bottleneck: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        learn_gains: bool = False,
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (num_layers - 1), bottleneck]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), *([GlobalBatchNorm(after)] if batch_norm else []), nn.GELU()]
        layers.append(nn.Linear(widths[-2], bottleneck))
        self.mlp = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, num_prototypes, bias=False))
        gains = self.last_layer.parametrizations.weight.original0
        with torch.no_grad():
            gains.fill_(1.0)
        gains.requires_grad_(learn_gains)

    def forward(self, x: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Return the logits ``[..., K]`` divided by ``temperature``."""
        x = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 a unit vector's length is off by up to a hundredth
            unit = (
                F.normalize(as_float32(x), dim=-1) / temperature
            )  # dividing K logits would be another pass over the largest tensor of the step
        logits: torch.Tensor = self.last_layer(unit)
        return logits


def contrast_mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return MoBY's projector (and its predictor): linear, batch norm, ReLU, linear; vectors ``[M, D]`` -> ``[M, out]``.

    Source: Xie et al. 2021, arXiv 2105.04553, section 3.
    """
    return nn.Sequential(nn.Linear(width, hidden), GlobalBatchNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows ``[..., D]`` of all processes: what several compute is what one would with the whole batch.

    torch's own SyncBatchNorm does this on GPUs only. Every process gives the same number of rows.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the normalised rows ``[..., D]``; in training, by the moments of all processes' rows."""
        if rows.ndim != 2:
            return self(rows.flatten(0, -2)).view(rows.shape)  # type: ignore[no-any-return]
        if not self.training or world_size() == 1:
            return super().forward(rows)
        x = as_float32(rows)
        num = x.shape[0] * world_size()
        mean = sum_over_ranks(x.sum(dim=0)) / num
        centred = x - mean
        variance = sum_over_ranks(centred.square().sum(dim=0)) / num
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, float(self.momentum or 0.0))
            self.running_var.lerp_(variance * num / (num - 1), float(self.momentum or 0.0))
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(rows.dtype)


class GlobalMapNorm(GlobalBatchNorm):
    """Batch norm over the places of maps ``[B, C, H, W]`` of all processes."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"maps are [B, C, H, W], got {tuple(input.shape)}")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the normalised maps ``[B, C, H, W]``; in training, by the moments of all processes' maps."""
        if maps.ndim == 2:  # the rows that the other kind makes of maps
            return super().forward(maps)
        if not self.training or world_size() == 1:
            return nn.modules.batchnorm._BatchNorm.forward(self, maps)
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
