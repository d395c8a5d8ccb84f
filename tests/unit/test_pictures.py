"""One picture or many, in every form that a person has them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.errors import DataError, IndexStoreError
from sightline.evaluation.ranks import positive_ranks
from sightline.index.base import Index, Item
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

ARGUMENTS = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGUMENTS, weights="random"), ImageSpec(image_px=32)).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_one_picture_in_any_form_has_one_descriptor(encoder: Encoder, file: Path) -> None:
    image = Image.open(file)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms: list[Any] = [str(file), file, file.read_bytes(), image, array, array.astype(np.float64) / 255, tensor, tensor.float() / 255]
    wanted = encoder.embed([file])
    assert wanted.shape == (1, 16)
    for form in forms:
        np.testing.assert_array_equal(encoder.embed(form), wanted, err_msg=str(type(form)))
    (one,), (other,) = encoder.patches(str(file)), encoder.patches([tensor])
    np.testing.assert_array_equal(one.vectors, other.vectors)


def test_many_pictures_come_in_lists_generators_and_blocks(encoder: Encoder, file: Path) -> None:
    array = np.asarray(Image.open(file))
    wanted = np.repeat(encoder.embed(file), 3, axis=0)
    blocks: list[Any] = [np.stack([array] * 3), torch.from_numpy(np.stack([array] * 3)).permute(0, 3, 1, 2), np.array([str(file)] * 3)]
    for form in ([file, str(file), array], (file for _ in range(3)), *blocks):
        np.testing.assert_array_equal(encoder.embed(form), wanted)
    assert encoder.embed([]).shape == (0, 16)


def test_grey_and_transparent_arrays_are_pictures(encoder: Encoder) -> None:
    grey = np.random.default_rng(1).integers(0, 255, (40, 40), dtype=np.uint8)
    three = encoder.embed(np.stack([grey] * 3, axis=2))
    for form in (grey, grey[:, :, None], torch.from_numpy(grey)[None], np.dstack([grey] * 3 + [np.full_like(grey, 255)])):
        np.testing.assert_array_equal(encoder.embed(form), three)


def test_a_pil_image_is_read_as_its_file_is(encoder: Encoder, tmp_path: Path) -> None:
    """Turned by its orientation tag, deep grey scaled and not clipped, transparency on white."""
    random = np.random.default_rng(2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(random.integers(0, 65535, (40, 60), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(random.integers(0, 255, (40, 60, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    for name in ("turned.png", "deep.png", "clear.png"):
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(encoder.embed(image), encoder.embed(tmp_path / name), err_msg=name)


def test_own_images_are_not_changed(encoder: Encoder) -> None:
    image = Image.new("RGB", (40, 40))
    image.info["mine"] = 1
    encoder.embed(image)
    assert image.info == {"mine": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, r"int 7 is no picture: give a path"),
        ([7], r"int 7 is no picture: give a path"),
        (np.zeros((5, 3, 32, 4, 3), np.uint8), r"an array of shape \[3, 32, 4, 3\] is no picture|array.* is no picture"),
        (np.zeros((3, 32, 32), np.uint8), r"an array of shape \[3, 32, 32\] is no picture: give \[H, W, 3\]"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"a tensor of shape \[32, 32, 3\] is no picture: give \[3, H, W\]"),
        (torch.full((3, 8, 8), 2.0), r"a tensor has values outside 0 to 1"),
        (torch.full((3, 8, 8), torch.nan), r"a tensor has values outside 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), r"an array of int64 is no picture: make it uint8"),
        ("nowhere.jpg", r"'nowhere.jpg' cannot be read as an image: missing: no such file"),
        (Path("https://example.com/a.jpg"), r"an address, not a file: download the picture first"),
        (b"", r"the picture cannot be read as an image: zero bytes"),
    ],
)
def test_what_is_no_picture_is_told_in_one_line(encoder: Encoder, given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        encoder.embed(given)
    assert "\n" not in str(error.value)


def test_the_package_shows_what_there_is() -> None:
    assert {"Index", "Item", "load"} <= set(dir(sightline)) == set(sightline.__all__)
    assert all(getattr(sightline, name) for name in dir(sightline))


def test_encoder_and_index_tell_themselves_in_a_line(encoder: Encoder, file: Path, tmp_path: Path) -> None:
    assert repr(encoder) == "Encoder(vit_tiny_patch16_224, 32 px, cls, 16-d, cpu)"
    known = model_folder.save(encoder, tmp_path / "model")
    assert repr(sightline.load(tmp_path / "model")).endswith(f"cpu, {known[:12]})")
    with Index.create(tmp_path / "i", dim=16, fingerprint=known, model="runs/mine") as index:
        assert len(index) == 0
        assert index
        index.upsert([Item("a.png")], encoder.embed(file))
        assert len(index) == 1
        assert repr(index) == f"LocalIndex('{tmp_path / 'i'}', local, 16-d, model runs/mine)"
    encoder.fingerprint = ""


def test_an_index_tells_a_wrong_argument_in_one_line_whose_remedy_works(encoder: Encoder, file: Path, tmp_path: Path) -> None:
    vector = encoder.embed(file)
    with Index.create(tmp_path / "i", dim=16, fingerprint="f") as index:
        with pytest.raises(IndexStoreError, match=r"'a\.png' is no item: write sightline\.Item\(path="):
            index.upsert(["a.png"], vector)  # type: ignore[list-item]
        index.upsert([sightline.Item(path="a.png")], vector)
        with pytest.raises(
            IndexStoreError, match=r"not float32 \[16\]: one vector is \[1, D\]: numpy\.asarray\(\[vector\], numpy\.float32\)"
        ):
            index.search(vector[0], 1)
        assert index.search(np.asarray([vector[0]], np.float32), 1).rows.shape == (1, 1)
        with pytest.raises(IndexStoreError, match=r"not float64 \[1, 16\]: numpy\.asarray\(vectors, numpy\.float32\)"):
            index.search(vector.tolist(), 1)
        assert index.search(np.asarray(vector.tolist(), np.float32), 1).rows.tolist() == [[index.ids()[0]]]
        with pytest.raises(IndexStoreError, match=r"no array can be made of these"):
            index.search([[1.0], [1.0, 2.0]], 1)  # type: ignore[arg-type]


def test_an_index_of_patches_takes_items_alone(encoder: Encoder, file: Path, tmp_path: Path) -> None:
    (patches,) = encoder.patches(file)
    with Index.create(tmp_path / "p", dim=16, fingerprint="f", engine="patches", short_px=32) as index:
        for call in (lambda: index.upsert(["a.png"], encoder.embed(file)), lambda: index.upsert_patches(["a.png"], [patches])):  # type: ignore[attr-defined, list-item]
            with pytest.raises(IndexStoreError, match="is no item"):
                call()
    assert {type(side) for side in patches.box_of(tuple(np.array([0, 1, 2, 3])))} == {float}  # type: ignore[arg-type]


def test_labels_may_be_a_list_of_numbers() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    of_list, of_array = positive_ranks(vectors, [0, 0, 1, 1]), positive_ranks(vectors, np.array([0, 0, 1, 1]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(of_list.ranks, of_array.ranks)
    with pytest.raises(
        ValueError, match=r"query labels are whole numbers \[M\], not <U1: numpy\.unique\(names, return_inverse=True\)\[1\]"
    ):
        positive_ranks(vectors, ["a", "a", "b", "b"])  # type: ignore[arg-type]
    numbers = np.unique(["a", "a", "b", "b"], return_inverse=True)[1]
    np.testing.assert_array_equal(positive_ranks(vectors, numbers).ranks, of_array.ranks)
