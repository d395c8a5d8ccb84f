"""Names in other capitals or another Unicode form: the disk's spelling is the one that counts, where it holds one file."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from sightline.data import spelling
from sightline.data.images import BadImage, read_bytes
from sightline.data.records import Records, read_records
from sightline.data.spelling import Spelling
from sightline.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.fixture
def forgiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``Café/A.png`` as a Mac's disk shows it: in one spelling when it is listed, and found by any other."""
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / "A.png").write_bytes(b"a")
    os.link(tmp_path / NFD / "A.png", tmp_path / NFD / "a.PNG")
    listdir, samefile = os.listdir, os.path.samefile
    monkeypatch.setattr(spelling.os, "listdir", lambda folder: [name for name in listdir(folder) if name != "a.PNG"])
    monkeypatch.setattr(
        spelling.os.path, "samefile", lambda one, other: samefile(*(str(path).replace(NFC.lower(), NFD) for path in (one, other)))
    )
    return tmp_path


def test_the_spelling_of_the_disk_is_the_one_of_a_file(forgiving: Path) -> None:
    own = str(forgiving / NFD / "A.png")
    assert Spelling().file(own) == own
    assert Spelling().file(str(forgiving / NFD / "a.PNG")) == own
    assert Spelling().file(str(forgiving / NFC.lower() / "A.png")) == own
    assert Spelling().folder(str(forgiving / NFC.lower())) == str(forgiving / NFD)


def test_a_manifest_that_spells_a_picture_twice_names_it_twice(forgiving: Path) -> None:
    (forgiving / "m.csv").write_text(f"path,label\n{NFD}/A.png,a\n{NFD}/a.PNG,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="twice, in rows 1 and 2"):
        read_records(forgiving / "m.csv")


def test_two_files_that_differ_in_spelling_alone_stay_two(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "A.png", f"{NFC}.png", f"{NFD}.png")]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    names = tuple(file.name for file in files)
    os.link(files[0], tmp_path / "B.png")
    os.link(files[0], tmp_path / "b.png")
    assert [Spelling().file(str(tmp_path / name)) for name in ("b.png", "B.png")] == [str(tmp_path / name) for name in ("b.png", "B.png")]
    assert Records(tmp_path, names).real_files() == [str(file.resolve()) for file in files]
    files[1].unlink()
    assert Spelling().file(str(files[1])) == str(files[1]), "gone, and not the other one"


def test_a_name_that_is_there_in_another_unicode_form_is_told(tmp_path: Path) -> None:
    (tmp_path / f"{NFD}.png").write_bytes(b"")
    with pytest.raises(BadImage, match="another Unicode form: write it as the disk has it"):
        read_bytes(tmp_path / f"{NFC}.png")
    with pytest.raises(BadImage, match=r"no such file$"):
        read_bytes(tmp_path / "Café2.png")
    assert read_bytes(tmp_path / f"{NFD}.png") == b""
