"""What a training will take, told before its first step: the arithmetic, who is told, and that asking leaves no trace."""

from __future__ import annotations

import pytest
import torch

from sightline import catalog
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.settings import override
from sightline.workflows import expecting
from sightline.workflows.training import named_recipe

CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    spec = ModelSpec(backbone="mobilenetv2_035", weights="random", pooling="mean", drop_path=0.1)
    return Encoder(spec, ImageSpec(image_px=32)).train()


def test_a_step_is_its_images_and_of_crops_the_teachers_too(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expecting, "seconds_an_image", lambda encoder, px: px / 1_000)
    folder = named_recipe("irt/folder", ["accumulate=2"])
    assert expecting.expected_s(encoder, folder, 10) == pytest.approx(10 * 2 * 64 * 0.224)
    crops = override(catalog.find("recipes", "selfpatch/small")(), ["images_per_batch=8", "crop_px=64,32", "num_crops=2,4"])
    assert expecting.expected_s(encoder, crops, 1) == pytest.approx(8 * (2 * 0.064 + 4 * 0.032 + 2 * 0.064 / 3))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "irt/folder",
            "2,000 steps of 64 images take about 35.6 h on this processor: irt/small is made for a machine without a GPU; fewer steps",
        ),
        ("irt/small", "on this processor: fewer steps, or a smaller image_px, take less"),
        ("irt/sfm120k-224", "irt/tuples is made for"),
        ("classify/imagenet-s16", "classify/small is made for"),
        ("moby/vit-imagenet", "moby/small is made for"),
    ],
)
def test_a_long_training_is_told_with_what_to_take_instead(
    name: str, said: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expecting, "seconds_an_image", lambda encoder, px: 1.0)
    recipe = catalog.find("recipes", name)()
    assert expecting.foretell(encoder, recipe, recipe.train.steps, CPU) is not None
    assert said in caplog.text
    for small in ("irt/small", "irt/tuples", "classify/small", "moby/small"):
        catalog.find("recipes", small)  # what is named is there


def test_a_short_training_and_a_device_are_not_told(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expecting, "seconds_an_image", lambda encoder, px: 1e-6)
    recipe = catalog.find("recipes", "irt/folder")()
    assert expecting.foretell(encoder, recipe, 10, CPU) == pytest.approx(64e-5)
    assert expecting.foretell(encoder, recipe, 10, torch.device("meta")) is None
    assert expecting.foretell(encoder, recipe, 0, CPU) is None
    assert not caplog.text


def test_asking_leaves_no_trace(encoder: Encoder) -> None:
    before, random = {name: value.clone() for name, value in encoder.state_dict().items()}, torch.get_rng_state()
    assert expecting.seconds_an_image(encoder, 32) > 0
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert encoder.training
