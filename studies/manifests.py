"""Writes the manifests that the studies run on, beside the images.

    python studies/manifests.py sop-lists grocery/ metric_train.txt metric_test.txt     # lists in the format of SOP's Ebay_*.txt
    python studies/manifests.py alphabets omniglot/ --train 3                           # ALPHABET/CHARACTER/*.png, split by alphabet

Both print the manifest's path. Classes of the training and the test split are disjoint.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

Row = tuple[str, str, str]


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
    asked = parser.parse_args()
    target, rows = sop_lists(asked.root, asked.train, asked.test) if asked.kind == "sop-lists" else alphabets(asked.root, asked.train)
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows(rows)
    print(target)


if __name__ == "__main__":
    main()
