"""What a run holds out always lets an answer be wrong, and says truthfully what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline import catalog
from sightline.contracts import IntArray
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.data.samplers import PK
from sightline.errors import DataError
from sightline.evaluation.validation import HeldOutImages, NearestNeighbours, Parts, UnseenClasses
from sightline.methods.irt import IRTRecipe
from sightline.nn.encoder import Encoder
from sightline.recipe import Recipe
from sightline.training.card import model_card
from sightline.workflows.training import named_recipe


def labelled(num_classes: int, per_class: int, splits: tuple[str, ...] | None = None, root: Path = Path("there")) -> Records:
    labels: IntArray = np.repeat(np.arange(num_classes), per_class)
    paths = tuple(f"c{label}/{row}.png" for row, label in enumerate(labels))
    return Records(root, paths, labels, tuple(f"c{label}" for label in range(num_classes)), splits)


def divided(records: Records, *settings: str) -> Parts:
    recipe = named_recipe("irt/folder", ["classes_per_batch=2", "images_per_class=2", *settings])
    return UnseenClasses().split(records, recipe.data)


def fitted(records: Records, recipe: Recipe) -> Recipe:
    parts = UnseenClasses().split(records, recipe.data)
    return PK().fitted(recipe, parts.training, parts.num_apart)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_of_two_or_three_classes_images_are_held_out_and_asked_against_the_rest(num_classes: int) -> None:
    found = divided(labelled(num_classes, 5))
    assert found.validation is not None
    assert found.training.num_classes == found.validation.num_classes == num_classes
    assert found.among_training
    assert found.name == "held-out images of the classes that were learnt from"
    assert not set(found.training.paths) & set(found.validation.paths)


@pytest.mark.parametrize("num_classes", [4, 9, 20])
def test_of_more_classes_classes_are_held_out(num_classes: int) -> None:
    found = divided(labelled(num_classes, 3))
    assert found.validation is not None
    assert (found.validation.num_classes, found.training.num_classes) == (2, num_classes - 2)
    assert (found.name, found.among_training) == ("held-out classes", False)


def test_a_batch_takes_the_classes_that_validation_leaves_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    recipe = named_recipe("irt/folder", ["classes_per_batch=4", "images_per_class=2"])
    four, six = labelled(4, 3), labelled(6, 3)
    assert fitted(four, recipe).data.classes_per_batch == 2
    assert "2 of 4 classes are held out to choose the model: a batch takes the 2 left" in caplog.text
    assert fitted(six, recipe) == recipe
    without = replace(recipe, data=replace(recipe.data, validation=0.0))
    assert fitted(four, without) == without
    with pytest.raises(DataError, match="a batch wants 4 classes but 3 are there for training: lower it with --set classes_per_batch=3"):
        fitted(labelled(3, 6), recipe)


def test_enough_images_of_each_class_stay_for_a_batch() -> None:
    found = divided(labelled(3, 3), "images_per_class=2", "validation=0.9")
    assert found.training.class_counts().tolist() == [2, 2, 2]
    with pytest.raises(DataError, match="lower images_per_class to 2, or keep the last model with validation=0"):
        divided(labelled(3, 3), "images_per_class=3")
    assert divided(labelled(3, 3), "images_per_class=3", "validation=0").validation is None  # the remedy that it names


def test_a_val_split_is_told_for_what_it_is() -> None:
    same = divided(labelled(2, 6, ("train", "val", "train") * 4))
    assert same.name == "the val split, of classes that were learnt from"
    others = divided(labelled(4, 2, ("train",) * 4 + ("val",) * 4))
    assert others.name == "the val split, of classes that were not learnt from"
    some = divided(labelled(4, 3, ("train",) * 3 + ("train", "val", "val") * 2 + ("val",) * 3), "images_per_class=1")
    assert some.name == "the val split, where 2 of 3 classes were learnt from"
    with pytest.raises(DataError, match="no class of the val split of there has two images"):
        divided(labelled(4, 2, ("train", "val") * 4), "images_per_class=1")


def test_a_val_split_of_one_class_is_refused_and_the_remedy_works() -> None:
    records = labelled(3, 2, ("train",) * 4 + ("val",) * 2)
    with pytest.raises(DataError, match=r"val split of there shows one class, .*set validation=0"):
        divided(records)
    assert divided(records, "validation=0").validation is None
    with pytest.raises(DataError, match="val split of there shows one class"):  # a classifier that always names it would be right
        HeldOutImages().split(labelled(2, 4, ("train",) * 4 + ("train", "train", "val", "val")), named_recipe("classify/small").data)


def painted(root: Path, records: Records) -> Records:
    for row in range(len(records)):
        file = records.file(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return replace(records, root=root)


def test_validation_measures_what_can_be_wrong_and_nothing_else(tmp_path: Path) -> None:
    records = painted(tmp_path, labelled(3, 3, root=tmp_path))
    found = divided(records)
    recipe = named_recipe("irt/small", ["backbone=vit_tiny_patch8_64", "image_px=16"])
    assert isinstance(recipe, IRTRecipe)
    encoder = Encoder(recipe.model, recipe.image)
    measure = UnseenClasses().validator(found, recipe, BadFiles())
    assert measure is not None
    assert 0 <= measure(encoder).value <= 1
    assert found.validation is not None
    for row in range(len(found.training)):
        if found.training.labels is not None and found.training.labels[row]:
            found.training.file(row).unlink()
    assert np.isnan(measure(encoder).value)  # what is left to find is of one class


def test_the_card_says_held_out_classes_only_where_they_are() -> None:
    recipe = named_recipe("irt/small", ["backbone=vit_tiny_patch8_64"])
    encoder = Encoder(recipe.model, recipe.image)
    facts = {
        "data": "photos", "images": 9, "training_classes": ["a", "b"], "validation_classes": ["a", "b"], "validation_images": 4,
        "git_revision": "", "versions": {},
    }  # fmt: skip

    def card(**more: object) -> str:
        return model_card(recipe, encoder, {**facts, **more}, best=("map@r", 2, 0.5), command="")

    assert "on the val split, of classes that were learnt from: 4 images of 2 classes" in card(
        held_out="the val split, of classes that were learnt from"
    )
    assert "held-out classes" not in card()  # of a run of an older version, which did not note it
    assert "on held-out classes: 4 images of 1 class" in card(validation_classes=["c"])


def test_the_last_model_is_kept_where_neighbours_are_asked_alone(tmp_path: Path) -> None:
    records = painted(tmp_path, labelled(2, 4, root=tmp_path))
    recipe = named_recipe("irt/small", ["backbone=vit_tiny_patch8_64", "image_px=16"])
    parts = NearestNeighbours().split(records, recipe.data)
    measure = NearestNeighbours().validator(parts, recipe, BadFiles())
    assert measure is not None
    found = measure(Encoder(recipe.model, recipe.image))
    assert not found.chooses
    assert 0 <= found.value <= 1
    assert NearestNeighbours().split(labelled(1, 8), recipe.data).validation is None, "of one class every vote is right"


def test_every_method_names_a_validation_of_the_catalog() -> None:
    for name in catalog.names("methods"):
        kind = catalog.find("methods", name)
        assert kind.learns_from == "masks" or kind.validation in catalog.names("validations")
