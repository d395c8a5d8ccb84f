"""The bar where there is no terminal: lines that tell the time left, from the first step on, and not too many of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sightline import progress
from sightline.progress import Bar, duration


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_lengths_of_time() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 90, 5_399, 5_400, 14_040)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h", "3.9 h"]


def test_a_long_work_tells_its_time_left_after_its_first_step(at: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("training", 1_000) as bar:
        at(7)
        bar.restart()  # what went before was not a step
        for step in range(1, 31):
            at(7 + 7 * step)
            bar.update(step)
            if step % 10 == 0:
                bar.update(step, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "training: 1/1000  about 1.9 h left",
        "training: 10/1000  loss 10  about 1.9 h left",
        "training: 20/1000  loss 20  about 1.9 h left",
        "training: 30/1000  loss 30  about 1.9 h left",
    ]


def test_what_goes_on_counts_its_own_steps_alone(at: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("training", 100, done=80) as bar:
        at(50)
        bar.update(90)
    assert capsys.readouterr().err == "training: 90/100  about 50 s left\n"


def test_a_short_work_says_only_that_it_is_done(at: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("embedding", 4) as bar:
        for step in range(1, 5):
            at(step)
            bar.update(step, "20 images/s")
    assert capsys.readouterr().err == "embedding: 4/4  20 images/s\n"


def test_before_the_first_step_what_is_expected_counts() -> None:
    bar = Bar("training", 10, expected_s=3_600.0)
    assert bar.progress.tasks[0].fields["left"] == "about 60 min left"
    assert Bar("training", 10).progress.tasks[0].fields["left"] == ""
