"""The workflow of looking: every model is shown the same images, whatever becomes of the files meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.contracts import Descriptors
from sightline.errors import UsageError
from sightline.workflows import looking


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, colour in enumerate(("red", "blue")):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for number in range(2):
            noise = np.random.default_rng(10 * label + number).integers(0, 200, (32, 32, 3), dtype=np.uint8)
            Image.blend(Image.fromarray(noise), Image.new("RGB", (32, 32), colour), 0.5).save(
                tmp_path / "photos" / colour / f"{number}.png"
            )
    return tmp_path / "photos"


def test_an_image_that_one_model_could_not_read_is_left_out_of_all(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, gone = looking.embed_records, iter([False, True])

    def with_a_loss(*arguments: object, **settings: object) -> Descriptors:
        found: Descriptors = embed(*arguments, **settings)  # type: ignore[arg-type]
        return Descriptors(found.vectors[1:], found.rows[1:]) if next(gone) else found

    monkeypatch.setattr(looking, "embed_records", with_a_loss)
    models = ("random:vit_tiny_patch16_224@32", "random:resnet10t@32")
    told = looking.inspect(models[0], photos, tmp_path / "out", beside=models[1:])
    assert told["images"] == 3
    assert told["gradients"] is None, "one class is left with a single image, and a batch takes two classes with two"


def test_a_model_is_named_once(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'random:a' is named twice"):
        looking.inspect("random:a", photos, tmp_path / "out", beside=["random:a"])
