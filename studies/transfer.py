"""Transfer from pretrained weights: frozen descriptors under simple classifiers, and fine-tuning, of several backbones on several small sets.

    python studies/transfer.py run OUT --data cifar10/ tiny-imagenet/ grocery/images/ --most 8 --least 600 --px 98 --steps 30 \
        --start vit=vit_small_patch14.safetensors:vit_small_patch14_dinov2 lite0=tf_efficientnet_lite0.safetensors:tf_efficientnet_lite0
    python studies/transfer.py table OUT

The ViT paper's section 4 at the size of two cores: so many images of a class are learnt from (more where there are few classes) and half as
many tested on, drawn by the seed and written as manifests into OUT. Rows are ``sightline probe``'s: k-NN and a linear probe on descriptors,
and ``classify/finetune-small`` from the same weights; beside the frozen rows the same network untrained. What is there is not measured again, so a study
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np

from sightline.data.records import read_records
from sightline.workflows.transferring import FineTuning, Kind, transfer

KINDS: tuple[Kind, ...] = ("knn", "linear", "finetune")


def subset(data: Path, out: Path, most: int, least: int, seed: int) -> Path:
    """Write the manifest of ``most`` images a class to learn from (or what makes ``least`` in all) and half as many to test on, and return it.

    It is tested on val where there is no test.
    """
    records = read_records(data, require_labels=True)
    assert records.labels is not None
    assert records.splits is not None
    splits, random = np.array(records.splits), np.random.default_rng(seed)
    tested = "test" if "test" in splits else "val"
    num_train, rows = max(most, -(-least // len(records.class_names))), []
    for split, num in (("train", num_train), (tested, num_train // 2)):
        for label in range(len(records.class_names)):
            own = np.flatnonzero((splits == split) & (records.labels == label))
            rows += [
                (str(records.file(int(row)).resolve()), records.class_names[label], split) for row in sorted(random.permutation(own)[:num])
            ]
    file = out / f"{data.parent.name if data.name == 'images' else data.name}.csv"
    out.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return file


def run_all(options: argparse.Namespace) -> None:
    data = [subset(source, options.out, options.most, options.least, options.seed) for source in options.data]
    kept = options.out / "measures.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for kind in KINDS:
        for start in options.start:
            name, _, rest = start.partition("=")
            weights, _, backbone = rest.rpartition(":")
            sources = {
                f"{name}, pretrained": f"{weights},backbone={backbone},image_px={options.px}",
                f"{name}, untrained": f"random:{backbone}@{options.px}",
            }
            for label, source in sources.items():
                if kind == "finetune" and label.endswith("untrained") and not options.untrained_too:
                    continue
                for one in data:
                    key = f"{label} | {kind} | {one.stem}"
                    if key in found:
                        continue
                    started = time.process_time()
                    probed = transfer(source, [one], kinds=(kind,), tuning=FineTuning(steps=options.steps, batch=32), seed=options.seed)
                    (accuracy,) = probed.metrics.values()
                    (interval,) = probed.intervals.values()
                    sizes = probed.datasets[0].num_classes, probed.datasets[0].num_train, probed.datasets[0].num_test
                    found[key] = {
                        "accuracy": accuracy,
                        "interval": list(interval),
                        "sizes": sizes,
                        "processor_s": time.process_time() - started,
                    }
                    kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                    print(key, found[key], flush=True)


def table(out: Path) -> str:
    """Return the accuracies in per cent with their 95 % intervals, a row a start and kind, a column a data set."""
    found = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    data = sorted({key.split(" | ")[2] for key in found})
    sizes = {key.split(" | ")[2]: value["sizes"] for key, value in found.items()}
    lines = [
        f"| start | row | {' | '.join(f'{one} ({sizes[one][0]} classes, {sizes[one][1]} + {sizes[one][2]})' for one in data)} |",
        f"|---|---|{'--:|' * len(data)}",
    ]
    for start, kind in dict.fromkeys(tuple(key.split(" | ")[:2]) for key in found):
        cells = []
        for one in data:
            value = found.get(f"{start} | {kind} | {one}")
            cells.append(
                "-"
                if value is None
                else f"{100 * value['accuracy']:.1f} [{100 * value['interval'][0]:.1f}, {100 * value['interval'][1]:.1f}]"
            )
        lines.append(f"| {start} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    running, showing = kinds.add_parser("run"), kinds.add_parser("table")
    for each in (running, showing):
        each.add_argument("out", type=Path)
    running.add_argument("--data", type=Path, nargs="+", required=True)
    running.add_argument("--start", nargs="+", required=True, metavar="NAME=FILE:BACKBONE")
    running.add_argument("--most", type=int, default=8, help="images a class to learn from")
    running.add_argument("--least", type=int, default=600, help="images in all to learn from, where there are so few classes")
    running.add_argument("--px", type=int, default=98)
    running.add_argument("--steps", type=int, default=30, help="of fine-tuning, batches of 32")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--untrained-too", action="store_true", help="fine-tune the untrained networks too")
    options = parser.parse_args()
    if options.kind == "table":
        print(table(options.out))
    else:
        run_all(options)


if __name__ == "__main__":
    main()
