"""Patch features as colours: their first three principal components, shared by several pictures, as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sightline.contracts import PatchFeatures
from sightline.lens.embedding import Float64Array

TAIL = 0.01
"""Share of the patches at either end of a component that is cut to its darkest and brightest: a few artefacts would leave the rest grey."""


def principal_colours(pictures: Sequence[PatchFeatures]) -> tuple[list[npt.NDArray[np.uint8]], Float64Array]:
    """Return colours uint8 ``[rows, columns, 3]`` of each picture's patches, and the share of variance in each of the three components.

    The components are of all the pictures' patches together, so a colour means the same in all of them; each is stretched between its
    ``TAIL`` quantiles. A component's sign is free: its largest entry is made positive, so that the same features give the same colours.

    Source: Oquab et al. 2023, arXiv 2304.07193, figure 1.
    Departs: nothing is taken away as background by a threshold on the first component, which has to be chosen by eye for each model.
    """
    vectors = np.concatenate([one.vectors for one in pictures]).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(vectors.T @ vectors)
    num = min(3, len(variances))
    first = directions[:, ::-1][:, :num]
    first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(num)])
    level = np.full((len(vectors), 3), 0.5)
    shares = np.zeros(3)
    total = float(variances.clip(0).sum())
    for component in range(num):
        values = vectors @ first[:, component]
        low, high = np.quantile(values, (TAIL, 1 - TAIL))
        if high - low > 1e-9:
            level[:, component] = ((values - low) / (high - low)).clip(0, 1)
            shares[component] = variances[-1 - component] / total
    colours = (255 * level).round().astype(np.uint8)
    ends = np.cumsum([len(one) for one in pictures])[:-1]
    return [part.reshape(*one.grid, 3) for part, one in zip(np.split(colours, ends), pictures, strict=True)], shares
