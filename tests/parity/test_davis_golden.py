"""Our label propagation against DINO's and our J and F against the official evaluator's, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.evaluation.dense import jandf, propagation
from sightline.evaluation.dense.davis import DINO_STD, Frames, frame_size, stretch
from sightline.recipe import IMAGENET_MEAN, ImageSpec

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "davis.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("make_davis_golden", HERE / "make_davis_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("strip", [2, 4, propagation.STRIP])
@pytest.mark.parametrize("block_bytes", [1, propagation.BLOCK_BYTES])
@pytest.mark.parametrize("case", GOLDEN["label_propagation"])
def test_labels_are_propagated_as_in_dino_however_the_work_is_cut(made, case, block_bytes, strip, monkeypatch) -> None:
    monkeypatch.setattr(propagation, "STRIP", strip)
    monkeypatch.setattr(propagation, "BLOCK_BYTES", block_bytes)
    context, asking, labels = (torch.from_numpy(part) for part in made.features(case))
    memory = propagation.Propagation(made.GRID, context=made.FRAMES - 1, topk=made.TOPK, radius=made.RADIUS)
    for of_frame, of_labels in zip(context, labels, strict=True):
        memory.see(of_frame, of_labels)
    expected = np.array(GOLDEN["label_propagation"][case])
    np.testing.assert_allclose(memory.labels_of(asking).numpy(), expected, atol=1e-6)


def test_a_window_is_restrict_neighborhood(made) -> None:
    rows, columns = made.GRID
    whole = propagation._Strip(0, columns, 0, columns)
    outside = propagation._outside(whole, (0, rows), (0, rows), made.RADIUS, torch.device("cpu"))
    near = [[digit == "0" for digit in row] for row in GOLDEN["restrict_neighborhood"]]
    assert outside.tolist() == near


def test_channels_are_stretched_as_by_norm_mask(made) -> None:
    found = stretch(torch.from_numpy(made.features("random")[2][0]))
    np.testing.assert_allclose(found.numpy(), GOLDEN["norm_mask"], atol=1e-6)


def test_a_frame_is_resized_and_normalised_as_by_read_frame(made) -> None:
    golden, (pixels, mask) = GOLDEN["read_frame"], made.picture()
    height, width = golden["of"]
    size = frame_size(height, width, 128, 16)
    assert list(size) == golden["size"]
    transform = Frames(size, ImageSpec(mean=IMAGENET_MEAN, std=DINO_STD))
    found = transform.normalise(transform.pixels(Image.fromarray(pixels))[None])[0]
    level = 1 / 255 / min(DINO_STD)
    np.testing.assert_allclose(found[:, ::5, ::7].numpy(), golden["values"], atol=1.01 * level)
    assert np.abs(found[:, ::5, ::7].numpy() - golden["values"]).mean() < level / 5  # one value in nine is rounded the other way
    small = np.asarray(Image.fromarray(mask).resize((size[1] // 16, size[0] // 16), Image.Resampling.NEAREST))
    assert small.tolist() == GOLDEN["read_seg"]


def test_j_and_f_are_the_official_ones_to_the_last_bit(made) -> None:
    found = [[measure(*masks) for measure in (jandf.region, jandf.contour)] for masks in made.masks()]
    assert found == GOLDEN["j_f"]


def test_mean_recall_and_decay_are_the_official_ones(made) -> None:
    courses = [jandf.course(values) for values in made.courses()]
    found = [(one.mean, one.recall, one.decay) for one in courses]
    np.testing.assert_allclose(found, GOLDEN["mean_recall_decay"], atol=1e-15)
