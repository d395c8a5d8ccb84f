"""Commands about models and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.options import Json, note, print_json


def export(
    model: Annotated[str, typer.Argument(help="a model or run folder, timm:NAME or random:NAME")],
    format: Annotated[Literal["onnx"], typer.Option(help="the format to write")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="the file; by default model.onnx beside the model")] = None,
    as_json: Json = False,
) -> None:
    """Write the model for another runtime and compare the two on the same images.

    Example: sightline export runs/mine --format onnx --out mine.onnx
    """
    from sightline.workflows import looking

    done = looking.export(model, out)
    if as_json:
        print_json(done)
    note(
        f"wrote {done['out']} ({done['bytes'] / 2**20:.1f} MiB); smallest cosine to the original on {done['images']} images: {done['min_cosine']:.6f}"
    )


def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: device, precision, cores, versions.

    Example: sightline doctor
    """
    from sightline.workflows import common

    found = common.doctor()
    if as_json:
        print_json(found)
    else:
        print("\n".join(f"{name:18} {value}" for name, value in found.items()))
