"""What the commands share: options that several take, and how they speak."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any, Literal

import typer

from sightline.errors import UsageError

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option("--precision", help="auto takes bf16 where the hardware multiplies it")
]
Model = Annotated[str, typer.Argument(help="a model or run folder, a weights file, timm:NAME, random:NAME, or a hub id")]
Backbone = Annotated[str, typer.Option("--backbone", help="the timm network of a weights file that does not tell, NAME or NAME@PX")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Dataset = Annotated[
    str,
    typer.Option(
        "--dataset", help="auto (class folders or a manifest), first-folder or last-folder (which is the class), cub, sop, inshop"
    ),
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="check a named data set's official counts; a subset needs --no-verify")]


def with_backbone(model: str, backbone: str) -> str:
    """Return the model's name with the network that ``--backbone`` gives it."""
    return f"{model},backbone={backbone}" if model and backbone else model


def command_line() -> str:
    """Return the line that was typed, for what is made to tell how it was made."""
    return shlex.join(["sightline", *sys.argv[1:]])


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """Return the box of ``left,top,right,bottom``, None for an empty text.

    Raises:
        UsageError: it is not four numbers in order, or shares of the picture.
    """
    if not text:
        return None
    try:
        left, top, right, bottom = (float(side) for side in text.split(","))
    except ValueError as error:
        raise UsageError(f"the box '{text}' is not four numbers: write left,top,right,bottom in pixels, such as 40,30,120,110") from error
    if not (left < right and top < bottom):  # written so that NaN fails too
        raise UsageError(f"the box '{text}' is empty: write left,top,right,bottom with left below right and top below bottom")
    if max(left, top, right, bottom) <= 1:
        raise UsageError(
            f"the box '{text}' is a share of the picture or a pixel at most: write pixels (x times the picture's width, y times its height)"
        )
    return left, top, right, bottom


def print_json(payload: Any) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(payload, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Say something to the person, on standard error; nothing for an empty text."""
    if text:
        print(text, file=sys.stderr)
