"""Checkpoints: one file with everything the next step needs, replaced in one step, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sightline.errors import ModelError, explain_os_error

NAME = "checkpoint.pt"


def save(run: Path, state: dict[str, Any]) -> None:
    """Write the run's checkpoint; killed at any moment, the file is the old or the new one, whole.

    Raises:
        DiskFullError: no space is left; the older checkpoint stays.
    """
    part = run / (NAME + ".part")
    try:
        with _writing(part), part.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, run / NAME)
    except OSError as error:
        raise explain_os_error(error, f"saving the checkpoint in '{run}'") from error


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # torch's zip writer turns a failed write (a full disk) into a RuntimeError; the cause is the OSError under it.
        part.unlink(missing_ok=True)
        cause = error.__cause__ or error.__context__
        raise cause if isinstance(cause, OSError) else error from None
    except OSError:
        part.unlink(missing_ok=True)
        raise


def load(run: Path) -> dict[str, Any] | None:
    """Return the run's checkpoint, or None where there is none yet.

    Raises:
        ModelError: the file is damaged.
    """
    return _read(run / NAME, lazily=False) if (run / NAME).is_file() else None


def peek(run: Path, part: str) -> Any:
    """Return one part of the run's checkpoint without reading the others, or None where there is no checkpoint or no such part.

    Raises:
        ModelError: the file is damaged.
    """
    return _read(run / NAME, lazily=True).get(part) if (run / NAME).is_file() else None


def _read(path: Path, *, lazily: bool) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):  # torch would take anything else for its older format and fail somewhere inside it
        raise ModelError(f"the checkpoint '{path}' is damaged: delete it to start again")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(f"the checkpoint '{path}' is damaged ({str(error).splitlines()[0][:120]}): delete it to start again") from error
    return state
