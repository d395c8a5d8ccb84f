"""Heads: distilled tokens, R-MAC, scales, PCA and whitenings, worked by hand; tests/parity holds them to others' numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import sightline
from sightline.contracts import Tokens
from sightline.errors import ModelError, RecipeError
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder, headless, with_scales_of
from sightline.nn.multiscale import power_mean, rescale
from sightline.nn.pooling import pool, rmac, rmac_regions
from sightline.nn.reduction import (
    MAX_PAIRS,
    Reduction,
    fit_pca,
    fit_pca_whitening,
    fit_reduction,
    fit_whitening,
    label_pairs,
    require_enough,
)
from sightline.recipe import ImageSpec, ModelSpec

SMALL = (("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2))
TINY = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=SMALL, weights="random")
DISTILLED = replace(TINY, backbone="deit_small_distilled_patch16_224")
IMAGE = ImageSpec(image_px=32)


def made(model: ModelSpec, image: ImageSpec = IMAGE) -> Encoder:
    torch.manual_seed(0)
    return Encoder(model, image).eval()


def pictures(num: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_class_token_and_gem_by_hand() -> None:
    tokens = Tokens(torch.tensor([[[3.0, -4.0]]]), torch.tensor([[[1.0, -5.0], [2.0, 0.0]]]), (1, 2))
    expected = torch.tensor([[3.0, -4.0, (17 / 2) ** 0.25, 1e-6]])  # as long as they are; what is negative counts as 1e-6
    torch.testing.assert_close(pool(tokens, "cls_gem", 4.0), expected)


def test_another_pooling_takes_the_weights_along_and_leaves_what_the_old_one_taught() -> None:
    attending = made(replace(TINY, pooling="class_attention", backbone_args=(*SMALL, ("class_token", False), ("global_pool", ""))))
    averaging = with_scales_of(attending, replace(attending.model, pooling="gem"))
    tokens = attending.tokens(pictures())
    torch.testing.assert_close(averaging.pooled(pictures()), pool(tokens, "gem"))
    copies = with_scales_of(made(TINY), replace(TINY, pooling="cls_gem", gem_p=4.0))
    assert (copies.width, made(TINY).width) == (32, 16)
    torch.testing.assert_close(copies.pooled(pictures())[:, :16], made(TINY).pooled(pictures()))
    with pytest.raises(ModelError, match="class attention has weights of its own, this model has pooling=gem"):
        with_scales_of(averaging, attending.model)
    projected = made(replace(TINY, projection=4))
    with pytest.raises(ModelError, match="its projection was trained for pooling=cls"):
        with_scales_of(projected, replace(projected.model, pooling="max"))
    with pytest.raises(ModelError, match="no class token"):
        with_scales_of(averaging, replace(averaging.model, pooling="cls_gem"))


# --- the two tokens of a distilled backbone ---------------------------------------------------------------------------------------


def test_distilled_poolings_by_hand() -> None:
    tokens = Tokens(torch.tensor([[[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]]), torch.zeros(1, 1, 2), (1, 1))
    assert pool(tokens, "dist").tolist() == [[0.0, 2.0]]
    assert pool(tokens, "cls_dist_mean").tolist() == [[1.5, 3.0]]
    torch.testing.assert_close(pool(tokens, "cls_dist_concat"), torch.tensor([[0.6, 0.8, 0.0, 1.0]]))


def test_the_two_tokens_are_those_of_timm_heads() -> None:
    encoder = made(DISTILLED)
    net = encoder.backbone.net
    net.reset_classifier(5)  # type: ignore[operator]
    for head in (net.head, net.head_dist):
        torch.nn.init.normal_(head.weight)  # type: ignore[union-attr, arg-type]
    net.set_distilled_training(True)  # type: ignore[operator]
    features = net.forward_features(pictures())  # type: ignore[operator]
    of_class, of_teacher = net.train().forward_head(features)  # type: ignore[operator]
    tokens = encoder.tokens(pictures())
    torch.testing.assert_close(net.head(pool(tokens, "cls")), of_class)  # type: ignore[operator]
    torch.testing.assert_close(net.head_dist(pool(tokens, "dist")), of_teacher)  # type: ignore[operator]
    torch.testing.assert_close(pool(tokens, "cls_dist_mean"), net.forward_head(features, pre_logits=True))  # type: ignore[operator]


def test_similarity_of_both_tokens_side_by_side_is_the_mean_of_theirs() -> None:
    found = {pooling: made(replace(DISTILLED, pooling=pooling)) for pooling in ("cls", "dist", "cls_dist_concat")}
    similarity = {}
    for pooling, encoder in found.items():
        vectors = torch.from_numpy(encoder.embed_batch(pictures(), precision="fp32"))
        similarity[pooling] = float(vectors[0] @ vectors[1])
    assert similarity["cls_dist_concat"] == pytest.approx((similarity["cls"] + similarity["dist"]) / 2, abs=1e-6)
    assert found["cls_dist_concat"].dim == 32
    assert made(replace(DISTILLED, pooling="cls_dist_concat", projection=8)).embed_batch(pictures()).shape == (2, 8)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_base_patch16_rope_reg1_gap_256"])
def test_a_register_is_no_distillation_token(backbone: str) -> None:
    with pytest.raises(ModelError, match="no distillation token"):
        made(replace(TINY, backbone=backbone, pooling="dist", backbone_args=(("depth", 1),)), ImageSpec(image_px=256))
    with pytest.raises(ModelError, match="distilled backbone"):
        pool(Tokens(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), (1, 1)), "dist")


# --- R-MAC ------------------------------------------------------------------------------------------------------------------------


def test_rmac_by_hand() -> None:
    # 2 x 1: a third square brings the overlap of neighbours at level 1 closest to 40 %, the sides of levels 2 and 3 are 0.
    tokens = Tokens(torch.zeros(1, 0, 2), torch.tensor([[[3.0, 4.0], [8.0, 6.0]]]), (2, 1))
    assert rmac_regions(2, 1) == ((0, 0, 1), (0, 0, 1), (1, 0, 1))
    wanted = torch.tensor([[0.6 + 0.6 + 0.8 + 0.8, 0.8 + 0.8 + 0.6 + 0.6]])
    torch.testing.assert_close(rmac(tokens), wanted)
    longer = torch.tensor([[[3.0, 4.0], [8.0, 6.0]], [[60.0, 80.0], [80.0, 60.0]]])  # each image and region is normalised by itself
    torch.testing.assert_close(rmac(Tokens(torch.zeros(2, 0, 2), longer, (2, 1)))[0], wanted[0])
    assert len(rmac_regions(14, 14)) == 1 + 4 + 9


@given(st.integers(1, 40), st.integers(1, 40))
def test_rmac_regions_lie_in_the_grid_and_reach_its_ends(rows: int, columns: int) -> None:
    regions = np.array(rmac_regions(rows, columns))
    assert (regions[:, :2] >= 0).all()
    assert (regions[:, 0] + regions[:, 2]).max() == rows
    assert (regions[:, 1] + regions[:, 2]).max() == columns
    assert {(left, top, side) for top, left, side in rmac_regions(rows, columns)} == set(rmac_regions(columns, rows))


# --- scales -----------------------------------------------------------------------------------------------------------------------


def test_rescaling_rounds_to_whole_patches() -> None:
    images = pictures(1, 224)
    assert rescale(images, 1.0, 16) is images
    assert rescale(images, 0.7071, 16).shape[-2:] == (160, 160)
    assert rescale(images, 0.7071).shape[-2:] == (158, 158)
    assert rescale(images, 0.01, 16).shape[-2:] == (16, 16)


def test_rescaling_is_bilinear_between_pixel_centres_without_antialiasing() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    for found in (rescale(ramp, 0.5), rescale(ramp, 0.5, 4)):  # of pixels 0 and 1, 2 and 3, ... the middle
        torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    for found in (rescale(ramp, 0.25), rescale(ramp, 0.25, 2)):  # and of pixels 1 and 2, 5 and 6 alone
        torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.5, 5.5]))


def test_power_mean_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    assert power_mean(vectors, 1).tolist() == [[2.0, 3.0]]
    torch.testing.assert_close(power_mean(vectors, 2), torch.tensor([[5.0**0.5, 10.0**0.5]]))


def test_descriptors_of_scales_are_the_mean_of_those_of_images_at_these_sizes() -> None:
    encoder = made(replace(TINY, pooling="gem", scales=(1.0, 0.5)))
    one = with_scales_of(encoder, headless(encoder.model))
    half = F.interpolate(pictures(), scale_factor=0.5, mode="bilinear")
    # a ViT of 16 px from the same weights, its positions resampled at building as timm does for any size
    small = made(headless(encoder.model), ImageSpec(image_px=16))
    from timm.models.vision_transformer import checkpoint_filter_fn

    small.backbone.net.load_state_dict(checkpoint_filter_fn(dict(encoder.backbone.net.state_dict()), small.backbone.net))  # type: ignore[arg-type]
    with torch.inference_mode():
        wanted = F.normalize(one(pictures()) + small(half), dim=1)
    torch.testing.assert_close(torch.from_numpy(encoder.embed_batch(pictures(), precision="fp32")), wanted, atol=1e-5, rtol=0)


def test_one_scale_is_what_it_was() -> None:
    encoder = made(TINY)
    with torch.inference_mode():
        assert torch.equal(encoder(pictures()), F.normalize(encoder.backbone.prefix(pictures()).prefix[:, 0], dim=1))
        scaled = with_scales_of(encoder, replace(TINY, scales=(1.0, 1.0)))
        torch.testing.assert_close(scaled(pictures()), encoder(pictures()))


@pytest.mark.parametrize(
    ("model", "px"),
    [
        (replace(DISTILLED, pooling="dist"), 32),
        (ModelSpec(backbone="convnext_atto", weights="random", pooling="rmac"), 64),
        (ModelSpec(backbone="swin_tiny_patch4_window7_224", backbone_args=(("embed_dim", 24),), weights="random", pooling="mean"), 64),
    ],
    ids=["vit", "convnext", "swin"],
)
def test_backbones_that_take_other_sizes(model: ModelSpec, px: int) -> None:
    encoder = made(replace(model, scales=(1.0, 0.7071, 0.5)), ImageSpec(image_px=px))
    found = encoder.embed_batch(pictures(2, px))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_a_backbone_of_one_size_says_so_when_it_is_built() -> None:
    cait = ModelSpec(backbone="cait_xxs24_224", backbone_args=(("depth", 1),), weights="random", scales=(1.0, 0.5))
    with pytest.raises(ModelError, match=r"does not take the scale 0\.5.*plain ViT"):
        made(cait, ImageSpec(image_px=64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "positive factors"),
        ({"scales": (1.0, -0.5)}, "positive factors"),
        ({"scale_p": 3.0}, "positive entries"),
        ({"scale_p": 3.0, "pooling": "gem", "projection": 8}, "positive entries"),
    ],
)
def test_scales_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(TINY, **settings)  # type: ignore[arg-type]


def test_a_norm_behind_the_pooling_allows_the_plain_mean_only() -> None:
    beit = ModelSpec(backbone="beit_base_patch16_224", backbone_args=(("depth", 1),), weights="random", pooling="gem", scale_p=3.0)
    with pytest.raises(ModelError, match="scale_p=1"):
        made(beit, ImageSpec(image_px=224))


# --- reductions -------------------------------------------------------------------------------------------------------------------


def clustered(num_classes: int = 12, each: int = 20, width: int = 8) -> tuple[torch.Tensor, np.ndarray]:
    """Vectors of classes that differ in the last directions, with much louder noise in the first."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(num_classes), each)
    noise = random.normal(size=(len(labels), width)) * np.linspace(1.0, 0.1, width)
    signal = random.normal(size=(num_classes, width)) * np.linspace(0.0, 0.4, width)
    return torch.from_numpy(noise + signal[labels]).float(), labels


