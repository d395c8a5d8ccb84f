"""Commands that embed, index and search."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline.cli.options import Backbone, Device, Json, Model, PrecisionOption, command_line, note, parse_box, print_json, with_backbone
from sightline.errors import DataError, UsageError
from sightline.imports import meta_kernels_later, without_collecting


def embed(
    model: Model,
    images: Annotated[Path, typer.Option("--images", "--data", help="a folder of images or a manifest")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="a .parquet file (path, vector) or .npy (vectors alone)")] = ...,  # type: ignore[assignment]
    backbone: Backbone = "",
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Write the descriptors of a folder of images.

    Example: sightline embed runs/mine --images photos/ --out vectors.parquet
    """
    with without_collecting(), meta_kernels_later():
        from sightline.workflows import searching

    model = with_backbone(model, backbone)
    done = searching.embed(model, images, out, device=device, precision=precision)
    if as_json:
        print_json(
            {"out": str(out), "images": done.num_images, "dim": done.dim, "bad_files": done.num_bad, "images_per_s": done.images_per_s}
        )
    note(f"{done.num_images:,} descriptors of width {done.dim} in {out} ({done.images_per_s:.1f} images/s)")
    note(done.bad_summary)


def index(
    index: Annotated[Path, typer.Argument(help="the index folder")],
    model: Annotated[str, typer.Option(help="the model that embeds; an existing index remembers its own")] = "",
    images: Annotated[
        Path | None, typer.Option("--images", "--data", help="a folder of images or a manifest: creates the index or brings it up to date")
    ] = None,
    patches: Annotated[bool, typer.Option("--patches", help="make it an index of patches, which is searched for regions")] = False,
    short_px: Annotated[
        int,
        typer.Option(
            "--short-px", min=0, help="with --patches: the short side of the images in pixels (default: the model's)", show_default=False
        ),
    ] = 0,
    remove: Annotated[str, typer.Option(help="take out what matches, such as 'label = \"cup\"' or 'path = \"a.jpg\"'")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="with --remove and --prune: also more than half of the items")] = False,
    info: Annotated[bool, typer.Option("--info", help="rows, bytes, engine and measured recall")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="check every file and vector")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="merge segments and give space back")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="forget images whose vectors are damaged; the next --images embeds them again")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep items whose files are gone")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="take out all that is no longer where it came from: links, shares and folders that are away too")
    ] = False,
    backbone: Backbone = "",
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Create an index of images, or bring it up to date.

    Example: sightline index photos.index --model runs/mine --images photos/
    """
    with without_collecting(), meta_kernels_later():
        from sightline.workflows import indexing

    model = with_backbone(model, backbone)
    try:
        answer, text = indexing.index(
            index,
            model=model,
            images=images,
            patches=patches,
            short_px=short_px,
            remove=remove,
            yes=yes,
            ask=typer.confirm if sys.stdin.isatty() and sys.stderr.isatty() and not as_json else None,
            info=info,
            verify=verify,
            compact=compact,
            repair=repair,
            keep=keep,
            prune=prune,
            device=device,
            precision=precision,
        )
    except KeyboardInterrupt as stopped:
        note("stopped; what was embedded is kept" + (": the same command goes on where it was" if images else ""))
        raise typer.Exit(130) from stopped
    if as_json:
        print_json(answer)
    else:
        print(text)
    if verify and answer["problems"]:
        raise typer.Exit(1)


def search(
    index: Annotated[Path, typer.Argument(help="the index folder")],
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="the pictures to look for; - reads their paths from standard input, a line each")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="a picture to look for, as if it stood behind the index; may be repeated")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many answers")] = 10,
    box: Annotated[
        str, typer.Option(help="left,top,right,bottom in the picture's pixels: find regions like it (an index of patches)")
    ] = "",
    where: Annotated[str, typer.Option(help='only items that match, such as \'camera != 3 and label in ["cup", "mug"]\'')] = "",
    exact: Annotated[bool, typer.Option("--exact", help="compare with every vector instead of the approximate search")] = False,
    rerank: Annotated[str, typer.Option(help="a re-ranker such as k-reciprocal,k1=20; + puts several in a row")] = "",
    rerank_top: Annotated[int | None, typer.Option(min=1, help="closest items to re-rank (default: 1,000)")] = None,
    html: Annotated[Path | None, typer.Option(help="write the answers as one page with pictures")] = None,
    model: Annotated[str, typer.Option(help="where the index's model is now, if it has moved")] = "",
    backbone: Backbone = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the images that look most like a picture.

    In an index of patches: the regions that look most like a part of it.

    Example: sightline search photos.index query.jpg -k 10 --where 'label != "cup"'
    """
    asked = [*(image or []), *(pictures or [])]
    if not asked:
        raise UsageError(f"which picture? for example: sightline search {index} query.jpg (several, or --image, are fine too)")
    from_input = asked == [Path("-")]
    if from_input and (html is not None or box):
        raise UsageError(f"{'--html' if html is not None else '--box'} goes with pictures that are named, not with those of standard input")
    with without_collecting(), meta_kernels_later():
        from sightline.workflows import searching

    model = with_backbone(model, backbone)
    how = {"where": where or None, "exact": exact, "rerank": rerank, "rerank_top": rerank_top, "model": model, "device": device}
    with searching.Search(index, k, box=parse_box(box), **how) as opened:  # type: ignore[arg-type]
        if from_input:
            _answer_input(opened, rerank, as_json)
            return
        answers = opened.answers(asked)
        told = opened.note()
    if html is not None:
        from sightline.search.page import write_page

        header, shown = opened.index.header, {"box": parse_box(box), "reranked_by": rerank, "command": command_line()}
        write_page(html, asked, answers, regions=header.engine == "patches", deep=header.deep, **shown)  # type: ignore[arg-type]
        note(f"page: {html}")
    _tell(asked, answers, told, rerank, as_json)


