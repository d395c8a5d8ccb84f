"""A trial: a protocol applied to descriptors, ready to be measured and to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sightline.contracts import Descriptors, FloatArray, IntArray
from sightline.data.judged import Judged, Judgements
from sightline.data.records import Records
from sightline.evaluation.protocols import Rows, labels_of
from sightline.evaluation.ranks import SameLabel, Truth


def rows_of(descriptors: Descriptors, wanted: IntArray) -> IntArray:
    """Return the wanted records' positions among the descriptors, -1 for those that have none (images that could not be read)."""
    position = np.full(max(descriptors.rows.max(initial=-1), wanted.max(initial=-1)) + 1, -1, np.int64)
    position[descriptors.rows] = np.arange(len(descriptors))
    return position[wanted]


@dataclass(frozen=True, eq=False)
class Trial:
    """A protocol applied to descriptors: what is ranked for what, and what is right.

    ``queries`` ``[Q, D]`` and ``gallery`` ``[G, D]`` with the ``records`` rows they came from; ``truths`` by the name of their setting
    (a single one is called ""); ``self_rows`` ``[Q]`` the gallery row that each query is, in leave-one-out. ``groups`` ``[Q]``: queries of
    one group depend on each other. ``labels`` of the queries and of the gallery where they say what is right.
    ``metrics`` are the measures to take, None for all that suit labels. ``left_out`` says in words what the junk is.
    """

    protocol: str
    records: Records
    queries: FloatArray
    gallery: FloatArray
    query_rows: IntArray
    gallery_rows: IntArray
    truths: Mapping[str, Truth]
    groups: IntArray
    self_rows: IntArray | None = None
    labels: tuple[IntArray, IntArray] | None = None
    metrics: tuple[str, ...] | None = None
    left_out: str = ""


def label_trial(descriptors: Descriptors, records: Records, rows: Rows) -> Trial:
    """Return the trial of a protocol by labels; ``descriptors.rows`` point into ``records``.

    An image without a descriptor (it could not be read) is neither asked nor found.
    """
    labels = labels_of(records)
    queries, gallery = (_present(rows_of(descriptors, wanted)) for wanted in (rows.query_rows, rows.gallery_rows))
    query_rows, gallery_rows = descriptors.rows[queries], descriptors.rows[gallery]
    self_rows = None
    if rows.leave_one_out:
        place = np.full(len(records), -1, np.int64)
        place[gallery_rows] = np.arange(len(gallery_rows))
        self_rows = place[query_rows]
    sources = None if rows.sources is None else (rows.sources[query_rows], rows.sources[gallery_rows])
    return Trial(
        protocol=rows.name,
        records=records,
        queries=take_rows(descriptors.vectors, queries),
        gallery=take_rows(descriptors.vectors, gallery),
        query_rows=query_rows,
        gallery_rows=gallery_rows,
        truths={"": SameLabel(labels[query_rows], labels[gallery_rows], self_rows, sources)},
        groups=labels[query_rows],
        self_rows=self_rows,
        labels=(labels[query_rows], labels[gallery_rows]),
        left_out=rows.left_out,
    )


def judged_trial(descriptors: Descriptors, judged: Judged) -> Trial:
    """Return the trial of a judged collection; ``descriptors.rows`` point into ``judged.records``.

    An image without a descriptor (it could not be read) is neither asked nor found.
    """
    asked = rows_of(descriptors, judged.query_rows)
    queries = _present(asked)
    gallery_places = rows_of(descriptors, judged.gallery_rows)
    gallery = _present(gallery_places)
    position = np.cumsum(gallery_places >= 0) - 1  # of each judged image among the readable ones
    position[gallery_places < 0] = -1

    def readable(rows: IntArray) -> IntArray:
        return _present(position[rows])

    truths = {
        name: Judgements(
            tuple(readable(judgements.positives[query]) for query in np.flatnonzero(asked >= 0)),
            tuple(readable(judgements.junk[query]) for query in np.flatnonzero(asked >= 0)),
        )
        for name, judgements in judged.settings.items()
    }
    return Trial(
        protocol=judged.name,
        records=judged.records,
        queries=take_rows(descriptors.vectors, queries),
        gallery=take_rows(descriptors.vectors, gallery),
        query_rows=descriptors.rows[queries],
        gallery_rows=descriptors.rows[gallery],
        truths=truths,
        groups=groups_of([truth.positives for truth in truths.values()], len(queries)),
        metrics=judged.metrics,
    )


def groups_of(positives: Sequence[Sequence[IntArray]], num_queries: int) -> IntArray:
    """Return a group number for each query ``[Q]``: queries that share a positive, or are linked by others that do, are of one group."""
    parent = list(range(num_queries))

    def root(query: int) -> int:
        while parent[query] != query:
            parent[query] = parent[parent[query]]
            query = parent[query]
        return query

    first: dict[int, int] = {}
    for answers in positives:
        for query, rows in enumerate(answers):
            for row in rows.tolist():
                parent[root(query)] = root(first.setdefault(row, query))
    return np.array([root(query) for query in range(num_queries)], np.int64)


def take_rows(vectors: FloatArray, places: IntArray) -> FloatArray:
    """Return the vectors at ``places``: without copying them where the places follow each other, as a million distractors do."""
    if len(places) and (np.diff(places) == 1).all():
        return vectors[places[0] : places[-1] + 1]
    return vectors[places]


def _present(places: IntArray) -> IntArray:
    return places[places >= 0]
