"""NaN and infinity end where they come in, and no comparison takes them for agreement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import sightline
from sightline.cli.main import main
from sightline.data.images import BadFiles
from sightline.data.records import read_records
from sightline.errors import IndexStoreError, ModelError
from sightline.evaluation import metrics, probes
from sightline.evaluation.accuracy import measure_accuracy
from sightline.index.base import Index, Item
from sightline.nn import model_folder
from sightline.nn.classifier import Classifier
from sightline.nn.dino_checkpoints import load_dino
from sightline.nn.encoder import Encoder
from sightline.nn.export import export_onnx
from sightline.nn.reduction import fit_reduction
from sightline.recipe import ImageSpec, ModelSpec

NAN, INF = float("nan"), float("inf")
ARGS = (("patch_size", 8), ("embed_dim", 16), ("depth", 2), ("num_heads", 2))
TINY = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=ARGS, weights="random")
LIKE_TINY = [f"backbone_args.{key}={value}" for key, value in ARGS]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(TINY, ImageSpec(image_px=32)).eval()


@pytest.fixture
def damaged(encoder: Encoder) -> Encoder:
    encoder.backbone.net.norm.weight.data[0] = NAN
    return encoder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label in range(2):
        (tmp_path / "photos" / f"c{label}").mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(10 * label + number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"c{label}" / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["norm.weight", "blocks.0.attn.qkv.weight", "pos_embed"])
def test_a_file_with_one_value_that_is_no_number_is_refused_by_its_name(name: str, value: float, encoder: Encoder, tmp_path: Path) -> None:
    weights = encoder.backbone.net.state_dict()
    weights[name].view(-1)[3] = value
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        with pytest.raises(ModelError, match=rf"holds NaN or infinity in {name} \(1 of "):
            Encoder(replace(TINY, weights=str(tmp_path / file)), ImageSpec(image_px=32))


def test_a_download_with_nan_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = timm.create_model

    def downloaded(name: str, *, pretrained: bool, **given: Any) -> Any:
        net = plain(name, **given)
        net.norm.bias.data[1] = NAN
        return net

    monkeypatch.setattr(timm, "create_model", downloaded)
    with pytest.raises(ModelError, match=r"the hub's vit_tiny_patch16_224' holds NaN or infinity in norm\.bias"):
        Encoder(replace(TINY, weights="hub"), ImageSpec(image_px=32))
    Encoder(replace(TINY, weights="random"), ImageSpec(image_px=32))  # nothing was downloaded


def test_statistics_of_a_batch_norm_are_looked_at_too_and_heads_that_are_left_out_are_not(tmp_path: Path) -> None:
    net = timm.create_model("resnet10t", num_classes=3)
    weights = net.state_dict()
    weights["fc.weight"][0, 0] = NAN
    torch.save(weights, tmp_path / "resnet10t.pth")
    assert sightline.load(f"{tmp_path / 'resnet10t.pth'}@64").dim == 512
    weights["layer1.0.bn1.running_var"][2] = INF
    torch.save(weights, tmp_path / "resnet10t.pth")
    with pytest.raises(ModelError, match=r"in layer1\.0\.bn1\.running_var \(1 of 64 values\)"):
        sightline.load(tmp_path / "resnet10t.pth")


def test_a_jax_file_with_nan_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    from tests.unit.test_checkpoints import jax_vit

    arrays = jax_vit(encoder.backbone.net)
    arrays["Transformer/encoder_norm/scale"][1] = NAN
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ModelError, match=r"NaN or infinity in norm\.weight"):
        Encoder(replace(TINY, weights=str(tmp_path / "w.npz")), ImageSpec(image_px=32))


def test_a_model_folder_with_nan_is_refused_though_its_fingerprint_is_right(damaged: Encoder, tmp_path: Path) -> None:
    model_folder.save(damaged, tmp_path / "model")
    with pytest.raises(ModelError, match=r"NaN or infinity in backbone\.net\.norm\.weight"):
        sightline.load(tmp_path / "model")
    held = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.isnan(held["backbone.net.norm.weight"][0])


def test_no_run_is_opened_and_no_rate_is_blamed(encoder: Encoder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = encoder.backbone.net.state_dict()
    weights["norm.weight"][0] = NAN
    torch.save(weights, tmp_path / "w.pth")
    settings = [f"weights={tmp_path / 'w.pth'}", *LIKE_TINY, "backbone=vit_tiny_patch16_224", "image_px=32", "validation=0", "steps=0"]
    command = ["train", "irt/small", "--data", str(photos), "--out", str(tmp_path / "run"), "--set", *settings, "classes_per_batch=2"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "w.pth' holds NaN or infinity in norm.weight" in said
    assert "lr=" not in said
    assert not (tmp_path / "run").exists()


def test_python_is_given_no_nan_in_silence(damaged: Encoder) -> None:
    picture = Image.new("RGB", (40, 40), (9, 99, 199))
    with pytest.raises(ModelError, match="gives NaN or infinity as descriptors of 2 of 2 images"):
        damaged.embed([picture, picture])
    with pytest.raises(ModelError, match="gives NaN or infinity as patch features of 1 of 1 images"):
        list(damaged.patches([picture]))


def test_weights_that_are_numbers_may_still_make_none(encoder: Encoder) -> None:
    encoder.backbone.net.blocks[0].mlp.fc1.weight.data.fill_(1e38)
    with pytest.raises(ModelError, match="gives NaN or infinity as descriptors"):
        encoder.embed([Image.new("RGB", (40, 40), (9, 99, 199))])


def test_an_export_of_nan_does_not_agree_with_itself(damaged: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gives NaN or infinity as descriptors"):
        export_onnx(damaged, tmp_path / "m.onnx", images=torch.randn(2, 3, 32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whiten", ["none", "pca", "supervised"])
def test_nothing_is_fitted_on_nan(whiten: str) -> None:
    vectors = torch.randn(20, 4)
    vectors[7, 2] = NAN
    with pytest.raises(ModelError, match="1 of 20 vectors hold NaN or infinity"):
        fit_reduction(vectors, 2, whiten, torch.tensor([[0, 1], [2, 3]]))  # type: ignore[arg-type]


def test_accuracy_of_nan_is_none(damaged: Encoder, photos: Path) -> None:
    damaged.classifier = Classifier(16, ["c0", "c1"], hidden=False)
    with pytest.raises(ModelError, match="gives NaN or infinity as logits"):
        measure_accuracy(damaged, read_records(photos), BadFiles(), show=False)


@pytest.mark.parametrize("value", [NAN, INF])
def test_functions_of_vectors_refuse_what_is_no_number(value: float, tmp_path: Path) -> None:
    vectors = np.eye(6, 4, dtype=np.float32)
    vectors[:, 0] += 0.1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bad, labels = vectors.copy(), np.array([0, 0, 0, 1, 1, 1])
    bad[2, 1] = value
    with pytest.raises(ValueError, match="vector holds NaN or infinity"):
        metrics.positive_ranks(bad, labels)
    for train, test in ((bad, vectors), (vectors, bad)):
        with pytest.raises(ValueError, match="1 of 6 features hold NaN or infinity"):
            probes.knn(train, labels, test, k=2)
    with pytest.raises(ValueError, match="1 of 6 features hold NaN or infinity"):
        probes.ridge(bad, labels, 2)
    with pytest.raises(ValueError, match="1 of 6 features hold NaN or infinity"):
        probes.ridge(vectors, labels, 2).predict(bad)
    with (
        Index.create(tmp_path / "i", dim=4, fingerprint="f") as index,
        pytest.raises(IndexStoreError, match="a vector holds NaN or infinity"),
    ):
        index.upsert([Item(f"{place}.jpg") for place in range(6)], bad)


def test_a_saved_run_of_before_with_nan_is_refused_by_every_command(
    damaged: Encoder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder.save(damaged, tmp_path / "m")
    one, other = str(photos / "c0" / "0.png"), str(photos / "c1" / "0.png")
    model, images = str(tmp_path / "m"), str(photos)
    commands = (
        ["evaluate", model, "--data", images],
        ["embed", model, "--images", images, "--out", str(tmp_path / "v.npy")],
        ["probe", model, "--data", images],
        ["inspect", model, "--images", images, "--out", str(tmp_path / "page")],
        ["explain", model, one, other, "--out", str(tmp_path / "x.html")],
        ["index", str(tmp_path / "i"), "--model", model, "--images", images],
        ["export", model, "--out", str(tmp_path / "m.onnx")],
        ["reduce", model, "--data", images, "--pca", "2", "--out", str(tmp_path / "r")],
    )
    before = sorted(tmp_path.iterdir())
    for command in commands:
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert "holds NaN or infinity in backbone.net.norm.weight" in said[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_a_full_checkpoint_with_nan_is_refused(part: str, tmp_path: Path) -> None:
    held = {name: dict(nn.Linear(2, 2).state_dict()) for name in ("student", "teacher")}
    held[part]["bias"][1] = NAN
    torch.save(held, tmp_path / "full.pth")
    with pytest.raises(ModelError, match=rf"full.pth: {part}' holds NaN or infinity in bias"):
        load_dino(tmp_path / "full.pth", nn.Linear(2, 2), nn.Linear(2, 2), {})


def test_class_attention_with_nan_is_refused(tmp_path: Path) -> None:
    made = Encoder(replace(TINY, pooling="class_attention"), ImageSpec(image_px=32))
    weights = {name.removeprefix("backbone.net."): value for name, value in made.state_dict().items()}
    weights["class_attention.class_token"][0, 0, 0] = NAN
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"NaN or infinity in class_attention\.class_token"):
        Encoder(replace(TINY, pooling="class_attention", weights=str(tmp_path / "w.pth")), ImageSpec(image_px=32))
