"""The answers of a search as one page of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.contracts import Box, Hit, Hits
from sightline.data.deep import DeepRange
from sightline.data.thumbnails import shown_file
from sightline.errors import counted
from sightline.html import Page, Picture

MAX_PICTURES = 2_000
"""Answers shown with a picture; a page of more than about 16 MB is slow to open on a phone."""

SIDES_PX = ((100, 640), (400, 320), (MAX_PICTURES, 200))
"""(pictures on a page, side in pixels): the more there are, the less each is enlarged by a click."""

WHAT_IS_SIMILAR = {
    False: "similarity is a cosine, 1 for the same picture",
    True: "similarity is the mean cosine of patches; of a large box not every patch is compared, so the same picture may stay below 1",
}


def write_page(
    path: Path,
    queries: Sequence[Path],
    answers: Sequence[Hits],
    *,
    box: Box | None = None,
    regions: bool = False,
    deep: DeepRange | None = None,
    reranked_by: str = "",
    command: str = "",
) -> Path:
    """Write one self-contained page of each query picture with its answers, closest first, and return the path.

    Boxes, and the ``box`` that was asked for, are outlined in their pictures; ``regions`` says that answers are regions of an index of
    patches, ``deep`` what of deep greys is black and white. A click enlarges a picture, its name leads to the file. An answer shows its
    similarity (the cosine, also where they stand in another order), its metadata and its path. Files that have gone or cannot be read
    stand as empty frames.

    Raises:
        SightlineError: the page cannot be written.
    """
    num_answers = sum(len(hits) for hits in answers)
    page = Page(
        f"What looks like {queries[0].name}?" if len(queries) == 1 else f"Answers to {len(queries):,} pictures",
        f"{counted(num_answers, 'answer')}, {f'in the order of {reranked_by}' if reranked_by else 'closest first'}; {WHAT_IS_SIMILAR[regions]}",
    )
    side_px = next((side for most, side in SIDES_PX if num_answers + len(queries) <= most), SIDES_PX[-1][1])
    num_shown = 0
    for query, hits in zip(queries, answers, strict=True):
        shown = list(hits)[: max(0, MAX_PICTURES - num_shown)]
        num_shown += len(shown)
        page.section(query.name, str(query) if str(query) != query.name else "")
        lead = Picture(shown_file(query, side_px, box, deep), query.name, state="query", link=_address(query))
        page.gallery([_picture(hit, side_px, deep, _common(shown)) for hit in shown], lead=lead, side_px=side_px)
        if not hits:
            page.text("Nothing in the index matches.")
        elif len(shown) < len(hits):
            page.text(f"{counted(len(hits) - len(shown), 'more answer')} not shown: the page holds {MAX_PICTURES:,}.", quiet=True)
        else:
            page.details("Paths", [f"{hit.similarity:.4f}  {hit.path}{_spoken_box(hit.box)}" for hit in hits])
    if command:
        page.section("Method").text("Made by:").code(command)
    return page.write(path)


def _spoken_box(box: Box | None) -> str:
    return "" if box is None else f"  {','.join(f'{side:.0f}' for side in box)}"


def _address(path: Path) -> str:
    return path.absolute().as_uri()


def _common(hits: Sequence[Hit]) -> set[str]:
    """Return the keys whose value all answers share: told once in every line they would tell nothing."""
    return {key for key in (hits[0].metadata if len(hits) > 1 else ()) if len({hit.metadata.get(key) for hit in hits}) == 1}


def _picture(hit: Hit, side_px: int, deep: DeepRange | None, common: set[str]) -> Picture:
    told = [f"{key} {value}" for key, value in hit.metadata.items() if key != "label" and key not in common and value is not None]
    path = Path(hit.path)
    label = hit.metadata.get("label")
    note = ", ".join([f"{hit.similarity:.3f}", *told, *([path.name] if label else [])])
    return Picture(shown_file(path, side_px, hit.box, deep), str(label or path.name), note, link=_address(path))
