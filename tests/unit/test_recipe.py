from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import RecipeError
from sightline.recipe import AugmentSpec, CropSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec
from sightline.settings import difference, flatten, from_plain, full_path, override, recipe_hash, to_plain


@dataclass(frozen=True, kw_only=True)
class Ours(Recipe):
    margin: float = 0.5
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class Left:
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Both:
    left: Left = field(default_factory=Left)
    right: Left = field(default_factory=Left)


recipes = st.builds(
    Ours,
    name=st.text(max_size=10),
    margin=st.floats(-1, 1),
    model=st.builds(
        ModelSpec,
        backbone_args=st.lists(
            st.tuples(st.text(max_size=5), st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-1, 1), st.text(max_size=5))), max_size=3
        ).map(tuple),
        frozen=st.lists(st.text(max_size=5), max_size=3).map(tuple),
        pooling=st.sampled_from(["cls", "mean", "max", "gem"]),
    ),
    train=st.builds(TrainSpec, steps=st.integers(1, 10**6), lr=st.floats(1e-9, 1)),
    image=st.builds(ImageSpec, mean=st.tuples(*[st.floats(0, 1)] * 3)),
)


@given(recipes)
@settings(max_examples=30, deadline=None)
def test_a_saved_recipe_replays_as_itself(recipe: Ours) -> None:
    again = from_plain(Ours, json.loads(json.dumps(to_plain(recipe))))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert difference(recipe, again) == []


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("margin=0.6", "margin", 0.6),
        ("margin=1", "margin", 1.0),
        ("reduction=mean", "reduction", "mean"),
        ("steps=500", "train.steps", 500),
        ("train.steps=1e3", "train.steps", 1000),
        (" lr = 3e-5 ", "train.lr", 3e-5),
        ("checkpoint_gradients=TRUE", "model.checkpoint_gradients", True),
        ("backbone=timm/x=y,z", "model.backbone", "timm/x=y,z"),
        ("name=12", "name", "12"),
        ("weights=none", "model.weights", "none"),
        ("backbone_args=patch_size=8,img=a,flag=true", "model.backbone_args", (("patch_size", 8), ("img", "a"), ("flag", True))),
        ('backbone_args=[["depth", 6]]', "model.backbone_args", (("depth", 6),)),
        ('backbone_args={"depths": [1, 2]}', "model.backbone_args", (("depths", (1, 2)),)),
        ("backbone_args.depth=6", "model.backbone_args", (("depth", 6),)),
        ("model.backbone_args.global_pool=", "model.backbone_args", (("global_pool", ""),)),
        ("backbone_args.depths=[1, 2]", "model.backbone_args", (("depths", (1, 2)),)),
        ("frozen=embed", "model.frozen", ("embed",)),
        ("frozen=embed,blocks.3", "model.frozen", ("embed", "blocks.3")),
        ("frozen=[]", "model.frozen", ()),
        ("mean=[0.5, 0.5, 0]", "image.mean", (0.5, 0.5, 0.0)),
        ("mean=0.5,0.5,0", "image.mean", (0.5, 0.5, 0.0)),
    ],
)
def test_a_setting_is_parsed_by_its_field(setting: str, path: str, value: Any) -> None:
    changed = dict(flatten(override(Ours(), [setting])))
    assert changed[path] == value
    assert type(changed[path]) is type(value)
    others = dict(flatten(Ours()))
    assert {key: item for key, item in changed.items() if key != path} == {key: item for key, item in others.items() if key != path}


