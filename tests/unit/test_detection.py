"""Pyramids and their strides, a detector that overfits, and average precision against a case worked by hand and pycocotools' own path."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from sightline.contracts import DetectionBatch, Instances, Tokens
from sightline.data.images import BadFiles
from sightline.data.instances import Sizing, training_batches
from sightline.data.sets.coco import Annotated, Polygons
from sightline.errors import UsageError
from sightline.evaluation.dense.average_precision import NAMES, Found, average_precision
from sightline.evaluation.dense.detect import Detect as Protocol
from sightline.methods.detect import Detect
from sightline.nn.detector import Anchors, Detector, _roi_pool, paste
from sightline.nn.encoder import Encoder
from sightline.nn.pyramid import PyramidFeatures, SimpleFeaturePyramid
from sightline.recipe import ImageSpec, ModelSpec, TrainSpec

SWIN = (("embed_dim", 12), ("depths", (1, 1, 1, 1)), ("num_heads", (1, 1, 2, 2)))


def encoder(backbone: str = "vit_tiny_patch16_224", arguments: tuple[tuple[str, object], ...] | None = None, **changes: object) -> Encoder:
    torch.manual_seed(0)
    given = (("patch_size", 8), ("embed_dim", 48), ("depth", 2), ("num_heads", 2)) if arguments is None else arguments
    return Encoder(ModelSpec(backbone=backbone, backbone_args=given, weights="random", **changes), ImageSpec(image_px=64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch_px", "strides", "sides"),
    [
        (16, (4, 8, 16, 32, 64), (20, 10, 5, 2, 1)),
        (8, (4, 8, 16, 32, 64), (10, 5, 2, 1, 1)),
        (14, (3.5, 7, 14, 28, 56), (20, 10, 5, 2, 1)),
        (32, (4, 8, 16, 32, 64), (40, 20, 10, 5, 3)),
    ],
)
def test_a_pyramid_over_tokens_has_its_strides_and_shapes(patch_px, strides, sides):
    pyramid = SimpleFeaturePyramid(24, patch_px, channels=8)
    assert pyramid.strides == strides
    maps = pyramid(Tokens(torch.zeros(2, 1, 24), torch.randn(2, 25, 24), (5, 5)))
    assert [tuple(found.shape) for found in maps] == [(2, 8, side, side) for side in sides]
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


def test_the_levels_are_those_of_the_paper_for_patches_of_16():
    kinds = [[type(layer).__name__ for layer in level] for level in SimpleFeaturePyramid(24, 16, 8).levels]
    end = ["Conv2d", "LayerNorm2d", "Conv2d", "LayerNorm2d"]
    up = "ConvTranspose2d"
    assert kinds == [[up, "LayerNorm2d", "GELU", up, *end], [up, *end], end, ["MaxPool2d", *end]]


def test_a_level_sees_the_patch_at_its_place():
    pyramid, patches = SimpleFeaturePyramid(4, 16, channels=4), torch.randn(1, 12, 4)
    changed = patches.clone()
    changed[0, 1 * 4 + 3] += 1.0  # row 1, column 3 of a grid of 3 x 4
    empty = torch.zeros(1, 0, 4)
    moved = (pyramid(Tokens(empty, patches, (3, 4)))[2] != pyramid(Tokens(empty, changed, (3, 4)))[2]).any(dim=1)[0]
    assert moved.nonzero().amin(dim=0).tolist() == [0, 2]  # a 3 x 3 convolution reaches one further
    assert moved.nonzero().amax(dim=0).tolist() == [2, 3]


def test_networks_of_stages_are_taken_at_their_stages():
    resnet = PyramidFeatures(encoder("resnet10t", (), pooling="mean"), 8).train()
    swin = PyramidFeatures(encoder("swin_tiny_patch4_window7_224", SWIN, pooling="mean"), 8).train()
    for features in (resnet, swin):
        assert features.strides == (4, 8, 16, 32, 64)
        assert features.multiple_px == 32
        maps = features(torch.randn(2, 3, 96, 64))
        assert [tuple(found.shape[1:]) for found in maps] == [(8, 24, 16), (8, 12, 8), (8, 6, 4), (8, 3, 2), (8, 2, 1)]
    norms = [module for module in resnet.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_anchors_and_regions_keep_the_strides_on_odd_grids():
    anchors = Anchors((3.5, 7.0), size=4.0)
    images = ImageList(torch.zeros(1, 3, 70, 49), [(70, 49)])
    found = anchors(images, [torch.zeros(1, 1, 20, 14), torch.zeros(1, 1, 10, 7)])[0]
    centres = (found[:, :2] + found[:, 2:]) / 2
    assert centres[: 20 * 14 * 3].amax(dim=0).tolist() == [13 * 3.5, 19 * 3.5]
    assert centres[20 * 14 * 3 :].amax(dim=0).tolist() == [42.0, 63.0]
    assert _roi_pool((3.5, 7.0, 14.0, 28.0, 56.0), 7).scales == [1 / 3.5, 1 / 7, 1 / 14, 1 / 28]


def scene() -> DetectionBatch:
    """Two images with a bright square and a dark bar each, masks and all; the second is narrower."""
    images, masks, boxes = torch.zeros(2, 3, 64, 64), torch.zeros(2, 2, 64, 64, dtype=torch.uint8), []
    for number, both in enumerate((((8, 8, 32, 32), (36, 40, 60, 52)), ((20, 30, 44, 54), (4, 6, 28, 18)))):
        for place, (x0, y0, x1, y1) in enumerate(both):
            images[number, :, y0:y1, x0:x1] = 2.0 if place == 0 else -2.0
            masks[number, place, y0:y1, x0:x1] = 1
        boxes.append(torch.tensor(both, dtype=torch.float32))
    instances = tuple(Instances(boxes[number], torch.tensor([1, 2]), masks[number]) for number in range(2))
    return DetectionBatch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2), sizes=((64, 64), (64, 48)), instances=instances)


def test_a_tiny_detector_overfits_two_images():
    batch = scene()
    torch.manual_seed(0)
    detector = Detector(encoder(), 2, with_masks=True, channels=32, anchor=6.0, num_proposals=50, num_samples=32)
    method = Detect(detector).train()
    spec = TrainSpec(lr=3e-3, weight_decay=0.0)
    optimizer = torch.optim.AdamW(method.parameter_groups(spec))
    losses = []
    for step in range(60):
        total = method.loss(batch, step).total
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        losses.append(float(total.detach()))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    with torch.no_grad():
        answers = method.eval().detector.detect(batch)
    for one, truth, size in zip(answers, batch.instances, batch.sizes, strict=True):
        assert one.scores is not None
        assert one.masks is not None
        best = [int(one.scores.where(one.labels == label, -1.0).argmax()) for label in (1, 2)]
        assert one.labels[best].tolist() == [1, 2]
        assert box_iou(one.boxes[best], truth.boxes).diagonal().min() > 0.5
        assert one.boxes[:, 2].max() <= size[1]  # nothing is found in the padding
        laid = paste(one.masks[best], one.boxes[best], (64, 64))
        assert ((laid & truth.masks).sum((1, 2)) / (laid | truth.masks).sum((1, 2))).min() > 0.4


def test_a_frozen_backbone_stays_and_every_other_parameter_is_in_a_group_once():
    method = Detect(Detector(encoder(drop_path=0.5), 2, with_masks=True, channels=8), frozen=True).train()
    assert not method.encoder().training
    held = [id(parameter) for group in method.parameter_groups(TrainSpec()) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in method.parameters() if parameter.requires_grad)
    assert not any(parameter.requires_grad for parameter in method.encoder().parameters())
    whole = Detect(Detector(encoder(), 2, with_masks=False, channels=8, head="conv"))
    held = [id(parameter) for group in whole.parameter_groups(TrainSpec(layer_decay=0.5)) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in whole.parameters())


def test_bfloat16_keeps_coordinates_in_float32():
    detector = Detector(encoder(), 2, with_masks=True, channels=8, num_proposals=20, num_samples=8, head="conv").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.losses(scene())
        found = detector.eval().detect(scene())
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found[0].boxes.dtype == torch.float32


@pytest.mark.parametrize(
    ("sizing", "size"),
    [
        (Sizing(image_px=60), (60, 120)),
        (Sizing(image_px=60, long_px=80), (40, 80)),
        (Sizing(image_px=60, resize="square"), (60, 60)),
    ],
)
def test_sizes(sizing, size):
    assert sizing.size(200, 100) == size


# --- average precision ------------------------------------------------------------------------------------------------------------


def truth(*, crowd: bool = False, masks: bool = False) -> Annotated:
    boxes = np.array([[0, 0, 40, 40], [50, 50, 90, 90], [0, 0, 20, 20]], np.float32)
    outlines = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32) for x0, y0, x1, y1 in boxes]
    return Annotated(
        root=Path(),
        paths=("a.jpg", "b.jpg"),
        sizes=np.array([[100, 100], [100, 100]]),
        class_names=("one", "two", "absent"),
        image_of=np.array([0, 0, 1]),
        boxes=boxes,
        labels=np.array([1, 1, 2]),
        areas=np.array([1600, 1600, 400], np.float32),
        is_crowd=np.array([False, crowd, False]),
        masks=tuple(Polygons((outline,)) for outline in outlines) if masks else (None, None, None),
    )


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Found:
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, np.float32))


FIRST = found([[0, 0, 40, 40], [10, 60, 30, 80], [50, 50, 90, 75]], [1, 1, 1], [0.9, 0.8, 0.7])  # right, wrong, IoU 0.625
TWO_THIRDS, HALF = (51 + 50 * 2 / 3) / 101, 51 / 101  # precision 1 up to recall 1/2, then 2/3 or nothing, at 101 recalls


def test_average_precision_is_what_the_definition_gives_by_hand(capsys):
    measures, groups = average_precision(truth(), {0: FIRST, 1: found([], [], [])})
    of_one = (3 * TWO_THIRDS + 7 * HALF) / 10
    assert groups == {"one": pytest.approx({"ap": of_one, "ap50": TWO_THIRDS}), "two": {"ap": 0.0, "ap50": 0.0}}
    assert measures == pytest.approx(
        {"ap": of_one / 2, "ap50": TWO_THIRDS / 2, "ap75": HALF / 2, "ap_small": 0.0, "ap_medium": measures["ap_medium"]}
    )
    assert capsys.readouterr().out == ""


def test_it_equals_pycocotools_on_files_of_its_own_format(tmp_path):
    annotated = truth()
    file = tmp_path / "truth.json"
    objects = [
        {"id": place + 1, "image_id": int(image) + 1, "category_id": int(label), "iscrowd": 0, "area": float(area),
         "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]}
        for place, (image, label, area, (x0, y0, x1, y1)) in enumerate(
            zip(annotated.image_of, annotated.labels, annotated.areas, annotated.boxes, strict=True)
        )
    ]  # fmt: skip
    frame = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 1}, {"id": 2}, {"id": 3}]}
    file.write_text(json.dumps({**frame, "annotations": objects}), encoding="utf-8")
    both = {0: FIRST, 1: found([[0, 0, 18, 20], [40, 40, 60, 60]], [2, 2], [0.3, 0.6])}
    answers = [
        {
            "image_id": row + 1,
            "category_id": int(label),
            "score": float(score),
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        }
        for row, one in both.items()
        for label, score, (x0, y0, x1, y1) in zip(one.labels, one.scores, one.boxes, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO(str(file))
        evaluation = COCOeval(expected, expected.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    measures, _ = average_precision(annotated, both)
    assert measures == {name: value for name, value in zip(NAMES, evaluation.stats, strict=False) if value >= 0}
    assert "ap_large" not in measures  # no object is


def test_a_crowd_is_neither_to_be_found_nor_wrong_to_find():
    inside = found([[0, 0, 40, 40], [55, 55, 70, 70]], [1, 1], [0.5, 0.9])
    _, groups = average_precision(truth(crowd=True), {0: inside, 1: found([], [], [])})
    assert groups["one"]["ap"] == pytest.approx(1.0)
    _, groups = average_precision(truth(), {0: inside, 1: found([], [], [])})
    assert groups["one"]["ap"] < 0.5


def test_nothing_found_is_0_and_images_that_were_not_read_do_not_count():
    nothing = found([], [], [])
    assert average_precision(truth(), {0: nothing, 1: nothing})[0]["ap"] == 0.0
    measures, groups = average_precision(truth(), {0: found([[0, 0, 40, 40], [50, 50, 90, 90]], [1, 1], [0.9, 0.8])})
    assert measures["ap"] == pytest.approx(1.0)
    assert list(groups) == ["one"]


def test_masks_are_judged_by_their_own_overlap():
    half = np.zeros((100, 100), np.uint8)
    half[0:40, 0:20] = 1
    one = Found(np.array([[0, 0, 40, 40]], np.float32), np.array([1]), np.array([0.9], np.float32), [tools.encode(np.asfortranarray(half))])
    annotated = truth(masks=True)
    assert annotated.has_masks
    _, of_boxes = average_precision(annotated, {0: one})
    _, of_masks = average_precision(annotated, {0: one}, "mask")
    assert of_boxes["one"]["ap"] == pytest.approx(HALF)
    assert of_masks["one"] == pytest.approx({"ap_mask": HALF / 10, "ap_mask50": HALF})  # IoU 0.5 exactly


def whole(*, box: list[float], area: float, mask: bool = False) -> Annotated:
    """One image of 200 px with one object."""
    x0, y0, x1, y1 = box
    outline = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
    return Annotated(
        root=Path(),
        paths=("a.jpg",),
        sizes=np.array([[200, 200]]),
        class_names=("one",),
        image_of=np.array([0]),
        boxes=np.array([box], np.float32),
        labels=np.array([1]),
        areas=np.array([area], np.float32),
        is_crowd=np.array([False]),
        masks=(Polygons((outline,)),) if mask else (None,),
    )


def test_an_objects_size_is_its_own_area_and_not_its_boxs():
    for area, name in ((900, "ap_small"), (1100, "ap_medium"), (9300, "ap_large")):  # thin in a box of 10,000
        measures, _ = average_precision(whole(box=[0, 0, 100, 100], area=area), {0: found([[0, 0, 100, 100]], [1], [0.9])})
        assert measures == pytest.approx({"ap": 1.0, "ap50": 1.0, "ap75": 1.0, name: 1.0})


def test_a_boxs_sides_are_differences_without_a_pixel_more():
    for share, hit in ((0.5, 1.0), (0.49, 0.0)):  # a pixel more each way would make 0.49 of 10 pixels 0.54
        _, groups = average_precision(whole(box=[0, 0, 10, 10], area=100), {0: found([[0, 0, 10, 10 * share]], [1], [0.9])})
        assert groups["one"]["ap50"] == pytest.approx(hit)


def test_a_predicted_mask_is_as_large_as_its_pixels():
    large, line = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    large[:120, :120] = 1
    line[np.arange(150), np.arange(150)] = 1  # 150 pixels from corner to corner of a large box
    both = Found(
        np.array([[0, 0, 150, 150], [0, 0, 120, 120]], np.float32),
        np.array([1, 1]),
        np.array([0.9, 0.8], np.float32),
        [tools.encode(np.asfortranarray(mask)) for mask in (line, large)],
    )
    measures, _ = average_precision(whole(box=[0, 0, 120, 120], area=14_400, mask=True), {0: both}, "mask")
    # The line is a wrong answer ahead of the right one; among large objects it is none, for it is small itself.
    assert (measures["ap_mask"], measures["ap_mask_large"]) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("setting", [{"batch": 0}, {"lr": 0.0}, {"least_px": 300}, {"long_px": 100}, {"flip": 2.0}])
def test_settings_that_cannot_be_are_told(setting):
    with pytest.raises(UsageError, match="detect: "):
        Protocol(**setting)


def test_a_seed_draws_the_same_sizes_mirrors_and_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    square = Polygons((np.array([[0, 0], [20, 0], [20, 10], [0, 10]], np.float32),))
    data = Annotated(
        root=tmp_path,
        paths=("0.png", "1.png", "2.png"),
        sizes=np.array([[60, 40]] * 3),
        class_names=("one",),
        image_of=np.arange(2),  # nothing stands in the third
        boxes=np.array([[0, 0, 20, 10]] * 2, np.float32),
        labels=np.array([1, 1]),
        areas=np.array([200, 200], np.float32),
        is_crowd=np.array([False, False]),
        masks=(square, square),
    )

    def batches(first: int, flip: float) -> list[DetectionBatch]:
        return list(
            training_batches(
                data,
                Sizing(image_px=40, least_px=20),
                ImageSpec(image_px=64),
                batch=2,
                first_step=first,
                num_steps=4 - first,
                seed=3,
                flip=flip,
                with_masks=True,
                multiple_px=16,
                num_threads=2,
                bad_files=BadFiles(),
            )
        )

    whole, rest = batches(0, 0.5), batches(2, 0.5)
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.sizes == other.sizes
    assert {row for batch in whole for row in batch.rows.tolist()} == {0, 1}
    assert len({size for batch in whole for size in batch.sizes}) > 2
    for batch in batches(0, 1.0):
        assert all(side % 16 == 0 for side in batch.images.shape[2:])
        for instances, (height, width) in zip(batch.instances, batch.sizes, strict=True):
            assert instances.boxes[0].tolist() == pytest.approx([width * 2 / 3, 0, width, height / 4])
            assert instances.masks is not None
            filled = instances.masks[0].nonzero()
            assert abs(int(filled[:, 1].min()) - width * 2 / 3) <= 1  # mirrored as the box is
            assert int(filled[:, 1].max()) == width - 1
