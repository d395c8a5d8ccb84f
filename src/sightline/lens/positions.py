"""What a ViT's position embeddings have in common: how similar each is to all others, over the grid of patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sightline.contracts import FloatArray
from sightline.errors import ModelError


def position_grid(net: nn.Module) -> FloatArray:
    """Return the position embeddings of the patches, ``[rows, columns, D]``, prefix tokens' left out.

    Raises:
        ModelError: the network adds no table of positions to its patches.
    """
    table = getattr(net, "pos_embed", None)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if not isinstance(table, torch.Tensor) or table.ndim != 3 or grid is None or table.shape[1] < grid[0] * grid[1]:
        raise ModelError(
            f"{type(net).__name__} adds no table of positions to its patches: where each lies comes in as a bias on attention, by rotation, "
            "or from convolutions"
        )
    rows, columns = grid
    positions: FloatArray = table[0, table.shape[1] - rows * columns :].detach().float().cpu().numpy().reshape(rows, columns, -1)
    return positions


def position_similarity(positions: FloatArray) -> FloatArray:
    """Return the cosine of each position embedding of ``[rows, columns, D]`` with all, ``[rows, columns, rows, columns]``.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.5 and figure 7 (centre).
    """
    rows, columns, width = positions.shape
    flat = positions.reshape(-1, width)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similarity: FloatArray = (unit @ unit.T).reshape(rows, columns, rows, columns)
    return similarity


def neighbourhood(similarity: FloatArray) -> dict[str, float | None]:
    """Return the mean similarity of positions beside each other, of one row, of one column, and of neither; None where there are no such pairs.

    In a model that has learned the image's two dimensions they fall in about that order.
    """
    rows, columns = similarity.shape[:2]
    down, along = (
        np.abs(np.subtract.outer(np.arange(rows), np.arange(rows))),
        np.abs(np.subtract.outer(np.arange(columns), np.arange(columns))),
    )
    down, along = down[:, None, :, None], along[None, :, None, :]
    kinds = {
        "beside": down + along == 1,
        "same_row": (down == 0) & (along > 1),
        "same_column": (along == 0) & (down > 1),
        "elsewhere": (down > 0) & (along > 0),
    }
    return {name: float(similarity[kind].mean()) if kind.any() else None for name, kind in kinds.items()}
