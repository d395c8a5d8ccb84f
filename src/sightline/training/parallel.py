"""Several processes: started by torchrun, joined here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sightline import runtime
from sightline.errors import DeviceError


@contextmanager
def process_group(device: torch.device) -> Iterator[runtime.Ranks]:
    """Join the processes that torchrun started (a no-op for one), and part again at the end.

    Raises:
        DeviceError: the rendezvous port is in use.
    """
    ranks = runtime.ranks()
    if ranks.world_size == 1 or dist.is_initialized():
        yield ranks
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise DeviceError("the port for the run's processes is in use: choose another with torchrun --master-port=29501") from error
        raise DeviceError(f"the run's processes could not find one another: {str(error).splitlines()[0][:160]}") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def distribute(method: nn.Module, device: torch.device) -> nn.Module:
    """Return ``method`` wrapped so that gradients are averaged over the ranks; unchanged for one process."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return method
    # Buffers are the same on every rank by construction (the memory holds gathered rows): broadcasting a memory of 60,000 x 384
    # before each forward would cost 92 MB of traffic a step.
    with warnings.catch_warnings():
        # torch 2.15 has a new name for the option; the releases before it, back to our 2.6, know only this one.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
        return DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False)
