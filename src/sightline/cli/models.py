"""Commands about models and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.options import Backbone, Dataset, Device, Json, Model, Verify, command_line, note, print_json, with_backbone
from sightline.errors import counted
from sightline.imports import without_collecting


def export(
    model: Model,
    format: Annotated[Literal["onnx"], typer.Option(help="the format to write")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="the file; by default model.onnx beside the model")] = None,
    backbone: Backbone = "",
    as_json: Json = False,
) -> None:
    """Write the model for another runtime, and compare the two.

    Example: sightline export runs/mine --format onnx --out mine.onnx
    """
    with without_collecting():
        from sightline.workflows import looking

    model = with_backbone(model, backbone)
    done = looking.export(model, out)
    if as_json:
        print_json(done)
    note(
        f"wrote {done['out']} ({done['bytes'] / 2**20:.1f} MiB); smallest cosine to the original on {done['images']} images: {done['min_cosine']:.6f}"
    )


def reduce(
    model: Model,
    out: Annotated[Path, typer.Option(help="the model folder to write")],
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="images to fit on: class folders, a manifest, or a data set's own folder")
    ] = None,
    pca: Annotated[int, typer.Option(min=0, help="directions to keep; 0 is all of a whitening, and no plain PCA")] = 0,
    whiten: Annotated[Literal["none", "pca", "supervised"], typer.Option(help="supervised learns from images of one class")] = "none",
    pooling: Annotated[
        str | None, typer.Option(help="another pooling, such as cls_gem for finding copies; the model's own if not given")
    ] = None,
    gem_p: Annotated[float | None, typer.Option("--gem-p", help="power of gem and cls_gem; the model's own if not given")] = None,
    scales: Annotated[str, typer.Option(help="resize the input by each and combine the descriptors, such as 1,0.707,0.5")] = "1",
    scale_p: Annotated[float, typer.Option("--scale-p", help="power of the mean over scales; other than 1 for GeM only")] = 1.0,
    dataset: Dataset = "auto",
    verify: Verify = True,
    backbone: Backbone = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Give a model another pooling, scales, PCA or whitening.

    PCA and whitening are fitted on images; the model that has them is written anew.

    Example: sightline reduce runs/mine --data photos/ --whiten supervised --pca 128 --out runs/mine/whitened
    """
    with without_collecting():
        from sightline.workflows import reducing

    model = with_backbone(model, backbone)
    settings = [f"pca={pca}", f"whiten={whiten}", f"scales={scales}", f"scale_p={scale_p}"]
    settings += [f"{key}={value}" for key, value in (("pooling", pooling), ("gem_p", gem_p)) if value is not None]
    done = reducing.reduce(model, out, data=data, settings=settings, dataset=dataset, verify=verify, device=device, command=command_line())
    if as_json:
        print_json(done.to_json())
    bad = f"; {counted(done.num_bad, 'file')} could not be read: see {out / 'bad_files.jsonl'}" if done.num_bad else ""
    fitted = f", fitted on {done.num_images:,} images" if done.num_images else ""
    note(f"wrote {out}: {done.encoder.dim}-d descriptors from {done.encoder.width}-d{fitted}{bad}")


def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: device, cores, versions.

    Example: sightline doctor
    """
    with without_collecting():
        from sightline.workflows import common

    found = common.doctor()
    if as_json:
        print_json(found)
    else:
        print("\n".join(f"{name:18} {value}" for name, value in found.items()))
