"""Patch features: from pictures without a transform of one's own, and where each patch lies in the picture's own pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.contracts import PatchFeatures
from sightline.data.transforms import WholeTransform
from sightline.errors import DataError, ModelError
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

VIT = (("embed_dim", 24), ("depth", 1), ("num_heads", 2))


def encoder(backbone: str = "vit_tiny_patch16_224", args: tuple[tuple[str, int], ...] = VIT) -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelSpec(backbone=backbone, backbone_args=args, weights="random", pooling="mean"), ImageSpec(image_px=64)).eval()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def features(rows: int, columns: int, frame: tuple[float, float, float, float], dim: int = 3) -> PatchFeatures:
    vectors = np.random.default_rng(0).normal(size=(rows * columns, dim))
    return PatchFeatures((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), (rows, columns), frame)


def test_the_short_side_is_as_asked_and_both_are_multiples_of_the_patch() -> None:
    whole = WholeTransform(ImageSpec(), short_px=64, multiple_px=16)
    assert whole.size_px((640, 480)) == (80, 64)  # 85.3 px: five patches and a third
    assert whole.size_px((480, 640)) == (64, 80)
    assert whole.size_px((10, 10)) == (64, 64)
    assert whole.size_px((60_000, 1)) == (1024, 64), "squeezed to sixteen times the short side"
    assert whole.pixels(picture(60, 45)).shape == (3, 64, 80)


def test_patches_are_the_tokens_at_unit_length_in_the_pictures_order(tmp_path: Path) -> None:
    made = encoder()
    pictures = [picture(120, 90, 1), picture(120, 90, 2), picture(50, 70, 3)]
    pictures[0].save(tmp_path / "a.png")
    stream = io.BytesIO()
    pictures[2].save(stream, "PNG")
    found = list(made.patches([tmp_path / "a.png", pictures[1], stream.getvalue()], short_px=96, precision="fp32"))
    assert [one.grid for one in found] == [(6, 8), (6, 8), (8, 6)]
    assert [one.frame for one in found] == [(0, 0, 120, 90), (0, 0, 120, 90), (0, 0, 50, 70)]
    transform = made.whole(96)
    with torch.no_grad():
        tokens = made.tokens(transform(pictures[1])[None]).patches[0].numpy()
    np.testing.assert_allclose(found[1].vectors, tokens / np.linalg.norm(tokens, axis=1, keepdims=True), atol=1e-5)


def test_a_photograph_decoded_at_a_reduced_scale_keeps_its_own_pixels() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: 800 x 640 upright is 640 x 800
    picture(800, 640).save(stream, "JPEG", exif=exif)
    (found,) = encoder().patches([stream.getvalue()])
    assert found.frame == (0, 0, 640, 800)
    assert found.grid == (5, 4)


def test_what_cannot_be_read_or_taken_is_told() -> None:
    with pytest.raises(DataError, match="the picture cannot be read as an image"):
        list(encoder().patches([b"no picture"]))
    one_size = encoder("vit_relpos_small_patch16_224", VIT)
    assert len(list(one_size.patches([picture(64, 64)]))) == 1
    with pytest.raises(ModelError, match="made for images of 64 px and does not take 128 x 64"):
        list(one_size.patches([picture(128, 64)]))


def test_boxes_of_cells_and_cells_of_boxes() -> None:
    made = features(3, 4, (100.0, 0.0, 300.0, 90.0))  # cells of 50 x 30 px, from 100 px on
    assert made.box_of((0, 0, 1, 1)) == (100, 0, 150, 30)
    assert made.box_of((1, 1, 3, 4)) == (150, 30, 300, 90)
    assert made.cells_of((100, 0, 300, 90)) == (0, 0, 3, 4)
    assert made.cells_of((160, 35, 260, 80)) == (1, 1, 3, 3), "to the nearest borders"
    assert made.cells_of((120, 10, 130, 12)) == (0, 0, 1, 1), "within one cell"
    assert made.cells_of((190, 25, 206, 33)) == (0, 1, 1, 2), "across borders and narrower than a cell: where its middle is"
    assert made.cells_of((-50, -50, 120, 31)) == (0, 0, 1, 1), "what is outside the picture does not count"
    np.testing.assert_array_equal(made.within((1, 1, 3, 3)), made.vectors[[5, 6, 9, 10]])
    for box in ((400, 0, 500, 50), (100, 20, 100, 30), (200, 50, 150, 60)):
        with pytest.raises(ValueError, match="has nothing of the frame"):
            made.cells_of(box)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4000), st.integers(1, 4000), st.data())
def test_the_box_of_cells_has_these_cells(rows: int, columns: int, width: int, height: int, data: st.DataObject) -> None:
    made = features(rows, columns, (0.0, 0.0, float(width), float(height)))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    cells = (top, left, data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, columns)))
    assert made.cells_of(made.box_of(cells)) == cells


def test_features_are_validated_at_birth() -> None:
    good = features(2, 2, (0, 0, 10, 10))
    with pytest.raises(ValueError, match="rows \\* columns"):
        PatchFeatures(good.vectors, (2, 3), good.frame)
    with pytest.raises(ValueError, match="left < right"):
        PatchFeatures(good.vectors, good.grid, (0, 0, 0, 10))
    with pytest.raises(ValueError, match="unit length"):
        PatchFeatures(2 * good.vectors, good.grid, good.frame)
