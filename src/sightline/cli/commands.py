"""The commands. Each parses, calls one workflow, and prints; what is heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from sightline.workflows.training import Trained

app = typer.Typer(
    help="Visual retrieval with Vision Transformers: train, measure, index, search.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option("--precision", help="auto takes bf16 where the hardware multiplies it")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Dataset = Annotated[str, typer.Option("--dataset", help="auto (class folders or a manifest), cub, sop, inshop")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="check a named data set's official counts; a subset needs --no-verify")]


def _command() -> str:
    return shlex.join(["sightline", *sys.argv[1:]])


def _print_json(payload: Any) -> None:
    print(json.dumps(payload, ensure_ascii=False, allow_nan=False))


def _note(text: str) -> None:
    if text:
        print(text, file=sys.stderr)


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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="METHOD/RECIPE, such as irt/folder; see sightline recipes")] = "",
    data: Annotated[Path, typer.Option(help="class folders, a manifest, or a data set's own folder")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="the run folder to write")] = ...,  # type: ignore[assignment]
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as margin=0.6; may be repeated")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="replay a recipe.json or a run folder")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run in --out stopped")] = False,
    device: Device = "auto",
    as_json: Json = False,
    extra: Annotated[list[str] | None, typer.Argument(help="more key=value settings", metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Train a model on labelled images.

    Example: sightline train irt/folder --data photos/ --out runs/mine --set steps=500 margin=0.6
    """
    from sightline import runtime
    from sightline.errors import UsageError
    from sightline.workflows import training

    settings = [*(setting or []), *(extra or [])]
    if resume and (out / "recipe.json").exists():
        chosen = training.saved_recipe(out, settings)
    elif source is not None:
        chosen = training.saved_recipe(source, [*([recipe] if "=" in recipe else []), *settings])
    elif recipe:
        chosen = training.named_recipe(recipe, settings)
    else:
        raise UsageError("which recipe? for example: sightline train irt/folder --data photos/ --out runs/mine (see sightline recipes)")
    trained = training.train(chosen, data, out, device=device, resume=resume, command=_command())
    progress = trained.progress
    if runtime.ranks().is_main:
        _tell_training(trained, out, as_json)
    if progress.stopped_by:
        raise typer.Exit(130 if progress.stopped_by == "SIGINT" else 143)


def _tell_training(trained: Trained, out: Path, as_json: bool) -> None:
    progress = trained.progress
    if as_json:
        best = None if progress.best_step < 0 else {"map@r": progress.best, "step": progress.best_step}
        _print_json(
            {"run": str(out), "steps": progress.step, "stopped_by": progress.stopped_by, "validation": best, "bad_files": trained.num_bad}
        )
    if trained.num_bad:
        _note(f"{trained.num_bad} files could not be read: see {out / 'bad_files.jsonl'}")
    if progress.stopped_by:
        _note(f"stopped by {progress.stopped_by} after step {progress.step}, everything saved: go on with --resume")
        return
    chosen_at = f", the best on held-out classes (step {progress.best_step}, MAP@R {progress.best:.4f})" if progress.best_step >= 0 else ""
    _note(f"trained {progress.step} steps; the model is in {out / 'model'}{chosen_at}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a model or run folder, timm:NAME, random:NAME, or a hub id")],
    data: Annotated[Path, typer.Option(help="class folders, a manifest, or a data set's own folder")] = ...,  # type: ignore[assignment]
    dataset: Dataset = "auto",
    verify: Verify = True,
    protocol: Annotated[str, typer.Option(help="auto, leave-one-out, query-gallery")] = "auto",
    split: Annotated[str, typer.Option(help="auto (test, else classes unseen in training), all, or a split's name")] = "auto",
    report: Annotated[Path | None, typer.Option(help="write index.html and metrics.json into this folder")] = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled images.

    Example: sightline evaluate runs/mine --data photos/ --report report/
    """
    from sightline.workflows import measuring

    evaluation = measuring.evaluate(
        model,
        data,
        dataset=dataset,
        verify=verify,
        protocol=protocol,
        split=split,
        report=report,
        device=device,
        precision=precision,
        command=_command(),
    )
    if as_json:
        _print_json(evaluation.to_json())
    else:
        print(evaluation.to_text())
    _note(evaluation.bad_summary)
    if report is not None:
        _note(f"report: {report / 'index.html'}")


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="a model or run folder, timm:NAME, random:NAME, or a hub id")],
    images: Annotated[Path, typer.Option(help="a folder of images or a manifest")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="a .parquet file (path, vector) or .npy (vectors alone)")] = ...,  # type: ignore[assignment]
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Write the descriptors of a folder of images.

    Example: sightline embed runs/mine --images photos/ --out vectors.parquet
    """
    from sightline.workflows import searching

    done = searching.embed(model, images, out, device=device, precision=precision)
    if as_json:
        _print_json(
            {"out": str(out), "images": done.num_images, "dim": done.dim, "bad_files": done.num_bad, "images_per_s": done.images_per_s}
        )
    _note(f"{done.num_images:,} descriptors of width {done.dim} in {out} ({done.images_per_s:.1f} images/s)")
    _note(done.bad_summary)


