"""Multi-crop: each change against Pillow's, the chances against DINO's, and the same crops for the same seed."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as on_pil
from torchvision.transforms.v2 import functional as on_tensors

from sightline.data import colour
from sightline.data.multicrop import BLUR_SIGMA_PX, ORDERS, Draw, MultiCropTransform, draw
from sightline.data.transforms import ASPECT_RATIOS
from sightline.recipe import CropSpec, ImageSpec

PLAIN = CropSpec(
    crop_px=(32, 16), num_crops=(2, 3), crop_flip=0, crop_jitter_p=0, crop_gray=0, crop_blur=(0, 0, 0), crop_solarize=(0, 0, 0)
)
WHOLE = {"crop_px": (32,), "num_crops": (2,), "crop_min_area": (1.0,), "crop_max_area": (1.0,)}


def photo(width: int = 90, height: int = 60, seed: int = 7) -> Image.Image:
    """Patches of every colour, black and white among them, with soft edges."""
    patches = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3)).astype(np.uint8)
    patches[::4, ::3], patches[::5, ::4] = 0, 255
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def planes(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)


def transform(spec: CropSpec) -> MultiCropTransform:
    return MultiCropTransform(ImageSpec(image_px=32), spec)


def draws(spec: CropSpec, group: int, place: int, num: int = 2000, size: tuple[int, int] = (500, 375)) -> list[Draw]:
    random = Random(0)
    return [draw(random, size, spec, group, place) for _ in range(num)]


# --- each change against Pillow's


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.93, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, on_pil.adjust_brightness),
        (colour.contrast, on_pil.adjust_contrast),
        (colour.saturation, on_pil.adjust_saturation),
    ],
)
def test_a_change_is_within_a_level_of_pillows(ours: Callable[[Any, float], None], theirs: Any, factor: float) -> None:
    levels = planes(photo())
    ours(levels, factor)
    # Pillow cuts fractions off, and its mean grey is a whole number: 1 level and what half a level of that mean is worth.
    assert np.abs(levels - planes(theirs(photo(), factor))).max() <= 1 + 0.5 * abs(1 - factor) + 1e-3


@pytest.mark.parametrize("turns", [-0.5, -0.1, -0.03, 0.0, 0.07, 0.1, 0.5])
def test_hue_is_torchvisions_and_pillows_up_to_its_bytes(turns: float) -> None:
    levels = planes(photo())
    colour.hue(levels.reshape(3, 1, -1), np.array([turns], np.float32))
    exact = on_tensors.adjust_hue(torch.from_numpy(planes(photo()) / 255), turns).numpy() * 255
    assert np.abs(levels - exact).max() < 0.01
    coarse = np.abs(levels - planes(on_pil.adjust_hue(photo(), turns)))
    assert coarse.mean() < 2  # Pillow's hue is one of 256, a step of which is 6 levels of a full colour; its saturation is a byte too
    assert coarse.max() < 14.5


def test_hue_keeps_value_spread_and_greys_and_turns_each_image_by_its_own() -> None:
    before = np.stack([planes(photo(seed=1)), planes(photo(seed=2))], axis=1).reshape(3, 2, -1)
    before[:, 0, :10] = 77
    after = before.copy()
    colour.hue(after, np.array([0.1, -0.4], np.float32))
    for extreme in (np.max, np.min):
        np.testing.assert_allclose(extreme(after, axis=0), extreme(before, axis=0), atol=1e-3)
    assert (after[:, 0, :10] == 77).all()
    alone = before[:, 1:].copy()
    colour.hue(alone, np.array([-0.4], np.float32))
    assert np.array_equal(alone[:, 0], after[:, 1])


@pytest.mark.parametrize(
    ("turns", "expected"),
    [(1 / 6, (255, 255, 0)), (1 / 3, (0, 255, 0)), (0.5, (0, 255, 255)), (-1 / 3, (0, 0, 255)), (1 / 12, (255, 127.5, 0))],
)
def test_red_turns_through_the_circle(turns: float, expected: tuple[float, ...]) -> None:
    levels = np.array([255, 0, 0], np.float32).reshape(3, 1, 1)
    colour.hue(levels, np.array([turns], np.float32))
    np.testing.assert_allclose(levels.ravel(), expected, atol=1e-2)


def test_grey_is_pillows() -> None:
    assert np.abs(colour.luma(planes(photo())) - np.asarray(photo().convert("L"))).max() <= 0.51


@pytest.mark.parametrize("sigma_px", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [(90, 60), (5, 10)])
def test_blur_is_near_pillows(sigma_px: float, size: tuple[int, int]) -> None:
    levels = planes(photo(*size))
    colour.blur(levels, sigma_px)
    off = np.abs(levels - planes(photo(*size).filter(ImageFilter.GaussianBlur(sigma_px))))
    assert off.mean() < 1
    assert off.max() < 8


@pytest.mark.parametrize("sigma_px", [0.3, 1.5])
def test_blur_is_a_gaussian_that_keeps_the_sum_and_a_plain_image(sigma_px: float) -> None:
    levels = np.zeros((1, 31, 31), np.float32)
    levels[0, 15, 15] = 1
    colour.blur(levels, sigma_px)
    offsets = np.arange(31) - 15
    spread = float((levels[0].sum(axis=0) * offsets**2).sum())
    assert float(levels.sum()) == pytest.approx(1, abs=1e-5)
    assert spread == pytest.approx(sigma_px**2, rel=0.1)  # cut at three standard deviations
    np.testing.assert_allclose(levels[0], levels[0].T, atol=1e-7)
    plain = np.full((3, 4, 4), 200, np.float32)
    colour.blur(plain, 2.0)
    np.testing.assert_allclose(plain, 200, atol=1e-3)


def test_solarize_is_pillows_exactly() -> None:
    plain, inverted = CropSpec(**WHOLE, crop_flip=0, crop_jitter_p=0, crop_gray=0, crop_blur=(0, 0, 0)), (1.0, 1.0, 1.0)
    (crops,) = transform(CropSpec(**{**vars(plain), "crop_solarize": (0.0, 0.0, 0.0)})).pixels(photo(), 0)
    (solarized,) = transform(CropSpec(**{**vars(plain), "crop_solarize": inverted})).pixels(photo(), 0)
    for before, after in zip(crops, solarized, strict=True):
        expected = ImageOps.solarize(Image.fromarray(before.permute(1, 2, 0).numpy()))
        assert np.array_equal(after.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_a_crop_is_the_area_of_its_draw_resized_as_on_tensors() -> None:
    crops = transform(PLAIN).pixels(photo(), 5)
    random = Random(5)
    for group, part in enumerate(crops):
        for place, crop in enumerate(part):
            left, top, right, bottom = draw(random, (90, 60), PLAIN, group, place).box
            area = torch.from_numpy(np.asarray(photo()).transpose(2, 0, 1).copy())[:, top:bottom, left:right]
            side = PLAIN.crop_px[group]
            resized = torch.nn.functional.interpolate(area[None], (side, side), mode="bicubic", antialias=True)[0]
            assert torch.equal(crop, resized)


# --- the chances


@pytest.mark.parametrize(("group", "size"), [(0, (500, 375)), (1, (500, 375)), (1, (100, 400))])
def test_areas_and_aspects_are_distributed_as_torchvisions(group: int, size: tuple[int, int]) -> None:
    spec, num = CropSpec(), 2000
    low, high = spec.crop_min_area[group], spec.crop_max_area[group]
    boxes = np.array([one.box for one in draws(spec, group, 0, num, size)])
    ours = boxes[:, 2:] - boxes[:, :2]
    torch.manual_seed(0)
    blank = torch.empty(3, size[1], size[0])
    theirs = np.array([RandomResizedCrop.get_params(blank, [low, high], list(ASPECT_RATIOS)) for _ in range(num)])[:, ::-1]
    for measure in (lambda sides: sides[:, 0] * sides[:, 1], lambda sides: sides[:, 0] / sides[:, 1]):
        one, other = np.sort(measure(ours)), np.sort(measure(theirs[:, :2]))
        both = np.concatenate([one, other])
        apart = np.abs(np.searchsorted(one, both, "right") - np.searchsorted(other, both, "right")).max() / num
        assert apart < 1.95 * math.sqrt(2 / num)  # Kolmogorov and Smirnov's distance, at one in a thousand
    if size == (500, 375):
        shares, aspects = ours.prod(axis=1) / (500 * 375), ours[:, 0] / ours[:, 1]
        assert 0.99 * low < shares.min() < low + 0.01
        assert high - 0.05 < shares.max() < 1.01 * high
        assert ASPECT_RATIOS[0] * 0.98 < aspects.min() < aspects.max() < ASPECT_RATIOS[1] * 1.02
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()


@pytest.mark.parametrize(("group", "place", "blur", "solarize"), [(0, 0, 1.0, 0.0), (0, 1, 0.1, 0.2), (0, 2, 0.1, 0.2), (1, 0, 0.5, 0.0)])
def test_the_first_global_crop_is_always_blurred_and_only_further_ones_are_solarized(
    group: int, place: int, blur: float, solarize: float
) -> None:
    found = draws(CropSpec(), group, place)
    close = {"abs": 3.5 * math.sqrt(0.25 / len(found))}
    assert np.mean([one.sigma_px > 0 for one in found]) == (blur if blur == 1 else pytest.approx(blur, **close))
    assert np.mean([one.solarized for one in found]) == (solarize if solarize == 0 else pytest.approx(solarize, **close))
    assert np.mean([one.mirrored for one in found]) == pytest.approx(0.5, **close)
    assert np.mean([one.grey for one in found]) == pytest.approx(0.2, **close)
    assert np.mean([bool(one.jitter) for one in found]) == pytest.approx(0.8, **close)
    sigmas = [one.sigma_px for one in found if one.sigma_px]
    assert BLUR_SIGMA_PX[0] <= min(sigmas) < 0.2
    assert 1.9 < max(sigmas) <= BLUR_SIGMA_PX[1]


def test_a_jitter_has_every_order_and_factors_within_their_shares() -> None:
    found = [one.jitter for one in draws(CropSpec(), 0, 0) if one.jitter]
    assert {tuple(name for name, _ in changes) for changes in found} == set(ORDERS)
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)):
        factors = np.array([dict(changes)[name] for changes in found])
        margin = 0.05 * (high - low)
        assert low <= factors.min() < low + margin
        assert high - margin < factors.max() <= high
        assert factors.mean() == pytest.approx((low + high) / 2, abs=margin)


def test_changes_come_in_the_order_drawn() -> None:
    """One after the other by torchvision, on floats, for an image whose jitters are drawn alike."""
    spec = CropSpec(**WHOLE, crop_flip=0, crop_gray=0, crop_blur=(0, 0, 0), crop_solarize=(0, 0, 0), crop_jitter_p=1)
    plain = CropSpec(**{**vars(spec), "crop_jitter_p": 0.0})
    theirs: dict[str, Any] = {name: getattr(on_tensors, f"adjust_{name}") for name in ORDERS[0]}
    for seed in range(12):
        random = Random(seed)
        jittered, unchanged = transform(spec).pixels(photo(32, 32), seed)[0], transform(plain).pixels(photo(32, 32), seed)[0]
        for place, crop in enumerate(jittered):
            expected = unchanged[place].to(torch.float32) / 255
            for name, factor in draw(random, (32, 32), spec, 0, place).jitter:
                expected = theirs[name](expected, factor)
            assert (crop - 255 * expected).abs().max() < 0.75


# --- as a whole


def test_crops_depend_on_the_seed_alone() -> None:
    made = transform(CropSpec(crop_px=(32, 16), num_crops=(2, 3)))
    copy = pickle.loads(pickle.dumps(made))
    torch.manual_seed(0)
    first = made.pixels(photo(), 11)
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip(first, copy.pixels(photo(), 11), strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, made.pixels(photo(), 12), strict=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 300), (300, 3), (91, 57)])
def test_every_image_gives_crops_of_the_shapes_asked_for(size: tuple[int, int]) -> None:
    made = transform(CropSpec(crop_px=(32, 16, 8), num_crops=(2, 3, 1), crop_min_area=(0.4, 0.05, 0.05), crop_max_area=(1, 0.4, 0.1)))
    for seed in range(5):
        crops = made.pixels(Image.new("RGB", size, (10, 200, 30)), seed)
        assert [tuple(part.shape) for part in crops] == [(2, 3, 32, 32), (3, 3, 16, 16), (1, 3, 8, 8)]
        assert all(part.dtype == torch.uint8 and part.is_contiguous() for part in crops)


def test_grey_crops_have_three_equal_channels() -> None:
    (crops, _) = transform(CropSpec(crop_px=(32, 16), num_crops=(2, 3), crop_gray=1)).pixels(photo(), 3)
    assert torch.equal(crops[:, 0], crops[:, 1])
    assert torch.equal(crops[:, 0], crops[:, 2])


def test_normalise_is_that_of_the_image_spec() -> None:
    made = transform(PLAIN)
    crops = made.pixels(photo(), 0)[0]
    expected = (crops / 255 - torch.tensor(made.image.mean).view(3, 1, 1)) / torch.tensor(made.image.std).view(3, 1, 1)
    torch.testing.assert_close(made.normalise(crops[:, None]), expected[:, None], atol=1e-5, rtol=0)


def test_the_short_side_suffices_for_the_smallest_crop_of_any_size() -> None:
    short = transform(CropSpec()).short_px
    assert 96 <= math.sqrt(short**2 * 0.05 * 0.75) < 97
    assert math.sqrt(short**2 * 0.4 * 0.75) >= 224
