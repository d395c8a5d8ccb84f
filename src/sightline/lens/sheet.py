"""Contact sheets: pictures in one image, pairs with their captions, to send to somebody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sightline.html import Picture

SIDE_PX, GAP_PX, LINE_PX = 160, 12, 17
PAIRS_A_ROW = 4
_INK, _QUIET, _EMPTY = "#15181e", "#586172", "#e1e5eb"


def contact_sheet(title: str, pairs: Sequence[tuple[Picture, Picture]]) -> Image.Image:
    """Return the pairs in rows of four under a title; below each picture stand its caption and its note. None needs to be readable."""
    pair_px = 2 * SIDE_PX + GAP_PX // 3, SIDE_PX + 2 * LINE_PX + GAP_PX // 2
    columns = min(PAIRS_A_ROW, max(1, len(pairs)))
    rows = -(-len(pairs) // columns)
    head_px = 3 * GAP_PX + LINE_PX
    size = GAP_PX + columns * (pair_px[0] + 2 * GAP_PX) - GAP_PX, head_px + rows * (pair_px[1] + GAP_PX)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    _write(pen, (GAP_PX, GAP_PX), title, 15, size[0] - 2 * GAP_PX, _INK)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        top = head_px + row * (pair_px[1] + GAP_PX)
        for side, picture in enumerate(pair):
            left = GAP_PX + column * (pair_px[0] + 2 * GAP_PX) + side * (pair_px[0] - SIDE_PX)
            _paste(sheet, pen, picture, left, top)
    return sheet


def mosaic(rows: Sequence[Sequence[Image.Image]], *, side_px: int = SIDE_PX) -> Image.Image:
    """Return pictures in rows of squares, each picture's middle where it is not square; rows may differ in length."""
    step_px = side_px + GAP_PX // 2
    sheet = Image.new("RGB", (step_px * max(map(len, rows)), step_px * len(rows)), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(ImageOps.fit(picture.convert("RGB"), (side_px, side_px)), (column * step_px, row * step_px))
    return sheet


def _paste(sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Picture, left: int, top: int) -> None:
    if picture.image is None:
        pen.rectangle((left, top, left + SIDE_PX - 1, top + SIDE_PX - 1), fill=_EMPTY)
        _write(pen, (left + GAP_PX, top + SIDE_PX // 2 - LINE_PX // 2), "not readable", 12, SIDE_PX - GAP_PX, _QUIET)
    else:
        sheet.paste(ImageOps.fit(picture.image.convert("RGB"), (SIDE_PX, SIDE_PX)), (left, top))
    _write(pen, (left, top + SIDE_PX + 4), picture.caption, 12, SIDE_PX, _INK)
    _write(pen, (left, top + SIDE_PX + 4 + LINE_PX), picture.note, 11, SIDE_PX, _QUIET)


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size_px: int, most_px: int, colour: str) -> None:
    """Write one line, cut with an ellipsis where it is wider than ``most_px``."""
    font = _font(size_px)
    line = " ".join(text.split())
    if pen.textlength(line, font) > most_px:
        while line and pen.textlength(line + "…", font) > most_px:
            line = line[:-1]
        line += "…"
    pen.text(place, line, colour, font)


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings a font that has Greek, Cyrillic and Arabic; Pillow's own has Latin alone.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)
