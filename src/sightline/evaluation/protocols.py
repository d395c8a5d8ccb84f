"""Rows of the retrieval protocols by labels: queries, gallery, and the images that do not count for a query."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sightline.contracts import IntArray
from sightline.data.judged import records_with
from sightline.data.layout import one_class
from sightline.data.records import Records
from sightline.errors import DataError


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of the records are queries and which the gallery (int64), where labels say what is right.

    With ``leave_one_out`` a query is not searched in its own row. With ``sources`` (int64, one a record) an image of the query's class and
    source is taken out of the query's ranking; ``left_out`` says in words what that is.
    """

    name: str
    query_rows: IntArray
    gallery_rows: IntArray
    leave_one_out: bool = False
    sources: IntArray | None = None
    left_out: str = ""


def leave_one_out(records: Records) -> Rows:
    """Return the protocol of SOP and CUB: every image asks all the others.

    Other boxes of the query's own picture, and the same picture under another name, do not count where they are of its class.

    Source: Song et al. 2016, arXiv 1511.06452.

    Raises:
        DataError: there are no labels, or no class has two images.
    """
    labels = labels_of(records)
    if not len(labels) or np.bincount(labels).max() < 2:
        raise DataError(f"no class of {records.root} has two images, so nothing can be found: leave-one-out needs classes of two or more")
    rows = np.arange(len(records))
    return _without_own_picture(records, Rows("leave-one-out", rows, rows, leave_one_out=True))


def query_gallery(records: Records) -> Rows:
    """Return the protocol of In-Shop: the ``query`` split asks the ``gallery`` split; nothing is dropped but a query's own picture.

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
    return _without_own_picture(records, Rows("query-gallery", rows["query"], rows["gallery"]))


def cross_camera(records: Records) -> Rows:
    """Return the protocol of re-identification: as query-gallery, and what shows the query's identity by the query's camera does not count.

    Source: Zheng et al. 2015, "Scalable person re-identification: a benchmark" (Market-1501), section 5.

    Raises:
        DataError: as of query-gallery; there are no cameras, or no query's identity is in the gallery by another camera.
    """
    protocol = query_gallery(records)
    if records.cameras is None or records.labels is None:
        raise DataError(f"{records.root} has no cameras: add a camera column, or measure with --protocol query-gallery")
    pairs = np.stack([records.labels, records.cameras], axis=1)
    seen: dict[int, set[int]] = {}
    for label, camera in pairs[protocol.gallery_rows].tolist():
        seen.setdefault(label, set()).add(camera)
    if not any(seen.get(label, set()) - {camera} for label, camera in pairs[protocol.query_rows].tolist()):
        raise DataError(
            f"no query of {records.root} has its class in the gallery by another camera: check the camera column, or measure without cameras "
            "with --protocol query-gallery"
        )
    return replace(protocol, name="cross-camera", sources=records.cameras, left_out="the query's class by the query's own camera")


def require_several(records: Records, protocol: Rows) -> None:
    """Return if the protocol searches images of several classes.

    Raises:
        DataError: of one class alone; the message says where others may lie.
    """
    labels = np.unique(labels_of(records)[protocol.gallery_rows])
    if len(labels) < 2:
        raise DataError(one_class(records, int(labels[0])))


def _without_own_picture(records: Records, protocol: Rows) -> Rows:
    """Return the protocol with other boxes and names of a query's own picture taken out, where there are any."""
    files = records.real_files()
    numbers = {file: number for number, file in enumerate(files)}
    sources = np.array([numbers[file] for file in files], np.int64)
    searched = np.bincount(sources[protocol.gallery_rows], minlength=len(files))
    if (searched[sources[protocol.query_rows]] <= protocol.leave_one_out).all():
        return protocol
    return replace(protocol, sources=sources, left_out="the query's class in the query's own picture")


def add_distractors(records: Records, protocol: Rows, distractors: Records) -> tuple[Records, Rows]:
    """Return the records with more images, of a class that no query has, and the protocol that searches them too.

    Raises:
        DataError: an image of the collection is among the distractors.
    """
    added = np.arange(len(records), len(records) + len(distractors))
    name = f"{protocol.name} +{len(distractors):,} distractors"
    sources = None if protocol.sources is None else np.append(protocol.sources, np.full(len(added), -1))
    more = replace(protocol, name=name, gallery_rows=np.concatenate([protocol.gallery_rows, added]), sources=sources)
    return records_with(records, distractors), more


def auto_rows(records: Records) -> Rows:
    """Return the rows of query-gallery where the records have both splits, of cross-camera where they have cameras too, else of leave-one-out.

    Raises:
        DataError: the records do not suit the protocol.
    """
    if records.splits is None or not {"query", "gallery"} <= set(records.splits):
        return leave_one_out(records)
    return query_gallery(records) if records.cameras is None else cross_camera(records)


def labels_of(records: Records) -> IntArray:
    """Return the records' labels.

    Raises:
        DataError: there are none.
    """
    if records.labels is None:
        raise DataError(f"{records.root} has no labels, and measuring needs them: put each image in a class folder or add a label column")
    return records.labels
