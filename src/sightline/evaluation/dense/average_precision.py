"""COCO's average precision, by pycocotools: boxes and masks, over all and class by class.

Source: Lin et al. 2014, arXiv 1405.0312; the measures as on the data set's own page.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.data.instances import mask_tools, packed
from sightline.data.sets.coco import Annotated

Kind = Literal["box", "mask"]
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES_OF_MASKS = ("ap_mask", "ap_mask50", "ap_mask75", "ap_mask_small", "ap_mask_medium", "ap_mask_large")


@dataclass(frozen=True)
class Found:
    """What was found in one image: ``boxes`` float32 ``[K, 4]`` (x0, y0, x1, y1 in the file's pixels), ``labels`` int64 ``[K]`` from 1, ``scores`` float32 ``[K]``.

    ``masks`` are pycocotools' packed masks of the whole image, one an object; None where only boxes are sought.
    """

    boxes: FloatArray
    labels: IntArray
    scores: FloatArray
    masks: Sequence[Mapping[str, Any]] | None = None


def average_precision(
    truth: Annotated, found: Mapping[int, Found], kind: Kind = "box"
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the measures over all classes, and ``ap`` and ``ap50`` of each class that occurs, on the images (rows) that ``found`` has.

    A measure for which there is no object (no small one, say) is left out. Crowds are neither to be found nor wrong to find.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = NAMES if kind == "box" else NAMES_OF_MASKS
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes, and standard output is for the answer
        expected, given = COCO(), COCO()
        frame = {
            "images": [{"id": row + 1, "width": int(truth.sizes[row][0]), "height": int(truth.sizes[row][1])} for row in sorted(found)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(truth.class_names, 1)],
        }
        expected.dataset = {**frame, "annotations": _truth(truth, sorted(found), kind)}
        given.dataset = {**frame, "annotations": _answers(found, kind)}
        expected.createIndex()
        given.createIndex()
        evaluation = COCOeval(expected, given, "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    measures = {name: float(value) for name, value in zip(names, evaluation.stats[:6], strict=True) if value >= 0}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [thresholds, recalls, classes], all sizes, 100 an image
    groups = {
        name: {names[0]: float(of_class.mean()), names[1]: float(of_class[0].mean())}
        for name, of_class in zip(truth.class_names, np.moveaxis(precision, 2, 0), strict=True)
        if of_class.min() >= 0
    }
    return measures, groups


def _truth(truth: Annotated, rows: Sequence[int], kind: Kind) -> list[dict[str, Any]]:
    items = []
    for row in rows:
        size = int(truth.sizes[row][1]), int(truth.sizes[row][0])
        places = truth.objects(row)
        for place in range(places.start, places.stop):
            mask = truth.masks[place]
            item = {
                "id": place + 1,  # pycocotools takes 0 for no object
                "image_id": row + 1,
                "category_id": int(truth.labels[place]),
                "bbox": _corner_and_extent(truth.boxes[place]),
                "area": float(truth.areas[place]),
                "iscrowd": int(truth.is_crowd[place]),
            }
            if kind == "box":
                items.append(item)
            elif mask is not None:
                items.append({**item, "segmentation": packed(mask, size)})
    return items


def _answers(found: Mapping[int, Found], kind: Kind) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for row, one in sorted(found.items()):
        for place in range(len(one.labels)):
            box = _corner_and_extent(one.boxes[place])
            item = {
                "id": len(items) + 1,
                "image_id": row + 1,
                "category_id": int(one.labels[place]),
                "score": float(one.scores[place]),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            if kind == "mask" and one.masks is not None:
                item |= {"segmentation": one.masks[place], "area": float(mask_tools().area(one.masks[place]))}
            items.append(item)
    return items


def _corner_and_extent(box: FloatArray) -> list[float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return [x0, y0, x1 - x0, y1 - y0]
