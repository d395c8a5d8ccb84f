"""Pictures of what a detector found, each beside the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sightline.contracts import FloatArray, IntArray
from sightline.data.instances import open_annotated, packed, unpacked
from sightline.data.sets.coco import Annotated
from sightline.data.thumbnails import contained
from sightline.evaluation.dense.average_precision import Found
from sightline.html import Picture

LEAST_SCORE = 0.5
SHOWN_PX = 640
NAMED_BOXES, NAME_PX = 40, 16
NAMES_IN_A_NOTE = 4


def draw_rows(truth: Annotated, found: Mapping[int, Found], num_shown: int) -> tuple[tuple[Picture, ...], ...]:
    """Return rows of an image, the truth and what was found with a score of at least a half, ``num_shown`` pictures at most, evenly from all."""
    rows = sorted(found)
    num = min(len(rows), num_shown // 3)
    shown: list[tuple[Picture, ...]] = []
    for row in (rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, num).round().astype(int))) if num else ():
        image, one, places = open_annotated(truth, row), found[row], truth.objects(row)
        sure = np.flatnonzero(one.scores >= LEAST_SCORE)
        masks = [one.masks[place] for place in sure.tolist()] if one.masks is not None else []
        size, name = (image.height, image.width), truth.paths[row]
        outlines = [packed(mask, size) for mask in truth.masks[places] if mask is not None] if one.masks is not None else []
        told = [f"{truth.class_names[label - 1]} {score:.2f}" for label, score in zip(one.labels[sure], one.scores[sure], strict=True)]
        names = [truth.class_names[label - 1] for label in truth.labels[places]]
        right = _draw(image, truth.boxes[places], truth.labels[places], outlines, names, len(truth.class_names))
        drawn = _draw(image, one.boxes[sure], one.labels[sure], masks, told, len(truth.class_names))
        shown.append(
            (
                Picture(image, name, "image"),
                Picture(right, name, f"truth: {_tally(truth.labels[places], truth.class_names)}"),
                Picture(drawn, name, f"found: {_tally(one.labels[sure], truth.class_names)}"),
            )
        )
    return tuple(shown)


def colours(class_names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the classes with the colours that their boxes are drawn in."""
    return tuple((name, "#{:02x}{:02x}{:02x}".format(*_colour(number, len(class_names)))) for number, name in enumerate(class_names))


def _colour(number: int, num_classes: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(number / num_classes, 0.5, 0.9))
    return red, green, blue


def _draw(
    image: Image.Image, boxes: FloatArray, labels: IntArray, masks: Sequence[Mapping[str, Any]], names: Sequence[str], num_classes: int
) -> Image.Image:
    colours = [_colour(number, num_classes) for number in range(num_classes)]
    if len(masks) == len(labels) and masks:
        pixels = np.asarray(image, np.float32).copy()
        for mask, label in zip(masks, labels, strict=True):
            inside = unpacked(mask)
            pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(colours[label - 1], np.float32)
        image = Image.fromarray(pixels.round().astype(np.uint8))
    drawn = contained(image, (SHOWN_PX, SHOWN_PX))
    across, down = drawn.width / image.width, drawn.height / image.height
    pen = ImageDraw.Draw(drawn)
    for box, label in zip(boxes, labels, strict=True):
        pen.rectangle(_scaled(box, across, down), outline=colours[label - 1], width=3)
    if len(names) <= NAMED_BOXES:  # more would cover what they name: the legend has the colours
        font = ImageFont.load_default(NAME_PX)
        for box, label, name in zip(boxes, labels, names, strict=True):
            left, top, *_ = _scaled(box, across, down)
            text = name.encode("latin-1", "replace").decode("latin-1")[:24]  # what the built-in font has
            start = left + 3, max(0.0, top - NAME_PX - 4)
            extent = pen.textbbox(start, text, font=font)
            pen.rectangle((extent[0] - 3, extent[1] - 1, extent[2] + 3, extent[3] + 2), fill=colours[label - 1])
            pen.text(start, text, font=font, fill="white" if sum(colours[label - 1]) < 400 else "black")
    return drawn


def _scaled(box: FloatArray, across: float, down: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in box)
    return left * across, top * down, max(left * across, right * across), max(top * down, bottom * down)


def _tally(labels: IntArray, names: Sequence[str]) -> str:
    kinds, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    told = [f"{counts[place]} {names[kinds[place] - 1]}" for place in order[:NAMES_IN_A_NOTE]]
    return ", ".join([*told, *(["..."] if len(kinds) > NAMES_IN_A_NOTE else [])]) or "nothing"
