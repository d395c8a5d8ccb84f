"""The lengths of patch tokens, and which are far out: tokens in which a model keeps notes of its own in place of the picture's content."""

from __future__ import annotations

import numpy as np

from sightline.contracts import FloatArray


def far_out(norms: FloatArray) -> float:
    """Return the norm above which a token is an artefact: three interquartile ranges above the upper quartile of all ``[M, rows, columns]``.

    Of normally spread norms two in a million lie beyond; up to a quarter of the tokens can be artefacts before they move it.

    Source: Tukey 1977, "Exploratory data analysis", section 2D (outer fences); artefact tokens: Darcet et al. 2024, arXiv 2309.16588.
    Departs: the paper draws the line by eye at 150 for one model; a line for any model has to come from its own norms.
    """
    lower, upper = np.quantile(norms.astype(np.float64), (0.25, 0.75))
    return float(upper + 3 * (upper - lower))


def share_above(norms: FloatArray, least: float) -> float:
    """Return the share of tokens with a norm above ``least``."""
    return float((norms > least).mean())
