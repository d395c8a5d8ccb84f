"""The head's reduction: plain PCA as IRT uses it, PCA-whitening, and whitening learned from positive pairs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import IntArray
from sightline.errors import ModelError
from sightline.recipe import Whiten

VARIANCE_FLOOR = 1e-10
"""A direction that varies less than this share of the widest one does not vary: dividing by it would make noise as loud as the images."""

MAX_PAIRS, PAIRS_PER_IMAGE = 100_000, 8
"""How many positive pairs are drawn from labels: some 260 for each direction of a 384-d descriptor."""

BLOCK = 8_192


class Reduction(nn.Module):
    """Moves ``[B, D]`` to the mean and projects it on ``dim`` directions; ``explained`` is the share of variance that each carries.

    A whitening (``whiten`` is not none) first gives its input unit length. The directions of plain PCA have unit length; those of a
    whitening are divided by how far the images (pca), or two images of the same thing (supervised), spread along them.
    """

    mean: torch.Tensor
    components: torch.Tensor
    explained: torch.Tensor

    def __init__(self, width: int, dim: int, whiten: Whiten = "none") -> None:
        super().__init__()
        self.whiten = whiten
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.eye(dim, width))
        self.register_buffer("explained", torch.zeros(dim))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the projections ``[B, dim]`` of ``[B, D]``, not normalised."""
        vectors = pooled.float() if self.whiten == "none" else F.normalize(pooled.float(), dim=1)
        return (vectors - self.mean) @ self.components.T  # [B, dim]


def fit_reduction(vectors: torch.Tensor, dim: int, whiten: Whiten, pairs: torch.Tensor | None = None) -> Reduction:
    """Return the reduction of a kind to ``dim`` directions, fitted on pooled ``vectors`` ``[M, D]``; see the three functions below.

    Raises:
        ModelError: there are too few vectors or pairs for it.
    """
    if whiten == "none":
        return fit_pca(vectors, dim)
    if whiten == "pca":
        return fit_pca_whitening(vectors, dim)
    if pairs is None or not len(pairs):
        raise ModelError(
            "whiten=supervised learns from pairs of images of the same thing and there are none: label the images, or use whiten=pca"
        )
    return fit_whitening(vectors, pairs, dim)


def fit_pca(vectors: torch.Tensor, dim: int) -> Reduction:
    """Return the PCA of ``vectors`` ``[M, D]`` to ``dim`` components, solved in float64.

    The sign of each component is fixed (its largest entry is positive), so that two fits of one set agree.

    Raises:
        ModelError: there are fewer vectors, or narrower ones, than components.
    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.2 (PCA before l2-normalisation, without whitening).
    """
    num, width = vectors.shape
    require_enough("none", dim, width, num_images=num)
    _require_finite(vectors)
    mean = vectors.mean(dim=0, dtype=torch.float64)
    variances, directions = torch.linalg.eigh(_second_moment(vectors, mean))  # ascending
    return _reduction("none", mean, directions.T.flip(0), variances.flip(0), dim)


def fit_pca_whitening(vectors: torch.Tensor, dim: int = 0) -> Reduction:
    """Return the PCA-whitening of ``vectors`` ``[M, D]`` at unit length: ``dim`` components, each divided by its deviation.

    ``dim`` 0 keeps every direction that varies.

    Raises:
        ModelError: there are too few vectors, or they vary in fewer than ``dim`` directions.
    Source: Jegou & Chum 2012, ECCV, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and whitening".
    """
    num, width = vectors.shape
    require_enough("pca", dim, width, num_images=num)
    _require_finite(vectors)
    unit = F.normalize(vectors, dim=1)
    mean = unit.mean(dim=0, dtype=torch.float64)
    variances, directions = _varying(_second_moment(unit, mean))
    return _reduction("pca", mean, directions.T / variances.sqrt()[:, None], variances, dim)


