"""In-Shop Clothes Retrieval (DeepFashion): 52,712 photographs of 7,982 garments; train, query, gallery."""

from __future__ import annotations

from pathlib import Path

from sightline.data.records import Records, index_labels
from sightline.data.sets.official import Expected, check, existing, table

SPLITS = {"train": Expected(25_882, 3_997), "query": Expected(14_218, 3_985), "gallery": Expected(12_612, 3_985)}
LIST = "list_eval_partition.txt"


def read(root: Path, *, verify: bool = True) -> Records:
    """Return the records of the folder that holds ``list_eval_partition.txt``, itself or in ``Eval``.

    Args:
        root: the data set's folder.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: a file is missing or damaged, or (``verify``) a count differs from the official one.
    """
    holder = existing(root, LIST, inside=("Eval", "Anno"), name="In-Shop")
    rows = table(holder / LIST, 3, skip=2)  # the number of lines, then the columns' names
    folder = next((place for place in (holder, root, root / "Img") if (place / "img").is_dir()), root)
    labels, names = index_labels([garment for _, garment, _ in rows])
    records = Records(folder, tuple(path for path, _, _ in rows), labels, names, tuple(split for _, _, split in rows))
    if verify:
        check(records, "In-Shop", SPLITS)
    return records
