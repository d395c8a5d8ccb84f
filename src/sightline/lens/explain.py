"""Why two pictures match: which patches answer each other, and where the one has what a part of the other has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.contracts import Box, PatchFeatures
from sightline.data.listing import save_drawing
from sightline.errors import DataError, explain_os_error
from sightline.html import Number, Page
from sightline.lens import draw, pair
from sightline.lens.correspondences import Matches, box_of_place, correspondences, similarity_map, spread
from sightline.nn.encoder import Encoder
from sightline.search.regions import best_window, query_patches


def explain(
    encoder: Encoder,
    names: tuple[str, str],
    images: tuple[Image.Image, Image.Image],
    out: Path,
    *,
    box: Box | None = None,
    short_px: int = 0,
    most: int = 24,
    least: float = -1.0,
    ratio: float = 1.0,
    command: str = "",
) -> dict[str, Any]:
    """Write a page (or, where ``out`` ends in .png or .jpg, the drawings alone) about two pictures and return the numbers.

    Args:
        encoder: the model.
        names: what the pictures are called.
        images: the two, upright, at full size.
        out: the file to write.
        box: a part of the first picture, in its pixels: its matches alone, where else it is, and the heat of it over the second. Without one
            the heat is that of the closest match.
        short_px: what the short sides are brought to (0: the model's own size).
        most: matches that are drawn; all are in the numbers.
        least: matches of a lower similarity are left out.
        ratio: see ``correspondences``.
        command: how this came about.

    Raises:
        DataError: the box is outside the first picture.
        SightlineError: the file cannot be written.
    """
    vectors = encoder.embed(list(images))
    one, other = (next(encoder.patches([image], short_px=short_px)) for image in images)
    query, shape = query_patches(one, box)
    matches = correspondences(one, other, within=box, least=least, ratio=ratio)
    shown = spread(matches, (one.grid, other.grid), most)
    window = None if box is None else best_window(query, shape, other)
    region = None if window is None else other.box_of(window.cells)
    asked = box or (box_of_place(one, int(shown.places[0, 0])) if len(shown) else one.frame)
    heat = similarity_map(one, asked, other)
    lines = pair.match_picture(images, (one, other), shown)
    warm = draw.overlay(pair.fitted(images[1]), heat)
    if region is not None:
        warm = pair.boxed(warm, other, region)
    heated = pair.side_by_side(pair.boxed(images[0], one, asked), warm)
    numbers = _numbers(names, (one, other), matches, len(shown), heat)
    numbers["similarity"] = float(vectors[0] @ vectors[1])
    numbers["box"] = None if box is None else list(box)
    numbers["region"] = None if window is None or region is None else {"box": _rounded(region), "similarity": round(window.similarity, 6)}
    if out.suffix.lower() in (".png", ".jpg", ".jpeg"):
        _save(pair.below_each_other([lines, heated]), out)
    else:
        _write(out, names, numbers, lines, heated, command)
    return numbers


def _numbers(
    names: tuple[str, str], patches: tuple[PatchFeatures, PatchFeatures], matches: Matches, num_drawn: int, heat: np.ndarray
) -> dict[str, Any]:
    listed = [
        {"boxes": [_rounded(box_of_place(one, place)) for one, place in zip(patches, places, strict=True)], "similarity": round(value, 6)}
        for places, value in zip(matches.places.tolist(), matches.similarity.tolist(), strict=True)
    ]
    return {
        "pictures": [
            {"path": name, "size_px": [round(one.frame[2]), round(one.frame[3])], "grid": list(one.grid)}
            for name, one in zip(names, patches, strict=True)
        ],
        "metrics": {
            "num_matches": len(matches),
            "share_matched": len(matches) / min(len(one) for one in patches),
            "mean_similarity": float(matches.similarity.mean()) if len(matches) else None,
        },
        "num_drawn": num_drawn,
        "heat": {"least": float(heat.min()), "greatest": float(heat.max())},
        "matches": listed,
    }


def _rounded(box: Box) -> list[float]:
    return [round(side, 1) for side in box]


def _write(out: Path, names: tuple[str, str], numbers: dict[str, Any], lines: Image.Image, heated: Image.Image, command: str) -> None:
    first, second = (Path(name).name for name in names)
    measures, heat, region = numbers["metrics"], numbers["heat"], numbers["region"]
    page = Page(f"Why {first} matches {second}", "Which patches answer each other, as the model sees them")
    mean = measures["mean_similarity"]
    page.section("Numbers").numbers(
        [
            Number("similarity", f"{numbers['similarity']:.3f}", "of the descriptors"),
            Number("matches", f"{measures['num_matches']:,}", f"{measures['share_matched']:.0%} of the patches"),
            Number("their similarity", "-" if mean is None else f"{mean:.3f}", "mean over the matches"),
            *([Number("the box again", f"{region['similarity']:.3f}", "its most similar region")] if region else []),
        ]
    )
    page.section("Patches that answer each other", f"The {numbers['num_drawn']} most similar of those that are not beside each other.")
    page.image(lines, alt=f"{first} and {second} side by side, lines between patches that are each other's closest")
    whose = "the box" if numbers["box"] else "the patch of the closest match"
    page.section(
        "Where it is",
        f"How like {whose} each patch of {second} is, dark to light from {heat['least']:.2f} to {heat['greatest']:.2f}."
        + (" Outlined: the region most like the box." if region else ""),
    )
    page.image(heated, alt=f"A part of {first}, and its similarity over {second}")
    page.section("Method").text(
        "A match is a pair of patches each of which is the other's closest by cosine. Untrained or not, a model may match by place rather than "
        "by content: look at where the lines lead before believing in them."
    )
    if command:
        page.text("Made by:").code(command)
    page.write(out)


def _save(picture: Image.Image, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_drawing(picture, out)
    except OSError as error:
        raise explain_os_error(error, f"writing '{out}'") from error


def require_drawable(out: Path) -> None:
    """Let a file name pass that ends in .html, .png or .jpg.

    Raises:
        DataError: it ends in anything else.
    """
    if out.suffix.lower() not in (".html", ".png", ".jpg", ".jpeg"):
        raise DataError(f"--out must end in .html (a page), .png or .jpg (the drawings), got '{out}'")