def _answer_input(opened: Any, rerank: str, as_json: bool) -> None:
    """Answer the pictures of standard input, a path a line, each before the next is read; one that cannot be read does not end it."""
    failed = False
    for line in sys.stdin:
        query = Path(line.rstrip("\r\n"))
        if query == Path():
            continue
        try:
            answers = opened.answers([query])
        except DataError as error:
            failed = True
            if as_json:
                print_json({"image": str(query), "error": str(error)})
            note(f"error: {error}")
        else:
            _tell([query], answers, opened.note(), rerank, as_json)
        sys.stdout.flush()
    if failed:
        raise typer.Exit(DataError.exit_code)


def _tell(asked: Sequence[Path], answers: Sequence[Any], told: str, rerank: str, as_json: bool) -> None:
    if as_json:
        queries = [
            {"image": str(query), "searched": hits.how, "hits": [_hit_json(hit) for hit in hits]}
            for query, hits in zip(asked, answers, strict=True)
        ]
        print_json({"similarity": "cosine", "order": rerank or "similarity", "queries": queries} | ({"note": told} if told else {}))
        note(told)
        return
    if rerank:
        note(f"in the order of {rerank}; the similarity is the cosine")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for query, hits in zip(asked, answers, strict=True):
        print("\n".join(answer_lines(query, hits, width)))
        note(f"searched: {hits.how}" if len(hits) and hits.how else "")
    note(told)


def _hit_json(hit: Any) -> dict[str, Any]:
    found = {"id": hit.id, "path": hit.path, "similarity": round(hit.similarity, 6), "metadata": dict(hit.metadata)}
    return found if hit.box is None else {**found, "box": [round(side, 2) for side in hit.box]}


def answer_lines(query: Path, hits: Sequence[Any], width: int | None) -> list[str]:
    """Return the answers to a picture as lines of text; paths stay whole, on a line of their own where a table is wider than ``width`` (None: any)."""
    from rich.cells import cell_len

    if not hits:
        return [f"{_plain(query)}: no answers"]
    keys = sorted({key for hit in hits for key in hit.metadata})
    has_boxes = any(hit.box is not None for hit in hits)
    rows = [["#", "similarity", *keys, *(["box"] if has_boxes else []), "path"]]
    for position, hit in enumerate(hits, 1):
        facts = [_plain(hit.metadata.get(key, "")) for key in keys]
        boxes = ["" if hit.box is None else ",".join(f"{side:.0f}" for side in hit.box)] if has_boxes else []
        rows.append([str(position), f"{hit.similarity:.4f}", *facts, *boxes, _plain(hit.path)])
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        lines = [_plain(query)]
        for row in rows[1:]:
            told = [f"{key} {cell}" for key, cell in zip(rows[0][2:-1], row[2:-1], strict=True) if cell]
            lines += [f"{row[0]:>{widths[0]}}  {row[1]}  {', '.join(told)}".rstrip(), f"{'':{widths[0]}}  {row[-1]}"]
        return lines
    padded = [[cell + " " * (width_of - cell_len(cell)) for cell, width_of in zip(row[1:-1], widths[1:], strict=False)] for row in rows]
    return [_plain(query), *("  ".join([f"{row[0]:>{widths[0]}}", *middle, row[-1]]) for row, middle in zip(rows, padded, strict=True))]


def _plain(value: object) -> str:
    """Return a value as one line that a terminal shows as it is: a line break or another control character is written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
