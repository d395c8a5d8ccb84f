"""Pickles from outside, read without running what they ask for: plain containers, text, numbers and arrays of numbers, nothing else.

A pickle is a program that may call anything it can name. Here it can name a few things, each a stand-in of ours that checks what it is
given, so that not even NumPy's own unpickling runs on it (a forged dtype makes NumPy take numbers for addresses). Before that every
instruction is looked at: one that is not needed for plain data, or that claims memory which the file does not fill, is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import DataError

MAX_BYTES = 2**28
"""The largest file that is opened: the ground truth of the revisited benchmarks takes a few hundred kilobytes."""

PLAIN_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)


def load_plain(path: Path) -> Any:
    """Return what a pickle holds, if that is dicts, lists, tuples, text, bytes, numbers and arrays of numbers; nothing in it is run.

    Text of a Python 2 pickle is taken as Latin-1.

    Raises:
        DataError: the file is missing, damaged, or asks for anything else; the message names it.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    if not content:
        raise DataError(f"{path} is empty or larger than {MAX_BYTES >> 20} MB: that is no ground truth; download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of an escape in a damaged string, which is then read or refused
            _refuse_unusual(content)
            return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _NotPlainError as error:
        raise DataError(f"{path} {error}, which plain data never does: it was not opened; get the file from its authors") from error
    except DAMAGED as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from error


class _NotPlainError(Exception):
    """What the pickle asks for, as the end of a sentence that begins with its name."""


def _refuse_unusual(content: bytes) -> None:
    # Lengths are checked against the file by genops; a memo number may be any, and the unpickler makes room for all below it.
    plain = frozenset(PLAIN_OPCODES.split())
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in plain:
            raise _NotPlainError(f"uses the instruction {opcode.name}")
        if opcode.name.endswith("PUT") and int(argument or 0) > number:
            raise _NotPlainError(f"numbers its {number}th part {argument}")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core", 1)  # NumPy 1 and 2
        if (module, name) not in STAND_INS:
            raise _NotPlainError(f"asks for {module}.{name}")
        return _StandIn(STAND_INS[module, name])


class _StandIn:
    """What the pickle gets for a name: it can be called, and nothing about it can be changed (BUILD would set attributes)."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _NotPlainError("changes what it was given a name for")


class _ElementType:
    """A dtype's stand-in: NumPy's two-part description of it, taken apart and checked."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code[:1] not in tuple("biufcSU") or not code[1:].isdecimal():
            raise _NotPlainError(f"holds an array of '{code}'")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, *parts = state  # version, byte order, then what structured types are made of
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise _NotPlainError("holds a structured array")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that fills itself from a checked state only."""

    def __setstate__(self, state: Any) -> None:
        _, shape, element, is_fortran, content = state
        if isinstance(content, str):
            content = content.encode("latin1")  # Python 2 knew no difference
        checked: Any = (1, _checked_shape(shape, element, content), element.dtype, bool(is_fortran), bytes(content))
        super().__setstate__(checked)


def _checked_shape(shape: Any, element: Any, content: Any) -> tuple[int, ...]:
    if not isinstance(element, _ElementType) or not isinstance(content, bytes | bytearray):
        raise _NotPlainError("holds an array of something else than numbers and text")
    sizes = tuple(int(size) for size in shape)
    num_bytes = element.dtype.itemsize
    for size in sizes:
        num_bytes *= size
    if min(sizes, default=0) < 0 or num_bytes != len(content):
        raise ValueError(f"an array of shape {sizes} does not fill {len(content)} bytes")
    return sizes


def _reconstruct(*_: object) -> _Array:
    return _Array((0,), np.int8)  # its state comes with BUILD


def _from_buffer(content: Any, element: Any, shape: Any, order: str) -> Any:
    sizes = _checked_shape(shape, element, content)
    return np.frombuffer(content, element.dtype).reshape(sizes, order="F" if order == "F" else "C").view(_Array)


def _scalar(element: Any, content: Any) -> Any:
    _checked_shape((), element, content)
    return np.frombuffer(content, element.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _NotPlainError(f"encodes text as {encoding}")
    return text.encode("latin1")  # how Python 3 writes bytes in protocol 2


def _empty_bytes(*contents: object) -> bytes:
    if contents:
        raise _NotPlainError("makes bytes out of something else")
    return b""


def _only_a_name(*_: object) -> None:
    raise _NotPlainError("makes an array by itself")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _ElementType,
    ("numpy", "ndarray"): _only_a_name,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
}
