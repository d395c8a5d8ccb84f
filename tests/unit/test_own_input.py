"""Images enter a backbone as its own weights were trained, unless a recipe says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from sightline.data.transforms import eval_transform
from sightline.errors import ModelError
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.nn.own_input import resolved
from sightline.recipe import IMAGENET_MEAN, IMAGENET_STD, ImageSpec, ModelSpec, Recipe
from sightline.settings import from_plain, override, to_plain
from sightline.workflows import run_folder, training

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY = (("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2))

OWN = {  # name: image_px, the resized side, interpolation, mean, std
    "vit_tiny_patch16_224": (224, 248, "bicubic", HALF, HALF),
    "vit_small_patch16_224": (224, 248, "bicubic", HALF, HALF),
    "vit_base_patch16_224": (224, 248, "bicubic", HALF, HALF),
    "vit_small_patch16_224.dino": (224, 248, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "deit_small_patch16_224": (224, 248, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "vit_small_patch14_dinov2": (518, 518, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "vit_small_patch16_dinov3": (256, 256, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "vit_base_patch16_siglip_224": (224, 248, "bicubic", HALF, HALF),
    "vit_base_patch32_clip_224": (224, 248, "bicubic", CLIP_MEAN, CLIP_STD),
    "tf_efficientnet_lite0": (224, 256, "bicubic", HALF, HALF),
    "tf_efficientnet_b0": (224, 256, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "mobilenetv2_100": (224, 256, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "resnet18.tv_in1k": (224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
    "convnext_tiny": (224, 235, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "swin_tiny_patch4_window7_224": (224, 248, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
}


def _values(image: ImageSpec) -> tuple[Any, ...]:
    return image.image_px, image.resized_px, image.interpolation, image.mean, image.std


@pytest.mark.parametrize("weights", ["hub", "auto", "some/file.safetensors"])
@pytest.mark.parametrize("name", OWN)
def test_the_input_of_a_backbone_is_that_of_its_own_weights(name: str, weights: str) -> None:
    assert _values(resolved(ImageSpec.of_backbone(), ModelSpec(backbone=name, weights=weights))) == OWN[name]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_small_patch16_224", "resnet18.tv_in1k", "coat_lite_medium_384.in1k"])
def test_images_enter_as_timm_itself_would_give_them(name: str) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize(
        (500, 400), Image.Resampling.BICUBIC
    )
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    theirs = create_transform(**resolve_model_data_config(net), is_training=False)(photo)
    ours = eval_transform(resolved(ImageSpec.of_backbone(), ModelSpec(backbone=name, weights="hub")))(photo)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.05  # PIL resizes within a level or two of 255 of a tensor's resize


def test_a_value_that_is_set_wins_and_the_others_still_come_from_the_backbone() -> None:
    model = ModelSpec(backbone="vit_small_patch16_224", weights="hub")
    left = resolved(ImageSpec.of_backbone(image_px=224, resize_px=256), model)
    assert _values(left) == (224, 256, "bicubic", HALF, HALF)
    given = resolved(replace(ImageSpec.of_backbone(), std=(0.1, 0.2, 0.3), interpolation="bilinear", image_px=112), model)
    assert _values(given) == (112, 124, "bilinear", HALF, (0.1, 0.2, 0.3))
    assert resolved(ImageSpec(), model) == ImageSpec()  # all of them set: recipes and models of before


def test_settings_go_back_to_the_backbone_by_name() -> None:
    changed = override(
        Recipe(image=ImageSpec()), ["mean=backbone", "std=0.1,0.2,0.3", "interpolation=backbone", "resize_px=-1", "image_px=0"]
    )
    assert changed.image == replace(ImageSpec(), mean="backbone", std=(0.1, 0.2, 0.3), interpolation="backbone", resize_px=-1, image_px=0)
    assert from_plain(Recipe, to_plain(changed)) == changed


def test_another_side_keeps_the_share_of_the_crop() -> None:
    assert ImageSpec(image_px=224, resize_px=248).at(112) == ImageSpec(image_px=112, resize_px=124)
    assert ImageSpec(image_px=224, resize="square", resize_px=224).at(64).resized_px == 64
    assert ImageSpec(image_px=224).at(64) == ImageSpec(image_px=64)


def test_a_start_from_random_weights_is_given_images_as_before() -> None:
    image = resolved(ImageSpec.of_backbone(image_px=64), ModelSpec(backbone="vit_small_patch16_224", weights="random"))
    assert image == ImageSpec(image_px=64)
    assert model_folder.load("random:vit_tiny_patch16_224@64").image == ImageSpec(image_px=64, mean=HALF, std=HALF)


def test_the_weights_of_a_model_folder_bring_its_input_along(tmp_path: Path) -> None:
    model = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=TINY, weights="random")
    image = ImageSpec(image_px=32, resize_px=40, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model_folder.save(Encoder(model, image), tmp_path / "model")
    reused = resolved(ImageSpec.of_backbone(), replace(model, weights=str(tmp_path / "model")))
    assert reused == image
    assert resolved(ImageSpec.of_backbone(image_px=64), replace(model, weights=str(tmp_path / "model"))).resized_px == 80


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"size": {"height": 96, "width": 96}, "crop_size": None, "do_center_crop": None, "resample": 2}, (96, 96, "bilinear")),  # DINOv3
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}, (56, 64, "bicubic")),  # CLIP
    ],
)
def test_what_transformers_leaves_null_is_its_default(told: dict[str, Any], wanted: tuple[Any, ...], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "image_mean": HALF, "image_std": None}))
    found = resolved(ImageSpec.of_backbone(), ModelSpec(backbone="vit_tiny_patch16_224", weights=str(tmp_path)))
    assert (found.image_px, found.resized_px, found.interpolation) == wanted
    assert (found.mean, found.std) == (HALF, IMAGENET_STD)


def test_a_folder_that_tells_no_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "sightline-model"}')
    with pytest.raises(ModelError, match="does not tell how images enter"):
        resolved(ImageSpec.of_backbone(), ModelSpec(weights=str(tmp_path)))


def test_a_weights_file_is_trained_and_saved_with_its_backbones_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **dict(TINY))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    args = ",".join(f"{key}={value}" for key, value in TINY)
    settings = [
        f"weights={tmp_path / 'w.safetensors'}",
        "backbone=vit_tiny_patch16_224",
        f"backbone_args={args}",
        "image_px=32",
        "resize_px=-1",
    ]
    recipe = training.named_recipe("irt/folder", [*settings, "steps=0", "validation=0", "classes_per_batch=2"])
    training.train(recipe, tmp_path / "photos", tmp_path / "run")
    assert "images enter at 32 x 32 px after the short side at 35 (bicubic), mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in caplog.text
    assert model_folder.load(tmp_path / "run").image == ImageSpec(image_px=32, resize_px=35, mean=HALF, std=HALF)
    saved = run_folder.saved_recipe(tmp_path / "run")
    assert saved.image == ImageSpec(image_px=32, resize_px=35, mean=HALF, std=HALF)  # so that a replay means what it meant
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "images enter at 32 x 32 px after the short side at 35 (bicubic), mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in card


def test_a_transform_refuses_settings_that_nobody_has_filled() -> None:
    with pytest.raises(ModelError, match="leave values to the backbone"):
        eval_transform(ImageSpec.of_backbone(image_px=32))


def test_a_file_whose_name_speaks_of_other_weights_of_the_backbone_is_told_and_the_advice_works(caplog: pytest.LogCaptureFixture) -> None:
    model = ModelSpec(backbone="vit_small_patch16_224", weights="dino_deitsmall16_pretrain.pth")
    assert resolved(ImageSpec.of_backbone(), model).mean == HALF
    advised = caplog.messages[0].partition("backbone=")[2].split()[0]
    caplog.clear()
    assert resolved(ImageSpec.of_backbone(), replace(model, backbone=advised)).mean == IMAGENET_MEAN
    resolved(ImageSpec.of_backbone(), replace(model, weights="my_own.pth"))
    assert not caplog.messages


@pytest.mark.parametrize("ending", ["pth", "bin"])
def test_a_whole_run_of_dino_is_given_imagenets_colours_whatever_the_backbone_is_called(ending: str, tmp_path: Path) -> None:
    model = ModelSpec(backbone="vit_small_patch16_224", weights=str(tmp_path / f"checkpoint.{ending}"))
    torch.save({"student": {"backbone.a": torch.zeros(1)}, "teacher": {"backbone.a": torch.zeros(1)}, "epoch": 3}, model.weights)
    assert resolved(ImageSpec.of_backbone(), model).mean == IMAGENET_MEAN
    torch.save({"backbone.a": torch.zeros(1)}, model.weights)
    assert resolved(ImageSpec.of_backbone(), model).mean == HALF