def fit_whitening(vectors: torch.Tensor, pairs: torch.Tensor, dim: int = 0) -> Reduction:
    """Return the whitening learned from ``pairs`` int64 ``[P, 2]`` of rows of ``vectors`` ``[M, D]`` (at unit length) that show the same.

    What differs within pairs is made alike in all directions, then the ``dim`` directions are kept in which the images spread most
    beside it; ``dim`` 0 keeps every direction that varies. The mean is that of the pairs' first images.

    Raises:
        ModelError: the pairs differ in fewer directions than the images, or the images vary in fewer than ``dim``.
    Source: Mikolajczyk & Matas 2007, ICCV, "Improving descriptors for fast tree matching by optimal linear projection"; as a
        learned whitening Radenovic et al. 2016, arXiv 1604.02426 ("Whitening and dimensionality reduction").
    Departs: the published code adds to the diagonal until a Cholesky factor exists, whatever that makes of directions in which the
        pairs do not differ; here it is an error. Directions in which no image varies are left out first.
    """
    num, width = vectors.shape
    require_enough("supervised", dim, width, num_images=num)
    _require_finite(vectors)
    unit = F.normalize(vectors, dim=1)
    mean = torch.stack([unit[block[:, 0]].sum(dim=0, dtype=torch.float64) for block in pairs.split(BLOCK)]).sum(dim=0) / len(pairs)
    spread = _second_moment(unit, mean)
    within = _mean_outer((unit[block[:, 0]].double() - unit[block[:, 1]].double() for block in pairs.split(BLOCK)), width)
    basis = _varying(spread)[1]  # [D, R]
    inner = basis.T @ within @ basis  # [R, R]
    num_inner = len(_varying(inner)[0])
    if num_inner < len(inner):
        raise ModelError(
            f"whiten=supervised needs pairs that differ in all {len(inner)} directions in which the images vary; the {len(pairs):,} pairs differ "
            f"in {num_inner} (images less classes is the most they can): fit on more images per class, or use whiten=pca"
        )
    whitener = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), basis.T, upper=False)  # [R, D]
    variances, rotation = torch.linalg.eigh(whitener @ spread @ whitener.T)
    return _reduction("supervised", mean, rotation.T.flip(0) @ whitener, variances.flip(0), dim)


def require_enough(whiten: Whiten, dim: int, width: int, *, num_images: int, num_classes: int = 0) -> None:
    """Hold a fit to what it needs before anything is computed; ``num_classes`` 0 where pairs come from elsewhere than classes.

    Raises:
        ModelError: ``dim`` is larger than the width, or there are too few images.
    """
    wanted = dim or width
    if wanted > width or num_images <= wanted:
        raise ModelError(
            f"{f'pca={dim}' if dim else f'whiten={whiten}'} needs descriptors of width {wanted} or more and more than {wanted} training images; "
            f"there are {num_images} of width {width}"
        )
    if whiten == "supervised" and num_classes and num_images - num_classes < width:
        raise ModelError(
            f"whiten=supervised needs at least as many images less classes as the {width} of the descriptors' width, and there are "
            f"{num_images} images of {num_classes} classes: use whiten=pca, or a narrower backbone"
        )


def _require_finite(vectors: torch.Tensor) -> None:
    bad = ~torch.isfinite(vectors).all(dim=1)
    if bad.any():
        raise ModelError(
            f"{int(bad.sum())} of {len(vectors)} vectors hold NaN or infinity, so nothing can be fitted on them: the model's weights are damaged"
        )


def label_pairs(labels: IntArray, seed: int = 0) -> IntArray:
    """Return positive pairs int64 ``[P, 2]`` for ``labels`` ``[M]``: each image with others of its class, drawn at random by ``seed``.

    Every image of a class with two or more leads the same number of pairs (``PAIRS_PER_IMAGE``, fewer beyond ``MAX_PAIRS`` in all, and
    then only some lead one), so that large classes do not outweigh small ones by the square of their size.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    _, start, inverse, count = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    paired = np.flatnonzero(count[inverse] > 1)  # places in order
    times = min(PAIRS_PER_IMAGE, max(1, MAX_PAIRS // max(1, len(paired))))
    lead = np.repeat(random.permutation(paired)[:MAX_PAIRS], times)
    first, size = start[inverse[lead]], count[inverse[lead]]
    other = first + (lead - first + random.integers(1, np.maximum(size, 2))) % size
    return np.stack([order[lead], order[other]], axis=1).astype(np.int64)


def _varying(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues ``[R]``, falling, and eigenvectors ``[D, R]`` of the directions that vary, by ``VARIANCE_FLOOR``."""
    variances, directions = (part.flip(-1) for part in torch.linalg.eigh(symmetric))
    varies = variances > VARIANCE_FLOOR * variances[0]
    return variances[varies], directions[:, varies]


def _second_moment(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return _mean_outer((block.double() - mean for block in vectors.split(BLOCK)), len(mean))


def _mean_outer(blocks: Iterable[torch.Tensor], width: int) -> torch.Tensor:
    """Return the mean of x x^T over the rows x of float64 blocks, ``[D, D]``: a block at a time, since float64 copies of all would be large."""
    total, num = torch.zeros(width, width, dtype=torch.float64), 0
    for block in blocks:
        total += block.T @ block
        num += len(block)
    return total / num


def _reduction(whiten: Whiten, mean: torch.Tensor, components: torch.Tensor, variances: torch.Tensor, dim: int) -> Reduction:
    """Return the module of ``components`` ``[R, D]``, widest first, cut to ``dim`` (0: all); each component's largest entry is made positive."""
    if dim > len(components):
        raise ModelError(f"pca={dim} asks for more directions than the {len(components)} in which the training images vary: lower it")
    kept = components[: dim or len(components)]  # [dim, D]
    largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    fitted = Reduction(len(mean), len(kept), whiten)
    fitted.mean.copy_(mean)
    fitted.components.copy_(kept * largest.sign())
    fitted.explained.copy_(variances[: len(kept)] / variances.sum())
    return fitted
