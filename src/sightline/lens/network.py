"""The sections of an inspection about a model's layers: filters, positions, reach of attention, where it looks, patches, token norms, likeness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from sightline.data.transforms import eval_transform
from sightline.errors import ModelError
from sightline.html import Number, Page, Picture, Plot
from sightline.lens import draw
from sightline.lens.attention import asking_tokens, attention
from sightline.lens.colours import add_colours, as_seen
from sightline.lens.inside import Inside, grid, norm_numbers
from sightline.lens.sheet import contact_sheet, mosaic
from sightline.lens.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_HEADS = 12
FILTERS_A_ROW = 7
ASKERS = {
    (): "the patches look, on average, in the last block",
    (0,): "the class token looks in the last block",
    (1,): "the distillation token looks in the last block",
    (0, 1): "the class and the distillation token look, on average, in the last block",
}
CLASS_ATTENTION_ASKS = "the class attention that the descriptor is pooled by looks in its own last block"

FILES = ("filters.png", "positions.png", "attention_distance.png", "attention.png", "patches.png", "token_norms.png", "cka.png")

Sheets = dict[str, "Image.Image | Figure"]
"""Pictures to stand beside the page, by file name; the first model's."""


def add_network(page: Page, views: Sequence[View]) -> tuple[list[dict[str, Any]], Sheets]:
    """Add the sections; return the numbers of each model, and the pictures of the first."""
    insides = [Inside(view) for view in views]
    sheets: Sheets = {}
    _add_filters(page, insides, sheets)
    _add_positions(page, insides, sheets)
    _add_distance(page, insides, sheets)
    has_attention = _add_attention(page, views, sheets)
    colours, coloured = add_colours(page, views)
    if coloured is not None:
        sheets["patches.png"] = coloured
    _add_norms(page, insides, sheets)
    beside = _add_likeness(page, insides, sheets)
    numbers = [inside.numbers() for inside in insides]
    numbers[0]["attention"] = has_attention
    for mine, shares in zip(numbers, colours, strict=True):
        mine["patches"] = None if shares is None else {"variance_in_colours": shares}
    for other, alike in zip(numbers[1:], beside, strict=True):
        other["cka_with_first"] = alike
    return numbers, sheets


def _titled(title: str, inside: Inside, insides: Sequence[Inside]) -> str:
    return f"{title}: {inside.view.label}" if len(insides) > 1 else title


def _add_filters(page: Page, insides: Sequence[Inside], sheets: Sheets) -> None:
    page.section(
        "First-layer filters",
        "The principal components of the filters that read the image, with their share of the filters' variance. Trained ones look like "
        "smooth waves and colour edges, a basis for what fits into a patch; untrained ones like noise.",
    )
    for inside in insides:
        if len(insides) > 1:
            page.subsection(inside.view.label)
        if isinstance(inside.filters, str):
            page.text(f"None to show: {inside.filters}.")
            continue
        components, shares = inside.filters
        pictures = [draw.filter_picture(component) for component in components]
        page.picture_strip(
            [Picture(one, f"{number} ({share:.1%})") for number, (one, share) in enumerate(zip(pictures, shares, strict=True), 1)]
        )
        if inside is insides[0] and pictures:
            rows = [pictures[start : start + FILTERS_A_ROW] for start in range(0, len(pictures), FILTERS_A_ROW)]
            sheets["filters.png"] = mosaic(rows, side_px=96)


def _add_positions(page: Page, insides: Sequence[Inside], sheets: Sheets) -> None:
    page.section(
        "Position embeddings",
        "Each small map is one patch's position embedding against all others', at that patch's place. Trained ones are most like their "
        "neighbours, and like those of their row and column.",
    )
    plots = []
    for inside in insides:
        if isinstance(inside.positions, str):
            page.text(f"None to show of {inside.view.label}: {inside.positions}.")
            continue
        figure = draw.position_maps(inside.positions)
        plots.append(Plot(figure, _titled("Similarity", inside, insides), "Maps of the cosine similarity of position embeddings"))
        if inside is insides[0]:
            sheets["positions.png"] = figure
    if plots:
        page.plots(plots)


def _add_distance(page: Page, insides: Sequence[Inside], sheets: Sheets) -> None:
    page.section(
        "Attention distance",
        "How far apart in the image a patch and what it attends to are, for each head of each layer: a ViT's counterpart to the size of a "
        "receptive field. Attention on class and register tokens is left out. The dotted line is attention spread evenly.",
    )
    plots = []
    for inside in insides:
        if isinstance(inside.distances_px, str) or isinstance(inside.layers, str):
            page.text(f"None to show of {inside.view.label}: {inside.distances_px}.")
            continue
        meter = inside.layers.distance
        figure = draw.distance_dots(inside.distances_px, meter.even_px)
        caption = f"A dot is a head, its mean over {meter.num_images:,} images of {inside.view.facts['image_px']} px."
        plots.append(Plot(figure, _titled("Distance", inside, insides), "Mean attention distance of each head over the layers", caption))
        if inside is insides[0]:
            sheets["attention_distance.png"] = figure
    if plots:
        page.plots(plots)


