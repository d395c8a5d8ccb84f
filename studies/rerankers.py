"""What each re-ranker does for a model on a judged benchmark, alone and among distractors; every image is embedded once.

    python studies/rerankers.py MODEL --protocol revisited --data revisit_davis/ [--distractors photos/] [--rerank k-reciprocal ...]

Prints one Markdown table a gallery: the plain ranking first, then every re-ranker of the catalog with its default settings, or those
that are asked for (written as for ``sightline evaluate --rerank``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sightline import catalog
from sightline.contracts import Descriptors
from sightline.data.images import BadFiles
from sightline.data.judged import Judged, read_benchmark, with_distractors
from sightline.data.records import read_records
from sightline.evaluation.measured import measure
from sightline.evaluation.trials import judged_trial
from sightline.nn import model_folder
from sightline.search.embed import embed_records
from sightline.search.rerank import parse


def table(found: Descriptors, judged: Judged, asked: list[str], metrics: list[str]) -> str:
    """Return the measures in percent, one row a re-ranker."""
    trial = judged_trial(found, judged)
    rows = []
    for name in ["", *asked]:
        measured = measure(trial, rerank=parse(name) if name else None, num_resamples=1)
        chosen = [metric for metric in measured.metrics if not metrics or metric.partition("/")[0] in metrics]
        rows.append([name or "plain", *(f"{100 * measured.metrics[metric]:.1f}" for metric in chosen)])
    lines = [f"**{trial.protocol}**: {len(trial.queries)} queries, {len(trial.gallery):,} images", ""]
    lines += ["| | " + " | ".join(chosen) + " |", "|---|" + "--:|" * len(chosen)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--distractors", type=Path)
    parser.add_argument("--rerank", nargs="*", default=catalog.names("rerankers"))
    parser.add_argument("--metric", nargs="*", default=["map", "mp@10"], help="without the setting; none given shows all")
    asked = parser.parse_args()
    judged = read_benchmark(asked.protocol, asked.data)
    galleries = [judged]
    if asked.distractors is not None:
        galleries.append(with_distractors(judged, read_records(asked.distractors)))
    for model in asked.model:
        # The distractors come after the collection's own records, so one embedding serves both galleries.
        found = embed_records(model_folder.load(model), galleries[-1].records, BadFiles())
        for gallery in galleries:
            own = found.rows < len(gallery.records)
            print(f"\n{model}, {table(Descriptors(found.vectors[own], found.rows[own]), gallery, asked.rerank, asked.metric)}")


if __name__ == "__main__":
    main()
