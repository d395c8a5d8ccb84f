"""``sightline``: the entry point. Errors of ours become one line on standard error and an exit code; nothing heavy is imported here."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sightline.cli import measuring, models, searching, training
from sightline.errors import SightlineError, explain_memory_error, explain_os_error, is_memory_full

app = typer.Typer(
    help="Visual retrieval with Vision Transformers: train, measure, index, search.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    training.train,
    training.sweep,
    measuring.evaluate,
    measuring.probe,
    measuring.compare,
    searching.embed,
    searching.index,
    searching.search,
    measuring.inspect,
    measuring.explain,
    models.reduce,
    models.export,
    training.recipes,
    training.demo,
    models.doctor,
)

OTHER_WORDS = {
    **dict.fromkeys(("--top", "--top-k", "--topk", "--num", "--limit", "-n"), ("-k", "-k, such as -k 20")),
    **dict.fromkeys(("--query", "--picture", "--file"), ("--image", "--image, or the pictures behind the index")),
    **dict.fromkeys(("--folder", "--dir", "--dataset-dir", "--input"), ("--data", "--data (--images is the same)")),
    **dict.fromkeys(("--output", "--outdir", "-o", "--output-dir"), ("--out", "--out")),
    **dict.fromkeys(("--filter",), ("--where", "--where, such as --where 'label != \"cup\"'")),
    **dict.fromkeys(("--steps", "--iterations"), ("--set", "a setting: --set steps=500")),
    **dict.fromkeys(("--epochs",), ("--set", "steps, and a setting: --set steps=500")),
    **dict.fromkeys(("--lr", "--learning-rate"), ("--set", "a setting: --set lr=1e-5")),
    **dict.fromkeys(("--batch-size", "--batch"), ("--set", "a setting of the recipe: see sightline recipes METHOD/RECIPE")),
    **dict.fromkeys(("--gpu", "--cuda"), ("--device", "--device, such as --device cuda:0")),
}
"""Options of other tools -> the option that a command must have for the hint, and how it is told."""

for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sightline import __version__

        print(f"sightline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version")] = False,
) -> None:
    pass


def entry() -> None:
    """Run the command line and exit: 0 success, 2 bad usage or input, 1 a failure of ours, 130 and 143 stopped by a signal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does: a file name need not be text
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Return the exit code of one command line."""
    doing = f"running sightline {' '.join(arguments[:1])}"
    if list(arguments[:1]) == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        code = typer.main.get_command(app).main(args=repeat_options(arguments) or ["--help"], prog_name="sightline", standalone_mode=False)
        return int(code or 0)
    except SightlineError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except BrokenPipeError:  # `sightline search ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _complain(str(explain_os_error(error, doing)))
        return 1
    except Exception as error:
        if not is_memory_full(error):
            return _explain_click(error)
        explained = explain_memory_error(error, doing)
        _complain(str(explained))
        return explained.exit_code


def repeat_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--set a=1 b=2`` written out as ``--set a=1 --set b=2``: click gives an option one word."""
    words: list[str] = []
    option = ""
    for word in arguments:
        if word.startswith("-"):
            option = word if word in ("--set", "--grid") else ""
        elif option and "=" in word and words[-1] != option:
            words.append(option)
        words.append(word)
    return words


def _explain_click(error: Exception) -> int:
    # Typer carries its own copy of click in some releases: told by its methods, not by its class.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        message = error.format_message()
        if message:
            context = getattr(error, "ctx", None)
            _complain(f"{_hint(error) or message} (see {context.command_path if context else 'sightline'} --help)")
        return int(error.exit_code)
    if type(error).__name__ in ("Exit", "Abort"):
        return int(getattr(error, "exit_code", 1))
    raise error


def _hint(error: Exception) -> str:
    """Return what an option that is not there is called here, where people bring it from other tools; else an empty text."""
    option, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    if context is None or type(error).__name__ != "NoSuchOption":
        return ""
    known = {name for parameter in context.command.params for name in parameter.opts}
    ours, told = OTHER_WORDS.get(option, ("", ""))
    return f"No such option: {option}. Here it is {told}" if ours in known else ""


def _complain(text: str) -> None:
    print("error: " + " ".join(text.split()), file=sys.stderr)
