"""A weights file is a model, whatever wraps it and whoever laid it out; what cannot be used is said, with a remedy that works."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.vision_transformer import VisionTransformer

import sightline
from sightline import runtime
from sightline.cli.main import main
from sightline.errors import ModelError, UsageError
from sightline.nn import model_folder, sources, which_backbone
from sightline.nn.checkpoints import load_weights
from sightline.nn.own_input import resolved
from sightline.recipe import IMAGENET_MEAN, ImageSpec, ModelSpec
from sightline.workflows import training

VIT, CONV = "vit_tiny_patch16_224", "mobilenetv3_small_050"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
TINY_SETTINGS = "backbone=vit_tiny_patch16_224,image_px=32,backbone_args.patch_size=8,backbone_args.embed_dim=16,backbone_args.depth=2,backbone_args.num_heads=2"
HALF = (0.5, 0.5, 0.5)

Weights = dict[str, torch.Tensor]


def network(name: str = VIT, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, **({"num_classes": 0} | arguments)).eval()


def answers(net: Any, px: int = 32) -> torch.Tensor:
    with torch.inference_mode():
        features: torch.Tensor = net.forward_features(torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1)))
    return features


def photos(folder: Path, num_classes: int = 2) -> Path:
    for label in range(num_classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(10 * label + number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number}.png")
    return folder


# --- a file as a model ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_called_as_its_network_is_a_model_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net = network(CONV)
    file, images = tmp_path / f"{CONV}.safetensors", str(photos(tmp_path / "photos"))
    save_file(net.state_dict(), file)
    encoder = sightline.load(file)
    assert (encoder.model.backbone, encoder.model.pooling, encoder.image.image_px) == (CONV, "mean", 224)
    assert f"{CONV}, images enter at 224 x 224 px after the short side at 256 (bicubic), mean 0.485 0.456 0.406" in caplog.text
    assert torch.equal(answers(encoder.backbone.net, 64), answers(net, 64))

    def run(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    model = f"{file}@64"
    assert run("evaluate", model, "--data", images)["fingerprint"]
    assert run("embed", model, "--images", images, "--out", str(tmp_path / "v.npy"))["dim"] == encoder.dim
    assert run("index", str(tmp_path / "i"), "--model", model, "--images", images)["update"]["images"] == 6
    query = str(tmp_path / "photos" / "c0" / "1.png")
    found = run("search", str(tmp_path / "i"), "--image", query)  # the index remembers how to load it
    assert found["queries"][0]["hits"][0]["path"].endswith("c0/1.png")
    reduced = run("reduce", f"{model},pooling=gem", "--data", images, "--pca", "2", "--out", str(tmp_path / "reduced"))
    assert (reduced["pooling"], reduced["dim"]) == ("gem", 2)


def test_an_index_finds_its_file_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.lasting("w.pth@96,backbone=a,pooling=gem") == f"{tmp_path / 'w.pth'},image_px=96,backbone=a,pooling=gem"
    assert sources.lasting("timm:a@96") == "timm:a@96"
    assert sources.lasting("there") == str(tmp_path / "there")


def test_a_file_that_does_not_tell_its_network_names_the_one_that_fits_and_then_loads(tmp_path: Path) -> None:
    save_file(network(VIT).state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(ModelError, match="does not tell of which network") as caught:
        sightline.load(tmp_path / "mine.safetensors")
    name = str(caught.value).partition("--backbone ")[2].split()[0]
    assert sightline.load(tmp_path / "mine.safetensors", backbone=f"{name}@64").image == resolved(
        ImageSpec.of_backbone(image_px=64), ModelSpec(backbone=VIT, weights="hub")
    )
    assert (
        main(
            [
                "embed",
                str(tmp_path / "mine.safetensors"),
                "--backbone",
                name,
                "--images",
                str(photos(tmp_path / "p")),
                "--out",
                str(tmp_path / "v.npy"),
            ]
        )
        == 0
    )


def test_a_recipe_of_another_network_is_told_the_one_that_fits_and_then_trains(tmp_path: Path) -> None:
    save_file(network(VIT).state_dict(), tmp_path / "mine.safetensors")
    settings = [
        f"weights={tmp_path / 'mine.safetensors'}",
        "steps=0",
        "validation=0",
        "classes_per_batch=2",
        "images_per_class=2",
        "image_px=64",
    ]
    images = photos(tmp_path / "photos")
    with pytest.raises(ModelError, match="they fit backbone=") as caught:
        training.train(training.named_recipe("irt/folder", settings), images, tmp_path / "run")
    advice = str(caught.value).partition("they fit ")[2].split()[0]
    training.train(training.named_recipe("irt/folder", [*settings, advice, "resize_px=-1"]), images, tmp_path / "run")
    assert sightline.load(tmp_path / "run").model.backbone == VIT


def test_backbone_auto_takes_the_network_of_a_weights_file(tmp_path: Path) -> None:
    save_file(network(CONV).state_dict(), tmp_path / f"{CONV}.safetensors")
    recipe = training.named_recipe("irt/folder", ["backbone=auto", f"weights={tmp_path / CONV}.safetensors", "pooling=mean"])
    assert training.resolved(recipe).model == replace(recipe.model, backbone=CONV)


def test_half_precision_is_read_and_integers_are_refused(tmp_path: Path) -> None:
    net = network(**TINY)
    half = {name: value.half() for name, value in net.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    load_weights(net, tmp_path / "half.safetensors")
    assert all(value.dtype == torch.float32 and torch.equal(value, half[name].float()) for name, value in net.state_dict().items())
    save_file({name: (100 * value).to(torch.int8) for name, value in half.items()}, tmp_path / "int8.safetensors")
    with pytest.raises(ModelError, match="as int8, quantised"):
        load_weights(net, tmp_path / "int8.safetensors")


@pytest.mark.parametrize(
    ("source", "backbone", "kind", "name", "settings"),
    [
        ("runs/mine", "", "folder", "runs/mine", ()),
        ("timm:a.b@96", "", "timm", "a.b", ("image_px=96",)),
        ("random:a,pooling=gem,scales=1,0.7,0.5", "", "random", "a", ("pooling=gem", "scales=1,0.7,0.5")),
        ("w.pth", "a@96", "file", "w.pth", ("backbone=a", "image_px=96")),
        ("w.pth@96,pooling=gem", "a", "file", "w.pth", ("image_px=96", "pooling=gem", "backbone=a")),
        ("x,y=1.pth,pooling=gem", "", "file", "x,y=1.pth", ("pooling=gem",)),
        ("a@96.pth", "", "file", "a@96.pth", ()),
        ("run@96", "", "folder", "run@96", ()),
    ],
)
def test_a_models_name_comes_apart(
    source: str, backbone: str, kind: str, name: str, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run@96").mkdir()
    for file in ("w.pth", "x,y=1.pth", "a@96.pth"):
        (tmp_path / file).write_bytes(b"")
    parts = sources.parse(source, backbone)
    assert (parts.kind, parts.name, parts.settings) == (kind, name, settings)
    assert sources.parse(str(parts)) == parts


def test_settings_of_a_folder_and_of_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go with a weights file"):
        sightline.load(tmp_path, backbone=VIT)
    with pytest.raises(UsageError, match=r"there is no file 'nowhere\.pth'"):
        sightline.load("nowhere.pth", backbone=VIT)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ModelError, match=r"is no weights file: one ends in .safetensors"):
        sightline.load(tmp_path / "notes.txt")


def test_a_pooling_that_is_asked_for_is_not_exchanged_for_another() -> None:
    assert sightline.load("random:resnet10t@32", device="cpu").model.pooling == "mean"
    with pytest.raises(ModelError, match="has no class token"):
        sightline.load("random:resnet10t@32,pooling=cls")


def test_a_model_goes_where_the_commands_put_it_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "device", lambda name="auto": torch.device("meta" if name == "auto" else name))
    name = f"random:{VIT}@32,backbone_args.depth=1"
    assert sightline.load(name).device.type == "meta"
    assert sightline.load(name, device="cpu").device.type == "cpu"


# --- wrappers -------------------------------------------------------------------------------------------------------------------


def under(*prefixes: str) -> Callable[[Weights, Weights], dict[str, Any]]:
    """Names behind prefixes: the right weights behind the first, others behind the rest."""

    def wrap(right: Weights, wrong: Weights) -> dict[str, Any]:
        sets = [right, *([wrong] * (len(prefixes) - 1))]
        return {prefix + name: value for prefix, held in zip(prefixes, sets, strict=True) for name, value in held.items()}

    return wrap


WRAPPED: dict[str, Callable[[Weights, Weights], dict[str, Any]]] = {
    "plain": under(""),
    "compiled": under("_orig_mod."),
    "compiled and parallel": under("module._orig_mod."),
    "parallel and compiled": under("_orig_mod.module."),
    "model": under("model."),
    "backbone": under("backbone."),
    "model of a compiled backbone": under("model.backbone._orig_mod."),
    "teacher and student": under("teacher.backbone.", "student.backbone."),
    "student alone": under("student."),
    "average behind a name": under("model_ema.module.", "model."),
    "MoCo v3": under("module.base_encoder.", "module.momentum_encoder."),
    "MoCo": under("module.encoder_q.", "module.encoder_k."),
    "lightning": lambda right, wrong: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": under("model.")(right, wrong) | {"criterion.proxies": torch.zeros(4, 16), "model.head.weight": torch.zeros(3, 16)},
        "optimizer_states": [{"state": {}}],
    },
    "tar": lambda right, wrong: {"arch": "vit", "state_dict": under("module.")(right, wrong), "best_acc1": 71.0},
    "timm with an average": lambda right, wrong: {"state_dict": wrong, "state_dict_ema": right, "args": {"lr": 0.1}},
    "DeiT with an average": lambda right, wrong: {"model": wrong, "model_ema": right, "epoch": 3},
    "teacher of a run": lambda right, wrong: {
        "student": under("module.backbone.")(wrong, wrong),
        "teacher": under("backbone.")(right, wrong),
    },
}


@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_file_gives_its_weights_and_averages_first(
    how: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = network(seed=1, **TINY), network(seed=2, **TINY)
    torch.save(WRAPPED[how](right.state_dict(), wrong.state_dict()), tmp_path / f"w{ending}")
    net = network(seed=3, **TINY)
    left_out = load_weights(net, tmp_path / f"w{ending}")
    assert torch.equal(answers(net), answers(right))
    if how == "lightning":
        assert sorted(left_out) == ["beside.criterion.proxies", "head.weight"]
    is_chosen = any(word in how for word in ("average", "teacher"))
    assert (": took " in caplog.text) == is_chosen


def test_what_is_left_out_is_told_by_its_part_where_there_is_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = under("visual.trunk.")(network(**TINY).state_dict(), {})
    weights |= {f"text.transformer.{number}.weight": torch.zeros(2) for number in range(9)} | {"logit_scale": torch.zeros(1)}
    torch.save(weights, tmp_path / "open_clip.pth")
    with caplog.at_level(logging.WARNING):
        sightline.load(f"{tmp_path / 'open_clip.pth'},{TINY_SETTINGS}")
    assert "left out logit_scale, text (9 weights)" in caplog.text


def test_weights_over_several_files_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    net = network(seed=1, **TINY)
    names = list(net.state_dict())
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: net.state_dict()[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        other = network(seed=2, **TINY)
        load_weights(other, source)
        assert torch.equal(answers(other), answers(net))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors' is not a readable safetensors file .*: get it again"):
        load_weights(net, tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'model-00002-of-00002\.safetensors' is missing beside"):
        load_weights(net, tmp_path)


# --- other layouts --------------------------------------------------------------------------------------------------------------


def torchvision_vit() -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64, num_classes=3).eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return made


def test_a_vit_of_torchvision_answers_as_there_and_is_given_images_as_there(tmp_path: Path) -> None:
    theirs, net = torchvision_vit(), network(**TINY)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    assert sorted(load_weights(net, tmp_path / "vit.pth")) == ["head.bias", "head.weight"]
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = torch.cat([theirs.class_token.expand(2, -1, -1), theirs._process_input(images)], dim=1)
        torch.testing.assert_close(net.forward_features(images), theirs.encoder(tokens), atol=1e-5, rtol=1e-5)
    model = ModelSpec(backbone=VIT, weights=str(tmp_path / "vit.pth"))
    assert resolved(ImageSpec.of_backbone(), model).mean == IMAGENET_MEAN


def test_a_resnet_of_torchvision_has_timms_names(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "resnet18-0123abcd.pth")
    assert which_backbone.told(tmp_path / "resnet18-0123abcd.pth") == "resnet18"
    assert load_weights(network("resnet18"), tmp_path / "resnet18-0123abcd.pth") == ["fc.weight", "fc.bias"]


def test_the_visual_tower_of_openais_clip_is_read_and_its_network_named(tmp_path: Path) -> None:
    tiny = TINY | {"embed_dim": 32}
    net = network("vit_base_patch32_clip_quickgelu_224", seed=1, **tiny)
    theirs = {f"visual.{openai_name(name)}": value for name, value in net.state_dict().items()}
    theirs["visual.class_embedding"] = theirs["visual.class_embedding"].reshape(-1)
    theirs["visual.positional_embedding"] = theirs["visual.positional_embedding"][0]
    text = {"positional_embedding": torch.zeros(8, 16), "ln_final.weight": torch.zeros(16), "token_embedding.weight": torch.zeros(9, 16)}
    torch.save(theirs | text | {"visual.proj": torch.zeros(32, 16), "logit_scale": torch.zeros([])}, tmp_path / "clip.pt")
    other = network("vit_base_patch32_clip_quickgelu_224", seed=2, **tiny)
    left_out = load_weights(other, tmp_path / "clip.pt")
    assert {"logit_scale", "beside.ln_final.weight", "head.weight"} <= set(left_out)
    assert torch.equal(answers(other), answers(net))


def openai_name(name: str) -> str:
    pairs = (("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding"), ("norm_pre", "ln_pre"))
    pairs += (("blocks.", "transformer.resblocks."), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"))
    pairs += (("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."))
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch16_384",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch32_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_siglip_gap_224",
        "vit_huge_patch14_gap_224",
    ],
)
def test_the_network_is_known_by_its_weights(name: str) -> None:
    with torch.device("meta"):
        own = timm.create_model(name, num_classes=0).state_dict()
    assert which_backbone.fitting(own)[0] == name
    del own["blocks.5.attn.proj.weight"], own["blocks.11.norm1.weight"]
    assert which_backbone.fitting({key: value for key, value in own.items() if not key.startswith("blocks.11.")}) == []


def test_a_folder_of_transformers_tells_its_network_and_its_input(tmp_path: Path) -> None:
    net = network("deit_small_patch16_224", depth=12)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deit", "hidden_size": 384}))
    processor = {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(processor | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]})
    )
    for source in (tmp_path, tmp_path / "model.safetensors"):
        encoder = sightline.load(source)
        assert encoder.model.backbone == "deit_small_patch16_224"
        assert encoder.image == ImageSpec(
            image_px=224, resize="square", resize_px=0, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=HALF
        )


def test_siglip_is_pooled_as_it_was_trained(tmp_path: Path) -> None:
    net = network("vit_base_patch16_siglip_224", **TINY)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    encoder = sightline.load(f"{tmp_path / 'w.safetensors'},{TINY_SETTINGS.replace(VIT, 'vit_base_patch16_siglip_224')}")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), torch.nn.functional.normalize(net(images), dim=1))
    assert encoder.model.pooling == "map"
    model_folder.save(encoder, tmp_path / "model")
    np.testing.assert_array_equal(sightline.load(tmp_path / "model").embed_batch(images), encoder.embed_batch(images))
    with pytest.raises(ModelError, match="was not trained with an attention pooling for pooling=map"):
        sightline.load(f"random:{VIT}@32,pooling=map,backbone_args.depth=1")


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"size": 224, "resample": 2}, ImageSpec(image_px=224, resize="square", resize_px=224, interpolation="bilinear")),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}, ImageSpec(image_px=224)),
        ({"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True}, ImageSpec(image_px=224, resize_px=224)),
        ({"size": 224, "crop_size": 224, "do_center_crop": True}, ImageSpec(image_px=224, resize_px=224)),
    ],
)
def test_image_processors_are_read(told: dict[str, Any], wanted: ImageSpec, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    assert resolved(ImageSpec.of_backbone(), ModelSpec(backbone=VIT, weights=str(tmp_path))) == wanted


def test_a_folder_as_timm_uploads_it_tells_its_network_and_its_input(tmp_path: Path) -> None:
    save_file(network(CONV).state_dict(), tmp_path / "model.safetensors")
    own = {"tag": "mine", "mean": [0.1, 0.2, 0.3], "crop_pct": 1.0, "input_size": [3, 64, 64]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": CONV, "num_classes": 3, "pretrained_cfg": own}))
    encoder = sightline.load(tmp_path)
    assert encoder.model.backbone == CONV
    assert (encoder.image.image_px, encoder.image.resized_px, encoder.image.mean) == (64, 64, (0.1, 0.2, 0.3))


def test_a_config_of_another_file_in_the_folder_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": CONV}))
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert which_backbone.told(tmp_path / "w.safetensors") == ""


def test_layouts_that_are_not_read_are_named_for_what_they_are(tmp_path: Path) -> None:
    others = {
        "transformers": {
            "convnext.embeddings.patch_embeddings.weight": torch.zeros(4, 3, 4, 4),
            "encoder.stages.0.layers.0.dwconv.weight": torch.zeros(4),
        },
        "torchvision": {
            "features.0.0.weight": torch.zeros(4, 3, 4, 4),
            "features.1.0.block.0.weight": torch.zeros(4),
            "classifier.2.bias": torch.zeros(2),
        },
    }
    for whose, weights in others.items():
        torch.save(weights, tmp_path / "w.pth")
        for backbone in ("", "convnext_tiny"):
            with pytest.raises(
                ModelError, match=f"names (are )?of {whose.split()[0].rstrip(chr(39))}, of which .* are read: take timm's own file"
            ):
                sightline.load(tmp_path / "w.pth", backbone=backbone)


# --- a folder in place of the hub -----------------------------------------------------------------------------------------------


def test_a_folder_stands_in_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(CONV, seed=5)
    save_file(net.state_dict(), tmp_path / f"{CONV}.safetensors")
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path))
    for weights in (f"timm:{CONV}@64", f"timm:{CONV}.lamb_in1k@64"):  # with its own tag too
        assert torch.equal(answers(sightline.load(weights).backbone.net, 64), answers(net, 64))
    images = photos(tmp_path / "photos")
    settings = ["weights=auto", f"backbone={CONV}", "pooling=mean", "image_px=64", "steps=0", "validation=0", "classes_per_batch=2"]
    training.train(training.named_recipe("irt/folder", [*settings, "resize_px=-1", "images_per_class=2"]), images, tmp_path / "run")
    assert torch.equal(answers(sightline.load(tmp_path / "run").backbone.net, 64), answers(net, 64))


def test_another_tags_weights_are_not_taken_and_no_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{VIT}.safetensors").write_bytes(b"")
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path))
    assert which_backbone.local_weights(VIT) == tmp_path / f"{VIT}.safetensors"
    assert which_backbone.local_weights(f"{VIT}.augreg_in21k") is None
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"SIGHTLINE_WEIGHTS is '.*nowhere', which is no folder"):
        which_backbone.local_weights(VIT)


def test_without_a_network_the_advice_for_a_model_is_of_commands_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(photos(tmp_path / "photos"))
    assert main(["evaluate", f"timm:{CONV}", "--data", images]) == 2
    advice = capsys.readouterr().err
    assert "--set" not in advice
    save_file(network(CONV).state_dict(), tmp_path / f"{CONV}.safetensors")
    for words in (
        f"FILE.safetensors with --backbone {CONV}",
        f"put {CONV}.safetensors into a folder and set SIGHTLINE_WEIGHTS",
        f"random:{CONV}",
    ):
        assert words in advice
    (tmp_path / f"{CONV}.safetensors").rename(tmp_path / "FILE.safetensors")
    assert main(["evaluate", str(tmp_path / "FILE.safetensors"), "--backbone", f"{CONV}@64", "--data", images]) == 0
    (tmp_path / "FILE.safetensors").rename(tmp_path / f"{CONV}.safetensors")
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path))
    assert main(["evaluate", f"timm:{CONV}@64", "--data", images]) == 0
