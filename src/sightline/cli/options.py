"""What the commands share: options that several take, and how they speak."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any, Literal

import typer

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option("--precision", help="auto takes bf16 where the hardware multiplies it")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Dataset = Annotated[str, typer.Option("--dataset", help="auto (class folders or a manifest), cub, sop, inshop")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="check a named data set's official counts; a subset needs --no-verify")]


def command_line() -> str:
    """Return the line that was typed, for what is made to tell how it was made."""
    return shlex.join(["sightline", *sys.argv[1:]])


def print_json(payload: Any) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(payload, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Say something to the person, on standard error; nothing for an empty text."""
    if text:
        print(text, file=sys.stderr)
