"""Exchange between the processes of a run, with gradients where the loss needs them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes that train together (1 alone)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: torch.Tensor) -> torch.Tensor:
        context.num_local = len(local)
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * context.num_local
        return total[start : start + context.num_local]


def gather(local: torch.Tensor) -> torch.Tensor:
    """Return every rank's rows ``[B, ...]`` concatenated in rank order, the same on every rank; the gradient flows back to its rank.

    Each rank computes the same loss from the gathered rows, so the backward sums W copies of one gradient; DDP's mean over the
    ranks then divides by W. The parameters' gradient is that of one process with the global batch, exactly.
    """
    if world_size() == 1:
        return local
    if local.is_floating_point():
        gathered: torch.Tensor = _Gather.apply(local)
        return gathered
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: torch.Tensor) -> torch.Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(local: torch.Tensor) -> torch.Tensor:
    """Return the sum of every rank's tensor, the same on every rank; the gradient of each rank's loss flows back to all.

    It is for losses that are each rank's own, whose gradients DDP averages: then the parameters' gradient is that of one process.
    """
    if world_size() == 1:
        return local
    total: torch.Tensor = _Sum.apply(local)
    return total


def mean_over_ranks(local: torch.Tensor) -> torch.Tensor:
    """Return the mean of every rank's tensor, without a gradient."""
    with torch.no_grad():
        return sum_over_ranks(local.detach()) / world_size()


def with_mean_value(own: torch.Tensor) -> torch.Tensor:
    """Return this rank's loss with the value of all ranks' mean: what the log tells, while DDP averages each one's own gradient."""
    return own + (mean_over_ranks(own) - own.detach()) if world_size() > 1 else own


def broadcast(value: torch.Tensor) -> torch.Tensor:
    """Return the first rank's tensor on every rank; all ranks give one of the same shape and type."""
    if world_size() > 1:
        dist.broadcast(value, src=0)
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True on every rank if ``flag`` is True on any: how the processes of a run agree to stop."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()
