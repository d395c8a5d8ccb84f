"""Segmentation of frozen patch features: counts by hand, label transfer and votes against loops, windows against whole images."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sightline import catalog
from sightline.data.images import BadFiles
from sightline.data.segments import Cutting, distorted, nearest_size
from sightline.data.sets.segmentation import VOID
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense import incontext, segmenting
from sightline.evaluation.dense.incontext import crop, label_shares, rare_first, transfer
from sightline.evaluation.dense.miou import Confusion
from sightline.evaluation.dense.segment_knn import closest_rows, commonest, filled_in, vote
from sightline.evaluation.dense.segment_probe import Shuffled, linear_head, rate, slide, starts
from sightline.evaluation.dense.segmenting import classes_at, colour, joined, painted, patches_of
from sightline.evaluation.protocol import parse
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SEGMENTATIONS = ("in-context", "segment-knn", "segment-linear")


def mask_of(values: object) -> np.ndarray:
    return np.array(values, np.int16)


# --- counts -----------------------------------------------------------------------------------------------------------------------


def test_miou_by_hand() -> None:
    confusion = Confusion(4)
    confusion.update(mask_of([[0, 0, 0, 1], [1, VOID, VOID, 1]]), mask_of([[0, 0, 1, 1], [2, 0, 3, 1]]))
    # class 0: 2 of 3; class 1: 2 of 4; class 2: predicted once, never true: 0; class 3: only where void is, so it is not shown
    np.testing.assert_allclose(confusion.iou, [2 / 3, 2 / 4, 0, np.nan])
    assert confusion.miou == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert confusion.pixel_accuracy == pytest.approx(4 / 6)
    groups = confusion.groups(["a", "b", "c", "d"])
    assert list(groups) == ["a", "b", "c"]
    assert groups["b"] == pytest.approx({"iou": 0.5, "accuracy": 2 / 3, "pixels": 0.5})
    assert groups["c"] == {"iou": 0.0, "pixels": 0.0}  # of a class that is never true no share can be found


def test_counts_do_not_depend_on_how_they_come_in() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(-1, 5, (6, 9)), random.integers(0, 5, (6, 9))
    whole, parts = Confusion(5), Confusion(5)
    whole.update(truth, predicted)
    for row in random.permutation(6):
        parts.update(truth[row], predicted[row])
    assert (whole.counts == parts.counts).all()
    assert whole.counts.sum() == (truth != VOID).sum()


def test_nothing_counted_is_no_number_and_wrong_classes_are_refused() -> None:
    confusion = Confusion(2)
    confusion.update(mask_of([VOID]), mask_of([0]))
    assert math.isnan(confusion.miou)
    assert math.isnan(confusion.pixel_accuracy)
    with pytest.raises(ValueError, match="classes must be 0 to 1"):
        confusion.update(mask_of([0]), mask_of([2]))
    with pytest.raises(ValueError, match="one shape"):
        confusion.update(mask_of([0, 1]), mask_of([0]))


# --- sizes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 11), (3, 4), (2, 2), (40, 33)])
@pytest.mark.parametrize("band_bytes", [1, 10**9])
def test_banded_classes_are_those_of_bilinear_upsampling(size: tuple[int, int], band_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenting, "BAND_BYTES", band_bytes)
    scores = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    assert (classes_at(scores, *size) == wanted.numpy()).all()


def test_nearest_size_takes_the_pixel_under_the_centre() -> None:
    mask = mask_of([[0, 1, 2, 3]])
    assert nearest_size(mask, 2, 2).tolist() == [[1, 3], [1, 3]]
    assert nearest_size(mask, 1, 8).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_patches_are_cut_in_row_order_and_join_again() -> None:
    mask = np.arange(24, dtype=np.int16).reshape(4, 6)
    patches = patches_of(mask[None], (2, 3))
    assert patches[0, 1].tolist() == [2, 3, 8, 9]
    assert (joined(patches[0], (2, 3), 2) == mask).all()
    assert patches_of(mask[None], (3, 3)).shape == (1, 9, 2)  # 4 rows are resized to 3


# --- in context -------------------------------------------------------------------------------------------------------------------


def test_void_is_no_share_of_a_patch() -> None:
    assert label_shares(mask_of([[[0, 0, 1, VOID], [VOID] * 4]]), 3).tolist() == [[[0.5, 0.25, 0], [0, 0, 0]]]


def test_a_memory_takes_rare_classes_first() -> None:
    # class 0 in four patches, class 1 in two, class 2 in one; scores without chance: 4, 4, 4 + 2, 2, 4 + 1 and nothing
    shares = np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0.2, 0, 0.8], [0, 0, 0]], np.float32)
    assert rare_first(shares, 2, np.ones(6, np.float32)).tolist() == [3, 0]
    assert rare_first(shares, 1, np.array([1, 1, 1, 1, 0.3, 0], np.float32)).tolist() == [4]
    assert sorted(rare_first(shares, 99, np.ones(6, np.float32)).tolist()) == [0, 1, 2, 3, 4]


def test_transfer_is_that_of_a_loop() -> None:
    random = np.random.default_rng(1)
    memory, queries = random.normal(size=(50, 8)), random.normal(size=(9, 8))
    memory, queries = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (memory, queries))
    labels = random.dirichlet(np.ones(4), 50).astype(np.float32)
    wanted = []
    for query in queries:
        similarity = memory.astype(np.float64) @ query
        rows = np.argsort(-similarity)[:7]
        weight = np.exp(similarity[rows] / 0.1)
        wanted.append(weight @ labels[rows] / weight.sum())
    np.testing.assert_allclose(transfer(queries, memory, labels, k=7, temperature=0.1), wanted, atol=1e-6)


def test_queries_and_memory_are_compared_by_cosine(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watched(queries: np.ndarray, memory: np.ndarray, labels: np.ndarray, **options: Any) -> np.ndarray:
        seen.append((queries, memory))
        return transfer(queries, memory, labels, **options)

    monkeypatch.setattr(incontext, "transfer", watched)
    parse("in-context,k=3").run(encoder, garden(tmp_path, num=2), BadFiles(), precision="fp32")
    assert seen
    for vectors in (one for pair in seen for one in pair):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_memory_is_of_random_crops_or_of_whole_images(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cut = garden(tmp_path, num=3), []
    monkeypatch.setattr(incontext, "crop", lambda *given: (cut.append(given), crop(*given))[1])
    for setting, times in (("random", 3), ("none", 0), ("random,epochs=2", 6)):
        cut.clear()
        parse(f"in-context,k=3,crops={setting}").run(encoder, root, BadFiles(), precision="fp32")
        assert len(cut) == times, setting


# --- k-NN -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 9])
def test_the_commonest_class_is_that_of_a_loop(k: int) -> None:
    labels = np.random.default_rng(k).integers(-1, 4, (30, k, 6)).astype(np.int16)
    for query, place in np.ndindex(30, 6):
        own = labels[query, :, place]
        counts = np.bincount(own[own != VOID], minlength=1)
        wanted = counts.argmax() if counts.sum() else VOID
        assert commonest(labels)[query, place] == wanted


def test_void_pixels_take_their_patchs_commonest_class() -> None:
    assert filled_in(mask_of([[2, 2, VOID, 0], [1, 0, 0, 1]])).tolist() == [[2, 2, 2, 0], [1, 0, 0, 1]]


def test_pixels_are_voted_on_place_by_place() -> None:
    labels = mask_of([[0, 1], [0, 2], [3, 2]])
    assert vote(np.array([[0, 1, 2], [2, 0, 0]]), labels).tolist() == [[0, 2], [0, 1]]


def test_both_distances_are_exact() -> None:
    random = np.random.default_rng(2)
    known, queries = (5 * random.normal(size=(num, 6)).astype(np.float32) for num in (40, 10))
    squared = ((queries[:, None].astype(np.float64) - known[None]) ** 2).sum(axis=2)
    assert (closest_rows(queries, known, 5, "l2") == np.argsort(squared, axis=1)[:, :5]).all()
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (known / np.linalg.norm(known, axis=1)[:, None]).T
    assert (closest_rows(queries, known, 5, "cosine") == np.argsort(-cosine, axis=1)[:, :5]).all()


# --- the linear probe -------------------------------------------------------------------------------------------------------------


def test_windows_cover_a_side_and_end_with_it() -> None:
    assert starts(683, 512, 341) == [0, 171]
    assert starts(512, 512, 341) == [0]
    assert starts(100, 512, 341) == [0]
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]


def brightness(pixels: torch.Tensor) -> torch.Tensor:
    """Two classes: a window's mean brightness, everywhere, and the pixel's own."""
    values = pixels.float().mean(dim=1, keepdim=True)
    return torch.cat([values.mean(dim=(2, 3), keepdim=True).expand_as(values), values], dim=1)


def test_a_window_as_large_as_the_image_is_the_whole_image() -> None:
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slide(brightness, pixels, 8, 5, batch=4), brightness(pixels[None])[0])


@pytest.mark.parametrize("batch", [1, 2])
def test_overlapping_windows_are_averaged(batch: int) -> None:
    pixels = torch.tensor([0, 0, 30, 60, 90], dtype=torch.uint8).expand(3, 4, 5)
    found = slide(brightness, pixels, 4, 3, batch)
    # windows 0..3 (mean 22.5) and 1..4 (mean 45): the ends are in one of them, the middle in both
    assert found[0, 0].tolist() == [22.5, 33.75, 33.75, 33.75, 45]
    assert found[1, 3].tolist() == [0, 0, 30, 60, 90]


def test_the_rate_rises_and_then_follows_a_cosine_to_nothing() -> None:
    assert rate(0, 40_000) == pytest.approx(1e-6)
    assert rate(750, 40_000) == pytest.approx(0.5 * (1 - 750 / 40_000), rel=1e-5)
    assert rate(1_500, 40_000) == pytest.approx((1 + math.cos(math.pi * 1_501 / 40_000)) / 2)
    assert rate(39_999, 40_000) == pytest.approx(0, abs=1e-12)


def test_the_head_begins_near_nothing() -> None:
    torch.manual_seed(0)
    head = linear_head(192, 50, 0.1)
    assert float(head[2].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not head[2].bias.detach().any()
    assert [type(layer).__name__ for layer in head] == ["Dropout2d", "BatchNorm2d", "Conv2d"]


def test_every_image_is_drawn_once_a_pass() -> None:
    drawn = Shuffled(5, seed=0)
    places = drawn.next(7) + drawn.next(8)
    assert [sorted(places[first : first + 5]) for first in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3


def test_crops_keep_image_and_mask_together_and_come_from_the_seed_alone() -> None:
    random = np.random.default_rng(0)
    mask = random.integers(0, 3, (6, 8)).repeat(10, axis=0).repeat(10, axis=1).astype(np.int16)
    image = Image.fromarray((mask * 100).astype(np.uint8)[..., None].repeat(3, axis=2))
    how = Cutting(crop_px=32, short_px=32, distort=False)
    for seed in range(6):
        pixels, cut = how.cut(Random(seed), image, mask)
        again, cut_again = how.cut(Random(seed), image, mask)
        assert torch.equal(pixels, again)
        assert (cut == cut_again).all()
        assert tuple(pixels.shape[1:]) == cut.shape
        assert max(cut.shape) <= 32
        agree = np.abs(pixels[0].numpy().astype(int) - 100 * cut) < 50
        assert agree.mean() > 0.8  # interpolation blurs the edges; another part of the mask agrees by chance, in a third


def test_distortion_keeps_shape_and_type_and_follows_the_seed() -> None:
    pixels = torch.randint(0, 256, (3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    changed = [distorted(Random(seed), pixels) for seed in range(8)]
    assert all(one.shape == pixels.shape and one.dtype == torch.uint8 for one in changed)
    assert torch.equal(changed[3], distorted(Random(3), pixels))
    assert len({one.numpy().tobytes() for one in changed}) > 4


# --- what is shown ----------------------------------------------------------------------------------------------------------------


def test_colours_are_those_of_voc_and_void_stays_grey() -> None:
    assert [colour(label) for label in range(4)] == [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert len({colour(label) for label in range(200)}) == 200
    shown = np.asarray(painted(Image.new("RGB", (2, 1), (100, 100, 100)), mask_of([[0, VOID]])))
    assert shown.tolist() == [[[117, 40, 40], [100, 100, 100]]]


# --- all of it --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    arguments = (("patch_size", 8), ("depth", 2), ("embed_dim", 32), ("num_heads", 2))
    spec = ModelSpec(backbone="vit_tiny_patch16_224", weights="random", backbone_args=arguments)
    return Encoder(spec, ImageSpec(image_px=32)).eval()


def garden(root: Path, *, num: int = 6) -> Path:
    """Images 48 x 40 whose left or right part is reddish, the rest bluish: the class is the colour, with a line of void between."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(num):
            mask = np.ones((40, 48), np.uint8)
            edge = int(random.integers(16, 33))
            mask[:, :edge] = 0
            mask = mask if number % 2 else mask[:, ::-1]
            colours = np.array([[200, 60, 60], [60, 60, 200]])[mask]
            stored = mask.copy()
            stored[:, [edge] if number % 2 else [47 - edge]] = 255
            for kind, values in (("images", np.clip(colours + random.normal(0, 15, colours.shape), 0, 255)), ("masks", stored)):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(root / kind / part / f"{number}.png")
    (root / "classes.txt").write_text("rose\nsky\n")
    return root


