"""Commands that embed, index and search."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
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
        from sightline.workflows import embedding

    model = with_backbone(model, backbone)
    done = embedding.embed(model, images, out, device=device, precision=precision)
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
    id: Annotated[list[int] | None, typer.Option("--id", help="an item of the index to look for, by its id; may be repeated")] = None,
    like: Annotated[list[int] | None, typer.Option(help="the id of an item that answers should be more like; may be repeated")] = None,
    unlike: Annotated[list[int] | None, typer.Option(help="the id of an item that answers should be less like; may be repeated")] = None,
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
    Example: sightline search photos.index --id 17 --unlike 23
    """
    paths = [*(image or []), *(pictures or [])]
    if not paths and not id and not like:
        raise UsageError(f"which picture? for example: sightline search {index} query.jpg (several, --image, or --id 17 are fine too)")
    from_input = paths == [Path("-")]
    if from_input and (html is not None or box or id):
        option = "--html" if html is not None else "--box" if box else "--id"
        raise UsageError(f"{option} goes with pictures that are named, not with those of standard input")
    with without_collecting(), meta_kernels_later():
        from sightline.search.engine import Query, Searcher

        if paths:  # an item is found without the network
            import sightline.nn.model_folder  # noqa: F401

    shape = parse_box(box)
    query_of = partial(Query, box=shape, positives=tuple(like or ()), negatives=tuple(unlike or ()))
    asked = [query_of(picture=path) for path in paths] + [query_of(id=one) for one in id or ()] or [query_of()]
    if shape is not None and len(asked) != 1:
        raise UsageError(f"one box goes with one picture, and {len(asked)} were given")
    how = {"k": k, "where": where or None, "exact": exact, "rerank": rerank, "num_candidates": rerank_top}
    with Searcher.open(index, model=with_backbone(model, backbone), device=device) as searcher:
        if from_input:
            _answer_input(searcher, query_of, how, as_json)
            return
        answers = searcher.search_many(asked, **how)  # type: ignore[arg-type]
        note_of_filter = searcher.note(how["where"])  # type: ignore[arg-type]
        queries = [_named(searcher, query) for query in asked]
        header = searcher.index.header
    if html is not None:
        from sightline.search.page import write_page

        shown = {"box": shape, "reranked_by": rerank, "command": command_line()}
        hits = [answer.hits for answer in answers]
        write_page(html, [path for path, _ in queries], hits, regions=header.engine == "patches", deep=header.deep, **shown)  # type: ignore[arg-type]
        note(f"page: {html}")
    _tell(queries, answers, note_of_filter, rerank, as_json)


def _named(searcher: Any, query: Any) -> tuple[Path, dict[str, Any]]:
    """Return the picture that stands for a query, and what the query is as plain data."""
    examples = {name: list(ids) for name, ids in (("like", query.positives), ("unlike", query.negatives)) if ids}
    if query.picture is not None:
        return query.picture, {"image": str(query.picture), **examples}
    shown = query.positives[0] if query.id is None else query.id
    path = searcher.index.get(shown).path
    return Path(path), {**({} if query.id is None else {"id": query.id, "image": path}), **examples}


def _answer_input(searcher: Any, query_of: Callable[..., Any], how: dict[str, Any], as_json: bool) -> None:
    """Answer the pictures of standard input, a path a line, each before the next is read; one that cannot be read does not end it."""
    failed = False
    for line in sys.stdin:
        path = Path(line.rstrip("\r\n"))
        if path == Path():
            continue
        query = query_of(picture=path)
        try:
            answer = searcher.search(query, **how)
        except DataError as error:
            failed = True
            if as_json:
                print_json({"image": str(path), "error": str(error)})
            note(f"error: {error}")
        else:
            _tell([_named(searcher, query)], [answer], searcher.note(how["where"]), how["rerank"], as_json)
        sys.stdout.flush()
    if failed:
        raise typer.Exit(DataError.exit_code)


def _tell(queries: Sequence[tuple[Path, dict[str, Any]]], answers: Sequence[Any], note_of_filter: str, rerank: str, as_json: bool) -> None:
    if as_json:
        plain = [
            {**query, "searched": answer.searched, "timings_ms": {name: round(ms, 2) for name, ms in answer.timings_ms.items()},
             "hits": [_hit_json(hit) for hit in answer.hits]}
            for (_, query), answer in zip(queries, answers, strict=True)
        ]  # fmt: skip
        print_json(
            {"similarity": "cosine", "order": rerank or "similarity", "queries": plain}
            | ({"note": note_of_filter} if note_of_filter else {})
        )
        note(note_of_filter)
        return
    if rerank:
        note(f"in the order of {rerank}; the similarity is the cosine")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for (path, _), answer in zip(queries, answers, strict=True):
        print("\n".join(answer_lines(path, answer.hits, width)))
        note(f"searched: {answer.searched}" if len(answer.hits) and answer.searched else "")
    note(note_of_filter)


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
    rows = [["#", "similarity", "id", *keys, *(["box"] if has_boxes else []), "path"]]
    for position, hit in enumerate(hits, 1):
        facts = [_plain(hit.metadata.get(key, "")) for key in keys]
        boxes = ["" if hit.box is None else ",".join(f"{side:.0f}" for side in hit.box)] if has_boxes else []
        rows.append([str(position), f"{hit.similarity:.4f}", str(hit.id), *facts, *boxes, _plain(hit.path)])
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
