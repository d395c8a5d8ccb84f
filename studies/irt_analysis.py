"""IRT's own figures from a sweep and from models: El-Nouby et al. 2021, arXiv 2102.05644, Table 5 and Figures 3 and 4.

    python studies/irt_analysis.py sweep runs/margin-koleo --out figures/      # heat maps; gradient noise over the margin
    python studies/irt_analysis.py energy O=runs/o L=runs/l R=runs/r --data photos.csv --split test --out figures/

``sweep`` wants one made with ``sightline sweep ... --grid margin=... koleo_weight=...``: what each run logged of its gradients is
averaged over its training, as the paper has it, and then over the seeds. ``energy`` embeds the same images with each model. Both print
their numbers and write PNGs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sightline.data.images import BadFiles
from sightline.data.records import read_records
from sightline.evaluation import sweep_report
from sightline.evaluation.sweep_report import Result
from sightline.html import INK, SERIES, plot_axes
from sightline.lens import draw, embedding
from sightline.nn import model_folder
from sightline.search.embed import embed_records
from sightline.sweep import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISES = {"gradient_noise": "nuclear norm, gradients", "direction_noise": "nuclear norm, directions"}


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    print(f"wrote {path}")


def noise_of(run: Path) -> dict[str, float]:
    """Return the mean over a training of what it logged of its gradients."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: float(np.mean([line[name] for line in lines if name in line])) for name in NOISES}


def show_sweep(folder: Path, out: Path, metrics: list[str]) -> None:
    noise: dict[str, dict[str, dict[float, list[float]]]] = {name: defaultdict(lambda: defaultdict(list)) for name in NOISES}
    results, variants = [], {}
    for result in sorted((folder / "runs").glob("*/result.json")):
        run, found = result.parent, json.loads(result.read_text(encoding="utf-8"))
        recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        margin, weight = recipe["margin"], recipe["koleo_weight"]
        label = f"margin={margin:g} koleo_weight={weight:g}"
        variants[margin, weight] = Variant(label, tuple(label.split()))
        results.append(Result(variants[margin, weight], recipe["train"]["seed"], found["metrics"]))
        for name, value in noise_of(run).items():
            noise[name][f"λ = {weight:g}"][margin].append(value)
    rows = sweep_report.summarise([variants[key] for key in sorted(variants)], results)
    for metric in metrics:
        save(sweep_report.figure(rows, metric), out / f"sweep-{metric.replace('@', '-at-')}.png")
    for name, what in NOISES.items():
        figure, axes = plot_axes("margin (cosine)", what)
        print(f"\n{name}, mean ± deviation over seeds")
        for (label, by_margin), colour, marker in zip(sorted(noise[name].items()), SERIES, "os^D", strict=False):
            margins = sorted(by_margin)
            means = [float(np.mean(by_margin[margin])) for margin in margins]
            deviations = [float(np.std(by_margin[margin], ddof=min(1, len(by_margin[margin]) - 1))) for margin in margins]
            axes.errorbar(margins, means, yerr=deviations, label=label, color=colour, marker=marker, capsize=3)
            values = zip(margins, means, deviations, strict=True)
            print(f"  {label}: " + ", ".join(f"{margin:g}: {mean:.3g} ± {deviation:.1g}" for margin, mean, deviation in values))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=INK)
        save(figure, out / f"{name.replace('_', '-')}.png")


def show_energy(models: list[str], data: Path, split: str, out: Path) -> None:
    records = read_records(data)
    records = records.split(split) if split else records
    shares = {}
    for word in models:
        name, _, source = word.partition("=")
        vectors = embed_records(model_folder.load(source), records, BadFiles()).vectors
        variances = embedding.spectrum(vectors)
        shares[name] = embedding.energy(variances)
        print(
            f"{name}: effective rank {embedding.effective_rank(variances):.1f} of {len(variances)}, 90 % of the variance in "
            f"{embedding.num_directions(shares[name], 0.9)} directions"
        )
    save(draw.energy_curves(shares), out / "energy.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    over = kinds.add_parser("sweep")
    over.add_argument("folder", type=Path)
    over.add_argument("--metric", nargs="+", default=["recall@1", "map@r"])
    beside = kinds.add_parser("energy")
    beside.add_argument("model", nargs="+", help="NAME=MODEL; the name has no =")
    beside.add_argument("--data", type=Path, required=True)
    beside.add_argument("--split", default="")
    for kind in (over, beside):
        kind.add_argument("--out", type=Path, default=Path("figures"))
    asked = parser.parse_args()
    if asked.kind == "sweep":
        show_sweep(asked.folder, asked.out, asked.metric)
    else:
        show_energy(asked.model, asked.data, asked.split, asked.out)


if __name__ == "__main__":
    main()
