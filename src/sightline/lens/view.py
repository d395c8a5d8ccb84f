"""What an inspection knows of a model before anything is drawn: its descriptors' numbers, its neighbours and its closest pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sightline.contracts import Descriptors, FloatArray, IntArray, Ranking
from sightline.data.records import Records
from sightline.html import Picture
from sightline.lens import embedding
from sightline.lens.gradients import gradient_curve
from sightline.nn.encoder import Encoder
from sightline.search.neighbours import nearest

MAX_SEARCHED = 20_000
"""Descriptors among which neighbours are sought (a seeded sample of more): exact, in seconds on two cores."""

NUM_EXAMPLES, NUM_NEIGHBOURS = 8, 10
MAX_OF_CLASSES = 3

Thumbnail = Callable[[Records, int], Image.Image | None]


@dataclass(frozen=True, eq=False)
class Inspected:
    """A model, the name it goes by, and what it made of the images."""

    name: str
    encoder: Encoder
    descriptors: Descriptors


class View:
    """One model's descriptors of the images, and all that is counted of them.

    ``searched`` are the places (rows of ``vectors``) that neighbours are sought among; ``ranking`` has rows of ``searched``.
    """

    def __init__(self, model: Inspected, label: str, records: Records, thumbnail: Thumbnail) -> None:
        self.label, self.records, self.thumbnail = label, records, thumbnail
        self.encoder = model.encoder
        self.vectors, self.rows = model.descriptors.vectors, model.descriptors.rows
        self.labels = None if records.labels is None else records.labels[self.rows]
        self.facts = model_facts(model)
        num = len(self.vectors)
        self.searched: IntArray = np.sort(np.random.default_rng(0).permutation(num)[:MAX_SEARCHED])
        self.variances = embedding.spectrum(self.vectors)
        self.energy = embedding.energy(self.variances)
        classes = np.zeros(num, np.int64) if self.labels is None else self.labels  # without labels all pairs are of one kind
        self.pairs = embedding.similarity_by_class(self.vectors, classes)
        self.gradients = None if self.labels is None else gradient_curve(self.vectors, self.labels)
        among = self.vectors[self.searched]
        self.ranking: Ranking = nearest(among, among, NUM_NEIGHBOURS, np.arange(len(among)))
        self.measures = embedding.health(
            self.vectors,
            self.labels,
            variances=self.variances,
            pairs=self.pairs,
            neighbours=self.ranking.rows,
            num_searched=len(self.searched),
        )

    def value(self, measure: str) -> float:
        """Return one of the measures by its name."""
        return next(one.value for one in self.measures if one.name == measure)

    def numbers(self) -> dict[str, Any]:
        """Return what was counted of the model alone, as JSON has it."""
        return {
            "model": self.facts,
            "metrics": {one.name: None if math.isnan(one.value) else one.value for one in self.measures},
            "energy": rounded(self.energy),
            "gradients": None
            if self.gradients is None
            else {
                "margins": rounded(self.gradients.margins),
                "of_gradients": rounded(self.gradients.of_gradients),
                "of_directions": rounded(self.gradients.of_directions),
                "batch": f"{self.gradients.num_classes} x {self.gradients.num_per_class}",
            },
        }

    def name(self, place: int) -> str:
        """Return what to call the image at a place: its class, or its path where there are no classes."""
        return self.path(place) if self.labels is None else self.records.class_names[self.labels[place]]

    def path(self, place: int) -> str:
        """Return the path of the image at a place."""
        return self.records.paths[int(self.rows[place])]

    def picture(self, place: int, note: str = "", *, beside: int | None = None) -> Picture:
        """Return the picture at a place, marked right or wrong by the class of the one it stands ``beside``."""
        image = self.thumbnail(self.records, int(self.rows[place]))
        if beside is None or self.labels is None:
            return Picture(image, self.name(place), note, "plain")
        return Picture(image, self.name(place), note, "right" if self.labels[place] == self.labels[beside] else "wrong")

    def examples(self) -> list[int]:
        """Return places spread evenly over the collection, which most often is ordered by class."""
        spread = np.linspace(0, len(self.searched) - 1, min(NUM_EXAMPLES, len(self.searched)))
        return [round(float(place)) for place in spread]

    def example_places(self) -> list[int]:
        """Return the rows of ``vectors`` of the examples."""
        return [int(self.searched[example]) for example in self.examples()]


def rounded(values: embedding.Float64Array | FloatArray) -> list[float]:
    """Return the values with six digits, which is more than a figure shows."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def model_facts(model: Inspected) -> dict[str, Any]:
    """Return what there is to say of a model that no image is needed for."""
    encoder = model.encoder
    return {
        "name": model.name,
        "backbone": encoder.model.backbone,
        "pooling": encoder.model.pooling,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "width": encoder.dim,
        "image_px": encoder.image.image_px,
        "fingerprint": encoder.fingerprint,
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of the names where they tell them all apart, else the names as they are."""
    last = [PurePath(name).name for name in names]
    return last if all(last) and len(set(last)) == len(names) else list(names)


# --- pairs ------------------------------------------------------------------------------------------------------------------------


def pairs_of(closest: Ranking, least: float) -> tuple[IntArray, FloatArray]:
    """Return the unordered pairs (row, its closest) int64 ``[P, 2]`` of similarity ``least`` or more, each once, most similar first."""
    if not closest.rows.size:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    good = np.flatnonzero((closest.rows[:, 0] >= 0) & (closest.similarity[:, 0] >= least))
    pairs = np.sort(np.stack([good, closest.rows[good, 0]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    similarity = closest.similarity[good[first], 0]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))
    return pairs[order], similarity[order]


def varied(pairs: IntArray, labels: IntArray | None, most: int) -> list[int]:
    """Return up to ``most`` positions in ``pairs`` ``[P, 2]``, in order, that show much: no row is in two of them.

    With ``labels`` no two classes meet more than ``MAX_OF_CLASSES`` times.
    """
    chosen: list[int] = []
    seen: set[int] = set()
    times: Counter[tuple[int, int]] = Counter()
    for position, (one, other) in enumerate(pairs.tolist()):
        classes = (-1, -1) if labels is None else (int(min(labels[one], labels[other])), int(max(labels[one], labels[other])))
        if one in seen or other in seen or (labels is not None and times[classes] == MAX_OF_CLASSES):
            continue
        chosen.append(position)
        seen |= {one, other}
        times[classes] += 1
        if len(chosen) == most:
            break
    return chosen
