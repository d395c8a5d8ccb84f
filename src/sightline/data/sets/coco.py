"""Detection sets in COCO's format: images, and a JSON file a split that says which objects stand in each, by box and by mask.

Source: Lin et al. 2014, arXiv 1405.0312; the format as on the data set's own page.

Two layouts: COCO's (``annotations/instances_train2017.json`` beside ``train2017/`` or ``images/train2017/``), and one folder of images beside
``annotations/train.json`` and ``val.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.contracts import BoolArray, FloatArray, IntArray
from sightline.errors import DataError

Split = Literal["train", "val"]

IMAGE_FOLDERS = ("images/{name}", "{name}", "images/{split}", "{split}", "JPEGImages", "images", ".")
"""Where the images of a split may lie; ``name`` is the split with its year, such as train2017."""


@dataclass(frozen=True)
class Polygons:
    """A mask as outlines: each ``[n, 2]`` float32 of x, y in pixels; their union is the object."""

    outlines: tuple[FloatArray, ...]


@dataclass(frozen=True)
class Runs:
    """A mask as run lengths int64 down the columns of an image of ``size`` (height, width): zeros first, then ones, by turns."""

    lengths: IntArray
    size: tuple[int, int]


Mask = Polygons | Runs


@dataclass(frozen=True)
class Annotated:
    """Images and the objects in them: object a stands in image ``image_of[a]``, and those of one image follow one another.

    ``sizes`` int64 ``[M, 2]`` (width, height), ``boxes`` float32 ``[A, 4]`` (x0, y0, x1, y1, within the image), ``labels`` int64 ``[A]`` from 1 to C along
    ``class_names``, ``areas`` float32 ``[A]`` in square pixels, ``is_crowd`` bool ``[A]`` (many of a kind under one mask), ``masks`` (None: unknown).
    """

    root: Path
    paths: tuple[str, ...]
    sizes: IntArray
    class_names: tuple[str, ...]
    image_of: IntArray
    boxes: FloatArray
    labels: IntArray
    areas: FloatArray
    is_crowd: BoolArray
    masks: tuple[Mask | None, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_masks(self) -> bool:
        """Whether every object that is not a crowd has a mask."""
        return all(mask is not None or crowd for mask, crowd in zip(self.masks, self.is_crowd, strict=True))

    def objects(self, row: int) -> slice:
        """Return the place of an image's objects among all."""
        first, last = np.searchsorted(self.image_of, [row, row + 1])
        return slice(int(first), int(last))

    def file(self, row: int) -> Path:
        """Return the file of an image."""
        return self.root / self.paths[row]


def read(root: Path, split: Split, *, annotations: str = "", verify: bool = True) -> Annotated:
    """Return the images of a split (train or val) and their objects.

    Boxes are clipped to their image; objects without extent are left out. Classes are the file's categories in the order of their ids.

    Args:
        root: the data set's folder.
        split: train or val.
        annotations: what the file's name begins with; empty takes instances_train2017.json (any year), else train.json.
        verify: check that every image is there.

    Raises:
        DataError: a file is missing or is not what it should be, or (``verify``) images are missing.
    """
    file = _annotation_file(root, split, annotations)
    content = _load(file)
    images, categories = _table(file, content, "images"), _table(file, content, "categories")
    if not images or not categories:
        raise DataError(f"{file} lists {'no images' if not images else 'no categories'}: get the file again")
    row_of, paths, sizes = _images(file, images)
    label_of = {number: place for place, number in enumerate(sorted(category["id"] for category in categories), 1)}
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    objects = sorted(_objects(file, _table(file, content, "annotations"), row_of, label_of, sizes), key=lambda item: item[0])
    folder = _image_folder(root, split, file, paths)
    found = Annotated(
        root=folder,
        paths=paths,
        sizes=sizes,
        class_names=tuple(names[number] for number in label_of),
        image_of=np.array([item[0] for item in objects], np.int64),
        boxes=np.array([item[1] for item in objects], np.float32).reshape(-1, 4),
        labels=np.array([item[2] for item in objects], np.int64),
        areas=np.array([item[3] for item in objects], np.float32),
        is_crowd=np.array([item[4] for item in objects], np.bool_),
        masks=tuple(item[5] for item in objects),
    )
    if verify:
        absent = [path for path in paths if not (folder / path).is_file()]
        if absent:
            raise DataError(
                f"{len(absent):,} of {len(paths):,} images of {file.name} are missing in {folder} (first: {absent[0]}): complete them, or add verify=false"
            )
    return found


# --- files ------------------------------------------------------------------------------------------------------------------------


def _annotation_file(root: Path, split: Split, annotations: str) -> Path:
    folder = root / "annotations"
    stems = (f"{annotations}_{split}",) if annotations else (f"instances_{split}", split)
    for stem in stems:
        found = sorted(file for file in folder.glob(f"{stem}*.json") if file.stem.removeprefix(stem).isdecimal() or file.stem == stem)
        if len(found) > 1:
            raise DataError(f"{folder} holds {' and '.join(file.name for file in found)}: leave the one to use for {split}")
        if found:
            return found[0]
    wanted = f"{stems[0]}2017.json" + ("" if annotations else f" or {split}.json")
    raise DataError(f"{root} is no COCO-format set: {wanted} is missing in {folder}; give the folder that holds annotations/")


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({str(error)[:120]}): get the file again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is no COCO-format file: it holds no images, annotations and categories")
    return content


