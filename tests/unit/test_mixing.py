"""Mixing: shares that are areas, partners that do not depend on how a batch is split, images that are what their shares say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.mixing import Mix, draw_mix, mix_images, partners


def numbered(num: int, height: int = 4, width: int = 6) -> torch.Tensor:
    """Images ``[num, 3, height, width]`` of which the i-th is i everywhere."""
    return torch.arange(float(num)).view(-1, 1, 1, 1).expand(num, 3, height, width)


def test_neighbours_change_places_and_an_odd_one_stays() -> None:
    assert partners(5).tolist() == [1, 0, 3, 2, 4]


def test_a_blend_is_the_share_of_each() -> None:
    assert mix_images(numbered(2), Mix(0.75))[:, 0, 0, 0].tolist() == [0.25, 0.75]


def test_a_cut_puts_the_partners_box_in_place_and_leaves_what_was_given() -> None:
    images = numbered(2).clone()
    mixed = mix_images(images, Mix(0.75, (0, 2, 3, 6)))
    assert mixed[0, 2].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6]
    assert torch.equal(mixed[1], 1 - mixed[0])
    assert torch.equal(images, numbered(2))


@given(st.integers(0, 1000), st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.2, 1.0)]), st.integers(1, 40), st.integers(1, 40))
def test_what_an_image_keeps_is_its_share_of_the_pixels(seed: int, alphas: tuple[float, float], height: int, width: int) -> None:
    mix = draw_mix(np.random.default_rng(seed), *alphas, height, width)
    assert mix is not None
    assert 0 <= mix.share <= 1
    kept = 1 - mix_images(numbered(2, height, width), mix)[0].mean()
    assert abs(float(kept) - mix.share) < 1e-5


def test_a_batch_takes_one_of_the_two_and_none_where_none_is_asked_for() -> None:
    cuts = [draw_mix(np.random.default_rng(seed), 0.8, 1.0, 8, 8).box is not None for seed in range(200)]  # type: ignore[union-attr]
    assert 70 < sum(cuts) < 130
    assert draw_mix(np.random.default_rng(0), 0.0, 0.0, 8, 8) is None


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)])
def test_two_halves_of_a_batch_mix_as_the_whole_does(alphas: tuple[float, float]) -> None:
    mix = draw_mix(np.random.default_rng(3), *alphas, 4, 6)
    assert mix is not None
    images = torch.randn(8, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([mix_images(half, mix) for half in images.chunk(2)]), mix_images(images, mix))
