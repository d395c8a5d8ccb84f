"""Semantic segmentation sets: images and masks that give every pixel a class, in the layouts that people have them in.

A mask is read as it is stored (palette, grey or 16-bit PNG: the number is the class) and comes back as int16 classes with ``VOID`` where
nobody says what it is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin

from sightline.contracts import IntArray
from sightline.data.images import MAX_PIXELS, BadImage, read_bytes
from sightline.errors import DataError

Mask = npt.NDArray[np.int16]
"""Classes int16 ``[H, W]`` in 0..C-1, ``VOID`` where a pixel counts for nothing."""

Layout = Literal["auto", "ade20k", "camvid", "coco", "folders"]

VOID = -1
UNKNOWN = -2
"""What no list of classes names: a mask that holds it is a bad file."""

NUM_VALUES = 2**16
NUM_CLASSES_MOST = 2**15 - 1
NUM_FOLDERS_TRIED = 50
PLAIN_VOID = 255

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void")
"""SegNet's order, for copies without a list of their own."""

COCO_STUFF = 182
"""Categories in COCO-Stuff's numbering, some of which no image shows."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """Images with masks, by part; ``class_of`` int16 ``[65536]`` gives the class (or ``VOID``, ``UNKNOWN``) of each number in a mask.

    ``unpaired`` are images of sets that should have a mask for each and do not, and masks without their image.
    """

    layout: str
    root: Path
    class_names: tuple[str, ...]
    class_of: npt.NDArray[np.int16]
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    test: tuple[Pair, ...] = ()
    unpaired: tuple[tuple[Path, str], ...] = ()

    def __post_init__(self) -> None:
        if self.class_of.shape != (NUM_VALUES,) or self.class_of.dtype != np.int16:
            raise ValueError(f"class_of must be int16 [{NUM_VALUES}], got {self.class_of.dtype} {self.class_of.shape}")
        if not self.class_names or int(self.class_of.max()) >= len(self.class_names):
            raise ValueError(f"class_of goes to {self.class_of.max()}, and there are {len(self.class_names)} class names")

    @property
    def num_classes(self) -> int:
        """C, void not among them."""
        return len(self.class_names)

    def part(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of ``train``, ``val`` or ``test``.

        Raises:
            DataError: there are none.
        """
        pairs: tuple[Pair, ...] = {"train": self.train, "val": self.val, "test": self.test}[name]
        if not pairs:
            raise DataError(f"{self.root} ({self.layout}) has no image with a mask in '{name}': {_WHERE[self.layout].format(name=name)}")
        return pairs

    def mask(self, file: Path, size: tuple[int, int]) -> Mask:
        """Return the classes in a mask of an image of ``size`` (width, height).

        Raises:
            BadImage: it cannot be read, is of another size, or holds a number that is no class.
        """
        values = read_mask(file)
        if values.shape != size[::-1]:
            raise BadImage("another size", f"the mask is {values.shape[1]} x {values.shape[0]}, its image {size[0]} x {size[1]}")
        if len(wrong := values[(values < 0) | (values >= NUM_VALUES)]):
            raise BadImage("no such class", f"it holds {wrong[0]}, and numbers go to {NUM_VALUES - 1}")
        classes: Mask = self.class_of[values]
        if (classes == UNKNOWN).any():
            raise BadImage(
                "no such class", f"it holds {values[classes == UNKNOWN].min()}, which is none of the {self.num_classes} classes, nor void"
            )
        return classes


def require_several_classes(data: SegmentationSet, pairs: Sequence[Pair], part: str) -> None:
    """Return as soon as the masks of ``pairs`` have shown two classes; masks that cannot be read are passed over here.

    Raises:
        DataError: they show one, or none: then every pixel would be right, whatever the model.
    """
    shown: set[int] = set()
    num_void = num_read = 0
    stored: set[int] = set()
    for pair in pairs:
        try:
            values = read_mask(pair.mask)
        except BadImage:
            continue
        within = values[(values >= 0) & (values < NUM_VALUES)]
        classes = data.class_of[within]
        shown |= set(np.unique(classes[classes >= 0]).tolist())
        if len(shown) > 1:
            return
        stored |= set(np.unique(within).tolist())
        num_void, num_read = num_void + int((classes == VOID).sum()), num_read + 1
    if not num_read:
        return  # each is told as a bad file
    what = f"one class ('{data.class_names[shown.pop()]}')" if shown else "no class"
    remedy = "label something else in them too"
    if num_void and PLAIN_VOID in stored and data.class_of[PLAIN_VOID] == VOID:
        absent = [name for name in data.class_names if name not in what]
        remedy = f"{PLAIN_VOID} is void: where masks of 0 and {PLAIN_VOID} are meant to show '{absent[0] if absent else 'a class'}', write 1 for {PLAIN_VOID}"
    raise DataError(f"the masks of '{part}' in {data.root} show {what} and otherwise void, so nothing can be wrong: {remedy}")


