from __future__ import annotations

import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline import runtime
from sightline.errors import DeviceError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")


def test_ranks_are_torchruns_and_alone_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.ranks() == runtime.Ranks(0, 0, 1)
    assert runtime.ranks().is_main
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert runtime.ranks() == runtime.Ranks(rank=5, local_rank=1, world_size=8)
    assert not runtime.ranks().is_main


def test_the_cache_moves_with_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path))
    assert runtime.cache_folder() == tmp_path
    monkeypatch.delenv("SIGHTLINE_CACHE")
    assert runtime.cache_folder() == Path.home() / ".cache" / "sightline"


FAULTS = """
import resource, sys, torch
from sightline import runtime
if sys.argv[1] == "kept":
    runtime.keep_freed_memory(torch.device("cpu"))
for _ in range(20):  # small tensors come to lie between the large ones until there is room for both
    torch.ones(1 << 24).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_memory_that_was_freed_is_not_fetched_from_the_kernel_again() -> None:
    faults = {how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how])) for how in ("given back", "kept")}
    assert faults["kept"] * 50 < faults["given back"]  # 4 x 64 MiB, in pages


def test_memory_on_large_pages_keeps_its_contents() -> None:
    block = np.arange(1 << 21, dtype=np.float32)  # 8 MiB, which hold three large pages wherever they begin
    assert runtime.use_large_pages(block.ctypes.data, block.nbytes) in (True, False)
    assert np.array_equal(block, np.arange(1 << 21, dtype=np.float32))
    assert not runtime.use_large_pages(block.ctypes.data, 1 << 20), "half a page is no page"


def test_no_page_outside_the_memory_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=lambda *values: asked.append(values) or 0))
    assert runtime.use_large_pages((6 << 20) + 4096, 7 << 20)
    assert [(where.value, length.value, advice) for where, length, advice in asked] == [(8 << 20, 4 << 20, 14), (8 << 20, 4 << 20, 25)]
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=lambda where, length, advice: -(advice == 25)))
    assert not runtime.use_large_pages(6 << 20, 7 << 20), "an older kernel does not collapse pages"
    monkeypatch.setattr(runtime.sys, "platform", "darwin")
    assert not runtime.use_large_pages(6 << 20, 7 << 20), "the numbers mean something else there"


def test_the_cpu_is_always_to_be_had() -> None:
    assert runtime.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cpux", "", "tpu:0"])
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        runtime.device(name)


@NO_GPU
def test_a_gpu_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU is usable here: use --device cpu"):
        runtime.device("cuda:1")


def test_a_gpu_beyond_the_last_and_a_malformed_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="there are 2 GPUs"):
        runtime.device("cuda:2")
    with pytest.raises(DeviceError, match="write it like cuda:0"):
        runtime.device("cuda:first")


def test_each_process_of_a_run_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.device("auto") == runtime.device("cuda") == torch.device("cuda", 1)


def test_precision_as_asked_and_bfloat16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert runtime.autocast_dtype("fp32", cpu) is None
    assert runtime.autocast_dtype("bf16", cpu) is torch.bfloat16
    for native, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(runtime, "_cpu_multiplies_bf16", lambda native=native: native)
        assert runtime.autocast_dtype("auto", cpu) is dtype


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_fixes_all_three_generators() -> None:
    runtime.seed_everything(7)
    first = draw()
    runtime.seed_everything(7)
    assert draw() == first
    runtime.seed_everything(8)
    assert all(ours != theirs for ours, theirs in zip(draw(), first, strict=True))


def test_a_steps_seed_depends_on_seed_step_and_rank_alone() -> None:
    def drawn(seed: int, step: int, rank: int) -> float:
        runtime.seed_step(seed, step, rank)
        return float(torch.rand((), dtype=torch.float64))

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**31, 3)]
    forth = [drawn(*place) for place in places]
    back = [drawn(*place) for place in reversed(places)]
    assert forth == back[::-1]
    assert len(set(forth)) == len(places)


def test_memory_and_cores_are_counted() -> None:
    assert runtime.num_cpus() >= 1
    assert runtime.resident_bytes() > 10 * 2**20 or runtime.resident_bytes() == 0
    assert runtime.used_bytes() >= 0
