"""Weights in the public layouts: each file is made here from random weights and has to give the network's own answers back."""

from __future__ import annotations

import argparse
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sightline.errors import ModelError
from sightline.nn import backbone as backbones
from sightline.nn import model_folder
from sightline.nn.checkpoints import load_weights, read_weights
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

VIT = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
HYBRID, RESNET = "vit_tiny_r14_s8_64", "resnetv2_50half_bit_64"

Arrays = dict[str, np.ndarray[Any, Any]]


def network(name: str, seed: int, px: int = 32, **arguments: Any) -> nn.Module:
    """A network whose every weight is drawn from ``seed``, the norms' too."""
    size = {} if name == RESNET else {"img_size": px}
    net: nn.Module = timm.create_model(name, num_classes=0, **size, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def same_answers(ours: nn.Module, theirs: nn.Module, px: int = 32) -> None:
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-6, rtol=0)


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in net.state_dict().items()}


# --- what JAX saves, written from a timm network by the names of the two repositories ---------------------------------------------


def kernel(weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """A dense or convolution kernel: what goes in first, what comes out last."""
    return weight.permute(2, 3, 1, 0).numpy() if weight.ndim == 4 else weight.T.numpy()


def norm(path: str, module: Any, shape: tuple[int, ...] = (-1,)) -> Arrays:
    return {f"{path}/scale": module.weight.reshape(shape).numpy(), f"{path}/bias": module.bias.reshape(shape).numpy()}


def dense(path: str, module: Any) -> Arrays:
    return {f"{path}/kernel": kernel(module.weight), f"{path}/bias": module.bias.numpy()}


def attention(path: str, module: Any) -> Arrays:
    heads, width = module.num_heads, module.qkv.in_features
    found: Arrays = {}
    for part, weight, bias in zip(("query", "key", "value"), module.qkv.weight.split(width), module.qkv.bias.split(width), strict=True):
        found[f"{path}/{part}/kernel"] = weight.T.reshape(width, heads, -1).numpy()
        found[f"{path}/{part}/bias"] = bias.reshape(heads, -1).numpy()
    found[f"{path}/out/kernel"] = module.proj.weight.T.reshape(heads, -1, width).numpy()
    found[f"{path}/out/bias"] = module.proj.bias.numpy()
    return found


@torch.no_grad()
def jax_vit(net: Any) -> Arrays:
    arrays: Arrays = {"cls": net.cls_token.numpy(), "Transformer/posembed_input/pos_embedding": net.pos_embed.numpy()}
    arrays |= dense("embedding", net.patch_embed.proj) | norm("Transformer/encoder_norm", net.norm)
    for number, block in enumerate(net.blocks):
        path = f"Transformer/encoderblock_{number}"
        arrays |= norm(f"{path}/LayerNorm_0", block.norm1) | norm(f"{path}/LayerNorm_2", block.norm2)
        arrays |= attention(f"{path}/MultiHeadDotProductAttention_1", block.attn)
        arrays |= dense(f"{path}/MlpBlock_3/Dense_0", block.mlp.fc1) | dense(f"{path}/MlpBlock_3/Dense_1", block.mlp.fc2)
    resnet = getattr(net.patch_embed, "backbone", None)
    stem = getattr(resnet, "stem", resnet)
    if stem is not None:
        arrays |= {"conv_root/kernel": kernel(stem.conv.weight)} | norm("gn_root", stem.norm, (1, 1, 1, -1))
    for depth, stage in enumerate(getattr(resnet, "stages", []), start=1):
        for number, block in enumerate(stage.blocks, start=1):
            path = f"block{depth}/unit{number}"
            for part in (1, 2, 3):
                arrays[f"{path}/conv{part}/kernel"] = kernel(getattr(block, f"conv{part}").weight)
                arrays |= norm(f"{path}/gn{part}", getattr(block, f"norm{part}"), (1, 1, 1, -1))
            if block.downsample is not None:
                arrays[f"{path}/conv_proj/kernel"] = kernel(block.downsample.conv.weight)
                arrays |= norm(f"{path}/gn_proj", block.downsample.norm, (1, 1, 1, -1))
    return arrays


@torch.no_grad()
def jax_bit(net: Any) -> Arrays:
    def bit_norm(path: str, module: Any) -> Arrays:
        return {f"resnet/{path}group_norm/gamma": module.weight.numpy(), f"resnet/{path}group_norm/beta": module.bias.numpy()}

    arrays = {"resnet/root_block/standardized_conv2d/kernel": kernel(net.stem.conv.weight)} | bit_norm("", net.norm)
    for depth, stage in enumerate(net.stages, start=1):
        for number, block in enumerate(stage.blocks, start=1):
            path = f"block{depth}/unit{number:02d}/"
            for part, letter in enumerate("abc", start=1):
                arrays[f"resnet/{path}{letter}/standardized_conv2d/kernel"] = kernel(getattr(block, f"conv{part}").weight)
                arrays |= bit_norm(f"{path}{letter}/", getattr(block, f"norm{part}"))
            if block.downsample is not None:
                arrays[f"resnet/{path}a/proj/standardized_conv2d/kernel"] = kernel(block.downsample.conv.weight)
    return arrays


JAX: list[tuple[str, dict[str, Any]]] = [
    (VIT, TINY),
    ("vit_tiny_r_s16_p8_224", {"depth": 1, "embed_dim": 16, "num_heads": 2}),
    (HYBRID, {"depth": 1}),
    (RESNET, {}),
]


@pytest.mark.parametrize(("name", "arguments"), JAX, ids=["vit", "hybrid on a stem", "hybrid", "resnet"])
def test_a_jax_archive_gives_the_networks_answers_back(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    made, ours, by_timm = (network(name, seed, **arguments) for seed in (1, 2, 3))
    arrays = jax_bit(made) if name == RESNET else jax_vit(made)
    np.savez(tmp_path / "w.npz", **arrays)
    assert load_weights(ours, tmp_path / "w.npz") == []
    same_answers(ours, made)
    by_timm.load_pretrained(str(tmp_path / "w.npz"))  # type: ignore[operator]
    same_answers(ours, by_timm)


def test_a_jax_archive_keeps_its_tanh_layer_for_who_asks_and_drops_its_optimiser(tmp_path: Path) -> None:
    made, ours = network(VIT, 1, **TINY), network(VIT, 2, **TINY)
    layer, head = nn.Linear(16, 16), nn.Linear(16, 5)
    with torch.no_grad():
        arrays = jax_vit(made) | dense("pre_logits", layer) | dense("head", head)
    inside = {f"opt/target/{name}": array for name, array in arrays.items()} | {"opt/state/step": np.array(3)}
    for number, given in enumerate((arrays, inside)):
        file = tmp_path / f"{number}.npz"
        np.savez(file, **given)
        assert sorted(load_weights(ours, file)) == ["head.bias", "head.weight", "pre_logits.bias", "pre_logits.weight"]
        same_answers(ours, made)
        kept = read_weights(file)
        assert torch.equal(kept["pre_logits.weight"], layer.weight)
        assert torch.equal(kept["pre_logits.bias"], layer.bias)
        assert torch.equal(kept["head.weight"], head.weight)


# --- torch and safetensors ------------------------------------------------------------------------------------------------------


def dino_run(net: nn.Module) -> dict[str, Any]:
    """A full checkpoint of DINO: student and teacher, both wrapped for many GPUs and many crops, and the settings of the run."""
    teacher = {f"backbone.{name}": value for name, value in weights_of(net).items()} | {"head.mlp.0.weight": torch.zeros(4, 16)}
    student = {f"module.{name}": torch.zeros_like(value) for name, value in teacher.items()}
    return {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}


@pytest.mark.parametrize("layout", ["timm", "backbone alone", "dino run", "parallel teacher", "model", "folder"])
def test_torch_layouts_give_the_networks_answers_back(layout: str, tmp_path: Path) -> None:
    made, ours = network(VIT, 1, **TINY), network(VIT, 2, **TINY)
    file, left_out = tmp_path / "w.pth", []
    if layout == "timm":
        file = tmp_path / "w.safetensors"
        save_file(weights_of(made) | {"head.weight": torch.zeros(3, 16)}, file)
        left_out = ["head.weight"]
    elif layout == "backbone alone":
        torch.save(weights_of(made), file)
    elif layout == "dino run":
        torch.save(dino_run(made), file)
        left_out = ["head.mlp.0.weight"]
    elif layout == "parallel teacher":
        torch.save({"teacher": {f"module.backbone.{name}": value for name, value in weights_of(made).items()}}, file)
    elif layout == "model":
        torch.save({"model": weights_of(made), "epoch": 3}, file)
    else:
        encoder = Encoder(
            ModelSpec(backbone=VIT, backbone_args=tuple(TINY.items()), weights="random", projection=4), ImageSpec(image_px=32)
        )
        encoder.backbone.net.load_state_dict(made.state_dict())
        model_folder.save(encoder, tmp_path / "model")
        file, left_out = tmp_path / "model", ["projection.bias", "projection.weight"]
    assert sorted(load_weights(ours, file)) == left_out
    same_answers(ours, made)


def test_positions_are_resampled_to_the_size_of_the_image_from_every_layout(tmp_path: Path) -> None:
    made = network(VIT, 1, **TINY)
    save_file(weights_of(made), tmp_path / "w.safetensors")
    torch.save(dino_run(made), tmp_path / "w.pth")
    with torch.no_grad():
        np.savez(tmp_path / "w.npz", **jax_vit(made))
    larger = [network(VIT, 2, px=48, **TINY) for _ in range(3)]
    for net, name in zip(larger, ("w.safetensors", "w.pth", "w.npz"), strict=True):
        load_weights(net, tmp_path / name)
        assert net.pos_embed.shape == (1, 37, 16)  # type: ignore[union-attr]
        same_answers(net, larger[0], px=48)


def test_learned_positions_are_left_out_where_the_networks_are_fixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(weights_of(network(VIT, 1, **TINY)), tmp_path / "w.safetensors")
    spec = ModelSpec(backbone=VIT, backbone_args=(*TINY.items(), ("pos_embed", "sine2d")), weights=str(tmp_path / "w.safetensors"))
    with caplog.at_level(logging.WARNING):
        backbones.build(spec, 32)
    assert "w.safetensors: left out pos_embed" in caplog.text


PATCHES_ALONE = (*TINY.items(), ("class_token", False), ("final_norm", False), ("global_pool", ""))


def pooled_by_class_attention(weights: str) -> Encoder:
    model = ModelSpec(backbone=VIT, backbone_args=PATCHES_ALONE, weights=weights, pooling="class_attention")
    return Encoder(model, ImageSpec(image_px=32)).eval()


def selfpatch_run(encoder: Encoder) -> dict[str, Any]:
    """A full checkpoint of SelfPatch under its authors' names: whose blocks have no layer scale, and which ends in two heads."""
    held = {f"backbone.{name}": value for name, value in weights_of(encoder.backbone.net).items()}
    for name, value in weights_of(encoder.class_attention).items():
        if ".gamma_" not in name:
            held["ca_head." + name.replace("class_token", "cls_token").replace("blocks.", "cls_blocks.")] = value
    held |= {f"{head}.last_layer.weight_g": torch.ones(3, 1) for head in ("c_head", "p_head")}
    return {"student": {f"module.{name}": torch.zeros_like(value) for name, value in held.items()}, "teacher": held, "epoch": 200}


@pytest.mark.parametrize("layout", ["selfpatch run", "folder"])
def test_class_attention_comes_along_and_is_not_called_left_out(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, file = pooled_by_class_attention("random"), tmp_path / "w.pth"
    for name, parameter in made.named_parameters():
        if ".gamma_" not in name:
            parameter.data.normal_(std=0.3)
    torch.save(selfpatch_run(made), file)
    if layout == "folder":
        model_folder.save(made, tmp_path / "model")
        file = tmp_path / "model"
    with caplog.at_level(logging.WARNING):
        ours = pooled_by_class_attention(str(file))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), made(images))
    assert "class_attention." not in caplog.text
    assert ("left out c_head.last_layer.weight_g, p_head.last_layer.weight_g" in caplog.text) == (layout == "selfpatch run")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Encoder(ModelSpec(backbone=VIT, backbone_args=PATCHES_ALONE, weights=str(file), pooling="mean"), ImageSpec(image_px=32))
    assert "class_attention (" in caplog.text, "under another pooling it is"


def test_another_class_attention_is_refused_in_one_line(tmp_path: Path) -> None:
    held = selfpatch_run(pooled_by_class_attention("random"))
    del held["teacher"]["ca_head.cls_blocks.1.attn.q.weight"]
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"w.pth' holds another class attention than {VIT}'s"):
        pooled_by_class_attention(str(tmp_path / "w.pth"))


