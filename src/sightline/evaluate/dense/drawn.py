"""Pictures of what a detector found, each beside the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sightline.contracts import FloatArray, IntArray
from sightline.data.instances import open_annotated, packed, unpacked
from sightline.data.sets.coco import Annotated
from sightline.evaluate.dense.average_precision import Found
from sightline.html import Picture

LEAST_SCORE = 0.5
SHOWN_PX = 320
NAMES_IN_A_NOTE = 4


def draw_pairs(truth: Annotated, found: Mapping[int, Found], num_shown: int) -> tuple[Picture, ...]:
    """Return up to ``num_shown`` pictures, two an image: what was found with a score of at least a half, and the truth. Images are taken evenly from all."""
    rows = sorted(found)
    chosen = (
        [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, num_shown // 2).round().astype(int))] if num_shown > 1 else []
    )
    pictures: list[Picture] = []
    for row in chosen:
        image, one, places = open_annotated(truth, row), found[row], truth.objects(row)
        sure = np.flatnonzero(one.scores >= LEAST_SCORE)
        masks = [one.masks[place] for place in sure.tolist()] if one.masks is not None else []
        drawn = _draw(image, one.boxes[sure], one.labels[sure], masks, len(truth.class_names))
        pictures.append(Picture(drawn, f"found: {truth.paths[row]}", _tally(one.labels[sure], truth.class_names)))
        size = image.height, image.width
        outlines = [packed(mask, size) for mask in truth.masks[places] if mask is not None] if one.masks is not None else []
        drawn = _draw(image, truth.boxes[places], truth.labels[places], outlines, len(truth.class_names))
        pictures.append(Picture(drawn, f"truth: {truth.paths[row]}", _tally(truth.labels[places], truth.class_names)))
    return tuple(pictures)


def _draw(image: Image.Image, boxes: FloatArray, labels: IntArray, masks: Sequence[Mapping[str, Any]], num_classes: int) -> Image.Image:
    colours = [tuple(round(255 * part) for part in colorsys.hls_to_rgb(label / num_classes, 0.5, 0.9)) for label in range(num_classes)]
    if len(masks) == len(labels) and masks:
        pixels = np.asarray(image, np.float32).copy()
        for mask, label in zip(masks, labels, strict=True):
            inside = unpacked(mask)
            pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(colours[label - 1], np.float32)
        image = Image.fromarray(pixels.round().astype(np.uint8))
    scale = SHOWN_PX / max(image.size)
    drawn = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(drawn)
    for box, label in zip(boxes, labels, strict=True):
        pen.rectangle([float(value) * scale for value in box], outline=colours[label - 1], width=2)
    square = Image.new("RGB", (SHOWN_PX, SHOWN_PX), "white")  # a page shows the middle square of a picture
    square.paste(drawn, ((SHOWN_PX - drawn.width) // 2, (SHOWN_PX - drawn.height) // 2))
    return square


def _tally(labels: IntArray, names: Sequence[str]) -> str:
    kinds, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    told = [f"{counts[place]} {names[kinds[place] - 1]}" for place in order[:NAMES_IN_A_NOTE]]
    return ", ".join([*told, *(["..."] if len(kinds) > NAMES_IN_A_NOTE else [])]) or "nothing"
