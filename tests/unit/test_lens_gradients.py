"""Gradient covariances against the loss's own gradients, a decomposition in float64, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.lens import gradients
from sightline.lens.gradients import covariance_norms, gradient_curve, gradient_weights
from sightline.nn.losses import contrastive_loss


def random_unit(seed: int, num: int, width: int = 5) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nuclear_norm(rows: np.ndarray) -> float:
    return float(np.linalg.norm(np.cov(rows.T, bias=True).reshape(rows.shape[1], -1), "nuc"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 5), st.floats(-0.9, 0.9))
def test_the_norms_are_those_of_the_losss_own_gradients(seed: int, num: int, num_classes: int, margin: float) -> None:
    z = torch.from_numpy(random_unit(seed, num)).requires_grad_()
    labels = np.random.default_rng(seed).integers(0, num_classes, num)
    contrastive_loss(z, torch.from_numpy(labels), margin=margin).backward()
    assert z.grad is not None
    gradient, exact = z.grad.numpy(), z.detach().numpy()

    weights = gradient_weights(exact @ exact.T, labels, np.array([margin]))
    np.testing.assert_allclose(weights[0] @ exact, gradient, atol=1e-12)

    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    direction = np.divide(gradient, length, out=np.zeros_like(gradient), where=length > 1e-7)
    of_gradients, of_directions = covariance_norms(weights, exact @ exact.T)
    assert of_gradients[0] == pytest.approx(nuclear_norm(gradient), abs=1e-12)
    assert of_directions[0] == pytest.approx(nuclear_norm(direction), abs=1e-9)


def test_two_classes_on_two_axes_by_hand() -> None:
    """Images x x y y: each is pulled to its like by 2/4; the two classes, at a right angle, push each other below margin 0 alone."""
    z = np.repeat(np.eye(2), 2, axis=0)
    weights = gradient_weights(z @ z.T, np.array([0, 0, 1, 1]), np.array([-0.1, 0.1]))
    np.testing.assert_allclose(weights[1] @ z, -0.5 * z)
    np.testing.assert_allclose((weights[0] @ z)[0], [-0.5, 1.0])
    of_gradients, of_directions = covariance_norms(weights, z @ z.T)
    # Above: gradients (-1/2, 0) and (0, -1/2), each 1/8 from their mean in square. Below: (-1/2, 1) and (1, -1/2): 9/8 from theirs.
    np.testing.assert_allclose(of_gradients, [9 / 8, 1 / 8])
    np.testing.assert_allclose(of_directions, [(9 / 8) / (5 / 4), 1 / 2])


def test_a_gradient_that_cancels_has_no_direction() -> None:
    """Two classes on one point: what a positive pulls, a negative pushes."""
    z = np.tile([[0.6, 0.8]], (4, 1))
    labels = np.array([0, 0, 1, 2])
    weights = gradient_weights(z @ z.T, labels, np.array([0.5, 1.5]))
    gradient = weights @ z
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=2), [[0.5, 0.5, 1.5, 1.5], [0.5, 0.5, 0.0, 0.0]])
    of_directions = covariance_norms(weights, z @ z.T)[1]
    np.testing.assert_allclose(of_directions, [0.0, 1 / 2 - 1 / 4], atol=1e-12)


def test_the_curve_averages_batches_and_repeats() -> None:
    vectors = random_unit(0, 90).astype(np.float32)
    labels = np.arange(90) % 15
    curve, again = (gradient_curve(vectors, labels, num_batches=3, seed=4) for _ in range(2))
    assert curve is not None
    assert again is not None
    np.testing.assert_array_equal(curve.of_gradients, again.of_gradients)
    assert (curve.num_classes, curve.num_per_class) == (15, 4)
    sampler = gradients.PKSampler(labels, 15, 4, 4)
    norms = []
    for step in range(3):
        rows = sampler.batch(step)
        z = vectors[rows].astype(np.float64)
        norms.append(covariance_norms(gradient_weights(z @ z.T, labels[rows], gradients.MARGINS), z @ z.T))
    np.testing.assert_allclose([curve.of_gradients, curve.of_directions], np.mean(norms, axis=0))


def test_the_wider_classes_lie_apart_the_less_the_margin_matters() -> None:
    """Classes at right angles: no negative is above 0.05, so from there on the curve is flat and that of the positives."""
    labels = np.repeat(np.arange(4), 4)
    curve = gradient_curve(np.eye(4, dtype=np.float32)[labels], labels, num_batches=2)
    assert curve is not None
    # Each gradient is 2/16 times three times its own axis; the four axes' mean has a quarter of their squared length.
    np.testing.assert_allclose(curve.of_gradients, (6 / 16) ** 2 * 3 / 4)
    np.testing.assert_allclose(curve.of_directions, 3 / 4)


def test_few_images_a_class_make_smaller_batches_and_too_few_none() -> None:
    vectors = random_unit(1, 9).astype(np.float32)
    pairs = gradient_curve(vectors, np.array([0, 0, 1, 1, 2, 2, 2, 3, 4]), num_batches=2)
    assert pairs is not None
    assert (pairs.num_classes, pairs.num_per_class) == (3, 2)
    mostly_pairs = gradient_curve(random_unit(2, 48).astype(np.float32), np.array([0] * 4 + [1] * 4 + [*range(2, 22)] * 2))
    assert mostly_pairs is not None
    assert (mostly_pairs.num_classes, mostly_pairs.num_per_class) == (22, 2)
    assert gradient_curve(vectors, np.array([0] * 7 + [1, 2]), num_batches=2) is None
    assert gradient_curve(vectors, np.arange(9), num_batches=2) is None
