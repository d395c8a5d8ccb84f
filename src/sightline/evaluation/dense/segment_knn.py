"""k-NN segmentation: each pixel of a patch takes the commonest class at its place among the training patches that look most like it.

Source: Darcet, Baldassarre, Oquab, Mairal & Bojanowski 2025, arXiv 2502.08769 (CAPI), and its evaluation code.

Departs: void pixels of a training patch take the patch's commonest class, where that code lets void be predicted; a patch that is half
void or more is left out (there: one whose commonest label is void). IoU is measured at each mask's own size, not at the input's. At most
``memory`` training patches are kept, where that code keeps all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.data.segments import nearest_size
from sightline.data.sets.segmentation import VOID, Mask, Pair, spread
from sightline.data.transforms import resize
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.incontext import square, squeezed
from sightline.evaluation.dense.miou import Confusion
from sightline.evaluation.dense.segmenting import Bench, Fitted, Segmentation, batched, joined, patches_of
from sightline.evaluation.probes import Scaling
from sightline.progress import Bar
from sightline.recipe import ImageSpec
from sightline.search.neighbours import nearest

Distance = Literal["cosine", "l2"]

KS = (1, 3, 10, 30)
DISTANCES: tuple[Distance, ...] = ("cosine", "l2")

HELD_OUT = 10
"""One training image in this many chooses K and the distance."""

VOTE_BYTES = 2**25
"""The neighbours' pixels that are counted at a time."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Training patches: features float32 ``[M, D]``, the classes of their pixels int16 ``[M, pixels]``, the image of each int64 ``[M]``."""

    features: FloatArray
    labels: Mask
    image_of: IntArray


