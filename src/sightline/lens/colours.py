"""The section of an inspection about patch features: their principal components as colours."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sightline.data.images import BadImage
from sightline.data.loading import open_image
from sightline.data.transforms import eval_transform
from sightline.html import Page, Picture
from sightline.lens.principal import principal_colours
from sightline.lens.sheet import SIDE_PX, mosaic
from sightline.lens.view import View


def add_colours(page: Page, views: Sequence[View]) -> tuple[list[list[float] | None], Image.Image | None]:
    """Add the section; return each model's shares of variance in the three components, and the first model's pictures in one."""
    page.section(
        "Patch features",
        "The first three principal components of the patches as red, green and blue, shared by the images of a row: what has one colour is "
        "alike to the model, within an image and across them. Colours of two models do not compare.",
    )
    shares: list[list[float] | None] = []
    sheet = None
    for view in views:
        if len(views) > 1:
            page.subsection(view.label)
        seen = [(place, image) for place in view.example_places() if (image := as_seen(view, place)) is not None]
        if not seen:
            page.text("None to show: the images cannot be read any more.")
            shares.append(None)
            continue
        patches = list(view.encoder.patches([image for _, image in seen]))
        colours, variance = principal_colours(patches)
        drawn = [Image.fromarray(one).resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST) for one in colours]
        page.picture_pairs(
            [(Picture(image, view.name(place)), Picture(one, "patches")) for (place, image), one in zip(seen, drawn, strict=True)]
        )
        page.text(f"They hold {', '.join(f'{share:.0%}' for share in variance)} of the patches' variance.", quiet=True)
        shares.append([round(float(share), 6) for share in variance])
        if sheet is None:
            sheet = mosaic([[image for _, image in seen], drawn])
    return shares, sheet


def as_seen(view: View, place: int) -> Image.Image | None:
    """Return the image at a place after the model's resize and crop, None where it cannot be read."""
    transform = eval_transform(view.encoder.image)
    try:
        pixels = transform.pixels(open_image(view.records, int(view.rows[place]), transform.short_px), 0)
    except BadImage:
        return None
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
