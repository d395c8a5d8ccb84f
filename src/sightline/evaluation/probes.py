"""Probes: how well frozen descriptors tell classes apart, by three classifiers that leave the model as it is.

Features are float32 ``[M, D]``, labels int64 ``[M]`` in 0..C-1. Closed forms and the logistic regression compute in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.evaluation.ranks import DoubleArray
from sightline.search.neighbours import nearest

if TYPE_CHECKING:
    import torch

KNN_K, KNN_TEMPERATURE = 20, 0.07
"""DINO's values."""

L2S = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""What the linear probe's penalty is chosen from, strongest first: each fit starts from the one before it."""

RIDGE_L2, RIDGE_BIAS, DEVIATION_FLOOR = 1024.0, 100.0, 1e-5
"""The ViT authors' values: penalty, the constant feature that carries the bias almost unpenalised, and what is added to deviations."""

BLOCK_BYTES = 2**27
"""One block of logits: the full batch of a large set would not fit."""


def _require_finite(features: FloatArray) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(f"{np.count_nonzero(bad)} of {len(features)} features hold NaN or infinity: no classifier of them means anything")


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear classifier of features: ``weight`` float64 ``[D, C]`` and ``bias`` float64 ``[C]``."""

    weight: DoubleArray
    bias: DoubleArray

    def predict(self, features: FloatArray) -> IntArray:
        """Return the class int64 ``[M]`` of each row: the largest logit, ties by the lower label."""
        _require_finite(features)
        rows = max(1, BLOCK_BYTES // (8 * self.weight.shape[1]))
        parts = [(features[first : first + rows] @ self.weight + self.bias).argmax(axis=1) for first in range(0, len(features), rows)]
        return np.concatenate([np.empty(0, np.int64), *parts])


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and deviation float64 ``[D]`` of the features that a classifier is fitted on."""

    mean: DoubleArray
    deviation: DoubleArray

    @classmethod
    def of(cls, features: FloatArray) -> Scaling:
        """Return the scaling that standardises ``features``; a constant feature becomes 0."""
        _require_finite(features)
        return cls(features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + DEVIATION_FLOOR)

    def __call__(self, features: FloatArray) -> DoubleArray:
        """Return the features standardised, float64 ``[M, D]``."""
        return (features - self.mean) / self.deviation

    def unfold(self, weight: DoubleArray, bias: DoubleArray) -> Linear:
        """Return a classifier of standardised features as one of the features themselves."""
        own = weight / self.deviation[:, None]
        return Linear(own, bias - self.mean @ own)


# --- nearest neighbours ---------------------------------------------------------------------------------------------------------


def knn(
    train: FloatArray, labels: IntArray, test: FloatArray, *, k: int = KNN_K, temperature: float = KNN_TEMPERATURE, device: str = "cpu"
) -> IntArray:
    """Return the class int64 ``[Q]`` that the K closest training rows vote for, each with exp(cosine / temperature); unit-length features.

    Equal votes go to the class that has the closest of the neighbours; equally close neighbours count by the lower row.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; K and temperature of Caron et al. 2021, arXiv 2104.14294.
    """
    _require_finite(train)
    _require_finite(test)
    found = nearest(test, train, k, device=device)
    vote = np.exp((found.similarity - found.similarity[:, :1]).astype(np.float64) / temperature)  # [Q, K]
    classes = labels[found.rows]
    owner = np.arange(len(test))[:, None] * (int(labels.max()) + 1) + classes  # one number a query and class, without a [Q, C] table
    _, of_vote = np.unique(owner, return_inverse=True)
    votes = np.bincount(of_vote.ravel(), weights=vote.ravel())[of_vote].reshape(vote.shape)
    winners: IntArray = classes[np.arange(len(test)), votes.argmax(axis=1)]
    return winners


# --- few shots ------------------------------------------------------------------------------------------------------------------


def draw_shots(labels: IntArray, num_shots: int, seed: int) -> IntArray:
    """Return the rows of ``num_shots`` random images of each class, by class; a class with fewer gives all that it has."""
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    return np.concatenate([rows[:num_shots] for rows in shuffled])


def ridge(features: FloatArray, labels: IntArray, num_classes: int, *, l2: float = RIDGE_L2) -> Linear:
    """Return regularised least squares from standardised features to targets of 1 (the class) and -1, in closed form.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.1; penalty and bias as in its authors' evaluator (big_vision).
    """
    scaling = Scaling.of(features)
    x = np.pad(scaling(features), ((0, 0), (0, 1)), constant_values=RIDGE_BIAS)  # [M, D + 1]
    y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        solved = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    else:  # the same solution from the smaller of the two Gram matrices
        solved = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
    found = solved.astype(np.float64, copy=False)
    return scaling.unfold(found[:-1], RIDGE_BIAS * found[-1])


