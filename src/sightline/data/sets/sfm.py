"""retrieval-SfM-120k: photographs of places with their 3D models (clusters) and pairs that show the same part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.records import Records, index_labels
from sightline.data.sets.official import Expected, check, existing
from sightline.data.unpickle import load_plain
from sightline.errors import DataError

LIST = "retrieval-SfM-120k.pkl"
SPLITS = {"train": Expected(91_642), "val": Expected(6_403)}
"""As its authors confirm (github filipradenovic/cnnimageretrieval-pytorch, issue 12); they state no number of clusters in the files."""


def read(root: Path, *, verify: bool = True) -> Records:
    """Return the records of the folder that holds ``retrieval-SfM-120k.pkl`` and ``ims``, itself or as ``train/retrieval-SfM-120k``.

    Labels are clusters, named SPLIT/NUMBER; positives are the authors' query and positive pairs. The boxes in the file, if any, are not
    used, as its authors do not.

    Args:
        root: the data set's folder.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: a file is missing or damaged, or (``verify``) a count differs from the official one.
    """
    folder = existing(root, LIST, inside=("retrieval-SfM-120k", "train/retrieval-SfM-120k"), name="retrieval-SfM-120k")
    parts = load_plain(folder / LIST)
    paths: list[str] = []
    splits: list[str] = []
    clusters: list[str] = []
    pairs = [np.empty((0, 2), np.int64)]
    for split in SPLITS:
        try:
            own, queries, positives = (_whole_numbers(parts[split][key]) for key in ("cluster", "qidxs", "pidxs"))
            names = [str(name) for name in parts[split]["cids"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{folder / LIST} is not the list of retrieval-SfM-120k ({error}): download it again") from error
        both = np.concatenate([queries, positives])
        if len(own) != len(names) or len(queries) != len(positives) or (len(both) and not 0 <= both.min() <= both.max() < len(names)):
            raise DataError(f"the columns of '{split}' in {folder / LIST} do not fit each other: download it again")
        pairs.append(np.stack([queries, positives], axis=1) + len(paths))
        paths += [f"ims/{name[-2:]}/{name[-4:-2]}/{name[-6:-4]}/{name}" for name in names]
        splits += [split] * len(names)
        clusters += [f"{split}/{cluster}" for cluster in own]
    labels, class_names = index_labels(clusters)
    records = Records(folder, tuple(paths), labels, class_names, tuple(splits), positives=np.concatenate(pairs))
    if verify:
        check(records, "retrieval-SfM-120k", SPLITS)
    return records


def _whole_numbers(column: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    numbers = np.asarray(column).reshape(-1)
    if len(numbers) and numbers.dtype.kind not in "iu":
        raise TypeError(f"a column of {numbers.dtype}")
    return numbers.astype(np.int64)
