"""What a run leaves behind to read: metrics as JSONL and as TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sightline.errors import explain_os_error


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl`` and scalars to TensorBoard; a resumed run drops the lines after its step."""

    def __init__(self, run: Path, *, resumed_at: int) -> None:
        self.path = run / "metrics.jsonl"
        try:
            kept = self._lines_until(resumed_at) if resumed_at else []
            self.stream = self.path.open("w", encoding="utf-8", buffering=1)
            self.stream.writelines(kept)
            from torch.utils.tensorboard import SummaryWriter  # 0.5 s to import

            self.events = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_at or None)
        except OSError as error:
            raise explain_os_error(error, f"opening the log in '{run}'") from error

    def _lines_until(self, step: int) -> list[str]:
        if not self.path.exists():
            return []
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                break  # the torn last line of a killed run
        return kept

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Record values at ``step`` (the number of steps done)."""
        try:
            self.stream.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(name, value, step)
        except OSError as error:
            raise explain_os_error(error, "writing the metrics") from error

    def close(self) -> None:
        """Flush and close both."""
        self.stream.close()
        self.events.close()