# --- the linear probe -----------------------------------------------------------------------------------------------------------


def linear_probe(
    features: FloatArray, labels: IntArray, is_validation: BoolArray, num_classes: int, *, l2s: Sequence[float] = L2S, device: str = "cpu"
) -> tuple[Linear, float]:
    """Return multinomial logistic regression fitted on all rows, and its L2 penalty: the one that does best on the rows of validation.

    Source: Kornblith, Shlens & Le 2019, arXiv 1805.08974, appendix A.6 (L-BFGS, penalty chosen on validation, then fitted on both).

    Departs: seven penalties, a factor of ten apart, where the paper takes 45; features are standardised.
    """
    best, chosen, start = -1.0, l2s[0], None
    held, held_labels = features[is_validation], labels[is_validation]
    for l2 in l2s:
        start = logistic(features[~is_validation], labels[~is_validation], num_classes, l2=l2, start=start, device=device)
        accuracy = float((start.predict(held) == held_labels).mean())
        if accuracy > best:
            best, chosen = accuracy, l2
    return logistic(features, labels, num_classes, l2=chosen, start=start, device=device), chosen


def logistic(
    features: FloatArray,
    labels: IntArray,
    num_classes: int,
    *,
    l2: float,
    start: Linear | None = None,
    max_steps: int = 200,
    device: str = "cpu",
) -> Linear:
    """Return the classifier with the least mean cross-entropy + ``l2`` / 2 times its squared weights, on standardised features.

    The bias costs nothing. Full batch, L-BFGS with a strong Wolfe line search, until no entry of the gradient exceeds 1e-6.
    """
    import torch

    scaling = Scaling.of(features)
    mean, deviation = (torch.from_numpy(values).to(device) for values in (scaling.mean, scaling.deviation))
    x, y = torch.from_numpy(np.ascontiguousarray(features)).to(device), torch.from_numpy(labels).to(device)
    theta = torch.zeros(features.shape[1] + 1, num_classes, dtype=torch.float64, device=device)  # the last row is the bias
    if start is not None:
        theta[:-1] = torch.from_numpy(start.weight * scaling.deviation[:, None])
        theta[-1] = torch.from_numpy(start.bias + scaling.mean @ start.weight)
    num_rows = max(1, BLOCK_BYTES // (8 * max(num_classes, features.shape[1])))

    def cost() -> torch.Tensor:
        theta.grad = torch.zeros_like(theta)
        total = theta.new_zeros(())
        for first in range(0, len(x), num_rows):
            own = (x[first : first + num_rows] - mean) / deviation
            target = y[first : first + num_rows, None]
            log_p = torch.log_softmax(own @ theta[:-1] + theta[-1], dim=1)  # [B, C]
            total -= log_p.gather(1, target).sum()
            residual = log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1.0))  # of the logits: p - y
            theta.grad[:-1] += own.T @ residual
            theta.grad[-1] += residual.sum(dim=0)
        theta.grad /= len(x)
        theta.grad[:-1] += l2 * theta[:-1]
        return total / len(x) + l2 / 2 * theta[:-1].square().sum()

    solver = torch.optim.LBFGS(
        [theta], max_iter=max_steps, history_size=10, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    solver.step(cost)  # type: ignore[no-untyped-call]
    found = theta.cpu().numpy()
    return scaling.unfold(found[:-1], found[-1])


# --- accuracy -------------------------------------------------------------------------------------------------------------------


def resampled_accuracy(is_right: BoolArray, *, num_resamples: int = 1000, seed: int = 0) -> DoubleArray:
    """Return bootstrap accuracies float64 ``[num_resamples]`` of ``is_right`` bool ``[S, Q]``: S fits of one classifier, Q test images.

    Images are drawn with replacement and, where there are several fits, fits too. Images that fared alike under every fit are
    exchangeable, so their counts are drawn at once.
    """
    random = np.random.default_rng(seed)
    patterns, counts = np.unique(is_right, axis=1, return_counts=True)
    num_fits, num_images = is_right.shape
    drawn = random.multinomial(num_images, counts / num_images, size=num_resamples)  # [R, patterns]
    of_fit = drawn @ patterns.T / num_images  # [R, S]
    fits = random.integers(0, num_fits, (num_resamples, num_fits))
    resampled: DoubleArray = np.take_along_axis(of_fit, fits, axis=1).mean(axis=1)
    return resampled
