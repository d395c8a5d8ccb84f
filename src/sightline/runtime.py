"""Device, dtype, seed, rank: the machine as the rest of the project sees it; the only reader of environment variables."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.errors import DeviceError, UsageError, nearest

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run, as torchrun tells it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and speaks."""
        return self.rank == 0


def ranks() -> Ranks:
    """Return this process's place among the run's processes, from torchrun's variables; alone when there are none."""
    environ = os.environ
    return Ranks(int(environ.get("RANK", 0)), int(environ.get("LOCAL_RANK", 0)), int(environ.get("WORLD_SIZE", 1)))


_MODELS: dict[str, str] = {}


def note_model(fingerprint: str, source: str) -> None:
    """Note where the model of a fingerprint was loaded from in this process."""
    _MODELS[fingerprint] = source


def model_source(fingerprint: str) -> str:
    """Return where the model of a fingerprint was loaded from in this process; empty where it was not."""
    return _MODELS.get(fingerprint, "")


def num_cpus() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cache_folder() -> Path:
    """Return the folder for derived files that may be deleted at any time (``SIGHTLINE_CACHE`` moves it)."""
    return Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline"))


def weights_folder() -> Path | None:
    """Return the folder that stands in for the model hub (``SIGHTLINE_WEIGHTS``), None where there is none.

    Raises:
        UsageError: it is set to what is no folder.
    """
    named = os.environ.get("SIGHTLINE_WEIGHTS", "")
    if named and not Path(named).is_dir():
        raise UsageError(
            f"SIGHTLINE_WEIGHTS is '{named}', which is no folder: name one that holds files such as NAME.safetensors, or unset it"
        )
    return Path(named) if named else None


def device(name: str = "auto") -> torch.device:
    """Return the device called ``name``: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        DeviceError: the device was asked for and is not on this machine.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", ranks().local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in {"cpu", "cuda", "mps"}:
        raise DeviceError(f"unknown device '{name}'{nearest(name, ['auto', 'cpu', 'cuda', 'mps'])}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device '{name}' was asked for but no CUDA GPU is usable here: use --device cpu, or install a driver")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device '{name}' was asked for but this machine has no Metal GPU: use --device cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device '{name}': write it like cuda:0") from error
    if kind == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise DeviceError(f"device '{name}' was asked for but there are {torch.cuda.device_count()} GPUs: use --device cuda:0")
    return torch.device("cuda", ranks().local_rank) if name == "cuda" else found


def keep_freed_memory(where: torch.device) -> None:
    """On a CPU, let this process keep the memory it frees for its next tensors (glibc alone; elsewhere nothing changes).

    glibc gives tensors of 32 MiB or more back to the kernel at once and fetches each anew, zeroed page by page: 3.9 million page faults in a
    step of SelfPatch on 64 images and a quarter of its time (docs/results.md, "A step of DINO and of SelfPatch").
    """
    if where.type == "cpu":
        _keeps_memory()


@cache
def _keeps_memory() -> bool:
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no C library to ask, or one without mallopt (musl, macOS, Windows)
        return False
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def use_large_pages(address: int, num_bytes: int) -> bool:
    """Ask the kernel to hold memory that is read at random in pages of 2 MiB; return False where it does not (only Linux can).

    A walk through a graph touches a page of its own with nearly every step, and finding a page of 4 KiB costs as much as reading it: with
    large ones a search of 200,000 rows 384 wide took two thirds of the time (docs/results.md, "Index and search").
    """
    large, prefer, collapse = 2 << 20, 14, 25  # of sys/mman.h: MADV_HUGEPAGE for what comes, MADV_COLLAPSE for what is there
    start, end = -(-address // large) * large, (address + num_bytes) // large * large
    if not sys.platform.startswith("linux") or start >= end:
        return False
    madvise = ctypes.CDLL(None).madvise
    preferred, collapsed = (madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice) == 0 for advice in (prefer, collapse))
    return bool(preferred and collapsed)


def autocast_dtype(precision: Precision, where: torch.device) -> torch.dtype | None:
    """Return the dtype to autocast to, or None for plain float32.

    ``auto`` takes bfloat16 only where the hardware multiplies it natively: without AMX or AVX512-BF16 a CPU emulates it,
    and ViT-S/16 then ran 3.5 times slower than in float32 (measured on two Emerald Rapids cores with both masked).
    """
    import torch

    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if where.type == "cpu" and _cpu_multiplies_bf16():
        return torch.bfloat16
    return None


def _cpu_multiplies_bf16() -> bool:
    # torch.cpu's probes carry an underscore in every release so far; the kernel's flag list is public and says the same.
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def resident_bytes() -> int:
    """Return this process's resident memory in bytes (0 where the system does not tell)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def used_bytes() -> int:
    """Return the largest GPU memory this process has held where it uses one, else its resident memory, in bytes."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_bytes()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one training step, so that what a step draws does not depend on how training got there."""
    import torch

    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