def _add_attention(page: Page, views: Sequence[View], sheets: Sheets) -> bool:
    view = views[0]
    whose = f"Of {view.label} alone. " if len(views) > 1 else ""
    asks = CLASS_ATTENTION_ASKS if view.encoder.model.pooling == "class_attention" else ASKERS[asking_tokens(view.encoder)]
    page.section(
        "Attention",
        f"{whose}Where {asks}, and, of a plain Vision Transformer, attention rolled out over all blocks. Each map is stretched from its least "
        "to its most attended patch.",
    )
    rows = []
    for place in view.example_places():
        image = as_seen(view, place)
        if image is None:
            continue  # it has gone since it was embedded
        try:
            seen = attention(view.encoder, eval_transform(view.encoder.image)(image))
        except ModelError as error:
            page.text(f"None to show: {error}.")
            return False
        maps = [("all heads", seen.mean)] + ([] if seen.rollout is None else [("rollout", seen.rollout)])
        maps += [(f"head {number}", heat) for number, heat in enumerate(seen.heads[:NUM_HEADS], 1)]
        pictures = [Picture(draw.overlay(image, heat.numpy()), name) for name, heat in maps]
        page.picture_strip(pictures, lead=Picture(image, view.name(place), "as the model sees it"))
        rows.append([image, *(picture.image for picture in pictures if picture.image is not None)])
    if rows:
        sheets["attention.png"] = mosaic(rows)
    return True


def _add_norms(page: Page, insides: Sequence[Inside], sheets: Sheets) -> None:
    page.section(
        "Token norms",
        "How long the patch tokens are that leave the last layer. A few that are far longer than the rest, most often on plain background, are "
        "artefacts: the model keeps notes of its own in them, and maps and dense descriptors suffer. Register tokens take them in.",
    )
    first = insides[0]
    plots = []
    for inside in insides:
        if isinstance(inside.layers, str):
            page.text(f"None to show of {inside.view.label}: {inside.layers}.")
            continue
        told = norm_numbers(inside.layers)
        if inside is first:
            cards = [
                ("median", f"{told['median']:.3g}"),
                ("largest", f"{told['largest']:.3g}"),
                ("far out", f"{told['share_far_out']:.2%}"),
            ]
            prefix = [(f"prefix token {number}", f"{norm:.3g}") for number, norm in enumerate(told["prefix"], 1)]
            page.numbers([Number(label, value) for label, value in cards + prefix])
        caption = (
            f"{told['share_far_out']:.2%} of the tokens are beyond the dashed line, three interquartile ranges above the upper quartile."
        )
        figure = draw.norm_histogram(inside.layers.norms, told["far_out_above"])
        plots.append(Plot(figure, _titled("Norms", inside, insides), "Histogram of the norms of patch tokens", caption))
    if plots:
        page.plots(plots)
    pairs = []
    for place in first.view.example_places():
        image, norms = as_seen(first.view, place), first.norms_of(int(first.view.rows[place]))
        if image is not None and norms is not None:
            note = f"{norms.min():.3g} to {norms.max():.3g}"
            pairs.append((Picture(image, first.view.name(place)), Picture(draw.overlay(image, norms), "norms", note)))
    if pairs:
        page.picture_pairs(pairs)
        sheets["token_norms.png"] = contact_sheet(f"Token norms of {first.view.facts['name']}", pairs)


def _add_likeness(page: Page, insides: Sequence[Inside], sheets: Sheets) -> list[dict[str, Any] | None]:
    """Add how alike the layers are, within the first model and with each other one; return the numbers of the latter."""
    first = insides[0]
    page.section(
        "Likeness of layers",
        "Centred kernel alignment (CKA) with a linear kernel over all tokens: 1 where two layers tell the images apart in the same way but for "
        "rotation and scale, 0 where they have nothing in common.",
    )
    plots: list[Plot] = []
    told: list[dict[str, Any] | None] = []
    for other in insides:
        alike = first.alike(other)
        if isinstance(alike, str) or isinstance(other.layers, str):
            page.text(f"None to show of {first.view.label} with {other.view.label}: {alike}.")
            told.append(None)
            continue
        title = "With itself" if other is first else f"With {other.view.label}"
        figure = draw.layer_grid(alike, of_itself=other is first)
        plots.append(Plot(figure, title, "Centred kernel alignment of each layer with each other"))
        told.append({"layers": list(other.layers.names), "alike": grid(alike)})
        sheets["cka.png"] = figure  # the last one: with another model where there is one
    if plots:
        page.plots(plots)
    return told[1:]
