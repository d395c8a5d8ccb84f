"""What an inspection knows of a model's layers before anything is drawn: filters, positions, reach, token norms and likeness, or why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.errors import ModelError
from sightline.lens import cka, tokens
from sightline.lens.embedding import Float64Array
from sightline.lens.filters import first_filters, principal_filters
from sightline.lens.layers import NUM_IMAGES, Layers, read_batches, walk
from sightline.lens.positions import neighbourhood, position_grid, position_similarity
from sightline.lens.view import View, rounded

Known = TypeVar("Known")


def value_or_reason(find: Callable[[], Known]) -> Known | str:
    """Return what ``find`` does, or in one sentence why there is no such thing in this model."""
    try:
        return find()
    except ModelError as error:
        return str(error)


class Inside:
    """One model's layers, each part either what there is to see or the sentence that says why there is nothing."""

    def __init__(self, view: View) -> None:
        self.view = view
        encoder, net = view.encoder, view.encoder.backbone.net
        self.filters = value_or_reason(lambda: principal_filters(first_filters(net)))
        self.positions = value_or_reason(lambda: position_similarity(position_grid(net)))
        images = read_batches(encoder, view.records, walked_rows(view), what=f"looking inside {view.label}")
        self.layers = value_or_reason(lambda: _with_images(walk(encoder, images)))
        self.distances_px = self.layers if isinstance(self.layers, str) else value_or_reason(self.layers.distance.distances_px)

    def alike(self, other: Inside) -> Float64Array | str:
        """Return the CKA ``[L, L']`` of this model's layers with another's, over the images that both saw."""
        for one in (self, other):
            if isinstance(one.layers, str):
                return one.layers
        pairs = common_batches(self.layers, other.layers)  # type: ignore[arg-type]
        if not pairs:
            return f"at least {cka.LEAST_IMAGES} images are needed to say how alike layers are"
        return cka.cka([one for one, _ in pairs], [two for _, two in pairs])

    def norms_of(self, row: int) -> FloatArray | None:
        """Return the token norms ``[rows, columns]`` of an image by its row in the records, None where it was not seen."""
        if isinstance(self.layers, str):
            return None
        found = np.flatnonzero(np.concatenate(self.layers.rows) == row)
        return self.layers.norms[found[0]] if len(found) else None

    def numbers(self) -> dict[str, Any]:
        """Return all of it as JSON has it; None for what there is not."""
        alike = self.alike(self)
        return {
            "filters": None if isinstance(self.filters, str) else {"shares": rounded(self.filters[1])},
            "positions": None
            if isinstance(self.positions, str)
            else {"grid": list(self.positions.shape[:2]), "similarity": neighbourhood(self.positions)},
            "attention_distance": self._distance_numbers(),
            "token_norms": None if isinstance(self.layers, str) else norm_numbers(self.layers),
            "cka": None
            if isinstance(alike, str) or isinstance(self.layers, str)
            else {"layers": list(self.layers.names), "alike": grid(alike)},
        }

    def _distance_numbers(self) -> dict[str, Any] | None:
        if isinstance(self.distances_px, str) or isinstance(self.layers, str):
            return None
        meter = self.layers.distance
        heads = [rounded(of_layer) for of_layer in self.distances_px]
        return {"heads_px": heads, "even_px": [float(f"{even:.6g}") for even in meter.even_px], "images": meter.num_images}


def walked_rows(view: View) -> IntArray:
    """Return up to ``NUM_IMAGES`` rows of the records, spread evenly over what is looked at, the examples of the page among them."""
    examples = view.examples()
    spread = np.linspace(0, len(view.searched) - 1, min(NUM_IMAGES - len(examples), len(view.searched))).round().astype(np.int64)
    rows: IntArray = view.rows[view.searched[np.union1d(spread, np.array(examples, np.int64))]]
    return rows


def common_batches(one: Layers, other: Layers) -> list[tuple[Float64Array, Float64Array]]:
    """Return both models' Gram matrices of each batch, of the images that both read; batches with too few of them are left out."""
    found = []
    for our_rows, ours in zip(one.rows, one.grams, strict=True):
        for their_rows, theirs in zip(other.rows, other.grams, strict=True):
            mine, his = np.isin(our_rows, their_rows), np.isin(their_rows, our_rows)
            if mine.sum() >= cka.LEAST_IMAGES:
                found.append((ours[:, mine][:, :, mine], theirs[:, his][:, :, his]))
    return found


def norm_numbers(layers: Layers) -> dict[str, Any]:
    """Return what there is to say of token norms in numbers."""
    least = tokens.far_out(layers.norms)
    values = {
        "median": float(np.median(layers.norms)),
        "largest": float(layers.norms.max()),
        "far_out_above": least,
        "share_far_out": tokens.share_above(layers.norms, least),
    }
    return {name: float(f"{value:.6g}") for name, value in values.items()} | {"prefix": rounded(layers.prefix_norms.mean(axis=0))}


def grid(values: Float64Array) -> list[list[float | None]]:
    """Return a matrix as JSON has it, with four digits; None for NaN."""
    return [[None if math.isnan(value) else round(value, 4) for value in row] for row in values.tolist()]


def _with_images(layers: Layers) -> Layers:
    if not layers.rows:
        raise ModelError("no image could be read any more")
    return layers
