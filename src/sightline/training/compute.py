"""What a run has cost: FLOPs counted on the graph that it really runs, images seen, device-hours.

A multiplication and an addition are two FLOPs. Counted are the matrix products, convolutions and attention, forward and backward, of the
run's first step, and that step stands for all: activations recomputed in the backward pass count, and so does a teacher's forward
pass. Not counted: norms, activations, softmax and losses (a few per cent of a ViT), the optimiser, augmentation, validation, the passes
that mine negatives, and a memory that joins the loss after the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


@dataclass
class Compute:
    """What a run has cost so far, over all its devices and all the times it was resumed; saved with every checkpoint.

    ``device_s`` is wall time by devices, from the first step on: validation and waiting for data are in it, work lost to a kill is not.
    """

    flops_per_step: int = 0  # 0 until the first step is done
    flops: int = 0
    images: int = 0
    device_s: float = 0.0

    @contextmanager
    def counting(self, num_devices: int) -> Iterator[None]:
        """Count what runs inside towards ``flops_per_step``, on each of ``num_devices``; nothing once a step was done.

        The operations are watched on their way to the kernels: results, gradients and random numbers are the same bit for bit.
        """
        if self.flops:
            yield
            return
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}) as counter:
            yield
        self.flops_per_step += counter.get_total_flops() * num_devices

    def add_step(self) -> None:
        """Add the FLOPs of one step."""
        self.flops += self.flops_per_step

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``flops``, ``images`` and ``device_hours``."""
        return {"flops": self.flops, "images": self.images, "device_hours": self.device_s / 3600}


def _convolution_backward(
    gradient_shape: list[int],
    inputs_shape: list[int],
    weight_shape: list[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: tuple[bool, bool, bool],
    **results: Any,
) -> int:
    """Return the FLOPs of a convolution's gradients: each as many as its forward pass.

    torch's own formula forgets the groups: a depthwise convolution's were counted as many times too large as it has channels.
    """
    forward: int = conv_flop_count(inputs_shape, weight_shape, gradient_shape, transposed=transposed)
    return forward * (int(wanted[0]) + int(wanted[1]))
