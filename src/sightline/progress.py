"""Progress that a person sees: a live bar on standard error, and the rates beside it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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


class Bar:
    """A live bar on standard error; plain lines where that is not a terminal; silent on ranks other than the first."""

    def __init__(self, what: str, total: int, *, done: int = 0, show: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not show)
        self.what, self.total = what, total
        self.live = self.console.is_terminal
        self.last_line_s = time.monotonic()
        self.last_done = done
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.live, transient=False)
        self.task = self.progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def update(self, done: int, note: str = "", *, every_s: float = 10.0) -> None:
        """Show that ``done`` of the total is done; where there is no terminal, a line at most every ``every_s`` seconds."""
        self.progress.update(self.task, completed=done, note=note)
        due = time.monotonic() - self.last_line_s >= every_s or (done == self.total and done != self.last_done)
        self.last_done = done
        if not self.live and due:
            self.last_line_s = time.monotonic()
            self.console.print(f"{self.what}: {done}/{self.total}  {note}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(text, highlight=False, soft_wrap=True)
