"""Backbones, pooling, PCA, the encoder and its folder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sightline
from sightline.contracts import Tokens
from sightline.errors import ModelError
from sightline.methods.base import encoder_groups
from sightline.nn import backbone as backbones
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.nn.pooling import gem, pool
from sightline.nn.reduction import fit_pca
from sightline.recipe import ImageSpec, ModelSpec, TrainSpec

TINY = ModelSpec(
    backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2)), weights="random"
)
IMAGE = ImageSpec(image_px=32)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(TINY, IMAGE).eval()


def _photo(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def test_poolings_by_hand() -> None:
    tokens = Tokens(torch.tensor([[[9.0, 9.0], [7.0, 7.0]]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), (1, 2))
    assert pool(tokens, "cls").tolist() == [[9.0, 9.0]]
    assert pool(tokens, "mean").tolist() == [[2.0, 3.0]]
    assert pool(tokens, "max").tolist() == [[3.0, 4.0]]
    torch.testing.assert_close(pool(tokens, "gem", 3.0), torch.tensor([[((1 + 27) / 2) ** (1 / 3), ((8 + 64) / 2) ** (1 / 3)]]))
    torch.testing.assert_close(gem(tokens.patches, 1.0), pool(tokens, "mean"))


@pytest.mark.parametrize(
    ("name", "px", "prefix", "grid"),
    [
        ("vit_tiny_patch16_224", 96, 1, (6, 6)),
        ("deit_tiny_distilled_patch16_224", 64, 2, (4, 4)),
        ("swin_tiny_patch4_window7_224", 224, 0, (7, 7)),
        ("convnext_atto", 64, 0, (2, 2)),
        ("cait_xxs24_224", 64, 1, (4, 4)),
    ],
)
def test_any_backbone_yields_tokens(name: str, px: int, prefix: int, grid: tuple[int, int]) -> None:
    backbone = backbones.build(ModelSpec(backbone=name, weights="random"), px).eval()
    with torch.inference_mode():
        tokens = backbone(torch.zeros(1, 3, px, px))
    assert (tokens.prefix.shape[1], tokens.grid, tokens.patches.shape[-1]) == (prefix, grid, backbone.width)


def test_pooled_vectors_equal_timm_own_head_where_it_keeps_a_norm_behind_its_pooling() -> None:
    backbone = backbones.build(ModelSpec(backbone="beit_base_patch16_224", backbone_args=(("depth", 1),), weights="random"), 224).eval()
    with torch.inference_mode():
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        ours = backbone.norm_pooled(pool(backbone(images), "mean"))
        torch.testing.assert_close(ours, backbone.net(images))


def test_descriptors_have_unit_length_and_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    photos = [_photo(seed) for seed in range(5)]
    together = encoder.embed(photos)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(photos, batch_size=2), together, atol=1e-6)
    assert encoder.embed([]).shape == (0, 16)


def test_a_backbone_without_class_token_says_which_pooling_to_take() -> None:
    with pytest.raises(ModelError, match="pooling=mean"):
        Encoder(ModelSpec(backbone="convnext_atto", weights="random"), IMAGE)


def test_projection_gem_gradient_checkpointing_and_drop_path_train() -> None:
    spec = replace(TINY, pooling="gem", projection=8, checkpoint_gradients=True, drop_path=0.1)
    encoder = Encoder(spec, IMAGE).train()
    encoder(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert encoder.dim == 8
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "patch_embed" in name or "projection" in name)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(replace(TINY, checkpoint_gradients=checkpoint), IMAGE).train()
        encoder(torch.ones(1, 3, 32, 32))[0, 0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_freezing() -> None:
    def learning(parts: tuple[str, ...]) -> set[str]:
        encoder = Encoder(replace(TINY, frozen=parts), IMAGE)
        return {
            name.removeprefix("backbone.net.").split(".")[0] + name.partition("blocks")[2][:2]
            for name, p in encoder.named_parameters()
            if p.requires_grad
        }

    assert learning(("backbone",)) == set()
    assert learning(("embed",)) == {"blocks.0", "blocks.1", "norm"}
    assert learning(("blocks.0",)) == {"blocks.1", "norm"}
    with pytest.raises(ModelError, match=r"blocks\.0 to blocks\.1"):
        learning(("blocks.7",))


@pytest.mark.parametrize("frozen", [(), ("batch_norm",), ("backbone",), ("embed",)])
def test_a_frozen_batch_norm_keeps_its_statistics(frozen: tuple[str, ...]) -> None:
    encoder = copy.deepcopy(Encoder(ModelSpec(backbone="mobilenetv2_035", weights="random", pooling="mean", frozen=frozen), IMAGE)).train()
    before = {name: value.clone() for name, value in encoder.named_buffers() if "running" in name}
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        encoder(torch.randn(4, 3, 32, 32))
    moved = {name for name, value in encoder.named_buffers() if "running" in name and not torch.equal(value, before[name])}
    norms = {name.rpartition(".")[0] for name in before}
    assert {name.rpartition(".")[0] for name in moved} == {norm for norm in norms if f"{norm}.weight" in learning}
    assert bool(moved) == (frozen in ((), ("embed",)))
    assert any("conv" in name for name in learning) == (frozen != ("backbone",))
    assert encoder.training


def test_layer_decay_and_weight_decay_groups(encoder: Encoder) -> None:
    groups = encoder_groups(encoder, TrainSpec(lr=1.0, weight_decay=0.1, layer_decay=0.5))
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = {name.removeprefix("backbone.net."): rate[id(p)] for name, p in encoder.named_parameters()}
    assert named["blocks.1.mlp.fc1.weight"] == (1.0, 0.1)
    assert named["blocks.0.mlp.fc1.weight"] == (0.5, 0.1)
    assert named["patch_embed.proj.weight"] == (0.25, 0.1)
    assert named["pos_embed"] == (0.25, 0.0)
    assert named["blocks.0.mlp.fc1.bias"] == (0.5, 0.0)
    assert len(rate) == len(list(encoder.parameters()))


def test_pca_finds_the_plane_and_is_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(200, 2, generator=generator) @ torch.randn(2, 6, generator=generator) + 3.0
    fitted = fit_pca(plane, 2)
    assert fitted.explained.sum() == pytest.approx(1.0, abs=1e-5)
    back = fitted(plane) @ fitted.components + fitted.mean
    torch.testing.assert_close(back, plane, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fit_pca(plane.flip(0), 2).components, fitted.components, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="more than 6"):
        fit_pca(plane[:5], 6)


def test_a_saved_model_comes_back_the_same_with_its_pca(encoder: Encoder, tmp_path: Path) -> None:
    photos = [_photo(seed) for seed in range(40)]
    with torch.inference_mode():
        encoder.reduction = fit_pca(torch.from_numpy(encoder.embed(photos)), 4)
    fingerprint = model_folder.save(encoder, tmp_path / "m")
    loaded = sightline.load(tmp_path / "m")
    assert (loaded.fingerprint, loaded.dim) == (fingerprint, 4)
    np.testing.assert_array_equal(loaded.embed(photos[:3]), encoder.embed(photos[:3]))
    assert model_folder.save(loaded, tmp_path / "again") == fingerprint
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_random_models_are_the_same_every_time() -> None:
    assert sightline.load("random:vit_tiny_patch16_224").fingerprint == sightline.load("random:vit_tiny_patch16_224").fingerprint


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: _edit(m, version=99), "format 99, this is format 1"),
        (lambda m: _edit(m, fingerprint="0"), "has changed since it was saved"),
        (lambda m: (m / "config.json").write_text("{"), "cannot be read"),
        (lambda m: (m / "config.json").write_text("{}"), "not a Sightline model folder"),
        (lambda m: (m / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
        (lambda m: (m / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda m: (m / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(encoder: Encoder, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    model_folder.save(encoder, tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ModelError, match=message) as caught:
        sightline.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no model at"),
        ("random:vit_tinny_patch16_224", "did you mean"),
        ("timm:vit_tiny_patch16_224", "set SIGHTLINE_WEIGHTS to it"),
    ],
)
def test_an_unknown_source_says_what_to_do(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sightline.load(source)


def test_local_weights_are_resampled_to_the_image_size_and_must_fit(encoder: Encoder, tmp_path: Path) -> None:
    state = {name.removeprefix("backbone.net."): value.contiguous() for name, value in encoder.state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(3, 16)}, tmp_path / "w.safetensors")
    larger = Encoder(replace(TINY, weights=str(tmp_path / "w.safetensors")), ImageSpec(image_px=64))
    assert larger.backbone.net.pos_embed.shape == (1, 65, 16)
    torch.testing.assert_close(larger.backbone.net.blocks[1].mlp.fc1.weight, encoder.backbone.net.blocks[1].mlp.fc1.weight)
    model_folder.save(encoder, tmp_path / "m")  # a model folder is a start too
    again = Encoder(replace(TINY, weights=str(tmp_path / "m")), IMAGE)
    torch.testing.assert_close(again(torch.ones(1, 3, 32, 32)), encoder(torch.ones(1, 3, 32, 32)))

    def error(path: str) -> str:
        with pytest.raises(ModelError) as caught:
            Encoder(replace(TINY, weights=path), IMAGE)
        return str(caught.value)

    save_file({name: value for name, value in state.items() if "blocks.1" not in name}, tmp_path / "part.safetensors")
    save_file({**state, "surprise.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({**state, "norm.weight": torch.zeros(17)}, tmp_path / "shape.safetensors")
    assert "weights of another network: 12 missing" in error(str(tmp_path / "part.safetensors"))
    assert "surprise.weight" in error(str(tmp_path / "more.safetensors"))
    assert "another shape" in error(str(tmp_path / "shape.safetensors"))
    assert "must be a file that ends in .safetensors, .pth" in error(str(tmp_path / "w.h5"))
    assert "no weights at" in error(str(tmp_path / "none.safetensors"))
