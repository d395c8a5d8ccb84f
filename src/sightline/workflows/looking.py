"""Looking inside a model, and handing it to another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sightline import runtime
from sightline.data.images import BadFiles
from sightline.errors import UsageError
from sightline.lens.inspect import inspect as write_inspection
from sightline.nn import model_folder
from sightline.nn.export import export_onnx
from sightline.search.embed import embed_records
from sightline.workflows.common import read_data, write_bad_files

NUM_PARITY_IMAGES = 8


def inspect(
    model: str, data: str | Path, out: Path, *, dataset: str = "auto", verify: bool = True, device: str = "auto", command: str = ""
) -> dict[str, Any]:
    """Write the inspection page of a model on some images into ``out`` and return its numbers.

    Raises:
        UsageError: the model or the data cannot be read.
    """
    bad_files = BadFiles()
    encoder = model_folder.load(model, device=runtime.device(device))
    records = read_data(data, bad_files, dataset=dataset, verify=verify)
    found = embed_records(encoder, records, bad_files)
    bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
    numbers = write_inspection(encoder, records, found, out, title=f"Inside {model}", command=command, bad_files=bad)
    write_bad_files(bad_files, out)
    return numbers


def export(model: str, out: Path | None = None) -> dict[str, Any]:
    """Write the model as ONNX, by default beside its weights, and return how closely onnxruntime agrees with it.

    Raises:
        UsageError: the model cannot be read, the extra is not installed, or there is nowhere to write to.
    """
    encoder = model_folder.load(model)
    if out is None:
        if not Path(model).is_dir():
            raise UsageError(f"'{model}' has no folder to write into: say where with --out model.onnx")
        out = Path(model) / "model.onnx"
    side = encoder.image.image_px
    images = torch.randn(NUM_PARITY_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return export_onnx(encoder, out, images=images)