@pytest.mark.parametrize("protocol", ["in-context,k=5", "segment-knn", "segment-linear,steps=30,batch=4,lr=0.01,distort=false"])
def test_an_untrained_vit_tells_colours_apart(protocol: str, encoder: Encoder, tmp_path: Path) -> None:
    root, bad_files = garden(tmp_path), BadFiles()
    found = parse(protocol).run(encoder, root, bad_files, precision="fp32", num_shown=8)
    assert found.metrics["miou"] > 0.75  # one class everywhere is under 0.5
    assert found.metrics["pixel_accuracy"] > found.metrics["miou"]
    assert found.counts == {"training images": 6, "images": 6}
    assert set(found.groups) == {"rose", "sky"}
    assert [[picture.note.partition(",")[0] for picture in row] for row in found.shown] == [["image", "truth", "prediction"]] * 2
    assert (found.shown[0][1].image.size, len(bad_files)) == ((48, 40), 0)
    assert {name for name, _ in found.colours} == {"rose", "sky", "not counted"}

    assert dict(found.colours)["sky"] == "#{:02x}{:02x}{:02x}".format(*colour(1))

    again = parse(protocol).run(encoder, root, bad_files, precision="fp32")
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize("protocol", ["in-context,k=5", "segment-knn,k=1,distance=l2", "segment-linear,steps=2,batch=4"])
def test_bad_files_are_noted_and_passed_by(protocol: str, encoder: Encoder, tmp_path: Path) -> None:
    root, bad_files = garden(tmp_path), BadFiles()
    (root / "images/train/0.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    Image.new("L", (5, 5)).save(root / "masks/train/1.png")
    Image.new("L", (48, 40), 7).save(root / "masks/val/2.png")
    (root / "masks/val/3.png").unlink()
    found = parse(protocol).run(encoder, root, bad_files, precision="fp32")
    noted = {str(Path(path).relative_to(root)): reason.partition(":")[0] for path, reason in bad_files.items()}
    assert noted.pop("images/train/0.png")
    assert noted == {"masks/train/1.png": "another size", "masks/val/2.png": "no such class", "images/val/3.png": "no mask"}
    assert found.counts == {"training images": 4, "images": 4}


def test_a_memory_is_bounded_and_subsets_are_taken(encoder: Encoder, tmp_path: Path) -> None:
    found = parse("in-context,k=3,memory=20,max_train=4,max_images=2").run(encoder, garden(tmp_path), BadFiles(), precision="fp32")
    assert found.settings["patches"] == 20
    assert found.counts == {"training images": 4, "images": 2}
    found = parse("segment-knn,k=1,distance=cosine,memory=3").run(encoder, tmp_path, BadFiles(), precision="fp32")
    assert (found.settings["patches"], found.counts["training images"]) == (3, 3)


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_when_nothing_can_be_read_it_is_said(name: str, encoder: Encoder, tmp_path: Path) -> None:
    root = garden(tmp_path, num=2)
    for file in (root / "masks/train").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no training .* can be read"):
        parse(name).run(encoder, root, BadFiles(), precision="fp32")


@pytest.mark.parametrize(
    "text", ["in-context,k=0", "in-context,temperature=0", "segment-knn,memory=0", "segment-linear,batch=1", "segment-linear,dropout=1"]
)
def test_settings_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_a_protocol_knows_its_own_name() -> None:
    assert [parse(name).name for name in SEGMENTATIONS] == list(SEGMENTATIONS)
    assert set(SEGMENTATIONS) <= set(catalog.names("protocols"))
