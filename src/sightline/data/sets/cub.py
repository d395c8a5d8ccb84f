"""CUB-200-2011: 11,788 photographs of 200 bird species; classes 1-100 train, 101-200 test."""

from __future__ import annotations

from pathlib import Path

from sightline.data.records import Records, index_labels
from sightline.data.sets.official import Expected, check, existing, table
from sightline.errors import DataError

SPLITS = {"train": Expected(5_864, 100), "test": Expected(5_924, 100)}


def read(root: Path, *, verify: bool = True) -> Records:
    """Return the records of the folder that holds ``images.txt`` (or of one that holds ``CUB_200_2011``), in the metric-learning split.

    Departs: the split is by class (the first half of the species train, the other half test), as every retrieval paper has it, and not
    that of ``train_test_split.txt``; the bounding boxes are not used.

    Args:
        root: the data set's folder.
        verify: check the official counts and that every image is there.

    Raises:
        DataError: a file is missing or damaged, or (``verify``) a count differs from the official one.
    """
    folder = existing(root, "images.txt", inside=("CUB_200_2011",), name="CUB-200-2011")
    images = table(folder / "images.txt", 2)
    if [image for image, _ in images] != [image for image, _ in table(folder / "image_class_labels.txt", 2)]:
        raise DataError(f"{folder}: images.txt and image_class_labels.txt do not list the same images: unpack the data set again")
    # An image's folder is its class, 001.Black_footed_Albatross to 200.Common_Yellowthroat: sorted by name is sorted by number.
    labels, names = index_labels([path.partition("/")[0] for _, path in images])
    splits = tuple("train" if label < len(names) // 2 else "test" for label in labels)
    records = Records(folder, tuple(f"images/{path}" for _, path in images), labels, names, splits)
    if verify:
        check(records, "CUB-200-2011", SPLITS)
    return records