@dataclass(frozen=True, kw_only=True)
class SegmentKnn(Segmentation):
    """k-NN on standardised patch features; K and the distance are chosen on a tenth of the training images unless both are given."""

    memory: int = 102_400  # training patches at most, drawn at random from each image
    image_px: int = 0  # images are squeezed to this square; 0 is the model's own size
    k: int = 0  # 0 chooses among 1, 3, 10 and 30
    distance: Literal["auto", "cosine", "l2"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1 or min(self.image_px, self.k) < 0:
            raise UsageError("memory is 1 or more, and image_px and k are 0 or more")

    @property
    def name(self) -> str:
        """See ``Segmentation.name``."""
        return "segment-knn"

    def fit(self, bench: Bench, train: Sequence[Pair]) -> Fitted:
        """See ``Segmentation.fit``: gather patches, standardise, choose."""
        spec = square(bench, self.image_px)
        known = self.gather(bench, spread(train, self.memory), spec)
        ks, distances = (self.k,) if self.k else KS, DISTANCES if self.distance == "auto" else (self.distance,)
        images = np.unique(known.image_of)
        if len(ks) * len(distances) == 1:
            scaling, k, distance = Scaling.of(known.features), ks[0], distances[0]
            features = standardised(known.features, scaling)
        else:
            if len(images) < 2:
                raise DataError(f"{bench.data.root} has one readable training image: choosing K needs two; or give k and distance")
            held = np.random.default_rng(self.seed).permutation(images)[: max(1, len(images) // HELD_OUT)]
            is_held = np.isin(known.image_of, held)
            scaling = Scaling.of(known.features[~is_held])  # of what is fitted on, and kept for all, as the authors do
            features = standardised(known.features, scaling)
            k, distance = choose(features, known.labels, is_held, bench.data.num_classes, ks, distances, bench.device)
        filled = filled_in(known.labels)

        def label(pictures: Sequence[Image.Image]) -> list[Mask]:
            found, grid = bench.features(torch.stack([resize(image, spec, "square") for image in pictures]))
            queries = standardised(found.flatten(0, 1).cpu().numpy(), scaling)
            voted = vote(closest_rows(queries, features, k, distance, bench.device), filled)
            tall = max(1, spec.image_px // grid[0])
            masks = (joined(one, grid, tall) for one in voted.reshape(len(pictures), grid[0] * grid[1], -1))
            return [nearest_size(mask, image.height, image.width) for mask, image in zip(masks, pictures, strict=True)]

        return Fitted(label, len(images), {"image_px": spec.image_px, "patches": len(features), "k": k, "distance": distance})

    def gather(self, bench: Bench, train: Sequence[Pair], spec: ImageSpec) -> Patches:
        """Return training patches that are less than half void.

        Raises:
            DataError: there are none.
        """
        num_each = max(1, self.memory // len(train))
        features: list[FloatArray] = []
        labels: list[Mask] = []
        owners: list[IntArray] = []
        samples = bench.stream(train, lambda place, image, mask: (place, *squeezed(image, mask, spec)))
        with Bar("gathering", len(train), show=len(train) > self.batch) as bar:
            for batch in batched(samples, self.batch):
                found, grid = bench.features(torch.stack([pixels for _, pixels, _ in batch]))
                patches = patches_of(np.stack([mask for _, _, mask in batch]), grid)
                for (place, _, _), one, own in zip(batch, found.cpu().numpy(), patches, strict=True):
                    usable = np.flatnonzero((own == VOID).mean(axis=1) < 0.5)
                    kept = np.sort(np.random.default_rng([self.seed, place]).permutation(usable)[:num_each])
                    features.append(one[kept])
                    labels.append(own[kept])
                    owners.append(np.full(len(kept), place))
                bar.update(batch[-1][0] + 1)
        if not sum(map(len, features)):
            raise DataError(f"no training image in {bench.data.root} can be read with labelled patches: {bench.bad_files.summary()}")
        return Patches(np.concatenate(features), np.concatenate(labels), np.concatenate(owners))


def standardised(features: FloatArray, scaling: Scaling) -> FloatArray:
    """Return the features standardised, float32: probes compute in float64, which would double the memory here."""
    scaled: FloatArray = (features - scaling.mean.astype(np.float32)) * (1 / scaling.deviation).astype(np.float32)
    return scaled


def choose(
    features: FloatArray,
    labels: Mask,
    is_held: BoolArray,
    num_classes: int,
    ks: Sequence[int],
    distances: Sequence[Distance],
    device: str,
) -> tuple[int, Distance]:
    """Return the K and distance with the largest mIoU over the held patches' pixels; the first of equals."""
    known, asked = features[~is_held], features[is_held]
    filled, truth = filled_in(labels[~is_held]), labels[is_held]
    best, chosen = -1.0, (ks[0], distances[0])
    for distance in distances:
        rows = closest_rows(asked, known, max(ks), distance, device)  # of the largest K: the others are its first columns
        for k in ks:
            confusion = Confusion(num_classes)
            confusion.update(truth, vote(rows[:, :k], filled))
            if confusion.miou > best:
                best, chosen = confusion.miou, (k, distance)
    return chosen


def closest_rows(queries: FloatArray, known: FloatArray, k: int, distance: Distance, device: str = "cpu") -> IntArray:
    """Return the K closest known rows of each query, int64 ``[Q, K]``, closest first; exact."""
    if distance == "cosine":
        queries, known = unit_length(queries), unit_length(known)
    else:  # the squared distance falls as q . g - |g|^2 / 2 rises: one more column makes it an inner product
        queries = np.pad(queries, ((0, 0), (0, 1)), constant_values=1)
        half: FloatArray = np.float32(0.5) * np.square(known).sum(axis=1, keepdims=True)
        known = np.concatenate([known, -half], axis=1)
    return nearest(queries, known, k, device=device).rows


def unit_length(rows: FloatArray) -> FloatArray:
    """Return the rows at unit length; a row of zeros stays one."""
    unit: FloatArray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def vote(rows: IntArray, labels: Mask) -> Mask:
    """Return the commonest class ``[Q, pixels]`` at each place of the neighbours' patches: ``rows`` ``[Q, K]`` of ``labels`` ``[M, pixels]``."""
    num_rows = max(1, VOTE_BYTES // (labels.itemsize * labels.shape[1] * rows.shape[1]))
    parts = [commonest(labels[rows[first : first + num_rows]]) for first in range(0, len(rows), num_rows)]
    return np.concatenate(parts)


def commonest(labels: Mask) -> Mask:
    """Return the commonest class ``[Q, pixels]`` of ``labels`` ``[Q, K, pixels]``, the lowest of equals; ``VOID`` only where all are."""
    ordered = np.sort(labels, axis=1)
    best = ordered[:, 0].copy()
    run = (best != VOID).astype(np.int16)
    most = run.copy()
    for before, here in itertools.pairwise(range(ordered.shape[1])):
        own = ordered[:, here]
        run = np.where(own == ordered[:, before], run + 1, 1) * (own != VOID)
        more = run > most
        best[more], most = own[more], np.maximum(run, most)
    return best


def filled_in(labels: Mask) -> Mask:
    """Return patches ``[M, pixels]`` whose void pixels have taken their patch's commonest class."""
    holed = (labels == VOID).any(axis=1)
    filled = labels.copy()
    part = labels[holed]
    filled[holed] = np.where(part == VOID, commonest(part[:, :, None]), part)
    return filled
