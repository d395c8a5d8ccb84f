"""What is listed of a folder, what is left out, and that each is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data.images import BadImage, decode
from sightline.data.listing import list_images, save_drawing
from sightline.data.records import read_records
from sightline.data.sets import davis
from sightline.errors import DataError


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", "Thumbs"])
def test_folders_of_systems_are_left_out_and_told(name: str, tmp_path: Path) -> None:
    found = list_images(tree(tmp_path, "a/1.jpg", f"a/{name}/1.jpg/SYNOPHOTO_THUMB_M.jpg", f"{name}/2.jpg"))
    assert found.paths == ("a/1.jpg",)
    assert found.notes == (f"{tmp_path}: 2 folders of the system were left out (such as {min(f'{name}/', f'a/{name}/')})",)
    assert read_records(tmp_path).class_names == ("a",)


def test_a_folder_with_nothing_but_what_is_left_out_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*1 folder of the system was left out \(@eaDir/\)"):
        read_records(tree(tmp_path, "@eaDir/1.jpg"))


def test_two_links_to_one_folder_are_told_and_its_own_name_comes_first(tmp_path: Path) -> None:
    tree(tmp_path / "set", "b/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "set/a").symlink_to(tmp_path / "set/b")
    (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/d").symlink_to(tmp_path / "elsewhere")
    found = list_images(tmp_path / "set")
    assert found.paths == ("b/1.jpg", "c/2.jpg")
    assert found.notes == (f"{tmp_path / 'set'}: 2 links to folders that are listed already were left out (such as a, which is b)",)


def test_links_to_pictures_that_are_listed_are_told(tmp_path: Path) -> None:
    tree(tmp_path, "cup/1.jpg", "mug/2.jpg")
    (tmp_path / "mug/again.jpg").symlink_to(tmp_path / "cup/1.jpg")
    found = list_images(tmp_path)
    assert len(found.paths) == 3
    assert found.notes == (f"{tmp_path}: 1 picture is listed twice, by a link (mug/again.jpg, which is cup/1.jpg)",)


@pytest.mark.parametrize("name", ["match.png", "match.jpg"])
def test_what_sightline_draws_is_no_photograph_here_or_moved_elsewhere(name: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    for own in ("a.png", "b.jpg"):
        picture.save(tmp_path / own)
    save_drawing(picture, tmp_path / name)
    found = list_images(tmp_path)
    assert found.paths == ("a.png", "b.jpg")  # photographs in the same folder stay
    assert found.notes == (f"{tmp_path}: 1 picture that Sightline drew was left out ({name})",)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    with pytest.raises(BadImage, match="a drawing of Sightline's own"):
        decode(moved)
    picture.save(moved)  # a photograph of that name
    assert decode(moved).size == (96, 64)
    assert list_images(tmp_path).paths == ("a.png", "b.jpg", f"elsewhere/{name}")


def test_masks_that_are_written_are_read_as_masks_and_not_as_photographs(tmp_path: Path) -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    davis.write_mask(tmp_path / "goat/00000.png", mask)
    assert (davis.read_mask(tmp_path / "goat/00000.png") == mask).all()
    with pytest.raises(BadImage, match="a drawing of Sightline's own"):
        decode(tmp_path / "goat/00000.png")


def test_names_of_any_bytes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").touch()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    assert len(list_images(tmp_path).paths) == 2
