"""The inspection page on generated images: whole, closed to the network, and its numbers those of the descriptors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.contracts import Descriptors, Ranking
from sightline.data.images import BadFiles
from sightline.data.records import Records, read_records
from sightline.errors import SightlineError
from sightline.lens import draw
from sightline.lens.inspect import inspect, pairs_of, varied
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


def look(encoder: Encoder, records: Records, out: Path) -> tuple[dict[str, object], str]:
    found = embed_records(encoder, records, BadFiles(), precision="fp32", show=False)
    numbers = inspect(encoder, records, found, out, title="runs/<mine>", command="sightline inspect", bad_files=["x.jpg: zero bytes"])
    assert json.loads((out / "numbers.json").read_text(encoding="utf-8")) == numbers
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:|//)|url\(\s*["']?http""", page), "the page asks nothing of the network"
    return numbers, page


def test_the_page_shows_all_there_is(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    numbers, page = look(encoder, records, tmp_path / "out")
    for heading in ("Descriptor health", "Shape", "Attention", "Nearest neighbours", "Hard negatives", "Near-duplicates"):
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
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["index.html", "numbers.json"]


def test_without_labels_or_attention_the_rest_is_there(photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    unlabelled = Records(root=records.root, paths=records.paths)
    numbers, page = look(make("resnet10t"), unlabelled, tmp_path)
    assert "need a plain Vision Transformer" in page
    assert "Hard negatives" not in page
    assert numbers["attention"] is False
    assert numbers["classes"] is None
    assert numbers["closest_is_of_another_class"] is None
    assert "alignment" not in numbers["metrics"]


def test_one_image_or_one_point_is_no_trouble(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    numbers, _ = look(encoder, records.select([0]), tmp_path)
    assert numbers["metrics"]["uniformity"] is None
    same = Descriptors(np.tile(np.eye(1, 32, dtype=np.float32), (5, 1)), np.arange(5))
    numbers = inspect(encoder, records, same, tmp_path, title="collapsed")
    assert numbers["metrics"]["effective_rank"] == 0
    assert numbers["metrics"]["mean_similarity"] == 1
    assert numbers["near_duplicates"] > 0


def test_images_that_have_gone_leave_empty_frames(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    records = read_records(photos)
    found = embed_records(encoder, records, BadFiles(), precision="fp32", show=False)
    moved = Records(root=tmp_path / "gone", paths=records.paths, labels=records.labels, class_names=records.class_names)
    numbers = inspect(encoder, moved, found, tmp_path / "out", title="moved")
    assert numbers["images"] == 12
    assert "not readable" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_one_line(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = read_records(photos).select([0, 1])
    found = embed_records(encoder, records, BadFiles(), precision="fp32", show=False)
    with pytest.raises(SightlineError, match="file") as caught:
        inspect(encoder, records, found, tmp_path / "file", title="x")
    assert "\n" not in str(caught.value)


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


def test_class_colours_differ() -> None:
    assert len(set(draw.class_colours(20))) == 20
    assert draw.class_colours(0) == []
