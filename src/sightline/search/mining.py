"""Hard negatives: what an epoch of tuples trains on, mined anew with the model as it stands at the epoch's start."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from sightline import runtime
from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.data.samplers import Sampling, TupleSampler, draw_pairs
from sightline.errors import DataError
from sightline.nn.collectives import broadcast, gather, world_size
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, Recipe
from sightline.runtime import Precision
from sightline.search.embed import embed_records
from sightline.search.neighbours import similarity_blocks


def hardest_negatives(
    queries: FloatArray, query_labels: IntArray, pool: FloatArray, pool_labels: IntArray, num: int, *, device: str = "cpu"
) -> Ranking:
    """Return the ``num`` most similar pool rows of each query, none of its class and no two of one class, closest first.

    Walking down a query's sorted list and passing over its class and every class met before ends at the most similar row of each of
    the most similar other classes: so no list is sorted, each class keeps its maximum. Of equally similar rows of a class the first counts.

    Raises:
        DataError: the pool has fewer other classes than ``num``.

    Source: Radenovic, Tolias, Chum 2018, arXiv 1711.02512: hard negatives, at most one of each 3D model.
    """
    order = np.argsort(pool_labels, kind="stable")
    classes, starts = np.unique(pool_labels[order], return_index=True)
    has_own = np.isin(query_labels, classes)
    if len(classes) - has_own.any() < num:
        raise DataError(
            f"a pool of {len(order):,} images of {len(classes)} clusters is too small for {num} negatives of different other clusters: "
            "raise pool_size or lower negatives"
        )
    own, ends = np.searchsorted(classes, query_labels), np.append(starts[1:], len(order))
    rows = np.empty((len(queries), num), np.int64)
    similarity = np.empty((len(queries), num), np.float32)
    for block in similarity_blocks(queries, pool[order], np.arange(len(queries)), device=device):
        found = block.similarity.cpu().numpy()
        closest = np.maximum.reduceat(found, starts, axis=1)  # [B, classes of the pool]
        hidden = has_own[block.rows]
        closest[hidden, own[block.rows][hidden]] = -np.inf
        chosen = np.argsort(-closest, axis=1, kind="stable")[:, :num]
        similarity[block.rows] = np.take_along_axis(closest, chosen, axis=1)
        for query, line, of in zip(block.rows, found, chosen, strict=True):
            rows[query] = [starts[one] + line[starts[one] : ends[one]].argmax() for one in of]
    return Ranking(order[rows], similarity)


class MinedTuples:
    """The tuples of the epoch that a run is in: what the loop refreshes at the start of each and keeps in its checkpoints.

    An epoch draws ``query_size`` positive pairs and a pool of ``pool_size`` images, embeds the anchors and the pool as the model is
    evaluated (no augmentation, no drop path), and gives each anchor its hardest negatives. Anchors and pool are embedded once where
    they overlap. With several processes each embeds its share and all end with one table.

    Files that cannot be read are recorded and give no anchor and no negative; the tuples that they leave open are filled from the
    epoch's first ones, so that every epoch has as many steps.

    Raises:
        DataError: there are too few pairs for one step, or too few clusters for the negatives.
    """

    def __init__(
        self, records: Records, data: DataSpec, *, seed: int, batches_per_step: int, precision: Precision, bad_files: BadFiles
    ) -> None:
        assert records.labels is not None
        self.records, self.labels, self.data, self.seed = records, records.labels, data, seed
        self.precision: Precision = precision
        self.bad_files = bad_files
        counts, per_step = records.class_counts(), data.tuples_per_batch * batches_per_step
        num_pairs = int(counts[counts > 1].sum()) if records.positives is None else len(records.positives)
        self.steps = min(data.query_size, num_pairs) // per_step
        if not self.steps:
            raise DataError(
                f"a step takes {per_step} positive pairs, but there are {num_pairs} to train on and an epoch draws at most "
                f"{data.query_size}: lower tuples_per_batch, raise query_size, or give more pairs"
            )
        if records.num_classes <= data.negatives:
            raise DataError(
                f"{data.negatives} negatives of different clusters need {data.negatives + 1} clusters, but {records.num_classes} are left "
                "for training: lower negatives"
            )
        self.tuples: IntArray = np.empty((0, 2 + data.negatives), np.int64)
        self.num_tuples = self.steps * per_step

    def sampler(self) -> TupleSampler:
        """Return the batches of the epoch."""
        return TupleSampler(self.tuples, self.data.tuples_per_batch)

    def refresh(self, epoch: int, encoder: Encoder) -> Mapping[str, float]:
        """Draw and mine the tuples of an epoch; return how far the negatives are and how long it took, for the log."""
        started_s = time.perf_counter()
        pairs = draw_pairs(self.records.positives, self.labels, self.num_tuples, self.seed, epoch)
        pool = np.random.default_rng([self.seed, epoch, 5]).permutation(len(self.records))[: self.data.pool_size]
        rows = np.unique(np.concatenate([pairs[:, 0], pool]))
        vectors = self._embedded(encoder, rows)
        embedded_s = time.perf_counter()
        anchor_at, pool_at = np.searchsorted(rows, pairs[:, 0]), np.searchsorted(rows, pool)
        can_read = np.isfinite(vectors[:, 0])
        pairs, anchor_at = pairs[can_read[anchor_at]], anchor_at[can_read[anchor_at]]
        pool, pool_at = pool[can_read[pool_at]], pool_at[can_read[pool_at]]
        if not len(pairs):
            raise DataError(f"none of the {self.num_tuples} anchors of epoch {epoch} can be read: repair the files or leave them out")
        negatives = hardest_negatives(
            vectors[anchor_at],
            self.labels[pairs[:, 0]],
            vectors[pool_at],
            self.labels[pool],
            self.data.negatives,
            device=str(encoder.device),
        )
        tuples = np.resize(np.hstack([pairs, pool[negatives.rows]]), (self.num_tuples, 2 + self.data.negatives))
        self.tuples = broadcast(torch.from_numpy(tuples).to(encoder.device)).cpu().numpy()
        return {
            "negative_distance": float(np.sqrt(np.maximum(2 - 2 * negatives.similarity, 0)).mean()),
            "embedding_s": embedded_s - started_s,
            "mining_s": time.perf_counter() - embedded_s,
        }

    def _embedded(self, encoder: Encoder, rows: IntArray) -> FloatArray:
        """Return descriptors float32 ``[len(rows), D]``, NaN where a file cannot be read; the same on every rank."""
        share = -(-len(rows) // world_size())
        own = rows[runtime.ranks().rank * share :][:share]
        local = np.full((share, encoder.dim), np.nan, np.float32)
        if len(own):
            found = embed_records(encoder, self.records.select(own), self.bad_files, precision=self.precision, show=False)
            local[found.rows] = found.vectors
        everyone: FloatArray = gather(torch.from_numpy(local).to(encoder.device)).cpu().numpy()
        return everyone[: len(rows)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps: the epoch's tuples, mined with weights that are gone when a run goes on."""
        return {"tuples": torch.from_numpy(self.tuples)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` returned."""
        self.tuples = state["tuples"].numpy()


class Tuples(Sampling):
    """Tuples of an anchor, its positive and negatives mined anew every epoch."""

    def sampler(self, learning: Records, recipe: Recipe, bad_files: BadFiles) -> MinedTuples:
        """See ``Sampling.sampler``."""
        train = recipe.train
        return MinedTuples(
            learning, recipe.data, seed=train.seed, batches_per_step=train.accumulate, precision=train.precision, bad_files=bad_files
        )
