"""Small pictures for pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sightline.data.images import BadImage, decode
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
