"""How far the contrastive loss pulls a batch in different directions, over its margin: noise, where the gradients disagree.

Everything is read off the B x B similarities of a batch: a gradient is a weighted sum of the batch's descriptors, and the nuclear norm
of a covariance, which has no negative eigenvalue, is its trace. No D x D matrix is made and none is decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.data.samplers import PKSampler
from sightline.lens.embedding import Float64Array

MARGINS: Float64Array = np.round(np.arange(0.0, 0.96, 0.05), 2)
NUM_BATCHES = 100
BATCH_ROWS = 64
"""The batch of the paper; 16 classes with 4 images each, as our recipes draw it, or 32 with 2 where more classes have no more."""

LEAST_SQUARED_LENGTH = 1e-14
"""Below it a gradient is the rounding of a sum that cancels (all terms are of the order of 1 / B), and has no direction."""


@dataclass(frozen=True, eq=False)
class GradientCurve:
    """Nuclear norms of covariances ``[T]`` over ``margins`` ``[T]``, averaged over batches of ``num_classes`` times ``num_per_class`` images.

    ``of_gradients`` are those of the gradients themselves, in the scale of the loss; ``of_directions`` of the gradients at unit length,
    from 0 (all point the same way) to 1 (they cancel), free of any scale.

    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.5 and figure 4; of directions: Wu et al. 2017, arXiv 1706.07567.
    Departs:
        - the paper averages over the iterations of a training with each margin; here one finished model is asked with every margin,
          so the curve says which margins would trouble this model next, not which margin trains best;
        - the paper's formula and the scale of its figure (3e-4 to 4.5e-4) are of gradients, its words are of directions: both are given;
        - it does not say how the covariance is taken: here over the B descriptors of a batch, centred, divided by B;
        - pairs are those of the batch, without a memory.
    """

    margins: Float64Array
    of_gradients: Float64Array
    of_directions: Float64Array
    num_classes: int
    num_per_class: int


def gradient_curve(
    vectors: FloatArray, labels: IntArray, *, margins: Float64Array = MARGINS, num_batches: int = NUM_BATCHES, seed: int = 0
) -> GradientCurve | None:
    """Return the curve of unit-length descriptors ``[M, D]`` with classes ``[M]``, over batches drawn as training draws them.

    Only classes that fill their place in a batch without repeats take part; None where fewer than two classes have two images.
    """
    counts = np.bincount(labels)

    def num_classes_of(num_per_class: int) -> int:
        return min(BATCH_ROWS // num_per_class, int((counts >= num_per_class).sum()))

    num_per_class = max((4, 2), key=lambda num: num * num_classes_of(num))  # whichever fills the batch better; of equals 4
    num_classes = num_classes_of(num_per_class)
    if num_classes < 2:
        return None
    rows = np.flatnonzero(counts[labels] >= num_per_class)
    sampler = PKSampler(labels[rows], num_classes, num_per_class, seed)
    of_gradients, of_directions = np.zeros(len(margins)), np.zeros(len(margins))
    for step in range(num_batches):
        batch = rows[sampler.batch(step)]
        z = vectors[batch].astype(np.float64)
        similarity = z @ z.T
        of_one, of_other = covariance_norms(gradient_weights(similarity, labels[batch], margins), similarity)
        of_gradients += of_one / num_batches
        of_directions += of_other / num_batches
    return GradientCurve(margins, of_gradients, of_directions, num_classes, num_per_class)


def gradient_weights(similarity: Float64Array, labels: IntArray, margins: Float64Array) -> Float64Array:
    """Return the weights ``[T, B, B]`` with which descriptors ``[B, D]`` sum to the gradients ``weights @ z`` of the loss.

    A pair of one class has -2 / B, a pair of two classes more similar than the margin 2 / B, all else 0: the loss sums over ordered
    pairs, and each descriptor is in every one of its pairs twice.
    Source: El-Nouby et al. 2021, arXiv 2102.05644, the gradient of eq. 1 by z.
    """
    same = labels[:, None] == labels[None, :]
    costly = (similarity > margins[:, None, None]) & ~same
    positive = same & ~np.eye(len(labels), dtype=bool)
    weights: Float64Array = (costly.astype(np.float64) - positive) * (2.0 / len(labels))
    return weights


def covariance_norms(weights: Float64Array, similarity: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the nuclear norms ``[T]`` of the covariances of the B gradients ``weights @ z``, and of the same gradients at length 1.

    ``weights`` are ``[T, B, B]``, ``similarity`` is z z^T. Each norm is the mean squared length less the squared length of the mean.
    A gradient without length has no direction and counts as 0.
    """
    squared = _squared_lengths(weights, similarity)  # [T, B]
    has_length = squared > LEAST_SQUARED_LENGTH
    scale = has_length / np.sqrt(np.where(has_length, squared, 1.0))
    num = len(similarity)
    mean = weights.sum(axis=1) / num  # [T, B]
    mean_direction = np.einsum("tb,tbc->tc", scale, weights, optimize=True) / num
    of_gradients = squared.mean(axis=1) - _squared_lengths(mean, similarity)
    of_directions = has_length.mean(axis=1) - _squared_lengths(mean_direction, similarity)
    return np.maximum(of_gradients, 0.0), np.maximum(of_directions, 0.0)


def _squared_lengths(weights: Float64Array, similarity: Float64Array) -> Float64Array:
    """Return the squared lengths ``[...]`` of sums of descriptors with the weights ``[..., B]``."""
    flat = weights.reshape(-1, weights.shape[-1])  # one matrix product instead of one for each margin
    lengths: Float64Array = ((flat @ similarity) * flat).sum(axis=1).reshape(weights.shape[:-1])
    return lengths
