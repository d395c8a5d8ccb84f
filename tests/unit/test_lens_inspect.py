"""The inspection page on generated images: whole, closed to the network, and its numbers those of the descriptors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.contracts import Descriptors, Ranking
from sightline.data.images import BadFiles
from sightline.data.records import Records, read_records
from sightline.errors import SightlineError
from sightline.html import Page, Picture, Plot
from sightline.lens import draw
from sightline.lens.inspect import inspect
from sightline.lens.network import FILES
from sightline.lens.sheet import contact_sheet
from sightline.lens.view import Inspected, pairs_of, short_names, varied
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.search.embed import embed_records

COLOURS = {"a <red> $one$": (200, 30, 30), "_blue": (30, 30, 200), "草": (30, 200, 30)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(4):
            pixels = (np.array(colour) + random.normal(0, 25, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def make(backbone: str = "vit_tiny_patch16_224", **arguments: int) -> Encoder:
    torch.manual_seed(0)
    model = ModelSpec(backbone=backbone, weights="random", pooling="mean", backbone_args=tuple(arguments.items()))
    return Encoder(model, ImageSpec(image_px=32)).eval()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make(depth=2, embed_dim=32, num_heads=2, patch_size=8)


def inspected(encoder: Encoder, records: Records, name: str = "runs/<mine>") -> Inspected:
    return Inspected(name, encoder, embed_records(encoder, records, BadFiles(), precision="fp32", show=False))


def look(records: Records, out: Path, *models: Inspected) -> tuple[dict[str, Any], str]:
    numbers = inspect(models, records, out, command="sightline inspect", bad_files=["x.jpg: zero bytes"])
    assert json.loads((out / "numbers.json").read_text(encoding="utf-8")) == numbers
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:|//)|url\(\s*["']?http""", page), "the page asks nothing of the network"
    return numbers, page


