"""Losses of descriptors as plain functions: pairs, tuples, class vectors and neighbours, KoLeo; and the noise of their gradients."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

Reduction = Literal["sum_over_n", "mean_nonzero"]
TupleMetric = Literal["euclidean", "cosine"]

KOLEO_FLOOR = 1e-6
"""Nearest-neighbour distances are clamped here: exact duplicates get no gradient instead of one of 1e8 in an arbitrary direction."""


def contrastive_loss(
    z: torch.Tensor,
    labels: torch.Tensor,
    keys: torch.Tensor | None = None,
    key_labels: torch.Tensor | None = None,
    *,
    margin: float,
    reduction: Reduction = "sum_over_n",
    self_columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return equation 1 of anchors ``z`` ``[N, D]`` against ``keys`` ``[M, D]`` (by default the anchors), a scalar.

    ``self_columns`` ``[N]`` is the column of ``keys`` that is the anchor itself and forms no pair with it; keys labelled -1 are empty.
    ``sum_over_n`` sums over all pairs and divides by N alone, as printed; ``mean_nonzero`` averages the positive pairs and, apart,
    the negative pairs that still cost something (the usual reading of libraries).

    Source: El-Nouby et al. 2021, arXiv 2102.05644, eq. 1.
    """
    if keys is None or key_labels is None:
        keys, key_labels, self_columns = z, labels, torch.arange(len(z), device=z.device)
    similarity = z @ keys.T  # [N, M]
    is_positive = labels[:, None] == key_labels[None, :]
    is_pair = (key_labels >= 0).expand_as(is_positive)
    if self_columns is not None:
        is_pair = is_pair.scatter(1, self_columns[:, None], False)
    cost = torch.where(is_positive, 1.0 - similarity, F.relu(similarity - margin)) * is_pair
    if reduction == "sum_over_n":
        return cost.sum() / len(z)
    return _mean_nonzero(cost, is_positive) + _mean_nonzero(cost, ~is_positive)


def _mean_nonzero(cost: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    counted = among & (cost > 0)
    return (cost * counted).sum() / counted.sum().clamp_min(1)


def tuple_loss(z: torch.Tensor, num_negatives: int, *, margin: float, metric: TupleMetric) -> torch.Tensor:
    """Return the contrastive loss of T tuples ``z`` ``[T * (2 + num_negatives), D]``, a scalar: the sum of their pairs' costs.

    The rows of a tuple are its anchor, its positive and its negatives; the anchor forms a pair with each of the others. By the distance
    d of a pair (``euclidean``) a positive costs d^2 / 2 and a negative [margin - d]_+^2 / 2; by its similarity s (``cosine``) they cost
    1 - s and [s - margin]_+, as in equation 1. For unit vectors the positives cost the same either way.

    Source: Radenovic, Tolias, Chum 2018, arXiv 1711.02512, and El-Nouby et al. 2021, arXiv 2102.05644, eq. 1.
    """
    in_tuples = z.view(-1, 2 + num_negatives, z.shape[1])
    anchors, others = in_tuples[:, :1], in_tuples[:, 1:]
    if metric == "cosine":
        similarity = (anchors * others).sum(dim=2)  # [T, 1 + num_negatives]
        return (1.0 - similarity[:, 0]).sum() + F.relu(similarity[:, 1:] - margin).sum()
    distance = F.pairwise_distance(anchors, others)  # with 1e-6 added to each coordinate's difference, as the published code has it
    return 0.5 * distance[:, 0].square().sum() + 0.5 * F.relu(margin - distance[:, 1:]).square().sum()


def koleo_loss(z: torch.Tensor) -> torch.Tensor:
    """Return equation 2 of unit-length descriptors ``[N, D]``, a scalar that falls as neighbours part; 0 for fewer than two.

    Source: El-Nouby et al. 2021, arXiv 2102.05644, eq. 2; Sablayrolles et al. 2019, arXiv 1806.03198, eq. 3.
    """
    if len(z) < 2:
        return z.sum() * 0.0
    with torch.no_grad():  # for unit vectors the nearest is the most similar
        nearest = (z @ z.T).fill_diagonal_(-math.inf).argmax(dim=1)
    squared_distance = (z - z[nearest]).square().sum(dim=1)  # [N]
    return -0.5 * squared_distance.clamp_min(KOLEO_FLOOR**2).log().mean()


def normalised_softmax_loss(z: torch.Tensor, targets: torch.Tensor, proxies: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the mean cross-entropy of ``z`` ``[N, D]`` over the classes, a scalar: a class is as likely as its proxy is similar.

    ``proxies`` ``[C, D]`` are given unit length here; ``targets`` int64 ``[N]`` are rows of them.

    Source: Zhai & Wu 2018, arXiv 1811.12649.
    """
    return F.cross_entropy(z @ F.normalize(proxies, dim=1).T / temperature, targets)


def snca_loss(
    z: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, key_labels: torch.Tensor, *, temperature: float, self_columns: torch.Tensor
) -> torch.Tensor:
    """Return the mean over ``z`` ``[N, D]`` of -log P(a neighbour of its class), a scalar; ``keys`` ``[M, D]`` are the neighbours.

    P is the same-class share of exp(similarity / temperature) over the keys but for the anchor's own, column ``self_columns`` ``[N]``.
    An anchor without another of its class costs nothing.

    Source: Wu, Efros & Yu 2018, arXiv 1808.04699.
    """
    own = self_columns[:, None]
    logits = (z @ keys.T / temperature).scatter(1, own, -math.inf)  # [N, M]
    counted = (labels[:, None] == key_labels[None, :]).scatter(1, own, False)
    counted = counted | ~counted.any(dim=1, keepdim=True)  # nobody of its class: log 1, where log 0 would make every gradient NaN
    return (logits.logsumexp(dim=1) - logits.masked_fill(~counted, -math.inf).logsumexp(dim=1)).mean()


def gradient_noise(loss: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how the gradients of ``loss`` by the descriptors ``z`` ``[N, D]`` disagree: two scalars to watch, without a gradient.

    The first is the nuclear norm of the gradients' covariance, in the scale of the loss; the second that of their directions (the
    gradients at unit length), from 0 (all alike) to 1. A covariance has no negative eigenvalue: its nuclear norm is its trace.

    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.5 and figure 4 (averaged there over the iterations of a training).
    Departs: the formula and the figure's scale are of gradients, the text says directions: both are given.
    """
    gradients = torch.autograd.grad(loss, z, retain_graph=True)[0].detach()
    directions = F.normalize(gradients, dim=1)
    return gradients.var(dim=0, correction=0).sum(), directions.var(dim=0, correction=0).sum()