def test_pca_whitening_leaves_unit_covariance_of_unit_vectors() -> None:
    vectors, _ = clustered()
    fitted = fit_pca_whitening(vectors)
    out = fitted(vectors)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(out.T, correction=0), torch.eye(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(fitted(5 * vectors), out, atol=1e-4, rtol=0)  # lengths do not count
    assert fitted.explained.sum() == pytest.approx(1.0, abs=1e-6)


def test_supervised_whitening_makes_pairs_differ_alike_and_keeps_what_tells_classes_apart() -> None:
    vectors, labels = clustered()
    pairs = torch.from_numpy(label_pairs(labels))
    fitted = fit_whitening(vectors, pairs)
    out = fitted(vectors)
    difference = out[pairs[:, 0]] - out[pairs[:, 1]]
    torch.testing.assert_close(difference.T @ difference / len(pairs), torch.eye(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[pairs[:, 0]].mean(dim=0), torch.zeros(8), atol=1e-3, rtol=0)
    spread = out.square().mean(dim=0)
    assert (spread[:-1] >= spread[1:] - 1e-3).all()

    def separation(found: torch.Tensor) -> float:
        similarity = F.normalize(found, dim=1) @ F.normalize(found, dim=1).T
        same = torch.from_numpy(labels[:, None] == labels[None])
        return float(similarity[same].mean() - similarity[~same].mean())

    assert separation(fit_whitening(vectors, pairs, 4)(vectors)) > 1.5 * separation(fit_pca(vectors, 4)(vectors))


def test_a_direction_without_variance_is_left_out() -> None:
    vectors, labels = clustered()
    padded = torch.cat([vectors, torch.zeros(len(vectors), 2)], dim=1)
    for whiten in ("pca", "supervised"):
        fitted = fit_reduction(padded, 0, whiten, torch.from_numpy(label_pairs(labels)))  # type: ignore[arg-type]
        assert fitted.components.shape == (8, 10)
        assert fitted.components.isfinite().all()
        with pytest.raises(ModelError, match="the 8 in which"):
            fit_reduction(padded, 9, whiten, torch.from_numpy(label_pairs(labels)))  # type: ignore[arg-type]


def test_two_fits_of_one_set_agree() -> None:
    vectors, labels = clustered()
    pairs = torch.from_numpy(label_pairs(labels))
    back = torch.arange(len(vectors)).flip(0)
    torch.testing.assert_close(
        fit_whitening(vectors.flip(0), back[pairs], 3).components, fit_whitening(vectors, pairs, 3).components, atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("whiten", ["none", "pca", "supervised"])
def test_the_largest_entry_of_each_direction_is_positive(whiten: str) -> None:
    vectors, labels = clustered()
    pairs = torch.from_numpy(label_pairs(labels))
    signs = set()
    for turned in (vectors, -vectors, vectors * torch.tensor([1.0, -1.0] * 4)):
        components = fit_reduction(turned, 5, whiten, pairs).components  # type: ignore[arg-type]
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        assert (largest > 0).all()
        signs.add(tuple(torch.sign(components[:, 0]).tolist()))
    assert len(signs) > 1  # the entries of one column may be of either sign


def test_the_mean_over_scales_has_unit_length_before_it_is_reduced() -> None:
    encoder = made(replace(TINY, pooling="gem", scales=(1.0, 0.5)))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.pooled(pictures(4)).norm(dim=1), torch.ones(4))


def test_too_little_to_learn_from_is_told() -> None:
    vectors, labels = clustered(num_classes=100, each=2, width=8)
    few = torch.from_numpy(label_pairs(labels)[:5])
    with pytest.raises(ModelError, match="differ in all 8 directions"):
        fit_whitening(vectors, few)
    with pytest.raises(ModelError, match="label the images"):
        fit_reduction(vectors, 0, "supervised", None)
    with pytest.raises(ModelError, match=r"whiten=pca needs .* more than 8 training images; there are 8"):
        fit_pca_whitening(vectors[:8])
    with pytest.raises(ModelError, match="10 images of 5 classes"):
        require_enough("supervised", 4, 8, num_images=10, num_classes=5)
    require_enough("supervised", 0, 8, num_images=20, num_classes=12)


@given(st.lists(st.integers(0, 6), min_size=0, max_size=40))
def test_label_pairs_are_two_images_of_one_class_each_leading_as_often(labels: list[int]) -> None:
    given_labels = np.array(labels, dtype=np.int64)
    pairs = label_pairs(given_labels)
    assert (given_labels[pairs[:, 0]] == given_labels[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(given_labels, minlength=7)
    led = np.bincount(pairs[:, 0], minlength=len(labels)) if len(labels) else np.zeros(0)
    assert (led == np.where(counts[given_labels] > 1, 8, 0)).all()


def test_label_pairs_are_bounded_and_seeded() -> None:
    labels = np.arange(2 * MAX_PAIRS) // 2
    pairs = label_pairs(labels)
    assert len(pairs) == MAX_PAIRS
    np.testing.assert_array_equal(pairs, label_pairs(labels))
    assert (pairs != label_pairs(labels, seed=1)).any()


# --- on disk ----------------------------------------------------------------------------------------------------------------------


def test_a_whitened_model_of_several_scales_comes_back_the_same(tmp_path: Path) -> None:
    encoder = made(replace(TINY, pooling="rmac", scales=(1.0, 0.5), whiten="supervised", pca=4))
    vectors, labels = clustered(width=16)
    encoder.reduction = fit_whitening(vectors, torch.from_numpy(label_pairs(labels)), 4)
    fingerprint = model_folder.save(encoder, tmp_path / "m")
    loaded = sightline.load(tmp_path / "m")
    assert (loaded.fingerprint, loaded.dim, loaded.model.scales) == (fingerprint, 4, (1.0, 0.5))
    assert isinstance(loaded.reduction, Reduction)
    assert loaded.reduction.whiten == "supervised"
    np.testing.assert_array_equal(loaded.embed_batch(pictures()), encoder.embed_batch(pictures()))
    bare = with_scales_of(loaded, headless(loaded.model))
    assert (bare.dim, bare.model.scales) == (16, (1.0,))


FIRST_CONFIG = """{"format": "sightline-model", "version": 1, "model": {"backbone": "vit_tiny_patch16_224", "backbone_args":
[["patch_size", 8], ["depth", 1], ["embed_dim", 16], ["num_heads", 2]], "weights": "random", "pooling": "gem", "gem_p": 3.0,
"projection": 0, "pca": 4, "drop_path": 0.0, "checkpoint_gradients": false, "frozen": []}, "image": {"image_px": 32, "resize": "short",
"resize_px": 0, "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "reduced_to": 4,
"fingerprint": "99171dbbbea6b718", "descriptor_dim": 4}"""
"""As written at commit 504a96b, before a model had whitenings and scales."""


def test_a_model_saved_before_there_were_scales_keeps_its_fingerprint(tmp_path: Path) -> None:
    encoder = made(replace(TINY, pooling="gem", pca=4))
    encoder.reduction = Reduction(16, 4)
    state = {
        name: ((torch.arange(value.numel()) * (place + 3) % 11 - 5).reshape(value.shape) / 16)
        for place, (name, value) in enumerate(encoder.state_dict().items())
    }
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(FIRST_CONFIG)
    loaded = sightline.load(tmp_path)
    assert loaded.fingerprint == "99171dbbbea6b718"
    model_folder.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(FIRST_CONFIG)
