"""Protocols by labels: which rows ask and which answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sightline import catalog
from sightline.contracts import IntArray
from sightline.data.judged import records_with
from sightline.data.records import Records
from sightline.errors import DataError


@dataclass(frozen=True, eq=False)
class Protocol:
    """Which rows of the records are queries and which the gallery (int64), where labels say what is right.

    With ``leave_one_out`` a query is not searched in its own row.
    """

    name: str
    query_rows: IntArray
    gallery_rows: IntArray
    leave_one_out: bool = False


def leave_one_out(records: Records) -> Protocol:
    """Return the protocol of SOP and CUB: every image asks all the others.

    Source: Song et al. 2016, arXiv 1511.06452.

    Raises:
        DataError: there are no labels, or no class has two images.
    """
    labels = labels_of(records)
    if not len(labels) or np.bincount(labels).max() < 2:
        raise DataError(f"no class of {records.root} has two images, so nothing can be found: leave-one-out needs classes of two or more")
    rows = np.arange(len(records))
    return Protocol("leave-one-out", rows, rows, leave_one_out=True)


def query_gallery(records: Records) -> Protocol:
    """Return the protocol of In-Shop and of re-identification sets: the ``query`` split asks the ``gallery`` split; nothing is dropped.

    Raises:
        DataError: there are no labels, one of the splits is missing, or no query has its class in the gallery.
    """
    labels = labels_of(records)
    splits = np.array(records.splits if records.splits is not None else (), dtype=str)
    rows = {name: np.flatnonzero(splits == name) for name in ("query", "gallery")}
    for name, found in rows.items():
        if not len(found):
            raise DataError(f"{records.root} has no '{name}' split: add a split column with query and gallery, or use leave-one-out")
    if not np.isin(labels[rows["query"]], labels[rows["gallery"]]).any():
        raise DataError(f"no query of {records.root} has an image of its class in the gallery: check the labels of the two splits")
    return Protocol("query-gallery", rows["query"], rows["gallery"])


def add_distractors(records: Records, protocol: Protocol, distractors: Records) -> tuple[Records, Protocol]:
    """Return the records with more images, of a class that no query has, and the protocol that searches them too.

    Raises:
        DataError: an image of the collection is among the distractors.
    """
    added = np.arange(len(records), len(records) + len(distractors))
    name = f"{protocol.name} +{len(distractors):,} distractors"
    more = replace(protocol, name=name, gallery_rows=np.concatenate([protocol.gallery_rows, added]))
    return records_with(records, distractors), more


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


def labels_of(records: Records) -> IntArray:
    """Return the records' labels.

    Raises:
        DataError: there are none.
    """
    if records.labels is None:
        raise DataError(f"{records.root} has no labels, and measuring needs them: put each image in a class folder or add a label column")
    return records.labels