def _table(file: Path, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) and (key == "annotations" or "id" in item) for item in found):
        raise DataError(f"{file} is no COCO-format file: it has no list '{key}' of objects with ids")
    twice = [number for number, count in Counter(item["id"] for item in found).items() if count > 1] if key != "annotations" else []
    if twice:
        raise DataError(f"{file} gives the id {twice[0]} to more than one of its {key}: get the file again")
    return found


def _images(file: Path, images: list[dict[str, Any]]) -> tuple[dict[Any, int], tuple[str, ...], IntArray]:
    try:
        paths = tuple(str(image["file_name"]) for image in images)
        sizes = np.array([[int(image["width"]), int(image["height"])] for image in images], np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} has an image without file_name, width and height ({error}): get the file again") from error
    if sizes.min() < 1:
        raise DataError(f"{file} has an image of no extent ({paths[int(sizes.min(axis=1).argmin())]}): get the file again")
    return {image["id"]: row for row, image in enumerate(images)}, paths, sizes


def _image_folder(root: Path, split: Split, file: Path, paths: tuple[str, ...]) -> Path:
    name = split + file.stem.rpartition(split)[2]
    places = [root / where.format(name=name, split=split) for where in IMAGE_FOLDERS]
    for path in paths[:8]:  # the first may be among the missing
        for place in places:
            if (place / path).is_file():
                return place
    shown = ", ".join(where.format(name=name, split=split) for where in IMAGE_FOLDERS[:-1])
    raise DataError(f"{root} holds none of the images that {file.name} lists (such as {paths[0]}): looked in {shown} and the folder itself")


# --- objects ----------------------------------------------------------------------------------------------------------------------

_Object = tuple[int, list[float], int, float, bool, Mask | None]


def _objects(
    file: Path, annotations: list[dict[str, Any]], row_of: Mapping[Any, int], label_of: Mapping[Any, int], sizes: IntArray
) -> Iterator[_Object]:
    for number, item in enumerate(annotations):
        where = f"annotation {item.get('id', number)} of {file}"
        try:
            row, label = row_of[item["image_id"]], label_of[item["category_id"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} names an image or a category that the file does not list ({error}): get the file again") from error
        try:
            mask = _mask(item.get("segmentation"), sizes[row])
            box = _box(item.get("bbox"), mask, sizes[row])
            area = float(item["area"]) if "area" in item else (box[2] - box[0]) * (box[3] - box[1])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where} has no box or mask that can be read ({error}): get the file again") from error
        if box[2] > box[0] and box[3] > box[1]:
            yield row, box, label, area, bool(item.get("iscrowd", 0)), mask


def _box(box: Any, mask: Mask | None, size: IntArray) -> list[float]:
    if box is not None:
        x, y, width, height = (float(value) for value in box)
        corners = np.array([x, y, x + width, y + height])
    elif isinstance(mask, Polygons):
        points = np.concatenate(mask.outlines)
        corners = np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif isinstance(mask, Runs):
        corners = _box_of(decode_runs(mask))
    else:
        raise ValueError("neither bbox nor segmentation")
    if not np.isfinite(corners).all():
        raise ValueError("a corner that is no finite number")
    return [float(value) for value in np.clip(corners, 0, np.tile(size, 2))]


def _box_of(mask: BoolArray) -> Any:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _mask(given: Any, size: IntArray) -> Mask | None:
    """Return a mask of the file; None for none, and for outlines of fewer than three points."""
    if isinstance(given, dict):
        height, width = (int(side) for side in given["size"])
        if (width, height) != tuple(size):
            raise ValueError(f"a mask of {width} x {height} pixels in an image of {size[0]} x {size[1]}")
        counts = given["counts"]
        lengths = unpack_lengths(counts) if isinstance(counts, str) else np.array(counts, np.int64).reshape(-1)
        if len(lengths) and (lengths.min() < 0 or int(lengths.sum()) != width * height):
            raise ValueError("run lengths that do not fill the image")
        return Runs(lengths, (height, width))
    outlines = [np.array(outline, np.float32) for outline in given or ()]
    if any(outline.ndim != 1 or len(outline) % 2 or not np.isfinite(outline).all() for outline in outlines):
        raise ValueError("an outline that is no list of x, y")
    kept = tuple(outline.reshape(-1, 2) for outline in outlines if len(outline) >= 6)
    return Polygons(kept) if kept else None


def unpack_lengths(text: str) -> IntArray:
    """Return the run lengths of COCO's packed form: 5 bits a character from 48 on, the lowest first; from the fourth on, differences to the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("a mask whose packed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return np.array(lengths, np.int64)


def decode_runs(runs: Runs) -> BoolArray:
    """Return the mask ``[H, W]`` of run lengths."""
    height, width = runs.size
    flat = np.repeat(np.arange(len(runs.lengths)) % 2 == 1, runs.lengths)
    return flat.reshape(width, height).T if len(flat) else np.zeros(runs.size, np.bool_)