@app.command()
def index(
    index: Annotated[Path, typer.Argument(help="the index folder")],
    model: Annotated[str, typer.Option(help="the model that embeds; an existing index remembers its own")] = "",
    images: Annotated[Path | None, typer.Option(help="a folder of images or a manifest: creates the index or brings it up to date")] = None,
    remove: Annotated[str, typer.Option(help="take out what matches, such as 'label = \"cup\"' or 'path = \"a.jpg\"'")] = "",
    info: Annotated[bool, typer.Option("--info", help="rows, bytes, engine and measured recall")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="check every file and vector")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="merge segments and give space back")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="forget images whose vectors are damaged; the next --images embeds them again")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep items whose files are gone")] = False,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Create an index of a folder of images, or bring it up to date.

    Example: sightline index photos.index --model runs/mine --images photos/
    """
    from sightline.workflows import searching

    answer, text = searching.index(
        index,
        model=model,
        images=images,
        remove=remove,
        info=info,
        verify=verify,
        compact=compact,
        repair=repair,
        keep=keep,
        device=device,
        precision=precision,
    )
    if as_json:
        _print_json(answer)
    else:
        print(text)
    if verify and answer["problems"]:
        raise typer.Exit(1)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="the index folder")],
    image: Annotated[list[Path], typer.Option(help="the picture to look for; may be repeated")],
    k: Annotated[int, typer.Option("-k", min=1, help="how many answers")] = 10,
    where: Annotated[str, typer.Option(help='only items that match, such as \'camera != 3 and label in ["cup", "mug"]\'')] = "",
    exact: Annotated[bool, typer.Option("--exact", help="compare with every vector instead of the approximate search")] = False,
    html: Annotated[Path | None, typer.Option(help="write the answers as one page with pictures")] = None,
    model: Annotated[str, typer.Option(help="where the index's model is now, if it has moved")] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the images that look most like a picture.

    Example: sightline search photos.index --image query.jpg -k 10 --where 'label != "cup"'
    """
    from sightline.workflows import searching

    answers = searching.search(index, image, k, where=where or None, exact=exact, model=model, device=device)
    if html is not None:
        from sightline.search.page import write_page

        write_page(html, image, answers, command=_command())
        _note(f"page: {html}")
    if as_json:
        _print_json(
            {
                "queries": [
                    {"image": str(query), "hits": [_hit_json(hit) for hit in hits]} for query, hits in zip(image, answers, strict=True)
                ]
            }
        )
        return
    for query, hits in zip(image, answers, strict=True):
        _print_hits(query, hits)


def _hit_json(hit: Any) -> dict[str, Any]:
    return {"id": hit.id, "path": hit.path, "similarity": round(hit.similarity, 6), "metadata": dict(hit.metadata)}


def _print_hits(query: Path, hits: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(query)), title_justify="left")
    keys = sorted({key for hit in hits for key in hit.metadata})
    table.add_column("#", justify="right")
    table.add_column("similarity", justify="right")
    for key in keys:
        table.add_column(Text(key))
    table.add_column("path", overflow="fold")
    for position, hit in enumerate(hits, 1):
        table.add_row(str(position), f"{hit.similarity:.4f}", *(Text(str(hit.metadata.get(key, ""))) for key in keys), Text(hit.path))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="a model or run folder, timm:NAME, random:NAME, or a hub id")],
    data: Annotated[Path, typer.Option(help="images to look at the model with")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="folder for index.html and numbers.json")] = Path("inspection"),
    dataset: Dataset = "auto",
    verify: Verify = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look inside a model: its descriptors, its attention, its mistakes, as one page.

    Example: sightline inspect runs/mine --data photos/ --out inspection/
    """
    from sightline.workflows import looking

    numbers = looking.inspect(model, data, out, dataset=dataset, verify=verify, device=device, command=_command())
    if as_json:
        _print_json(numbers)
    _note(f"page: {out / 'index.html'}")


@app.command()
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
        _print_json(done)
    _note(
        f"wrote {done['out']} ({done['bytes'] / 2**20:.1f} MiB); smallest cosine to the original on {done['images']} images: {done['min_cosine']:.6f}"
    )


@app.command()
def recipes(
    name: Annotated[str, typer.Argument(help="print one recipe's settings")] = "",
    as_json: Json = False,
) -> None:
    """List the recipes, or print one.

    Example: sightline recipes irt/folder
    """
    from sightline import catalog
    from sightline.recipe import flatten, to_plain

    if name:
        chosen = catalog.find("recipes", name)()
        if as_json:
            _print_json(to_plain(chosen))
        else:
            print("\n".join(f"{path} = {value}" for path, value in flatten(chosen)))
        return
    described = {known: (catalog.find("recipes", known).__doc__ or "").splitlines()[0] for known in catalog.names("recipes")}
    if as_json:
        _print_json(described)
    else:
        print("\n".join(f"{known:14} {text}" for known, text in described.items()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the photographs, the run, the index and the report")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="how long to train")] = 200,
    as_json: Json = False,
) -> None:
    """Train, measure, index and search real photographs, offline, in a few minutes.

    Example: sightline demo --out demo/
    """
    from sightline import demo as house_demo

    told = house_demo.run(out, steps=steps, say=_note if as_json else print)
    if as_json:
        _print_json(told)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: device, precision, cores, versions.

    Example: sightline doctor
    """
    from sightline.workflows import common

    found = common.doctor()
    if as_json:
        _print_json(found)
    else:
        print("\n".join(f"{name:18} {value}" for name, value in found.items()))
