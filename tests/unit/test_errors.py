from __future__ import annotations

import errno

import pytest

from sightline import errors
from sightline.errors import DeviceError, DiskFullError, SightlineError, UsageError, explain_os_error, nearest


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
