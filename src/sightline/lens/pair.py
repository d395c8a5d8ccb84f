"""Two pictures beside each other, with what answers what between them."""

from __future__ import annotations

from PIL import Image, ImageDraw

from sightline.contracts import Box, PatchFeatures
from sightline.data.thumbnails import contained, outline
from sightline.lens.correspondences import Matches, box_of_place
from sightline.lens.draw import class_colours

HEIGHT_PX, MOST_WIDTH_PX, GAP_PX = 480, 720, 24


def fitted(image: Image.Image) -> Image.Image:
    """Return the image, its aspect kept, as large as a picture of a pair is."""
    return contained(image.convert("RGB"), (MOST_WIDTH_PX, HEIGHT_PX))


def side_by_side(one: Image.Image, other: Image.Image) -> Image.Image:
    """Return two pictures in one on white, their tops in line."""
    sheet = Image.new("RGB", (one.width + GAP_PX + other.width, max(one.height, other.height)), "white")
    sheet.paste(one, (0, 0))
    sheet.paste(other, (one.width + GAP_PX, 0))
    return sheet


def below_each_other(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures in one on white, each below the last."""
    height = sum(picture.height + GAP_PX for picture in pictures) - GAP_PX
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + GAP_PX
    return sheet


def boxed(image: Image.Image, patches: PatchFeatures, box: Box) -> Image.Image:
    """Return the picture at the size of a pair with a box (in its own pixels) outlined."""
    shown = fitted(image)
    outline(shown, _scaled(box, shown, patches), width_px=4)
    return shown


def match_picture(images: tuple[Image.Image, Image.Image], patches: tuple[PatchFeatures, PatchFeatures], matches: Matches) -> Image.Image:
    """Return the two pictures side by side, a line of its own colour from patch to patch for each match, with a dot at either end."""
    shown = [fitted(image) for image in images]
    sheet = side_by_side(shown[0], shown[1])
    pen = ImageDraw.Draw(sheet)
    offset = shown[0].width + GAP_PX
    ends = []
    for pair in matches.places.tolist():
        (x, y), (x_end, y_end) = (
            _middle(_scaled(box_of_place(one, place), image, one)) for one, place, image in zip(patches, pair, shown, strict=True)
        )
        ends.append(((x, y), (x_end + offset, y_end)))
    colours = class_colours(max(1, len(ends)))
    for (start, end), colour in zip(ends, colours, strict=False):
        pen.line((start, end), fill="#101010", width=5)
        pen.line((start, end), fill=colour, width=3)
    for pair_of_ends, colour in zip(ends, colours, strict=False):
        for x, y in pair_of_ends:
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline="white", width=2)
    return sheet


def _scaled(box: Box, shown: Image.Image, patches: PatchFeatures) -> Box:
    left, top, right, bottom = patches.frame
    x, y = shown.width / (right - left), shown.height / (bottom - top)
    return (box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
