"""Commands about training. Each parses, calls one workflow, and prints; what is heavy is imported inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.options import Device, Json, command_line, note, print_json
from sightline.errors import counted
from sightline.imports import without_collecting

if TYPE_CHECKING:
    from sightline.workflows.sweeping import Swept
    from sightline.workflows.training import Trained


def train(
    recipe: Annotated[str, typer.Argument(help="METHOD/RECIPE, such as irt/folder; see sightline recipes")] = "",
    data: Annotated[
        Path, typer.Option("--data", "--images", help="class folders (without labels any folder), a manifest, or a data set's own folder")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="the run folder to write")] = ...,  # type: ignore[assignment]
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as margin=0.6; may be repeated")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="replay a recipe.json or a run folder; with more steps than the run has, train it on")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run in --out stopped")] = False,
    device: Device = "auto",
    as_json: Json = False,
    extra: Annotated[list[str] | None, typer.Argument(help="more key=value settings", metavar="KEY=VALUE")] = None,
) -> None:
    """Train a model on images.

    With labels or, by selfpatch/* and moby/*, without.

    Example: sightline train irt/folder --data photos/ --out runs/mine --set steps=500 margin=0.6
    """
    from sightline import runtime
    from sightline.errors import UsageError

    with without_collecting():
        from sightline.workflows import run_folder, training

    settings = [*(setting or []), *(extra or [])]
    if resume and (out / "recipe.json").exists():
        chosen = run_folder.saved_recipe(out, settings)
    elif source is not None:
        chosen = run_folder.saved_recipe(source, [*([recipe] if "=" in recipe else []), *settings])
    elif recipe:
        chosen = training.named_recipe(recipe, settings)
    else:
        raise UsageError("which recipe? for example: sightline train irt/folder --data photos/ --out runs/mine (see sightline recipes)")
    done = run_folder.goes_on_from(source, chosen) if source is not None and not resume else 0
    if runtime.ranks().is_main and done:
        note(f"going on after step {done} of the run in {source}")
    trained = training.train(chosen, data, out, device=device, resume=resume, after=source if done else None, command=command_line())
    progress = trained.progress
    if runtime.ranks().is_main:
        _tell_training(trained, out, as_json)
    if progress.stopped_by:
        raise typer.Exit(130 if progress.stopped_by == "SIGINT" else 143)


def _tell_training(trained: Trained, out: Path, as_json: bool) -> None:
    progress = trained.progress
    if as_json:
        of_the_model = (
            {trained.chosen_by: progress.best, "step": progress.best_step} if progress.best_step >= 0 else progress.measured or None
        )
        about = {
            "run": str(out),
            "steps": progress.step,
            "stopped_by": progress.stopped_by,
            "start": progress.start and progress.start.value,
        }
        print_json({**about, "validation": of_the_model, "bad_files": trained.num_bad})
    if trained.num_bad:
        note(f"{counted(trained.num_bad, 'file')} could not be read: see {out / 'bad_files.jsonl'}")
    if progress.stopped_by:
        note(f"stopped by {progress.stopped_by} after step {progress.step}, everything saved: go on with --resume")
        return
    note(f"trained {progress.step} steps; the model is in {out / 'model'}{_how_good(trained)}")


def _how_good(trained: Trained) -> str:
    """Return what validation says of the model that is kept, beside the start."""
    progress = trained.progress
    if trained.chosen_by == "last":
        now = next(iter(progress.measured.values()), None)
        return "" if now is None or progress.start is None else f", k-NN accuracy {now:.4f} (at the start {progress.start.value:.4f})"
    if progress.best_step < 0:
        return ""
    measure = {"accuracy@1": "accuracy", "miou": "mIoU"}.get(trained.chosen_by, "MAP@R")
    held_out = trained.held_out
    if progress.best_step == 0 and progress.step:
        return (
            f": no step beat the start ({measure} {progress.best:.4f} on {held_out}), the start is kept; "
            "--set validation=0 keeps the last step instead"
        )
    start = "" if progress.start is None or progress.best_step == 0 else f", at the start {progress.start.value:.4f}"
    return f", the best on {held_out} (step {progress.best_step}, {measure} {progress.best:.4f}{start})"


def sweep(
    name: Annotated[str, typer.Argument(help="METHOD/RECIPE with --grid, or a named sweep such as irt/ladder")],
    data: Annotated[Path, typer.Option("--data", "--images", help="class folders, a manifest, or a data set's own folder")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="folder for the runs, the table and the page")] = ...,  # type: ignore[assignment]
    grid: Annotated[list[str] | None, typer.Option(help="key=value,value,... such as margin=0.1,0.3; one or more")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value for every run; one or more")] = None,
    recipe: Annotated[str, typer.Option(help="the recipe that a named sweep is to go over")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds to train each variant with")] = 1,
    protocol: Annotated[str, typer.Option(help="how the runs are measured: what evaluate takes as --protocol, such as davis")] = "auto",
    measure_on: Annotated[Path | None, typer.Option(help="other data to measure the runs on than --data")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="what the figures show; may be repeated (default: recall@1 and map@r)")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train and measure a recipe under several settings.

    Finished runs are kept, so the same command goes on.

    Example: sightline sweep irt/cub --data CUB/ --out sweeps/cub --grid margin=0.1,0.3,0.5 koleo_weight=0,0.3,0.7 --seeds 3
    """
    with without_collecting():
        from sightline.workflows import sweeping

    plan = sweeping.named_sweep(name, grid or (), recipe)
    swept = sweeping.sweep(
        plan,
        data,
        out,
        settings=setting or (),
        num_seeds=seeds,
        metrics=metric or (),
        protocol=protocol,
        measure_on=measure_on,
        device=device,
        command=command_line(),
        say=note,
    )
    _tell_sweep(swept, as_json)
    if swept.stopped_by:
        raise typer.Exit(130 if swept.stopped_by == "SIGINT" else 143)


def _tell_sweep(swept: Swept, as_json: bool) -> None:
    if as_json:
        print_json(swept.to_json())
    else:
        print(swept.to_text())
    if swept.stopped_by:
        note(f"stopped by {swept.stopped_by} after {len(swept.results)} of {swept.num_planned} runs: the same command goes on")
    if swept.results:
        note(f"page: {swept.folder / 'index.html'}")


def recipes(
    name: Annotated[str, typer.Argument(help="print one recipe's settings")] = "",
    as_json: Json = False,
) -> None:
    """List the recipes, or print one.

    Example: sightline recipes irt/folder
    """
    from sightline import catalog
    from sightline.settings import as_setting, flatten, to_plain

    if name:
        chosen = catalog.find("recipes", name)()
        if as_json:
            print_json(to_plain(chosen))
        else:
            print("\n".join(f"{path} = {as_setting(path, value)}" for path, value in flatten(chosen)))
        return
    described = {known: (catalog.find("recipes", known).__doc__ or "").splitlines()[0] for known in catalog.names("recipes")}
    if as_json:
        print_json(described)
    else:
        print("\n".join(f"{known:14} {text}" for known, text in described.items()))


def demo(
    out: Annotated[Path, typer.Option(help="folder for the photographs, the run, the index and the report")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="how long to train")] = 200,
    as_json: Json = False,
) -> None:
    """Train, measure and search real photographs, in minutes.

    Example: sightline demo --out demo/
    """
    from sightline import demo as house_demo

    told = house_demo.run(out, steps=steps, say=note if as_json else print)
    if as_json:
        print_json(told)
