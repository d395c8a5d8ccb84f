from __future__ import annotations

import errno

import pytest
import torch

from sightline import errors
from sightline.cli import main as shell
from sightline.errors import (
    DeviceError,
    DiskFullError,
    MemoryFullError,
    SightlineError,
    UsageError,
    explain_os_error,
    is_memory_full,
    nearest,
)


def test_a_persons_mistake_exits_2_and_a_failure_of_ours_1() -> None:
    family = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SightlineError)]
    assert {kind.__name__ for kind in family if kind.exit_code == 1} == {"SightlineError", "TrainingError"}
    assert all(kind.exit_code == 2 for kind in family if issubclass(kind, UsageError))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("margn", "; did you mean 'margin'?"),
        ("koleo", "; did you mean 'koleo_weight'?"),
        ("model.koleo_weight", "; did you mean 'koleo_weight'?"),
        ("zzz", "; choose one of: koleo_weight, margin, memory"),
        ("", "; choose one of: koleo_weight, margin, memory"),
    ],
)
def test_nearest_names_the_closest_choice_or_all_of_them(name: str, answer: str) -> None:
    assert nearest(name, ["memory", "margin", "koleo_weight", "margin"]) == answer


def test_nearest_says_nothing_without_choices_and_shortens_a_long_list() -> None:
    assert nearest("x", []) == ""
    assert nearest("zzzz", [f"choice{number:02}" for number in range(13)]).endswith("choice11, ...")


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (errno.ENOSPC, DiskFullError, "free some space"),
        (errno.EDQUOT, DiskFullError, "free some space"),
        (errno.EACCES, UsageError, "change its permissions"),
        (errno.EROFS, UsageError, "choose another folder"),
        (errno.EADDRINUSE, DeviceError, "choose another one"),
        (errno.EIO, SightlineError, "while saving"),
    ],
)
def test_an_operating_system_error_becomes_one_line_that_says_what_to_do(code: int, kind: type[SightlineError], advice: str) -> None:
    explained = explain_os_error(OSError(code, "what the system says", "runs/a"), "saving")
    assert type(explained) is kind
    assert advice in str(explained)
    assert "while saving" in str(explained)
    assert "\n" not in str(explained)


def test_the_file_is_named_where_the_system_names_it() -> None:
    assert "(runs/a)" in str(explain_os_error(OSError(errno.ENOSPC, "no space", "runs/a"), "saving"))
    assert "()" not in str(explain_os_error(OSError(errno.ENOSPC, "no space"), "saving"))


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: {}: you tried to allocate 30000000000 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError(ALLOCATOR.format("can't allocate memory")), " (30000000000 bytes at once)"),
        (RuntimeError(ALLOCATOR.format("not enough memory")), " (30000000000 bytes at once)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."), " (20.00 GiB at once)"),
        (
            MemoryError("Unable to allocate 7.45 TiB for an array with shape (1000000, 1000000) and data type float64"),
            " (7.45 TiB at once)",
        ),
        (MemoryError(), ""),
    ],
)
def test_memory_that_runs_out_is_one_line_in_the_shell(
    error: Exception, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(**_: object) -> None:
        raise error

    monkeypatch.setattr(shell.typer.main, "get_command", lambda _: type("Command", (), {"main": staticmethod(run_out)}))
    assert shell.main(["evaluate", "runs/a"]) == MemoryFullError.exit_code
    said = capsys.readouterr().err
    assert said.startswith(f"error: not enough memory while running sightline evaluate{asked}: take smaller images")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")])
def test_other_errors_are_not_taken_for_want_of_memory(error: Exception) -> None:
    assert not is_memory_full(error)
