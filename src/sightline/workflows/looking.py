"""Looking inside a model, and handing it to another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import runtime
from sightline.contracts import Box, Descriptors
from sightline.data.images import BadFiles, BadImage, decode, measured_range
from sightline.data.reading import read_data
from sightline.errors import DataError, UsageError
from sightline.lens.explain import explain as write_explanation
from sightline.lens.explain import require_drawable
from sightline.lens.inspect import inspect as write_inspection
from sightline.lens.view import Inspected
from sightline.nn import model_folder
from sightline.nn.export import export_onnx
from sightline.search.embed import embed_records
from sightline.workflows.common import write_bad_files

NUM_PARITY_IMAGES = 8


def inspect(
    model: str,
    data: str | Path,
    out: Path,
    *,
    beside: Sequence[str] = (),
    dataset: str = "auto",
    verify: bool = True,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Write the inspection page of a model, with others ``beside`` it, on some images into ``out`` and return its numbers.

    Every model sees the same images, each through its own transform.

    Raises:
        UsageError: a model or the data cannot be read, or a model is named twice.
    """
    names = [model, *beside]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise UsageError(f"'{twice[0]}' is named twice: give each model once")
    bad_files = BadFiles()
    encoders = [model_folder.load(name, device=runtime.device(device)) for name in names]  # all, before an hour goes into the first
    records = read_data(data, bad_files, dataset=dataset, verify=verify)
    found = [
        embed_records(encoder, records, bad_files, what=f"embedding with {name}") for name, encoder in zip(names, encoders, strict=True)
    ]
    rows = reduce(np.intersect1d, [one.rows for one in found])  # a file may go while the models take their turns
    models = [
        Inspected(name, encoder, Descriptors(one.vectors[np.isin(one.rows, rows)], rows))
        for name, encoder, one in zip(names, encoders, found, strict=True)
    ]
    bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
    numbers = write_inspection(models, records, out, command=command, bad_files=bad)
    write_bad_files(bad_files, out)
    return numbers


def explain(
    model: str,
    pictures: tuple[Path, Path],
    out: Path,
    *,
    box: Box | None = None,
    short_px: int = 0,
    most: int = 24,
    least: float = -1.0,
    ratio: float = 1.0,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Write why a model takes two pictures for alike into ``out`` (.html, .png or .jpg) and return the numbers.

    Raises:
        UsageError: the model or a picture cannot be read, the box is outside the first picture, or ``out`` has another ending.
    """
    require_drawable(out)
    images, deep = [], measured_range([Path(path) for path in pictures])
    for path in pictures:
        try:
            images.append(decode(path, deep=deep))
        except BadImage as error:
            raise DataError(f"'{path}' cannot be read as an image: {error}") from error
    encoder = model_folder.load(model, device=runtime.device(device))
    names = (str(pictures[0]), str(pictures[1]))
    numbers = write_explanation(
        encoder, names, (images[0], images[1]), out, box=box, short_px=short_px, most=most, least=least, ratio=ratio, command=command
    )
    return {"model": model, "fingerprint": encoder.fingerprint, **numbers}


def export(model: str, out: Path | None = None) -> dict[str, Any]:
    """Write the model as ONNX, by default beside its weights, and return how closely onnxruntime agrees with it.

    Raises:
        UsageError: the model cannot be read, the extra is not installed, or there is nowhere to write to.
    """
    encoder = model_folder.load(model, device="cpu")
    if out is None:
        if not Path(model).is_dir():
            raise UsageError(f"'{model}' has no folder to write into: say where with --out model.onnx")
        out = Path(model) / "model.onnx"
    side = encoder.image.image_px
    images = torch.randn(NUM_PARITY_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return export_onnx(encoder, out, images=images)
