"""Weights and inputs that follow from a name, and what is kept of an answer: shared by make_selfpatch_golden.py and the tests of its numbers.

Nothing drawn need be stored, and whoever maps our names to a reference's can fill both sides alike. RandomState's uniform stream is
frozen for good and made without a mathematical library, so a name and a shape give the same bits on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

NUM_ENTRIES = 16


def fill(name: str, shape: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return float32 numbers of ``shape``, uniform about what the end of ``name`` asks for.

    Norms' weights and ``weight_g`` are 1 ± 0.2, biases 0 ± 0.1, other weights ± sqrt(3 / inputs), which keeps a variance of 1, so that
    attention is far from even; all else (tokens, position tables, images, logits, queues) is 0 ± 1.
    """
    shape = tuple(shape)
    drawn = 2 * np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) - 1
    if name.endswith("weight_g") or (name.endswith("weight") and len(shape) == 1):
        drawn = 1 + 0.2 * drawn
    elif name.endswith("bias"):
        drawn = 0.1 * drawn
    elif name.endswith(("weight", "weight_v")):
        drawn = np.sqrt(3 / np.prod(shape[1:])) * drawn
    return drawn.astype(np.float32)


def fill_module(module: Any, prefix: str = "") -> Any:
    """Fill the parameters of a torch module of the reference's names in place, each by ``prefix`` and its name, and return the module.

    A frozen ``weight_g`` stays 1, as the reference leaves it; buffers stay as they begin.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or not name.endswith("weight_g"):
            parameter.data.copy_(parameter.data.new_tensor(fill(prefix + name, parameter.shape)))
    return module


def places(size: int, num: int = NUM_ENTRIES) -> np.ndarray[Any, Any]:
    """Return the flat places [num] at which a tensor of ``size`` entries is kept; all of them where it has no more than ``num``."""
    if size <= num:
        return np.arange(size)
    return (np.random.RandomState(size).random_sample(num) * size).astype(np.int64)


def rounded(value: float) -> float:
    """Return the value in 9 significant digits, all that a float32 holds."""
    return float(f"{value:.9g}")


def fingerprint(values: Any, num: int = NUM_ENTRIES) -> dict[str, Any]:
    """Return the shape, sum, L2 norm and the entries at ``places`` of an array or tensor, summed in float64."""
    array = np.asarray(values.detach() if hasattr(values, "detach") else values)
    flat = array.astype(np.float64).ravel()
    return {
        "shape": list(array.shape),
        "sum": rounded(flat.sum()),
        "norm": rounded(np.sqrt((flat**2).sum())),
        "at": [rounded(entry) for entry in flat[places(flat.size, num)]],
    }
