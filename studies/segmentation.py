"""Fine-tuned segmentation from pretrained weights and from none: Semantic FPN and UPerNet over one backbone or several, on small sets.

    python studies/segmentation.py run OUT --data CamVid coco256 --start lite0=tf_efficientnet_lite0.safetensors:tf_efficientnet_lite0 \
        [--heads fpn upernet] [--set steps=200 ...] [--random-too]
    python studies/segmentation.py table OUT

Each is ``segment/small`` with what ``--set`` says, its last weights kept (validation=0) and measured on the test images where the set has some,
else on those of val. A run that is there is not made again, so the study goes on where it stopped. A network with batch norms that starts
from random weights lets them follow its images (frozen=[]).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sightline.workflows.evaluating import evaluate
from sightline.workflows.training import named_recipe, train


def run_all(
    out: Path, data: Sequence[Path], starts: Sequence[str], heads: Sequence[str], settings: Sequence[str], *, random_too: bool
) -> None:
    for source in data:
        for start in starts:
            name, _, rest = start.partition("=")
            weights, _, backbone = rest.rpartition(":")
            kinds = {"pretrained": [f"weights={weights}"], **({"random": ["weights=random", "frozen=[]"]} if random_too else {})}
            for kind, own in kinds.items():
                for head in heads:
                    one(
                        out / f"{source.name}-{name}-{kind}-{head}",
                        source,
                        [f"backbone={backbone}", "pooling=mean", f"head={head}", *own, *settings],
                    )


def one(run: Path, data: Path, settings: Sequence[str]) -> None:
    """Train and measure one run, from where it stands."""
    if (run / "measures.json").exists():
        return
    trained = train(named_recipe("segment/small", ["validation=0", *settings]), data, run, resume=run.exists())
    if trained.progress.stopped_by:
        raise SystemExit(f"stopped in {run}: the same command goes on")
    found = evaluate(str(run), data, protocol="segment")
    compute = trained.progress.compute
    kept = {
        "metrics": dict(found.metrics),
        "counts": dict(found.counts),
        "part": found.settings["part"],
        "minutes": compute.device_s / 60,
        "images": compute.images,
    }
    (run / "measures.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(run.name, kept, flush=True)


def table(out: Path) -> str:
    """Return the measures in per cent, a row a run."""
    rows = []
    for path in sorted(out.glob("*/measures.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        values = [f"{100 * kept['metrics'][name]:.1f}" for name in ("miou", "pixel_accuracy")]
        rows.append(f"| {' | '.join([*path.parent.name.rsplit('-', 3), kept['part'], *values, str(kept['images'])])} |")
    return "\n".join(
        ["| data | backbone | start | head | measured | mIoU | pixel accuracy | crops seen |", "|---|---|---|---|---|--:|--:|--:|", *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    running, showing = kinds.add_parser("run"), kinds.add_parser("table")
    for each in (running, showing):
        each.add_argument("out", type=Path)
    running.add_argument("--data", type=Path, nargs="+", required=True)
    running.add_argument("--start", nargs="+", required=True, metavar="NAME=FILE:BACKBONE")
    running.add_argument("--heads", nargs="+", default=["fpn", "upernet"])
    running.add_argument("--set", nargs="*", default=[])
    running.add_argument("--random-too", action="store_true", help="the same from random weights")
    options = parser.parse_args()
    if options.kind == "table":
        print(table(options.out))
    else:
        run_all(options.out, options.data, options.start, options.heads, options.set, random_too=options.random_too)


if __name__ == "__main__":
    main()
