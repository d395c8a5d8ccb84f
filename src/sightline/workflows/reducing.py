"""Fitting a model's head, its scales and reduction, on images: at the end of training, or for any model that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import runtime
from sightline.contracts import IntArray
from sightline.data.division import training_split
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.errors import UsageError, explain_os_error
from sightline.evaluation.parts import classes_of_run
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder, headless, with_scales_of
from sightline.nn.reduction import fit_reduction, label_pairs, require_enough
from sightline.progress import Bar
from sightline.recipe import ModelSpec
from sightline.search.embed import BATCH_SIZE
from sightline.settings import override
from sightline.training.card import head_card
from sightline.workflows.common import write_bad_files

FIT_LIMIT = 65_536
"""Most images a reduction is fitted on, a seeded sample of more: 170 for each row of a 384-d covariance."""


def is_fitted(model: ModelSpec) -> bool:
    """Return whether the model's head is fitted on images; scales alone are not."""
    return bool(model.pca) or model.whiten != "none"


def require_head(encoder: Encoder, model: ModelSpec, records: Records) -> None:
    """Hold an encoder and the images to what the head of ``model`` needs, before hours are spent.

    Raises:
        ModelError: the images are too few for its reduction, or the backbone does not take its scales.
    """
    if model.scales != headless(model).scales:
        with_scales_of(encoder, model)
    if is_fitted(model):
        num_classes = 0 if records.positives is not None else records.num_classes
        require_enough(model.whiten, model.pca, encoder.width, num_images=len(records), num_classes=num_classes)


def fit_head(encoder: Encoder, model: ModelSpec, records: Records, bad_files: BadFiles) -> tuple[Encoder, int]:
    """Return an encoder with the weights of ``encoder`` and the scales and reduction of ``model``, and how many records that was fitted on.

    A supervised whitening learns from the records' positive pairs, or where there are none from pairs of one class.

    Raises:
        ModelError: the images are too few for it, or the backbone does not take the scales.
    """
    fitted = with_scales_of(encoder, model)
    if not is_fitted(model):
        return fitted, 0
    if len(records) > FIT_LIMIT:
        records = records.select(np.sort(np.random.default_rng(0).permutation(len(records))[:FIT_LIMIT]))
    rows, vectors = _pooled(fitted, records, bad_files)
    pairs = None
    if model.whiten == "supervised":
        read = records.select(rows)
        found = read.positives if read.positives is not None else None if read.labels is None else label_pairs(read.labels)
        pairs = None if found is None else torch.from_numpy(found)
    fitted.reduction = fit_reduction(vectors, model.pca, model.whiten, pairs).to(fitted.device)
    return fitted, len(rows)


@torch.inference_mode()
def _pooled(encoder: Encoder, records: Records, bad_files: BadFiles) -> tuple[IntArray, torch.Tensor]:
    """Return the rows that could be read and their vectors before reduction, float32 ``[M, D]`` on the CPU."""
    stream = decode_stream(
        records,
        eval_transform(encoder.image),
        batch_size=BATCH_SIZE,
        num_threads=runtime.num_cpus(),
        bad_files=bad_files,
        device=encoder.device,
    )
    rows, vectors = [], []
    with Bar("fitting the head", len(records), show=len(records) > BATCH_SIZE) as bar:
        for part, images in stream:
            rows.append(part)
            vectors.append(encoder.pooled(images).float().cpu())
            bar.update(int(part[-1]) + 1)
    return np.concatenate(rows), torch.cat(vectors)


# --- reduce ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reduced:
    """What became of a model: its folder, the encoder in it, and how many images its head was fitted on."""

    out: Path
    encoder: Encoder
    num_images: int
    num_bad: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        model = self.encoder.model
        return {
            "out": str(self.out),
            "fingerprint": self.encoder.fingerprint,
            "width": self.encoder.width,
            "dim": self.encoder.dim,
            "whiten": model.whiten,
            "pca": model.pca,
            "pooling": model.pooling,
            "gem_p": model.gem_p,
            "scales": list(model.scales),
            "scale_p": model.scale_p,
            "images": self.num_images,
            "bad_files": self.num_bad,
        }


def reduce(
    model: str,
    out: Path,
    *,
    data: str | Path | None = None,
    settings: Sequence[str] = (),
    dataset: str = "auto",
    verify: bool = True,
    device: str = "auto",
    command: str = "",
) -> Reduced:
    """Write ``model`` with another head into the folder ``out``; the head it had is replaced.

    The reduction is fitted on the training split of ``data``; where there are no splits, on the classes that the model's run learnt
    from; else on everything. ``out`` then tells these classes, so that ``evaluate`` still measures others.

    Args:
        model: the model to begin with.
        out: a folder that holds no model yet.
        data: the images; not needed for scales or a pooling alone.
        settings: ``key=value`` settings of ``ModelSpec``: pca, whiten, scales, scale_p, pooling, gem_p.
        dataset: a name of the catalog, or auto.
        verify: whether the official counts of a named data set are checked.
        device: where to compute.
        command: how this came about, for the model card.

    Raises:
        UsageError: the settings ask for nothing, ``out`` holds a model, or the images cannot be read or are too few.
    """
    if (out / "config.json").exists():
        raise UsageError(f"'{out}' already holds a model: choose another --out")
    bad_files = BadFiles()
    encoder = model_folder.load(model, device=runtime.device(device))
    wanted = override(headless(encoder.model), settings)
    if wanted == headless(encoder.model):
        raise UsageError("nothing is asked for: give --pca 128, --whiten pca or supervised, --pooling cls_gem, or --scales 1,0.707,0.5")
    learnt, chose_by = classes_of_run(Path(model))
    fitted_on: Records | None = None
    if is_fitted(wanted):
        if data is None:
            raise UsageError("a reduction is fitted on images: give --data FOLDER")
        records = read_data(data, bad_files, dataset=dataset, verify=verify, require_labels=False)
        fitted_on = _learnt_part(records, learnt)
        learnt |= frozenset(_names(fitted_on))
    made, num_images = (with_scales_of(encoder, wanted), 0) if fitted_on is None else fit_head(encoder, wanted, fitted_on, bad_files)
    facts = {"training_classes": sorted(learnt), "validation_classes": sorted(chose_by)}
    card = head_card(made, model, data=str(data or ""), num_images=num_images, command=command)
    try:
        out.mkdir(parents=True, exist_ok=True)
        model_folder.write_json(out / "run.json", facts)
    except OSError as error:
        raise explain_os_error(error, f"writing '{out / 'run.json'}'") from error
    model_folder.save(made, out, card=card)
    write_bad_files(bad_files, out)
    return Reduced(out, made, num_images, len(bad_files))


def _learnt_part(records: Records, learnt: frozenset[str]) -> Records:
    part = training_split(records)
    if records.splits is not None or not learnt or records.labels is None:
        return part
    seen = np.isin(_names(records), list(learnt))
    return records.select(seen) if seen.any() else records


def _names(records: Records) -> list[str]:
    return [] if records.labels is None else [records.class_names[label] for label in records.labels]
