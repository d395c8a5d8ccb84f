"""Bringing an index up to date: what counts as gone."""

from __future__ import annotations

from pathlib import Path

from sightline.data.images import BadFiles
from sightline.search.pipeline import _gone


def test_only_what_is_below_the_folder_and_could_have_been_listed_is_gone(tmp_path: Path) -> None:
    away = tmp_path / "photos" / "away"
    away.mkdir(parents=True)
    root = tmp_path / "photos"
    known = {
        str(path): None
        for path in (root / "kept.jpg", root / "deleted.jpg", away / "hidden.jpg", tmp_path / "other" / "x.jpg", tmp_path / "photos2.jpg")
    }
    bad_files = BadFiles()
    assert _gone(known, [str(root / "kept.jpg")], root, bad_files) == [str(away / "hidden.jpg"), str(root / "deleted.jpg")]
    bad_files.add(away, "folder not listed: Permission denied")
    assert _gone(known, [str(root / "kept.jpg")], root, bad_files) == [str(root / "deleted.jpg")]
