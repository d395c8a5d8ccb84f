"""Protocols: which rows ask and which answer. And the measuring itself, which says how it was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline import catalog
from sightline.contracts import Descriptors, IntArray
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.evaluate.metrics import USUAL_KS, summarise
from sightline.evaluate.ranks import TIE_RULE, PositiveRanks, positive_ranks


@dataclass(frozen=True, eq=False)
class Protocol:
    """Which rows of the records are queries and which the gallery (int64); no gallery means leave-one-out among the queries."""

    name: str
    query_rows: IntArray
    gallery_rows: IntArray | None = None

    @property
    def searched_rows(self) -> IntArray:
        """The rows that are ranked for a query: the gallery, or in leave-one-out the queries."""
        return self.query_rows if self.gallery_rows is None else self.gallery_rows


def leave_one_out(records: Records) -> Protocol:
    """Return the protocol of SOP and CUB: every image asks all the others.

    Source: Song et al. 2016, arXiv 1511.06452.

    Raises:
        DataError: there are no labels, or no class has two images.
    """
    labels = _labels(records)
    if not len(labels) or np.bincount(labels).max() < 2:
        raise DataError(f"no class of {records.root} has two images, so nothing can be found: leave-one-out needs classes of two or more")
    return Protocol("leave-one-out", np.arange(len(records)))


def query_gallery(records: Records) -> Protocol:
    """Return the protocol of In-Shop and of re-identification sets: the ``query`` split asks the ``gallery`` split; nothing is dropped.

    Raises:
        DataError: there are no labels, one of the splits is missing, or no query has its class in the gallery.
    """
    labels = _labels(records)
    splits = np.array(records.splits if records.splits is not None else (), dtype=str)
    rows = {name: np.flatnonzero(splits == name) for name in ("query", "gallery")}
    for name, found in rows.items():
        if not len(found):
            raise DataError(f"{records.root} has no '{name}' split: add a split column with query and gallery, or use leave-one-out")
    if not np.isin(labels[rows["query"]], labels[rows["gallery"]]).any():
        raise DataError(f"no query of {records.root} has an image of its class in the gallery: check the labels of the two splits")
    return Protocol("query-gallery", rows["query"], rows["gallery"])


def choose_protocol(records: Records, name: str = "auto") -> Protocol:
    """Return the protocol called ``name``; ``auto`` takes query-gallery where the records have both splits, else leave-one-out.

    Raises:
        UsageError: there is no such protocol.
        DataError: the records do not suit it.
    """
    if name == "auto":
        name = "query-gallery" if records.splits is not None and {"query", "gallery"} <= set(records.splits) else "leave-one-out"
    protocol: Protocol = catalog.find("protocols", name)(records)
    return protocol


def _labels(records: Records) -> IntArray:
    if records.labels is None:
        raise DataError(f"{records.root} has no labels, and measuring needs them: put each image in a class folder or add a label column")
    return records.labels


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, on what and how. ``ranks`` and ``query_labels`` ``[Q]`` are kept per query, in the protocol's order."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    protocol: str
    num_queries: int
    num_gallery: int
    num_skipped: int
    num_classes: int
    ranks: PositiveRanks
    query_labels: IntArray
    tie_rule: str = TIE_RULE

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``--json``: ``metrics`` by their usual names in 0..1, 95 % ``intervals``, and how they came about."""
        return {
            "metrics": {name: None if np.isnan(value) else value for name, value in self.metrics.items()},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_kind": "95 % percentile bootstrap over classes",
            "protocol": self.protocol,
            "tie_rule": self.tie_rule,
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_skipped": self.num_skipped,
            "num_classes": self.num_classes,
        }


def rows_of(descriptors: Descriptors, wanted: IntArray) -> IntArray:
    """Return the wanted records' positions among the descriptors, without those that have none (images that could not be read)."""
    position = np.full(max(descriptors.rows.max(initial=-1), wanted.max(initial=-1)) + 1, -1, np.int64)
    position[descriptors.rows] = np.arange(len(descriptors))
    found = position[wanted]
    return found[found >= 0]


def measure(
    descriptors: Descriptors,
    records: Records,
    protocol: Protocol,
    *,
    ks: Sequence[int] = USUAL_KS,
    device: str = "cpu",
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measured:
    """Return the metrics of descriptors under a protocol; ``descriptors.rows`` point into ``records``.

    An image without a descriptor (it could not be read) is neither asked nor found.

    Raises:
        DataError: no query that can be answered is left.
    """
    labels = _labels(records)
    queries = rows_of(descriptors, protocol.query_rows)
    query_labels = labels[descriptors.rows[queries]]
    if protocol.gallery_rows is None:
        ranks = positive_ranks(descriptors.vectors[queries], query_labels, device=device)
    else:
        gallery = rows_of(descriptors, protocol.gallery_rows)
        gallery_labels = labels[descriptors.rows[gallery]]
        ranks = positive_ranks(descriptors.vectors[queries], query_labels, descriptors.vectors[gallery], gallery_labels, device=device)
    if not ranks.answerable.any():
        raise DataError(f"no query of {records.root} has a readable image of its class to find: nothing can be measured")
    summary = summarise(ranks, query_labels, ks, num_resamples=num_resamples, seed=seed)
    return Measured(
        metrics=summary.metrics,
        intervals=summary.intervals,
        protocol=protocol.name,
        num_queries=len(ranks),
        num_gallery=ranks.num_gallery,
        num_skipped=ranks.num_skipped,
        num_classes=len(np.unique(query_labels)),
        ranks=ranks,
        query_labels=query_labels,
    )
