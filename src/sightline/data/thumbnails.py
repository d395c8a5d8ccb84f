"""Small pictures for pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from sightline.contracts import Box
from sightline.data.deep import DeepRange
from sightline.data.images import BadImage, decode, own_size, read_bytes
from sightline.data.records import Records
from sightline.html import THUMBNAIL_PX


def readable_thumbnail(records: Records, row: int) -> Image.Image | None:
    """Return the image of a row (its box, if it has one) at about thumbnail size, or None where it cannot be read."""
    from sightline.data.loading import open_image  # brings torch

    try:
        return open_image(records, row, short_px=THUMBNAIL_PX)
    except BadImage:
        return None


def shown_file(path: Path, side_px: int, box: Box | None = None, deep: DeepRange | None = None) -> Image.Image | None:
    """Return all of the image in a file within ``side_px`` squared, ``box`` (in the file's own pixels) outlined; None where it cannot be read.

    ``deep`` is what of a deep grey becomes black and white; None goes by the picture alone.
    """
    try:
        content = read_bytes(path)
        image = decode(content, short_px=side_px, deep=deep)
    except BadImage:
        return None
    shown = contained(image, (side_px, side_px)) if max(image.size) > side_px or box is not None else image
    if box is not None:
        scale = shown.width / own_size(content, image)[0], shown.height / own_size(content, image)[1]
        left, top, right, bottom = box
        outline(shown, (left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]), width_px=max(3, side_px // 160))
    return shown


def contained(image: Image.Image, size_px: tuple[int, int]) -> Image.Image:
    """Return the image, its aspect kept, as large as fits into (width, height); of a thread-like picture one pixel is left."""
    scale = min(side / own for side, own in zip(size_px, image.size, strict=True))
    width, height = (max(1, round(own * scale)) for own in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def outline(image: Image.Image, box: Box, colour: str = "#ffd400", *, width_px: int = 3) -> None:
    """Draw the outline of a box in an image's pixels onto it, in a colour with a dark edge that shows on any ground."""
    pen = ImageDraw.Draw(image)
    left, top = (max(0, round(side)) for side in box[:2])
    right, bottom = max(left, min(image.width, round(box[2])) - 1), max(top, min(image.height, round(box[3])) - 1)
    pen.rectangle((left, top, right, bottom), outline="#101010", width=width_px + 2)
    if right - left > 2 and bottom - top > 2:
        pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=width_px)