def test_the_page_shows_all_there_is(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    numbers, page = look(records, tmp_path / "out", inspected(encoder, records))
    of_descriptors = ("Descriptor health", "Shape", "Gradients", "Nearest neighbours", "Hard negatives", "Near-duplicates")
    of_layers = ("First-layer filters", "Position embeddings", "Attention distance", "Attention", "Token norms", "Likeness of layers")
    for heading in of_descriptors + of_layers:
        assert f">{heading}</h2>" in page
    assert "<mine>" not in page
    assert "<red>" not in page
    assert "a &lt;red&gt; $one$" in page
    assert numbers["images"] == 12
    assert numbers["classes"] == 3
    assert numbers["attention"] is True
    assert set(numbers["metrics"]) >= {"effective_rank", "mean_similarity", "uniformity", "alignment", "pair_auc", "hubness"}
    assert numbers["closest_is_of_another_class"] == 0, "an untrained model tells plain colours apart"
    assert numbers["model"]["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert numbers["model"]["name"] == "runs/<mine>"
    assert numbers["beside"] == []
    assert numbers["gradients"]["batch"] == "3 x 4"
    assert len(numbers["gradients"]["of_gradients"]) == len(numbers["gradients"]["margins"]) == 20
    shares = numbers["histograms"]["shares"][0]
    assert sum(shares["positive"]) == pytest.approx(1.0, abs=1e-4)
    assert len(numbers["histograms"]["edges"]) == len(shares["negative"]) + 1
    assert 0 < len(numbers["hard_negatives"]) <= 6, "twelve images, none of them twice"
    assert records.labels is not None
    for pair in numbers["hard_negatives"]:
        assert len({int(records.labels[records.paths.index(path)]) for path in pair["paths"]}) == 2
    files = sorted(file.name for file in (tmp_path / "out").iterdir() if not file.name.startswith("."))
    assert files == sorted((*FILES, "duplicates.png", "hard_negatives.png", "index.html", "numbers.json"))
    assert "None to show" not in page
    assert "Where the patches look, on average, in the last block" in page
    assert ">rollout<" in page


def test_what_the_layers_show_is_in_the_numbers(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    numbers, _ = look(records, tmp_path, inspected(encoder, records), inspected(make("resnet10t"), records, "resnet"))
    assert len(numbers["filters"]["shares"]) == 28
    assert numbers["positions"]["grid"] == [4, 4]
    assert set(numbers["positions"]["similarity"]) == {"beside", "same_row", "same_column", "elsewhere"}
    reach = numbers["attention_distance"]
    assert [len(heads) for heads in reach["heads_px"]] == [2, 2]
    assert reach["images"] == 12
    assert all(0 < distance < 32 * 2**0.5 for heads in reach["heads_px"] for distance in heads)
    norms = numbers["token_norms"]
    assert norms["median"] <= norms["largest"]
    assert 0 <= norms["share_far_out"] < 0.25
    assert len(norms["prefix"]) == 1
    assert numbers["cka"]["layers"] == ["blocks.0", "blocks.1"]
    assert [numbers["cka"]["alike"][at][at] for at in (0, 1)] == [1, 1]
    other = numbers["beside"][0]
    assert other["positions"] is None
    assert other["attention_distance"] is None
    assert other["filters"] is not None
    crossed = other["cka_with_first"]
    assert crossed["layers"] == other["cka"]["layers"]
    assert np.array(crossed["alike"], float).shape == (2, 5)


def test_the_page_says_that_class_attention_is_shown(photos: Path, tmp_path: Path) -> None:
    records = read_records(photos).select([0])
    model = ModelSpec(backbone="resnet10t", weights="random", pooling="class_attention")
    numbers, page = look(records, tmp_path, inspected(Encoder(model, ImageSpec(image_px=32)).eval(), records))
    assert "Where the class attention that the descriptor is pooled by looks in its own last block" in page
    assert ">head 1<" in page
    assert ">rollout<" not in page, "a convolutional network has none"
    assert numbers["attention"] is True


def test_models_stand_beside_each_other(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    first, second = (
        inspected(encoder, records, "runs/_r$1$"),
        inspected(make(depth=1, embed_dim=16, num_heads=2, patch_size=8), records, "草/o"),
    )
    alone, _ = look(records, tmp_path / "alone", second)
    numbers, page = look(records, tmp_path / "both", first, second)
    assert page.count(">Similarities: ") == 2
    assert ">Alignment and uniformity<" in page
    assert page.count("_r$1$") > 5
    assert "all that follows is _r$1$&#x27;s alone" in page
    other = numbers["beside"][0]
    assert len(numbers["energy"]) == 32
    assert len(other["energy"]) == 16
    assert {key: other[key] for key in ("model", "metrics", "energy", "gradients")} == {
        key: alone[key] for key in ("model", "metrics", "energy", "gradients")
    }
    assert [one["name"] for one in numbers["histograms"]["shares"]] == ["runs/_r$1$", "草/o"]


def test_models_of_different_images_are_not_compared(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    whole = inspected(encoder, records)
    part = Inspected("part", encoder, Descriptors(whole.descriptors.vectors[:5], whole.descriptors.rows[:5]))
    with pytest.raises(ValueError, match="same images"):
        inspect([whole, part], records, tmp_path)


def test_a_name_is_short_where_it_still_tells_models_apart() -> None:
    assert short_names(["runs/a", "timm:deit_small", "runs/b/"]) == ["a", "timm:deit_small", "b"]
    assert short_names(["runs/a/model", "runs/b/model"]) == ["runs/a/model", "runs/b/model"]
    assert short_names(["."]) == ["."]


def test_without_labels_or_attention_the_rest_is_there(photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    unlabelled = Records(root=records.root, paths=records.paths)
    (tmp_path / "hard_negatives.png").touch()
    numbers, page = look(unlabelled, tmp_path, inspected(make("resnet10t"), unlabelled))
    assert "need a plain Vision Transformer" in page
    assert "Hard negatives" not in page
    assert ">Gradients<" not in page
    assert numbers["gradients"] is None
    assert numbers["hard_negatives"] == []
    assert not (tmp_path / "hard_negatives.png").exists(), "that of an earlier inspection would mislead"
    assert numbers["attention"] is False
    assert numbers["classes"] is None
    assert numbers["closest_is_of_another_class"] is None
    assert "alignment" not in numbers["metrics"]


def test_one_image_or_one_point_is_no_trouble(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    one = records.select([0])
    numbers, _ = look(one, tmp_path, inspected(encoder, one))
    assert numbers["metrics"]["uniformity"] is None
    same = Descriptors(np.tile(np.eye(1, 32, dtype=np.float32), (5, 1)), np.arange(5))
    collapsed = [Inspected(name, encoder, same) for name in ("collapsed", "too")]
    numbers = inspect(collapsed, records, tmp_path)
    assert numbers["metrics"]["effective_rank"] == 0
    assert numbers["metrics"]["mean_similarity"] == 1
    assert numbers["near_duplicates"] > 0


def test_images_that_have_gone_leave_empty_frames(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    found = inspected(encoder, records, "moved")
    moved = Records(root=tmp_path / "gone", paths=records.paths, labels=records.labels, class_names=records.class_names)
    numbers = inspect([found], moved, tmp_path / "out")
    assert numbers["images"] == 12
    assert "not readable" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_one_line(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = read_records(photos).select([0, 1])
    with pytest.raises(SightlineError, match="file") as caught:
        inspect([inspected(encoder, records)], records, tmp_path / "file")
    assert "\n" not in str(caught.value)
    (tmp_path / "taken" / "duplicates.png").mkdir(parents=True)
    with pytest.raises(SightlineError, match=r"duplicates\.png") as caught:
        inspect([inspected(encoder, records)], records, tmp_path / "taken")
    assert "\n" not in str(caught.value)


def test_a_contact_sheet_holds_each_pair_in_its_place() -> None:
    red, blue = Image.new("RGB", (30, 60), "red"), Image.new("RGB", (400, 20), "blue")
    pairs = [(Picture(red, "one " * 40, "0.9"), Picture(blue, "草", "0.9"))] * 4 + [(Picture(None, "gone"), Picture(blue, "other"))]
    sheet = contact_sheet("Pairs", pairs)
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 4 * 160 * 160
    assert (pixels == (0, 0, 255)).all(axis=2).sum() == 5 * 160 * 160
    assert contact_sheet("Pairs", pairs[:4]).height < sheet.height == contact_sheet("Pairs", pairs[:4] * 2).height
    one = contact_sheet("A title too long for a sheet of a single pair, which is cut", pairs[:1])
    assert (np.asarray(one)[:, -4:] == 255).all(), "nothing is written over the edge"


def test_names_of_any_kind_are_drawn_as_they_are() -> None:
    names = ["_x$1$", "草", "a\\b"]
    curve, energy = np.array([0.0, 1.0]), np.array([0.5, 1.0])
    figures = [
        draw.gradient_curves(curve, dict.fromkeys(names, curve)),
        draw.energy_curves(dict.fromkeys(names, energy) | {"nothing": np.zeros(3)}),
        draw.alignment_plane(dict.fromkeys(names, (-1.0, 0.2)) | {"unknown": (float("nan"), float("nan"))}),
    ]
    page = Page("Names").plots([Plot(figure, "", "") for figure in figures]).render()
    assert [page.count(name) for name in names] == [3, 3, 3]
    assert "90 % in 2" in page


def test_pairs_come_once_and_most_similar_first() -> None:
    closest = Ranking(np.array([[1], [0], [1], [-1]]), np.array([[0.9], [0.9], [0.95], [-np.inf]], np.float32))
    pairs, similarity = pairs_of(closest, 0.5)
    assert pairs.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_allclose(similarity, [0.95, 0.9])
    assert pairs_of(closest, 0.92)[0].tolist() == [[1, 2]]


def test_a_sheet_of_pairs_repeats_no_image_and_few_classes() -> None:
    labels = np.array([0, 1] * 6)
    pairs = np.array([[0, 1], [0, 3], [2, 3], [4, 5], [6, 7], [8, 10]])
    assert varied(pairs, None, 10) == [0, 2, 3, 4, 5]
    assert varied(pairs, labels, 10) == [0, 2, 3, 5]
    assert varied(pairs, labels, 2) == [0, 2]


def test_heat_is_light_where_attention_is_high() -> None:
    heat = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)
    drawn = np.asarray(draw.overlay(Image.new("RGB", (64, 64), "grey"), heat).convert("L"), np.int64)
    assert drawn[60, 60] > drawn[4, 4] + 60
    even = draw.overlay(Image.new("RGB", (8, 8), "grey"), np.full((2, 2), 0.3, np.float32))
    assert len(even.getcolors() or []) == 1


def test_a_filter_is_grey_where_it_does_nothing() -> None:
    component = np.zeros((3, 4, 4), np.float32)
    component[0, 0, 0], component[2, 3, 3] = 2, -1
    pixels = np.asarray(draw.filter_picture(component, side_px=8))
    assert pixels[0, 0].tolist() == [255, 128, 128]
    assert pixels[7, 7].tolist() == [128, 128, 64]
    assert len(draw.filter_picture(np.zeros((3, 4, 4), np.float32)).getcolors() or []) == 1


def test_a_large_grid_of_positions_shows_every_few_patches() -> None:
    similarity = np.random.default_rng(0).uniform(-1, 1, (30, 20, 30, 20)).astype(np.float32)
    pixels = draw.position_maps(similarity).axes[0].images[0].get_array()
    assert max(pixels.shape) <= draw.MOSAIC_PX
    assert np.isclose(float(pixels[0, 0]), similarity[1, 1, 0, 0])


def test_class_colours_differ() -> None:
    assert len(set(draw.class_colours(20))) == 20
    assert draw.class_colours(0) == []
