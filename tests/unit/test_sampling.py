"""Samplings: a setting of another one is refused, and recipes saved before they had names mean what they did."""

from __future__ import annotations

import numpy as np
import pytest

from sightline import catalog
from sightline.contracts import IntArray
from sightline.data.images import BadFiles
from sightline.data.records import Records, of_labels
from sightline.data.samplers import ClassBalanced, Sampling, Shuffle
from sightline.errors import DataError, RecipeError
from sightline.recipe import DataSpec
from sightline.settings import from_plain, override, to_plain


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        (
            "irt/folder",
            "images_per_batch=8",
            r"data\.images_per_batch has no effect under data\.sampling=pk: set sampling=shuffle or class-balanced",
        ),
        ("irt/folder", "tuples_per_batch=8", r"data\.tuples_per_batch has no effect under data\.sampling=pk: set sampling=tuples too"),
        ("irt/tuples", "images_per_class=2", r"has no effect under data\.sampling=tuples: set sampling=pk too"),
        ("classify/small", "negatives=2", r"has no effect under data\.sampling=shuffle: set sampling=tuples too"),
    ],
)
def test_a_setting_of_another_sampling_is_refused_and_the_remedy_works(recipe: str, setting: str, message: str) -> None:
    named = catalog.find("recipes", recipe)()
    with pytest.raises(RecipeError, match=message):
        override(named, [setting])
    sampling = message.partition("set sampling=")[2].partition(" ")[0]
    key, _, value = setting.partition("=")
    if recipe.startswith("irt"):
        changed = override(named, [f"sampling={sampling}", setting, "memory=0", "margin=0.5"])
        assert (changed.data.sampling, getattr(changed.data, key)) == (sampling, int(value))


def test_a_plug_ins_sampling_may_use_any_setting() -> None:
    changed = override(catalog.find("recipes", "irt/folder")(), ["sampling=mine", "images_per_batch=8", "negatives=2"])
    assert (changed.data.sampling, changed.data.batch) == ("mine", 8)


@pytest.mark.parametrize(
    ("before", "sampling", "batch"),
    [
        ({"classes_per_batch": 3, "images_per_class": 2, "tuples_per_batch": 0, "images_per_batch": 0}, "pk", 6),
        ({"classes_per_batch": 3, "images_per_class": 2, "tuples_per_batch": 4, "images_per_batch": 0, "negatives": 1}, "tuples", 12),
        ({"classes_per_batch": 3, "images_per_class": 2, "tuples_per_batch": 4, "images_per_batch": 7}, "shuffle", 7),
    ],
)
def test_a_recipe_saved_before_samplings_had_names(before: dict[str, int], sampling: str, batch: int) -> None:
    found = from_plain(DataSpec, before)
    assert (found.sampling, found.batch) == (sampling, batch)
    assert from_plain(DataSpec, to_plain(found)) == found


def drawn(sampling: Sampling, labels: IntArray, *settings: str) -> IntArray:
    recipe = override(catalog.find("recipes", "classify/small")(), ["images_per_batch=6", *settings])
    sampler = sampling.sampler(of_labels(labels), recipe, BadFiles())
    return np.concatenate([sampler.batch(step) for step in range(200)])


def test_class_balanced_takes_every_class_equally_often_and_shuffle_every_image() -> None:
    labels = np.array([0] * 9 + [1] * 2 + [2])
    balanced = drawn(ClassBalanced(), labels, "sampling=class-balanced")
    assert np.bincount(labels[balanced]).tolist() == [400, 400, 400]
    assert np.bincount(drawn(Shuffle(), labels)).tolist() == [100] * 12


def test_class_balanced_needs_classes() -> None:
    recipe = override(catalog.find("recipes", "classify/small")(), ["sampling=class-balanced"])
    with pytest.raises(DataError, match="has no labels, and sampling=class-balanced goes by class: take sampling=shuffle"):
        ClassBalanced().sampler(Records(of_labels(np.zeros(2)).root, ("a", "b")), recipe, BadFiles())
