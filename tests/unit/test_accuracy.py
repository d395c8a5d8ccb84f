"""Accuracy: classes matched by name, first and first five guesses, bad files left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.data.images import BadFiles
from sightline.data.records import Records, read_records
from sightline.errors import DataError, ModelError
from sightline.evaluation.accuracy import Guesses, guess, measure_accuracy
from sightline.evaluation.accuracy_report import accuracy_page
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

MODEL = ModelSpec(
    backbone="vit_tiny_patch16_224",
    backbone_args=(("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2)),
    weights="random",
)


@pytest.fixture
def colours(tmp_path: Path) -> Records:
    for name, value in (("dark", 20), ("light", 230)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (16, 16), (value + number,) * 3).save(tmp_path / name / f"{number}.png")
    return read_records(tmp_path)


def guessing(names: tuple[str, ...], favourites: tuple[str, ...]) -> Encoder:
    """An encoder whose classifier gives every image the same guesses, ``favourites`` first."""
    torch.manual_seed(0)
    encoder = Encoder(MODEL, ImageSpec(image_px=16))
    encoder.classifier = Classifier(encoder.width, names, hidden=False)
    with torch.no_grad():
        encoder.classifier.logits.bias.copy_(
            torch.tensor([float(-favourites.index(name)) if name in favourites else -99.0 for name in names])
        )
    return encoder


def test_first_guess_and_first_five(colours: Records) -> None:
    names = ("zebra", "light", "red", "green", "blue", "dark", "grey")
    found = measure_accuracy(guessing(names, ("light", "zebra", "red", "grey", "green", "dark")), colours, BadFiles(), show=False)
    assert found.metrics == {"accuracy@1": 0.5, "accuracy@5": 0.5}  # dark is the sixth guess
    assert (found.num_images, found.num_classes) == (6, 7)
    found = measure_accuracy(guessing(names, ("light", "zebra", "red", "grey", "dark")), colours, BadFiles(), show=False)
    assert found.metrics == {"accuracy@1": 0.5, "accuracy@5": 1.0}
    assert found.intervals["accuracy@5"] == (1.0, 1.0)
    low, high = found.intervals["accuracy@1"]
    assert low < 0.5 < high


def test_of_few_classes_only_the_first_guess_counts_and_the_mode_comes_back(colours: Records) -> None:
    encoder = guessing(("dark", "light"), ("dark", "light")).train()
    assert measure_accuracy(encoder, colours, BadFiles(), show=False).metrics == {"accuracy@1": 0.5}
    assert encoder.training


def test_bad_files_are_left_out_and_noted(colours: Records) -> None:
    colours.file(0).write_bytes(b"no image")
    bad = BadFiles()
    found = measure_accuracy(guessing(("dark", "light"), ("dark", "light")), colours, bad, show=False)
    assert found.num_images == 5
    assert found.metrics["accuracy@1"] == pytest.approx(2 / 5)
    assert len(bad) == 1


def test_classes_that_it_never_learnt_are_one_line(colours: Records) -> None:
    with pytest.raises(DataError, match=r"1 classes of .* \(such as 'dark'\)"):
        measure_accuracy(guessing(("light", "red"), ("red",)), colours, BadFiles(), show=False)
    with pytest.raises(ModelError, match="no classifier, so no accuracy"):
        measure_accuracy(Encoder(MODEL, ImageSpec(image_px=16)), colours, BadFiles(), show=False)
    assert np.array_equal(colours.class_counts(), [3, 3])


def test_guesses_keep_what_each_class_was_given(colours: Records) -> None:
    found = guess(guessing(("dark", "light", "red"), ("light", "red", "dark")), colours, BadFiles(), show=False)
    assert found.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.classes.tolist() == [[1, 2, 0]] * 6
    likely = np.exp([0.0, -1.0, -2.0]) / np.exp([0.0, -1.0, -2.0]).sum()  # light, red, dark
    assert found.probability == pytest.approx(np.full(6, likely[0]), rel=1e-6)
    assert found.target_probability == pytest.approx([likely[2]] * 3 + [likely[0]] * 3, rel=1e-6)


def test_the_page_shows_the_surest_mistakes_first(colours: Records, tmp_path: Path) -> None:
    guesses = Guesses(
        class_names=("dark", "light", "red"),
        rows=np.arange(6),
        targets=np.array([0, 0, 0, 1, 1, 1]),
        classes=np.array([[0], [1], [2], [1], [1], [0]]),
        probability=np.array([0.9, 0.6, 0.7, 0.8, 0.95, 0.99], np.float32),
        target_probability=np.array([0.9, 0.3, 0.2, 0.8, 0.95, 0.01], np.float32),
    )
    made = accuracy_page(guesses, colours, bad_files=["x.jpg: <torn>"], command="sightline evaluate")
    page = made.write(tmp_path / "index.html").read_text()
    worst = page[page.index("Worst images</h2>") : page.index("Best images</h2>")]
    notes = [
        "taken for dark, 0.99; its own class 0.01",
        "taken for red, 0.70; its own class 0.20",
        "taken for light, 0.60; its own class 0.30",
    ]
    places = [worst.index(note) for note in notes]
    assert places == sorted(places)
    best = page[page.index("Best images</h2>") :]
    assert best.index("0.95") < best.index("0.90")
    assert "0.80" not in best  # one of a class
    assert "no image of it was measured" in page  # red, which nothing was
    assert "&lt;torn&gt;" in page
    # 0.9 and 0.6 to 0.99 by tenths: |0.6-0| + |0.7-0| + |0.8-1| + 3 x |0.9467-2/3|, over six images
    assert f"{100 * (0.6 + 0.7 + 0.2 + abs(0.9 + 0.95 + 0.99 - 2)) / 6:.1f} points" in page
