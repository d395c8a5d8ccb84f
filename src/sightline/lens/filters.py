"""What the first layer looks for: the principal components of its filters, as pictures."""

from __future__ import annotations

import numpy as np
from torch import nn

from sightline.contracts import FloatArray
from sightline.errors import ModelError
from sightline.lens.embedding import Float64Array

NUM_COMPONENTS = 28


def first_filters(net: nn.Module) -> FloatArray:
    """Return the filters ``[filters, 3, height, width]`` of the convolution that reads the image: a ViT's patch embedding, a ResNet's stem.

    Raises:
        ModelError: timm does not say which it is, or it does not read colours.
    """
    name = getattr(net, "default_cfg", {}).get("first_conv")
    weight = None
    if isinstance(name, str) and name:
        try:
            weight = getattr(net.get_submodule(name), "weight", None)
        except AttributeError:
            weight = None  # renamed since timm wrote its table
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        raise ModelError(f"{type(net).__name__} has no first convolution that reads red, green and blue")
    filters: FloatArray = weight.detach().float().cpu().numpy()
    return filters


def principal_filters(filters: FloatArray, num: int = NUM_COMPONENTS) -> tuple[FloatArray, Float64Array]:
    """Return the first principal components of filters ``[filters, 3, h, w]`` and the share of variance of each, falling.

    The components are ``[num, 3, h, w]`` of unit length, fewer where there are not so many; the largest entry of each is made positive.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.5 and figure 7 (left).
    """
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    _, lengths, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    num = min(num, len(filters) - 1, len(components))
    components = components[:num]
    largest = components[np.arange(num), np.abs(components).argmax(axis=1)]
    components = components * np.where(largest < 0, -1.0, 1.0)[:, None]
    total = max(float((lengths**2).sum()), np.finfo(np.float64).tiny)
    return components.reshape(num, *filters.shape[1:]).astype(np.float32), lengths[:num] ** 2 / total
