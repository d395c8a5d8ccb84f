"""Transforms: equal to torchvision's, a function of the seed alone, of the right shape for every image."""

from __future__ import annotations

import pickle
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from sightline.data.transforms import ASPECT_RATIOS, eval_transform, random_area, train_transform
from sightline.recipe import AugmentSpec, ImageSpec


def photo(width: int = 90, height: int = 60) -> Image.Image:
    noise = np.random.default_rng(7).integers(0, 256, (height // 3, width // 3, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


SPECS = [
    ImageSpec(image_px=32),
    ImageSpec(image_px=32, resize="square", resize_px=40),
    ImageSpec(image_px=48, resize_px=48, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3)),
]


def torchvision_steps(spec: ImageSpec) -> list[v2.Transform]:
    size = [spec.resized_px] if spec.resize == "short" else [spec.resized_px, spec.resized_px]
    return [
        v2.Resize(size, InterpolationMode(spec.interpolation), antialias=True),
        v2.CenterCrop(spec.image_px),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(spec.mean), list(spec.std)),
    ]


@pytest.mark.parametrize("spec", SPECS[:2])
@pytest.mark.parametrize("size", [(90, 60), (61, 97), (20, 30), (1, 1)])
def test_evaluation_equals_torchvision_on_tensors(spec: ImageSpec, size: tuple[int, int]) -> None:
    image = photo(*size) if size != (1, 1) else Image.new("RGB", size, (200, 100, 50))
    expected = v2.Compose([v2.PILToTensor(), *torchvision_steps(spec)])(image)
    torch.testing.assert_close(eval_transform(spec)(image), torch.Tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_evaluation_is_within_two_levels_of_torchvision_on_pil(spec: ImageSpec) -> None:
    levels = (eval_transform(spec)(photo()) - v2.Compose(torchvision_steps(spec))(photo())) * 255 * torch.tensor(spec.std).view(3, 1, 1)
    assert levels.abs().max() < 2.01
    assert (levels.abs() > 0.5).float().mean() < 0.1


AUGMENTS = [
    AugmentSpec(),
    AugmentSpec(augment="short"),
    AugmentSpec(augment="random_resized", jitter=0.4, rotate_deg=10),
    AugmentSpec(augment="random_resized", rand_augment=9, erase=0.5),
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_training_depends_on_the_seed_alone(augment: AugmentSpec) -> None:
    transform = train_transform(augment, ImageSpec(image_px=32))
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(0)
    first = transform.pixels(photo(), 11)
    torch.manual_seed(1)
    assert torch.equal(first, copy.pixels(photo(), 11))
    assert not torch.equal(first, transform.pixels(photo(), 12))


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("size", [(1, 1), (3, 300), (300, 3), (32, 32), (91, 57)])
def test_every_image_gets_the_models_shape(augment: AugmentSpec, size: tuple[int, int]) -> None:
    spec = ImageSpec(image_px=32)
    image = Image.new("RGB", size, (10, 200, 30))
    for transform in (train_transform(augment, spec), eval_transform(spec)):
        pixels = transform.pixels(image, 3)
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.uint8
        assert pixels.is_contiguous()
        assert transform(image, 3).dtype == torch.float32


def test_a_strip_does_not_fill_the_memory() -> None:
    pixels = eval_transform(ImageSpec(image_px=224)).pixels(Image.new("RGB", (60_000, 1), (9, 9, 9)))
    assert (pixels == 9).all()


def test_the_papers_augmentation_is_square_resize_random_crop_and_mirror() -> None:
    spec = ImageSpec(image_px=28, resize_px=32)
    square = v2.functional.resize(v2.functional.pil_to_tensor(photo()), [32, 32], InterpolationMode.BICUBIC, antialias=True)
    crops = {
        (top, left, mirrored): (square.flip(-1) if mirrored else square)[:, top : top + 28, left : left + 28].numpy().tobytes()
        for top in range(5)
        for left in range(5)
        for mirrored in (False, True)
    }
    transform = train_transform(AugmentSpec(), spec)
    seen = {transform.pixels(photo(), seed).numpy().tobytes() for seed in range(400)}
    assert seen == set(crops.values())  # every crop and its mirror occurs, and nothing else


def test_torchvisions_changes_leave_torchs_chance_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_transform(AugmentSpec(rand_augment=9, erase=1.0), ImageSpec(image_px=32)).pixels(photo(), 1)
    assert torch.equal(torch.rand(3), expected)


def test_an_erased_box_has_the_mean_colour_and_a_share_of_the_area() -> None:
    spec = ImageSpec(image_px=64, resize_px=64)
    plain = Image.new("RGB", (64, 64), (250, 1, 250))
    mean = torch.tensor([round(255 * value) for value in spec.mean], dtype=torch.uint8).view(3, 1, 1)
    for seed in range(20):
        pixels = train_transform(AugmentSpec(flip=0.0, erase=1.0), spec).pixels(plain, seed)
        is_erased = (pixels == mean).all(dim=0)
        assert 0.01 < is_erased.float().mean() < 0.35
        assert torch.equal(pixels[:, ~is_erased], eval_transform(spec).pixels(plain)[:, ~is_erased])


def test_flip_takes_its_probability() -> None:
    image = photo(32, 32)
    spec = ImageSpec(image_px=32, resize_px=32)
    for flip in (0.0, 1.0):
        pixels = train_transform(AugmentSpec(flip=flip), spec).pixels(image, 0)
        assert torch.equal(pixels.flip(-1) if flip else pixels, eval_transform(spec).pixels(image))


def test_random_areas_lie_inside_and_keep_their_bounds() -> None:
    random = Random(0)
    for size in ((100, 80), (10, 400), (400, 10)):
        for _ in range(200):
            left, top, right, bottom = random_area(random, size, 0.2)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            if size == (100, 80):
                assert (right - left) * (bottom - top) > 0.19 * 8000
                assert ASPECT_RATIOS[0] * 0.97 < (right - left) / (bottom - top) < ASPECT_RATIOS[1] * 1.03


def test_the_short_side_suffices_for_the_smallest_area() -> None:
    transform = train_transform(AugmentSpec(augment="random_resized", min_area=0.2), ImageSpec(image_px=224))
    smallest_side = (transform.short_px**2 * 0.2 * 0.75) ** 0.5
    assert 224 <= smallest_side < 225
    assert eval_transform(ImageSpec()).short_px == 256
