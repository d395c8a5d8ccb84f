"""The answers of a search as one page of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sightline.contracts import Box, Hit, Hits
from sightline.data.thumbnails import boxed_thumbnail, file_thumbnail
from sightline.errors import counted
from sightline.html import Page, Picture

MAX_PICTURES = 2_000
"""Answers shown with a picture; a page of more than about 16 MB is slow to open on a phone."""


def write_page(
    path: Path, queries: Sequence[Path], answers: Sequence[Hits], *, box: Box | None = None, reranked_by: str = "", command: str = ""
) -> Path:
    """Write one self-contained page of each query picture with its answers, closest first, and return the path.

    Regions, and the ``box`` that was asked for, are outlined in their pictures.
    An answer shows its similarity (the cosine, also where they stand in another order), its metadata and its path. Files that have gone
    or cannot be read stand as empty frames.

    Raises:
        SightlineError: the page cannot be written.
    """
    num_answers = sum(len(hits) for hits in answers)
    page = Page(
        f"What looks like {queries[0].name}?" if len(queries) == 1 else f"Answers to {len(queries):,} pictures",
        f"{counted(num_answers, 'answer')}, {f'in the order of {reranked_by}' if reranked_by else 'closest first'}; {_similarity(answers)}",
    )
    num_shown = 0
    for query, hits in zip(queries, answers, strict=True):
        shown = list(hits)[: max(0, MAX_PICTURES - num_shown)]
        num_shown += len(shown)
        page.section(query.name, str(query) if str(query) != query.name else "")
        page.picture_strip([_picture(hit) for hit in shown], lead=Picture(_thumbnail(query, box), query.name, state="query"))
        if not hits:
            page.text("Nothing in the index matches.")
        elif len(shown) < len(hits):
            page.text(f"{counted(len(hits) - len(shown), 'more answer')} not shown: the page holds {MAX_PICTURES:,}.", quiet=True)
        else:
            page.details("Paths", [f"{hit.similarity:.4f}  {hit.path}{_spoken_box(hit.box)}" for hit in hits])
    if command:
        page.section("Method").text("Made by:").code(command)
    return page.write(path)


def _similarity(answers: Sequence[Hits]) -> str:
    if not any(hit.box is not None for hits in answers for hit in hits):
        return "similarity is a cosine, 1 for the same picture"
    return "similarity is the mean cosine of patches; of a large box not every patch is compared, so the same picture may stay below 1"


def _thumbnail(path: Path, box: Box | None) -> Image.Image | None:
    return file_thumbnail(path) if box is None else boxed_thumbnail(path, box)


def _spoken_box(box: Box | None) -> str:
    return "" if box is None else f"  {','.join(f'{side:.0f}' for side in box)}"


def _picture(hit: Hit) -> Picture:
    told = [f"{key} {value}" for key, value in hit.metadata.items() if key != "label" and value is not None]
    caption = str(hit.metadata.get("label") or Path(hit.path).name)
    return Picture(_thumbnail(Path(hit.path), hit.box), caption, ", ".join([f"{hit.similarity:.3f}", *told]))
