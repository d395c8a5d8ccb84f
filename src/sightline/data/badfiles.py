"""Bad files: collected while a run goes on, written beside its results, told at its end."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path

FILE_NAME = "bad_files.jsonl"


class BadFiles:
    """The files that could not be read, each once, with the reason. Safe to share among threads."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, path: Path | str, reason: object) -> None:
        """Note a file and why it could not be read (``kind`` or ``kind: detail``); the first reason stays."""
        with self._lock:
            self._reasons.setdefault(os.fspath(path), str(reason))

    def items(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every file, sorted by path."""
        with self._lock:
            return sorted(self._reasons.items())

    def write(self, file: Path) -> None:
        """Write one JSON object a line, ``{"path": ..., "reason": ...}``, in one move: the file is whole at any moment."""
        text = "".join(json.dumps({"path": path, "reason": reason}, ensure_ascii=False) + "\n" for path, reason in self.items())
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        # A name that is not UTF-8 holds lone surrogates; written as \udcXX they are valid JSON and come back as the same name.
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        os.replace(partial, file)

    def summary(self, num_files: int | None = None, where: Path | str = FILE_NAME) -> str:
        """Return one line: how many files could not be read, of how many, why, and where each is named; empty when all were read."""
        items = self.items()
        if not items:
            return ""
        kinds = Counter(reason.partition(":")[0] for _, reason in items)
        shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        of = "" if num_files is None else f" of {num_files:,}"
        return f"{len(items):,}{of} file{'' if len(items) == 1 and num_files is None else 's'} could not be read ({shown}): see {where}"
