"""How alike two layers see the same images, whatever their widths: centred kernel alignment, from Gram matrices of small batches.

A Gram matrix is of images alone, so features of any width and from any network can be compared, and none has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.lens.embedding import Float64Array

LEAST_IMAGES = 4
"""Fewer have no unbiased estimate."""


def u_centred(grams: Float64Array) -> Float64Array:
    """Return the Gram matrices ``[..., B, B]`` with rows and columns that sum to 0 and a diagonal of zeros.

    Source: Szekely and Rizzo 2014, "Partial distance correlation with methods for dissimilarities", eq. 2.1 (U-centring).
    """
    num = grams.shape[-1]
    off = grams * (1.0 - np.eye(num))
    rows = off.sum(axis=-1) / (num - 2)
    rows -= rows.sum(axis=-1, keepdims=True) / (2 * (num - 1))
    centred: Float64Array = (off - rows[..., :, None] - rows[..., None, :]) * (1.0 - np.eye(num))
    return centred


def hsic(one: Float64Array, other: Float64Array) -> Float64Array:
    """Return the unbiased estimate ``[L, L']`` of HSIC between layers with Gram matrices ``[L, B, B]`` and ``[L', B, B]`` of the same images.

    Source: Song et al. 2012, "Feature selection via dependence maximization", JMLR 13, eq. 5; as a product of U-centred matrices: Szekely
        and Rizzo 2014, eq. 2.2.
    """
    num = one.shape[-1]
    ours, theirs = (u_centred(grams).reshape(len(grams), -1) for grams in (one, other))
    estimate: Float64Array = ours @ theirs.T / (num * (num - 3))
    return estimate


def cka(one: Sequence[Float64Array], other: Sequence[Float64Array]) -> Float64Array:
    """Return how alike layers are, ``[L, L']``: 1 is alike but for rotation and scale, near 0 has nothing in common, NaN is a layer that is constant.

    ``one`` and ``other`` are Gram matrices of batches, each ``[L, B, B]`` and ``[L', B, B]`` of the same ``LEAST_IMAGES`` images or more.
    The estimate can lie a little above 1 or below 0.

    Source: Kornblith et al. 2019, arXiv 1905.00414, eq. 3 with a linear kernel; in batches: Nguyen, Raghu and Kornblith 2021,
        arXiv 2010.15327, eq. 2 to 4.
    """
    across = sum(hsic(ours, theirs) for ours, theirs in zip(one, other, strict=True))
    own = [np.maximum(sum(np.diagonal(hsic(gram, gram)) for gram in grams), 0.0) for grams in (one, other)]
    with np.errstate(divide="ignore", invalid="ignore"):
        alike: Float64Array = across / np.sqrt(own[0][:, None] * own[1][None, :])
    alike[~np.isfinite(alike)] = np.nan
    return alike
