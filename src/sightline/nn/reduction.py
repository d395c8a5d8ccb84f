"""PCA as part of the encoder: plain, as IRT uses it (reduced before normalising; no whitening)."""

from __future__ import annotations

import torch
from torch import nn

from sightline.errors import ModelError


class PCA(nn.Module):
    """Projects ``[B, D]`` on the leading components; ``explained`` is the share of variance each component carries."""

    mean: torch.Tensor
    components: torch.Tensor
    explained: torch.Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.eye(dim, width))
        self.register_buffer("explained", torch.zeros(dim))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the projections ``[B, dim]`` of ``[B, D]``, not normalised."""
        return (pooled.float() - self.mean) @ self.components.T  # [B, dim]


def fit_pca(vectors: torch.Tensor, dim: int) -> PCA:
    """Return the PCA of ``vectors`` ``[M, D]`` to ``dim`` components, solved in float64.

    The sign of each component is fixed (its largest entry is positive), so that two fits of one set agree.

    Raises:
        ModelError: there are fewer vectors, or narrower ones, than components.
    Source: El-Nouby et al. 2021, arXiv 2102.05644, section 3.1 (PCA before l2-normalisation, without whitening).
    """
    num, width = vectors.shape
    if dim > width or dim >= num:
        raise ModelError(
            f"pca={dim} needs descriptors wider than {dim} and more than {dim} training images; there are {num} of width {width}"
        )
    exact = vectors.double()
    mean = exact.mean(dim=0)
    covariance = (exact - mean).T @ (exact - mean) / (num - 1)
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    components = directions.T.flip(0)[:dim]  # [dim, D]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    fitted = PCA(width, dim)
    fitted.mean.copy_(mean)
    fitted.components.copy_(components * largest.sign())
    fitted.explained.copy_(variances.flip(0)[:dim] / variances.sum())
    return fitted
