"""Pickles of plain data are read as NumPy 1, NumPy 2, Python 2 and 3 write them; all others are refused before anything runs."""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sightline.data.unpickle import load_plain
from sightline.errors import DataError

PLAIN = {
    "imlist": ["all_souls_000013", "ünïcode"],
    "gnd": [
        {
            "bbx": [136.5, 34.1, 648.5, 955.7],
            "easy": [1, 2],
            "hard": np.array([5, 7]),
            "junk": np.array([], np.int64),
            "pair": (None, True),
        },
        {"bbx": np.array([0.5, 1]), "wide": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "first": np.float32(0.25), "raw": b"\xff\x00"},
    ],
    "names": np.array(["a", "bc"]),
    "big-endian": np.arange(3, dtype=">i2"),
}
DTYPE = b"cnumpy\ndtype\n"


class Asks:
    """Pickles into a call of ``what`` with ``arguments``."""

    def __init__(self, what: object, *arguments: object) -> None:
        self.reduced = (what, arguments)

    def __reduce__(self) -> object:
        return self.reduced


def saved(folder: Path, content: bytes) -> Path:
    (folder / "gnd.pkl").write_bytes(content)
    return folder / "gnd.pkl"


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        load_plain(saved(folder, content))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_whatever_the_protocol(tmp_path, protocol):
    np.testing.assert_equal(load_plain(saved(tmp_path, pickle.dumps(PLAIN, protocol))), PLAIN)


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")])
def test_arrays_of_both_numpys_are_read(tmp_path, old, new):
    content = pickle.dumps(np.arange(4), 2).replace(old, new)  # protocol 2 has no frames and no lengths of names
    assert load_plain(saved(tmp_path, content)).tolist() == [0, 1, 2, 3]


def test_text_of_python_2_is_read(tmp_path):
    assert load_plain(saved(tmp_path, b"\x80\x02}q\x00U\x05queryU\x04b\xfcros.")) == {"query": "büro"}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Asks(os.system, "true"), "system"),
        (Asks(builtins.eval, "1"), "eval"),
        (Asks(builtins.getattr, "a", "upper"), "getattr"),
        (Asks(subprocess.Popen, ["true"]), "Popen"),
        (Asks(np.load, "x.npy"), "load"),
        (Path("a"), "Path"),
        (np.array([1, None], object), "array of 'O8'"),
        (np.array([(1, 2)], [("a", "i4"), ("b", "O")]), "array of 'V12'"),
        (np.array([1], "M8[s]"), "array of 'M8'"),
        ({1, 2}, "EMPTY_SET"),
        (np.random.default_rng, "numpy"),
    ],
)
def test_what_is_not_plain_is_named_and_not_run(tmp_path, value, named):
    message = refused(tmp_path, pickle.dumps(value))
    assert named in message
    assert "was not opened" in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'true'\no.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Pname\n.", "PERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "ndarray.__reduce__"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "rot13"),
        (b"c__builtin__\nbytes\n(I5\ntR.", "makes bytes"),
        # A void dtype that is told, by its state, that it has object fields: NumPy would take the array's bytes for addresses.
        (DTYPE + b"(S'V8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI0\ntb.", "array of 'V8'"),
        (DTYPE + b"(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNN(dI8\nI8\nI0\ntb.", "structured"),
        # Changing what stands behind a name would reach the next file.
        (DTYPE + b"(N(dS'_call'\nI1\nstb.", "changes what it was given"),
        (b"cnumpy\nndarray\n)R.", "makes an array by itself"),
    ],
)
def test_forged_instructions_are_refused(tmp_path, content, named):
    assert named in refused(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"ab.",  # bytes that the file does not have
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"ab.",
        pickle.dumps(np.arange(1000), 2).replace(b"M\xe8\x03", b"M\xe9\x03"),  # a shape that its bytes do not fill
        pickle.dumps(PLAIN)[:-20],
        b"",
        b"hello",
        b".",
    ],
)
def test_damaged_files_are_one_line(tmp_path, content):
    refused(tmp_path, content)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_plain(tmp_path / "none.pkl")


WHOLE = pickle.dumps(PLAIN, 2)


@settings(max_examples=300, deadline=None)
@example([(284, 92)])  # an escape that no string has
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_wrong_bytes_is_read_or_refused_in_words(tmp_path_factory, changes):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    path = saved(tmp_path_factory.getbasetemp(), bytes(content))
    with contextlib.suppress(DataError):
        load_plain(path)
