"""The error family: every message is one line that says what is wrong and what to do next."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable


class SightlineError(Exception):
    """A failure that Sightline explains in one line; the shell shows the line, not the traceback."""

    exit_code = 1


class UsageError(SightlineError):
    """Bad usage or bad input: the person can put it right. Exit code 2."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe, or an override of one, that cannot be used."""


class DataError(UsageError):
    """A data set, manifest or folder that cannot be read as asked."""


class ModelError(UsageError):
    """A model name or folder that cannot be loaded."""


class IndexStoreError(UsageError):
    """An index that cannot be opened, or that does not belong to what is asked of it."""


class DeviceError(UsageError):
    """A device or port that was asked for and is not to be had."""


class TrainingError(SightlineError):
    """Training stopped for a reason found in the numbers, with a diagnosis."""


class DiskFullError(UsageError):
    """No space is left where something had to be written; the person can make some."""


class MemoryFullError(UsageError):
    """More memory was asked for than there is; the person can ask for less."""


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, such as "1 run", "2,000 runs"; ``many`` where the plural takes more than an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest choice, or the list of choices when none is close.

    Choices that share the name's last dotted part are considered too, so ``koleo`` finds ``koleo_weight``.
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        close = [known_name for known_name in known if name and (name in known_name or known_name in name)][:1]
    if close:
        return f"; did you mean '{close[0]}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; choose one of: {shown}"


def first_line(error: BaseException) -> str:
    """Return what another library's error says first, or its kind where it says nothing: what fits into a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def explain_os_error(error: OSError, doing: str) -> SightlineError:
    """Return the one-line error of ours for an operating-system error met while ``doing`` something."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space left on the disk while {doing}{where}: free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"not allowed while {doing}{where}: {error.strerror}; choose another folder or change its permissions")
    if error.errno == errno.EADDRINUSE:
        return DeviceError(f"the port is in use while {doing}: choose another one (MASTER_PORT for torchrun)")
    return SightlineError(f"{error.strerror or error} while {doing}{where}")


_MEMORY_IS_FULL = re.compile(r"not enough memory|out of memory|(?:can't|cannot|unable to) allocate", re.IGNORECASE)
_ASKED_FOR = re.compile(r"(?:tried|unable) to allocate (\d[\d.]* ?\w+)", re.IGNORECASE)


def is_memory_full(error: Exception) -> bool:
    """Return whether memory ran out. torch has a class for this on a GPU alone: elsewhere it is a RuntimeError, known by its words."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY_IS_FULL.search(str(error)) is not None)


def explain_memory_error(error: Exception, doing: str) -> SightlineError:
    """Return the one-line error of ours for memory that ran out while ``doing`` something."""
    asked = _ASKED_FOR.search(str(error))
    how_much = f" ({asked[1]} at once)" if asked else ""
    return MemoryFullError(f"not enough memory while {doing}{how_much}: take smaller images (image_px, short_px), a smaller batch or model")
