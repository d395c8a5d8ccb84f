"""What the benchmarks share: the machine in their heads, their tables, and medians over interleaved runs."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SIDE = 2048
BF16_SIDE = 512
"""Where bfloat16 is emulated without vector instructions, one product of 2048 took half a minute."""


def matmul_gflops(dtype: str, repeats: int = 7, side: int = SIDE) -> float:
    """Return the best rate of a square matrix product in 1e9 operations a second: the ceiling of this machine."""
    import torch

    left, right = (torch.randn(side, side).to(getattr(torch, dtype)) for _ in range(2))
    best_s = min(seconds(lambda: torch.matmul(left, right)) for _ in range(repeats))
    return float(2 * side**3 / best_s / 1e9)


def machine() -> dict[str, str | int | float]:
    """Return what a figure depends on: processor, cores, versions and the ceilings of its matrix products."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "fp32_gflops": round(matmul_gflops("float32")),
        "bf16_gflops": round(matmul_gflops("bfloat16", 3, BF16_SIDE)),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def head(question: str, facts: Mapping[str, str | int | float]) -> str:
    """Return the lines above a table: the question, the machine, the command."""
    return (
        f"{question}\n"
        f"{facts['processor']}, {facts['cores']} cores (load {facts['load']} at the start)\n"
        f"Python {facts['python']}, torch {facts['torch']} with {facts['threads']} threads\n"
        f"matrix products: {facts['fp32_gflops']} GFLOP/s float32 (of {SIDE}), {facts['bf16_gflops']} bfloat16 (of {BF16_SIDE})\n"
        f"python {' '.join(sys.argv)}\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    first, *others = (max(len(row[column]) for row in cells) for column in range(len(columns)))
    lines = [f"| {' | '.join([row[0].ljust(first), *map(str.rjust, row[1:], others)])} |" for row in cells]
    rule = f"|{'|'.join(['-' * (first + 2), *('-' * (width + 1) + ':' for width in others)])}|"
    return "\n".join([lines[0], rule, *lines[1:]])


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def processor_s() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


class Run(NamedTuple):
    """One run: wall-clock and processor seconds. On a busy machine the processor's are the ones to trust."""

    wall_s: float
    cpu_s: float


def run(call: Callable[[], object]) -> Run:
    """Return what one call takes."""
    before = processor_s()
    wall_s = seconds(call)
    return Run(wall_s, processor_s() - before)


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Run]]:
    """Return the runs of each call, taken in turn (A B A B) so that a busy minute falls on all of them."""
    taken: dict[str, list[Run]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(run(call))
    return taken


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring runs, which a load that comes and goes moves less than the ratio of medians."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