_WHERE = {
    "ade20k": "images/{{training,validation}} and annotations/{{training,validation}} belong there",
    "camvid": "{name}/ and {name}annot/ belong there",
    "coco": "images/{{train,val}}2017 and semantic/ (or stuffthingmaps/) {{train,val}}2017 belong there",
    "folders": "images/{name}/ and masks/{name}/ belong there",
}


def read(root: Path, layout: Layout = "auto") -> SegmentationSet:
    """Return the set in ``root``, or in a folder directly inside it; ``auto`` tells the layout by its folders.

    Raises:
        DataError: it is in none of the layouts, or a list of classes is missing or damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the images and their masks")
    for folder, reader in _found(root, layout):
        return reader(folder)
    wanted = "ADE20K's annotations/, CamVid's valannot/, COCO's semantic/ or stuffthingmaps/, or masks/ beside images/"
    asked = wanted if layout == "auto" else f"the layout {layout} ({_WHERE[layout].format(name='val')})"
    raise DataError(f"{root} is no segmentation set: looked there and in the folders inside it for {asked}")


def is_one(root: Path) -> bool:
    """Return whether ``read`` finds a set in ``root``."""
    return root.is_dir() and any(True for _ in _found(root, "auto"))


def _found(root: Path, layout: Layout) -> Iterator[tuple[Path, Callable[[Path], SegmentationSet]]]:
    inside = sorted(folder for folder in root.iterdir() if folder.is_dir())[:NUM_FOLDERS_TRIED]
    for folder in (root, *inside):
        for name, (is_of_it, reader) in _READERS.items():
            if layout in ("auto", name) and is_of_it(folder):
                yield folder, reader


def read_mask(file: Path) -> IntArray:
    """Return the numbers int64 ``[H, W]`` that a PNG stores: palette entries, grey levels or 16-bit values, never colours.

    Raises:
        BadImage: it cannot be read, is no PNG, or has colours.
    """
    content = read_bytes(file)
    if not content:
        raise BadImage("zero bytes")
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BadImage("not a mask", "masks are PNG files: others lose numbers")
    try:
        picture = PngImagePlugin.PngImageFile(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise BadImage("too many pixels", f"{picture.width:,} x {picture.height:,}, more than {MAX_PIXELS / 1e6:,.0f} million")
        if picture.mode not in {"1", "L", "P", "I", "I;16"}:
            raise BadImage("not a mask", f"it has colours ({picture.mode}): a mask holds one number a pixel, its class")
        values: IntArray = np.asarray(picture).astype(np.int64)
    except BadImage:
        raise
    except Exception as error:  # Pillow raises nearly every class there is on hostile bytes; each becomes a named reason
        raise BadImage("damaged", str(error).splitlines()[0][:120] if str(error) else type(error).__name__) from error
    return values


def spread(pairs: Sequence[Pair], most: int) -> tuple[Pair, ...]:
    """Return at most ``most`` of the pairs, evenly spaced over them; 0 is all."""
    if not most or len(pairs) <= most:
        return tuple(pairs)
    return tuple(pairs[row] for row in np.linspace(0, len(pairs) - 1, most).round().astype(int))


# --- layouts ----------------------------------------------------------------------------------------------------------------------


def ade20k(root: Path) -> SegmentationSet:
    """Return ADE20K as the scene parsing challenge has it (ADEChallengeData2016): 150 classes, 0 ("other") is void.

    Source: Zhou et al. 2017, arXiv 1608.05442.
    """
    names = [f"class {number}" for number in range(1, 151)]
    listed = root / "objectInfo150.txt"
    if listed.is_file():
        rows = [line.split("\t") for line in _lines(listed)[1:]]
        if len(rows) != 150 or any(len(row) != 5 for row in rows):
            raise DataError(f"{listed} does not hold 150 lines of 5 columns: unpack the data set again")
        names = [row[4].strip().split(",")[0] for row in rows]
    parts = {
        part: (root / "images" / folder, root / "annotations" / folder) for part, folder in (("train", "training"), ("val", "validation"))
    }
    return _paired("ade20k", root, names, _numbers({0: VOID, **{number: number - 1 for number in range(1, 151)}}), parts)


def camvid(root: Path) -> SegmentationSet:
    """Return CamVid as SegNet's authors lay it out: ``{train,val,test}/`` beside ``{train,val,test}annot/``, 11 classes and void.

    Source: Brostow, Fauqueur & Cipolla 2009; the 11 classes of Badrinarayanan, Kendall & Cipolla 2015, arXiv 1511.00561.
    """
    listed = root / "classes.txt"
    names = _class_list(listed) if listed.is_file() else list(CAMVID)
    shown = [name for name in names if name.lower() != "void"]
    numbers = {number: shown.index(name) if name in shown else VOID for number, name in enumerate(names)}
    parts = {part: (root / part, root / f"{part}annot") for part in ("train", "val", "test")}
    return _paired("camvid", root, shown, _numbers(numbers), parts)


def coco(root: Path) -> SegmentationSet:
    """Return COCO's images with masks of categories; an image without a mask is left out, as many of a subset have none.

    ``semantic/{train,val}2017/*.png`` holds category ids, 0 is void, ``semantic_categories.json`` (there or in ``annotations/``) names them;
    ``stuffthingmaps/{train,val}2017/*.png`` is COCO-Stuff's: id - 1, 255 is void, named by its ``labels.txt`` where that is there.

    Source: Kirillov et al. 2019, arXiv 1801.00868; Caesar, Uijlings & Ferrari 2018, arXiv 1612.03716.
    """
    if (root / "semantic").is_dir():
        masks, (names, numbers) = root / "semantic", _categories(root)
    else:
        masks = root / "stuffthingmaps"
        names = _stuff_names(root / "labels.txt")
        numbers = {**{number: number for number in range(COCO_STUFF)}, PLAIN_VOID: VOID}
    parts = {part: (root / "images" / f"{part}2017", masks / f"{part}2017") for part in ("train", "val")}
    return replace(_paired("coco", root, names, _numbers(numbers), parts), unpaired=())


def folders(root: Path) -> SegmentationSet:
    """Return anybody's own data: ``images/{train,val}/``, ``masks/{train,val}/`` of the same names, ``classes.txt`` (a line each), 255 void."""
    names = _class_list(root / "classes.txt")
    numbers = {number: number for number in range(len(names))}
    parts = {part: (root / "images" / part, root / "masks" / part) for part in ("train", "val", "test")}
    return _paired("folders", root, names, _numbers({PLAIN_VOID: VOID, **numbers}), parts)


_READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], SegmentationSet]]] = {
    "ade20k": (lambda root: any((root / "annotations" / part).is_dir() for part in ("training", "validation")), ade20k),
    "camvid": (lambda root: any((root / f"{part}annot").is_dir() for part in ("train", "val", "test")), camvid),
    "coco": (
        lambda root: any((root / kind / f"{p}2017").is_dir() for kind in ("semantic", "stuffthingmaps") for p in ("train", "val")),
        coco,
    ),
    "folders": (lambda root: (root / "masks").is_dir() and (root / "images").is_dir(), folders),
}


def _paired(
    layout: str, root: Path, names: Sequence[str], class_of: npt.NDArray[np.int16], parts: Mapping[str, tuple[Path, Path]]
) -> SegmentationSet:
    pairs: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[tuple[Path, str]] = []
    for part, (images_in, masks_in) in parts.items():
        images, masks = _files(images_in, IMAGE_SUFFIXES), _files(masks_in, frozenset({".png"}))
        pairs[part] = tuple(Pair(images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))
        unpaired += [(images[stem], f"no mask: {masks_in.name}/{stem}.png is missing") for stem in sorted(images.keys() - masks.keys())]
        unpaired += [(masks[stem], f"no image: {images_in.name}/{stem}.jpg is missing") for stem in sorted(masks.keys() - images.keys())]
    return SegmentationSet(layout, root, tuple(names), class_of, **pairs, unpaired=tuple(unpaired))


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return {path.stem: path for path in sorted(found)}


def _numbers(classes: Mapping[int, int]) -> npt.NDArray[np.int16]:
    class_of = np.full(NUM_VALUES, UNKNOWN, np.int16)
    class_of[list(classes.keys())] = list(classes.values())
    return class_of


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: it names the classes, a line each, the first being number 0") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): it names the classes, a line each") from error


def _class_list(file: Path) -> list[str]:
    """Return the names in a list, whose lines may begin with their number."""
    lines = [line.strip() for line in _lines(file)]
    if all(line.split()[0] == str(number) and len(line.split()) > 1 for number, line in enumerate(lines)):
        lines = [line.split(maxsplit=1)[1] for line in lines]
    if not lines or len(lines) > NUM_CLASSES_MOST or len(set(lines)) < len(lines):
        raise DataError(f"{file} must name 1 to {NUM_CLASSES_MOST:,} classes, each once, and has {len(lines):,} lines")
    return lines


def _categories(root: Path) -> tuple[list[str], dict[int, int]]:
    places = [folder / "semantic_categories.json" for folder in (root, root / "semantic", root / "annotations")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(
            f"{root} has no semantic_categories.json (a list of id and name), there or in annotations/: it names what masks hold"
        )
    try:
        listed = sorted((int(one["id"]), str(one["name"])) for one in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is not a list of categories with id and name ({error!r}): get the file again") from error
    ids = [number for number, _ in listed]
    if not ids or len(set(ids)) < len(ids) or not 0 < ids[0] <= ids[-1] < NUM_VALUES or len(ids) > NUM_CLASSES_MOST:
        raise DataError(f"{file} must list ids from 1 to {NUM_VALUES - 1:,}, each once: get the file again")
    return [name for _, name in listed], {0: VOID, **{number: place for place, number in enumerate(ids)}}


def _stuff_names(file: Path) -> list[str]:
    names = [f"category {number}" for number in range(1, COCO_STUFF + 1)]
    for line in _lines(file) if file.is_file() else []:
        number, colon, name = line.partition(":")
        if colon and number.strip().isdecimal() and 1 <= int(number) <= COCO_STUFF:
            names[int(number) - 1] = name.strip()
    return names
