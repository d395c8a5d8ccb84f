"""Commands that measure and look inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.options import (
    Backbone,
    Dataset,
    Device,
    Json,
    Model,
    PrecisionOption,
    Verify,
    command_line,
    note,
    parse_box,
    print_json,
    with_backbone,
)
from sightline.imports import without_collecting


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option("--data", "--images", help="class folders, a manifest, or a data set's own folder")] = ...,  # type: ignore[assignment]
    dataset: Dataset = "auto",
    verify: Verify = True,
    protocol: Annotated[
        str,
        typer.Option(
            help="auto, leave-one-out, query-gallery, cross-camera, accuracy (of a classifier), a benchmark such as roxford5k, or a dense protocol such as davis"
        ),
    ] = "auto",
    split: Annotated[str, typer.Option(help="auto (test, else classes unseen in training), all, or a split's name")] = "auto",
    train_data: Annotated[
        Path | None, typer.Option(help="a dense protocol's data whose train part it learns from, where --data holds only what is measured")
    ] = None,
    distractors: Annotated[Path | None, typer.Option(help="a folder or manifest of images to search too, never right")] = None,
    rerank: Annotated[str, typer.Option(help="a re-ranker such as k-reciprocal,k1=20; + puts several in a row")] = "",
    rerank_top: Annotated[int | None, typer.Option(min=1, help="candidates to re-rank (default: all, or 1,000 in a large gallery)")] = None,
    report: Annotated[Path | None, typer.Option(help="write index.html and metrics.json into this folder")] = None,
    backbone: Backbone = "",
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled images or on a benchmark.

    Example: sightline evaluate runs/mine --data photos/ --report report/
    """
    with without_collecting():
        from sightline.workflows import evaluating

    found = evaluating.evaluate(
        with_backbone(model, backbone),
        data,
        protocol=protocol,
        dataset=dataset,
        verify=verify,
        split=split,
        train_data=train_data,
        distractors=distractors,
        rerank=rerank,
        rerank_top=rerank_top,
        report=report,
        device=device,
        precision=precision,
        command=command_line(),
    )
    if as_json:
        print_json(found.to_json())
    else:
        print(found.to_text())
    note(found.bad_files)
    if report is not None:
        note(f"report: {report / 'index.html'}")


def probe(
    model: Model,
    data: Annotated[list[Path], typer.Option("--data", "--images", help="class folders or a manifest; repeat for the mean over several")],
    dataset: Dataset = "auto",
    kind: Annotated[
        Literal["knn", "linear", "fewshot", "all", "finetune"], typer.Option(help="which classifiers to fit, or to train the whole model")
    ] = "all",
    steps: Annotated[int, typer.Option(min=1, help="finetune: how long to train on each data set")] = 200,
    image_px: Annotated[int, typer.Option(min=0, help="finetune: the images' side (default: the model's own)", show_default=False)] = 0,
    seed: Annotated[int, typer.Option(help="divides data without splits, and draws the few shots")] = 0,
    report: Annotated[Path | None, typer.Option(help="write metrics.json into this folder")] = None,
    backbone: Backbone = "",
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model by simple classifiers on its descriptors.

    k-NN, a linear probe and few-shot regression on frozen descriptors, or the whole model fine-tuned.

    Example: sightline probe runs/mine --data flowers/ --data pets/
    """
    with without_collecting():
        from sightline.workflows import transferring

    model = with_backbone(model, backbone)
    found = transferring.transfer(
        model,
        data,
        dataset=dataset,
        kinds=transferring.FROZEN if kind == "all" else (kind,),
        tuning=transferring.FineTuning(steps=steps, image_px=image_px),
        seed=seed,
        report=report,
        device=device,
        precision=precision,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print(found.to_text())
    note(found.bad_summary)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders that were measured (--report RUN/NAME), or a sweep's")],
    out: Annotated[Path, typer.Option(help="folder for index.html and comparison.json")] = Path("comparison"),
    metric: Annotated[list[str] | None, typer.Option(help="what to compare; may be repeated (default: what most runs have)")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs by what they cost and by what they learnt from.

    A table and two figures, one curve a family of networks.

    Example: sightline compare runs/* --metric knn --out comparison/
    """
    with without_collecting():
        from sightline.workflows import comparing

    found = comparing.compare(runs, out, metrics=metric or (), command=command_line())
    if as_json:
        print_json(found.to_json())
    else:
        print(found.to_text())
    for reason in found.left_out:
        note(f"left out: {reason}")
    note(f"page: {out / 'index.html'}")


def inspect(
    model: Model,
    data: Annotated[
        Path, typer.Option("--images", "--data", help="a folder of images or a manifest; labels, where there are any, are used")
    ] = ...,  # type: ignore[assignment]
    beside: Annotated[list[str] | None, typer.Option(help="another model, drawn beside it on the same images; repeat for more")] = None,
    out: Annotated[Path, typer.Option(help="folder for index.html, numbers.json and pictures")] = Path("inspection"),
    dataset: Dataset = "auto",
    verify: Verify = True,
    backbone: Backbone = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look inside a model, or at several side by side.

    Filters, positions, attention, layers, descriptors and mistakes, as one page.

    Example: sightline inspect runs/mine --beside timm:deit_small_patch16_224 --images photos/ --out inspection/
    """
    with without_collecting():
        from sightline.workflows import looking

    model = with_backbone(model, backbone)
    numbers = looking.inspect(model, data, out, beside=beside or (), dataset=dataset, verify=verify, device=device, command=command_line())
    if as_json:
        print_json(numbers)
    note(f"page: {out / 'index.html'}")


def explain(
    model: Model,
    image: Annotated[Path, typer.Argument(help="a picture")],
    other: Annotated[Path, typer.Argument(help="the picture that it matches, or does not")],
    out: Annotated[Path, typer.Option(help="a .html page, or .png or .jpg for the drawings alone")] = Path("match.html"),
    box: Annotated[str, typer.Option(help="left,top,right,bottom in the first picture's pixels: explain this part of it")] = "",
    short_px: Annotated[
        int, typer.Option("--short-px", min=0, help="bring the short sides to so many pixels (default: the model's)", show_default=False)
    ] = 0,
    most: Annotated[int, typer.Option(min=1, help="matches to draw; --json has all")] = 24,
    least: Annotated[float, typer.Option(min=-1, max=1, help="leave out matches of a lower similarity")] = -1.0,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="keep what is so much closer than the second closest; 1 keeps all")] = 1.0,
    backbone: Backbone = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show why two pictures match.

    The patches that answer each other, and where the second has what a part of the first has.

    Example: sightline explain runs/mine a.jpg b.jpg --box 40,30,120,110 --out match.html
    """
    with without_collecting():
        from sightline.workflows import looking

    model = with_backbone(model, backbone)
    told = looking.explain(
        model,
        (image, other),
        out,
        box=parse_box(box),
        short_px=short_px,
        most=most,
        least=least,
        ratio=ratio,
        device=device,
        command=command_line(),
    )
    if as_json:
        print_json(told)
    else:
        measures = told["metrics"]
        print(
            f"similarity {told['similarity']:.4f}; {measures['num_matches']:,} patches answer each other ({measures['share_matched']:.0%})"
        )
        if told["region"]:
            place = ",".join(f"{side:.0f}" for side in told["region"]["box"])
            print(f"the box again at {place}, similarity {told['region']['similarity']:.4f}")
    note(f"written: {out}")
