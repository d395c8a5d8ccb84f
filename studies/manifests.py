"""Writes the manifests that the studies run on, beside the images.

    python studies/manifests.py sop-lists grocery/ metric_train.txt metric_test.txt     # lists in the format of SOP's Ebay_*.txt
    python studies/manifests.py alphabets omniglot/ --train 3                           # ALPHABET/CHARACTER/*.png, split by alphabet
    python studies/manifests.py classes CUB_200_2011/images                             # CLASS/*.jpg, the first half of the classes by name for training
    python studies/manifests.py market nyala_reid/                                      # Market-1501's layout: identity and camera in file names
    python studies/manifests.py places vpr/ sped_test gardens_point                     # query/reference pairs of places, as gt.csv lists them

Each prints the manifest's path. Classes of the training and the test split are disjoint.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

Row = tuple[str, ...]


def sop_lists(root: Path, train: str, test: str) -> tuple[Path, list[Row]]:
    """Return rows (path, label, split) of two lists with the columns image_id, class_id, super_class_id, path."""
    rows = []
    for split, name in (("train", train), ("test", test)):
        for line in (root / name).read_text(encoding="utf-8").splitlines()[1:]:
            _, label, _, path = line.split(maxsplit=3)
            rows.append((path, label, split))
    return root / "metric.csv", rows


def alphabets(root: Path, num_train: int) -> tuple[Path, list[Row]]:
    """Return rows (path, label, split) where a label is a character and the first alphabets by name are for training."""
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    split_of = {name: "train" if place < num_train else "test" for place, name in enumerate(names)}
    files = sorted(file.relative_to(root) for file in root.glob("*/*/*.png"))
    return root / "alphabets.csv", [(str(file), str(file.parent), split_of[file.parts[0]]) for file in files]


def classes(root: Path) -> tuple[Path, list[Row]]:
    """Return rows (path, label, split) where a label is a folder; the first half of them by name is for training, as in CUB-200-2011's protocol."""
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    split_of = {name: "train" if 2 * place < len(names) else "test" for place, name in enumerate(names)}
    files = [file.relative_to(root) for name in names for file in sorted((root / name).glob("*.jpg"))]
    return root / "classes.csv", [(str(file), file.parts[0], split_of[file.parts[0]]) for file in files]


def market(root: Path) -> tuple[Path, list[Row]]:
    """Return rows (path, label, camera, split) of a folder laid out like Market-1501, but for what it calls -1: junk that counts for nothing."""
    rows = []
    for folder, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
        for file in sorted((root / folder).glob("*.jpg")):
            identity, camera = re.match(r"(-?\d+)_c(\d+)", file.name).groups()
            if identity != "-1":
                rows.append((f"{folder}/{file.name}", identity, camera, split))
    return root / "market.csv", rows


def places(root: Path, names: list[str]) -> tuple[Path, list[Row]]:
    """Return rows (path, cluster, split, positive): a pair of ``gt.csv`` is a cluster and each the other's positive; the last fifth of each folder tests.

    Neighbouring frames of a walk overlap: so the test places are one end of it, not every fifth.
    """
    rows: list[Row] = []
    for name in names:
        with (root / name / "gt.csv").open(encoding="utf-8", newline="") as stream:
            pairs = [(f"{name}/{query}", f"{name}/{reference}") for query, reference in list(csv.reader(stream))[1:]]
        for place, (query, reference) in enumerate(pairs):
            split = "train" if 5 * place < 4 * len(pairs) else "test"
            rows += [(query, f"{name} {place}", split, reference), (reference, f"{name} {place}", split, query)]
    return root / "places.csv", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    lists = kinds.add_parser("sop-lists")
    lists.add_argument("root", type=Path)
    lists.add_argument("train")
    lists.add_argument("test")
    letters = kinds.add_parser("alphabets")
    letters.add_argument("root", type=Path)
    letters.add_argument("--train", type=int, default=3, help="alphabets to train on")
    folders = kinds.add_parser("classes")
    folders.add_argument("root", type=Path)
    kinds.add_parser("market").add_argument("root", type=Path)
    pairs = kinds.add_parser("places")
    pairs.add_argument("root", type=Path)
    pairs.add_argument("names", nargs="+", help="folders of the root with query/, reference/ and gt.csv")
    asked = parser.parse_args()
    if asked.kind == "sop-lists":
        target, rows = sop_lists(asked.root, asked.train, asked.test)
    elif asked.kind == "alphabets":
        target, rows = alphabets(asked.root, asked.train)
    elif asked.kind == "classes":
        target, rows = classes(asked.root)
    elif asked.kind == "market":
        target, rows = market(asked.root)
    else:
        target, rows = places(asked.root, asked.names)
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = ["path", "label", "camera", "split"] if asked.kind == "market" else ["path", "label", "split", "positive"]
        writer.writerow(columns[: len(rows[0])])
        writer.writerows(rows)
    print(target)


if __name__ == "__main__":
    main()