class Harmful:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def test_what_is_wrong_with_a_file_is_said_and_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def error(name: str) -> str:
        with pytest.raises(ModelError) as caught:
            load_weights(network(VIT, 2, **TINY), tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    torch.save({"teacher": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    np.savez(tmp_path / "objects.npz", cls=np.array([Harmful()], dtype=object))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "empty.pth")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with (tmp_path / "array.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    np.savez(tmp_path / "deeper.npz", **jax_vit(network(VIT, 1, **(TINY | {"depth": 3}))))
    save_file(weights_of(network(VIT, 1, **(TINY | {"embed_dim": 32}))), tmp_path / "wider.safetensors")
    for name in ("broken.safetensors", "broken.pth", "broken.npz"):
        (tmp_path / name).write_bytes(b"PK\3\4 no such thing")
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    expected = {
        "photo.pth": "photo.pth' is no checkpoint: give a file that torch.save has written",
        "harmful.pth": "could run code when read, so it was not read",
        "plain.pt": "could run code when read, so it was not read",
        "objects.npz": "not a readable archive of plain arrays",
        "list.pth": "holds a list, not weights",
        "empty.pth": "holds a dictionary of epoch, optimizer, not weights",
        "array.npz": "not a readable archive of plain arrays",
        "other.npz": "(its arrays are weights)",
        "deeper.npz": "weights of another network: 0 missing (such as -), 12 unknown (such as blocks.2.",
        "wider.safetensors": "weights of another shape than this backbone: size mismatch for cls_token",
        "broken.safetensors": "not a readable safetensors file",
        "broken.pth": "not a readable torch file",
        "broken.npz": "not a readable archive",
        "absent.npz": "no weights at",
        "weights.h5": "must be a file that ends in .safetensors, .pth, .pt, .bin, .ckpt, .pth.tar",
    }
    assert {name: error(name) for name, words in expected.items() if words not in error(name)} == {}
    assert not (tmp_path / "harmed").exists()