def test_one_argument_of_several_is_set_in_its_place() -> None:
    changed = override(Ours(), ["backbone_args=depth=6,img=a", "backbone_args.depth=4", "backbone_args.flag=true"])
    assert changed.model.backbone_args == (("depth", 4), ("img", "a"), ("flag", True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("margn=1", r"unknown recipe key 'margn'; did you mean 'margin'\?"),
        ("train.step=1", r"unknown recipe key 'train.step'; did you mean 'train.steps'\?"),
        ("learning_rate=1", "unknown recipe key 'learning_rate'; "),
        ("margin", "a setting is key=value, got 'margin'"),
        ("margin=wide", "margin must be of type float, got 'wide'"),
        ("margin=", "margin must be of type float, got ''"),
        ("margin=true", "margin must be of type float, got True"),
        ("margin=nan", "margin must be of type float, got nan"),
        ("lr=Infinity", "train.lr must be of type float, got inf"),
        ("steps=1.5", "train.steps must be of type int, got 1.5"),
        ("steps=none", "train.steps must be of type int, got None"),
        ("checkpoint_gradients=1", "model.checkpoint_gradients must be of type bool, got 1"),
        ("reduction=men", r"reduction cannot be 'men'; did you mean 'mean'\?"),
        ("mean=[0.5, 0.5]", "image.mean must be of type "),
        ("mean=0.5,x,0", "image.mean must be of type float, got 'x'"),
        ("frozen=[1]", "model.frozen must be of type str, got 1"),
        ("backbone_args=depth=6,img", "model.backbone_args must be of type tuple, got 'depth=6'"),
        ('backbone_args={"depths": ["a"]}', "model.backbone_args must be of type int, got 'a'"),
        ("backbone_args=6", "model.backbone_args must be of type tuple, got 6"),
        ("backbone_arg.depth=6", "unknown recipe key 'backbone_arg.depth'"),
        ("backbone_args.=6", r"unknown recipe key 'backbone_args.'; did you mean"),
        ("backbone_args.depth=none", "model.backbone_args.depth must be of type"),
        ("model=5", "unknown recipe key 'model'"),
        ("=5", "unknown recipe key ''"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}") as caught:
        override(Ours(), [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "steps=-1",
        "lr=0",
        "lr=-1",
        "ema=1",
        "flip=2",
        "min_area=0",
        "images_per_class=0",
        "validation=1",
        "image_px=-1",
        "resize_px=-2",
        "std=0,1,1",
        "gem_p=0",
    ],
)
def test_a_value_outside_its_range_is_refused_whoever_sets_it(setting: str) -> None:
    with pytest.raises(RecipeError):
        override(Ours(), [setting])


def test_the_last_of_two_settings_wins_and_the_recipe_given_stays_as_it_was() -> None:
    recipe = Ours()
    assert override(recipe, ["margin=0.1", "margin=0.2"]).margin == 0.2
    assert recipe == Ours()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.margin = 1.0  # type: ignore[misc]


def test_a_name_that_two_fields_have_wants_its_path() -> None:
    assert override(Both(), ["left.width=3"]) == Both(left=Left(width=3))
    with pytest.raises(RecipeError, match=r"'width' is ambiguous: write one of left\.width, right\.width"):
        override(Both(), ["width=3"])


def test_full_path_completes_the_name_of_a_leaf() -> None:
    assert full_path(Ours(), "steps") == full_path(Ours(), "train.steps") == "train.steps"


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"margins": 1.0}, r"unknown recipe key 'margins'; did you mean 'margin'\?"),
        ({"train": {"stepz": 1}}, r"unknown recipe key 'train.stepz'; did you mean 'steps'\?"),
        ({"train": 5}, "train must be a table of settings, got 5"),
        ({"train": {"steps": "5"}}, "train.steps must be of type int, got '5'"),
        ([], r"Ours must be a table of settings, got \[\]"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_one_line(plain: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        from_plain(Ours, plain)


def test_keys_that_a_file_lacks_take_their_defaults() -> None:
    assert from_plain(Ours, {"train": {"steps": 5}}) == Ours(train=TrainSpec(steps=5))


def test_the_hash_names_the_content() -> None:
    assert recipe_hash(Ours()) == recipe_hash(Ours())
    assert len(recipe_hash(Ours())) == 12
    changed = [Ours(margin=0.6), replace(Ours(), train=TrainSpec(seed=1)), replace(Ours(), model=ModelSpec(frozen=("embed",)))]
    assert len({recipe_hash(recipe) for recipe in [Ours(), *changed]}) == 4


def test_difference_lists_what_changed_in_order() -> None:
    new = override(Ours(), ["steps=5", "margin=0.6"])
    assert difference(Ours(), new) == [("train.steps", 2_000, 5), ("margin", 0.5, 0.6)]


def test_the_resized_length_follows_the_input_unless_given() -> None:
    assert ImageSpec().resized_px == 256
    assert ImageSpec(resize_px=224).resized_px == 224
    with pytest.raises(RecipeError, match="resize_px at least image_px"):
        ImageSpec(image_px=224, resize_px=200)


def test_a_batch_is_p_times_k() -> None:
    assert DataSpec(classes_per_batch=5, images_per_class=7).batch == 35
    assert AugmentSpec().flip == 0.5


@dataclass(frozen=True, kw_only=True)
class Cropping(Recipe):
    crops: CropSpec = field(default_factory=CropSpec)


def test_crops_are_set_by_short_names_that_no_other_field_has() -> None:
    for item in dataclasses.fields(CropSpec):
        assert full_path(Cropping(), item.name) == f"crops.{item.name}"
    moby = override(Cropping(), ["crop_px=64", "num_crops=2", "crop_min_area=0.08", "crop_max_area=1", "crop_jitter=0.4,0.4,0.2,0.1"])
    assert moby.crops == CropSpec(crop_px=(64,), num_crops=(2,), crop_min_area=(0.08,), crop_max_area=(1.0,))
    assert from_plain(Cropping, to_plain(moby)) == moby


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_crops": (2,)}, "one value for each size of crops"),
        ({"crop_px": (), "num_crops": (), "crop_min_area": (), "crop_max_area": ()}, "one value for each size of crops"),
        ({"num_crops": (2, 0)}, "crop_px and num_crops must be positive"),
        ({"crop_px": (0, 96)}, "crop_px and num_crops must be positive"),
        ({"crop_min_area": (0.4, 0.5)}, "shares of an image, from and to"),
        ({"crop_max_area": (1.0, 1.1)}, "shares of an image, from and to"),
        ({"crop_min_area": (0.4, 0.0)}, "shares of an image, from and to"),
        ({"crop_flip": 1.5}, "are probabilities"),
        ({"crop_blur": (1.0, -0.1, 0.5)}, "are probabilities"),
        ({"crop_jitter": (0.4, 0.4, 0.2, 0.6)}, "hue, at most 0.5"),
    ],
)
def test_crops_that_cannot_be_made_are_told_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        CropSpec(**wrong)
    assert "\n" not in str(caught.value)
