"""Progress that a person sees: a live bar on standard error, and the rates beside it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sightline import runtime

MEBIBYTE = 2**20


def say(text: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)


class Meter:
    """Rates since it was last read: images a second and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.started = time.perf_counter()
        self.waited_s = 0.0
        self.num_images = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, never 0."""
        return max(time.perf_counter() - self.started, 1e-9)

    def read(self) -> dict[str, float]:
        """Return ``images_per_s``, ``data_wait`` (0 to 1) and ``memory_mib``, and start anew."""
        elapsed_s = self.elapsed_s
        values = {
            "images_per_s": self.num_images / elapsed_s,
            "data_wait": self.waited_s / elapsed_s,
            "memory_mib": runtime.used_bytes() / MEBIBYTE,
        }
        self.reset()
        return values


def duration(seconds: float) -> str:
    """Return a length of time as a person says it: ``40 s``, ``12 min``, ``3.9 h``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


class Bar:
    """A live bar on standard error; plain lines where that is not a terminal; silent on ranks other than the first.

    Either tells the time left, from the first update on, or from the beginning where ``expected_s`` says what it may come to. Where there
    is no terminal the first line comes as soon as the end is seen to be further away than lines are apart.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, expected_s: float | None = None, show: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not show)
        self.what, self.total, self.expected_s = what, total, expected_s
        self.live = self.console.is_terminal
        self.began_s = self.last_line_s = time.monotonic()
        self.began_at = self.last_done = done
        self.note, self.has_lines = "", False
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.live, transient=False)
        self.task = self.progress.add_task(what, total=total, completed=done, note="", left=self._left(done))

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def restart(self) -> None:
        """Count the time from here: what came before was something else."""
        self.began_s, self.began_at = time.monotonic(), self.last_done

    def update(self, done: int, note: str | None = None, *, every_s: float = 10.0) -> None:
        """Show that ``done`` of the total is done; without a ``note`` the last one stays, and no line is due but the first.

        Where there is no terminal, a line at most every ``every_s`` seconds.
        """
        self.note = self.note if note is None else note
        left = self._left(done)
        self.progress.update(self.task, completed=done, note=self.note, left=left)
        if note is None:
            due = not self.has_lines and (self._left_s(done) or 0.0) > every_s
        else:
            due = time.monotonic() - self.last_line_s >= every_s or (done == self.total and done != self.last_done)
            due = due or (not self.has_lines and (self._left_s(done) or 0.0) > every_s)
        self.last_done = done
        if not self.live and due:
            self.last_line_s, self.has_lines = time.monotonic(), True
            told = "  ".join(part for part in (f"{self.what}: {done}/{self.total}", self.note, left) if part)
            self.console.print(told, highlight=False, soft_wrap=True)

    def _left_s(self, done: int) -> float | None:
        """Return the seconds left at the rate so far, before there is one those expected, or None where nobody can tell."""
        if done == self.began_at:
            return self.expected_s
        return (self.total - done) * (time.monotonic() - self.began_s) / (done - self.began_at)

    def _left(self, done: int) -> str:
        left_s = self._left_s(done)
        return "" if left_s is None or done >= self.total else f"about {duration(left_s)} left"

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(text, highlight=False, soft_wrap=True)
