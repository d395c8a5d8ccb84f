"""Small pictures for pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from sightline.contracts import Box
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


def file_thumbnail(path: Path) -> Image.Image | None:
    """Return the image in a file at about thumbnail size, or None where it cannot be read."""
    try:
        return decode(path, short_px=THUMBNAIL_PX)
    except BadImage:
        return None


def boxed_thumbnail(path: Path, box: Box) -> Image.Image | None:
    """Return the image in a file at thumbnail size with ``box`` (in the file's own pixels) outlined, or None where it cannot be read.

    All of it, padded to a square: pages show the middle square of a picture, and the box may lie outside that.
    """
    try:
        content = read_bytes(path)
        image = decode(content, short_px=THUMBNAIL_PX)
    except BadImage:
        return None
    scale = THUMBNAIL_PX / max(own_size(content, image))
    shown = contained(image, (THUMBNAIL_PX, THUMBNAIL_PX))
    left, top, right, bottom = (side * scale for side in box)
    outline(shown, (left, top, right, bottom))
    return ImageOps.pad(shown, (THUMBNAIL_PX, THUMBNAIL_PX), color="#808080")


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
