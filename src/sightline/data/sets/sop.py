"""Stanford Online Products: 120,053 photographs of 22,634 products; the first half of the products train, the other test."""

from __future__ import annotations

from pathlib import Path

from sightline.data.records import Records, index_labels
from sightline.data.sets.official import Expected, check, existing, table

SPLITS = {"train": Expected(59_551, 11_318), "test": Expected(60_502, 11_316)}


def read(root: Path, *, verify: bool = True) -> Records:
    """Return the records of the folder that holds ``Ebay_train.txt`` and ``Ebay_test.txt``.

    Args:
        root: the data set's folder.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: a file is missing or damaged, or (``verify``) a count differs from the official one.
    """
    folder = existing(root, "Ebay_train.txt", inside=("Stanford_Online_Products",), name="Stanford Online Products")
    rows = [(split, product, path) for split in SPLITS for _, product, _, path in table(folder / f"Ebay_{split}.txt", 4, skip=1)]
    labels, names = index_labels([product for _, product, _ in rows])
    records = Records(folder, tuple(path for _, _, path in rows), labels, names, tuple(split for split, _, _ in rows))
    if verify:
        check(records, "Stanford Online Products", SPLITS)
    return records
