"""DAVIS: videos with the mask of every object in every frame, in the layout of its authors; frames are read as they are needed.

    DAVIS/JPEGImages/480p/SEQUENCE/00000.jpg      DAVIS/Annotations/480p/SEQUENCE/00000.png      DAVIS/ImageSets/2017/val.txt

DAVIS-2017 numbers several objects by their index in the mask's palette; 255 is void. DAVIS-2016 has one object a sequence: whatever
is not 0 in its masks, which are 0/255 in some copies and 0/1 in others, and the union of the objects in the masks of 2017.

Source: Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object segmentation"; Pont-Tuset et al. 2017,
arXiv 1704.00675.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sightline.data.images import BadImage, read_bytes
from sightline.data.judged import absent
from sightline.data.listing import save_drawing
from sightline.errors import DataError, nearest

Year = Literal["2016", "2017"]
MaskArray = npt.NDArray[np.uint8]

VOID = 255
YEARS: tuple[Year, ...] = ("2017", "2016")
"""In the order in which ``auto`` looks for their lists."""

NUM_SEQUENCES = {
    ("2016", "train"): 30,
    ("2016", "val"): 20,
    ("2017", "train"): 60,
    ("2017", "val"): 30,
    ("2017", "test-dev"): 30,
    ("2017", "test-challenge"): 30,
}
"""In the authors' lists."""

FRAMES, MASKS, LISTS, USUAL = "JPEGImages", "Annotations", "ImageSets", "480p"
WHERE = "the page of the DAVIS challenge has it, as TrainVal in 480p"
_INDEXED = ("P", "L", "1")


@dataclass(frozen=True)
class Video:
    """One video: its frames in order and, by frame name (``00000``), the masks that there are; the first frame always has one."""

    name: str
    frames: tuple[Path, ...]
    masks: Mapping[str, Path]

    @property
    def first_mask(self) -> Path:
        """The mask that is given."""
        return self.masks[self.frames[0].stem]

    @property
    def unmasked(self) -> tuple[str, ...]:
        """The frames between the first and the last, which are what is measured, that have no mask."""
        return tuple(frame.stem for frame in self.frames[1:-1] if frame.stem not in self.masks)


@dataclass(frozen=True)
class Davis:
    """The sequences of one list, at one resolution."""

    root: Path
    year: Year
    split: str
    resolution: str
    sequences: tuple[Video, ...]

    @property
    def name(self) -> str:
        """What was read, such as ``davis 2017 val 480p``; a partial list shows its length."""
        num, official = len(self.sequences), NUM_SEQUENCES.get((self.year, self.split))
        marked = f" ({num} sequence{'' if num == 1 else 's'}, not {official})" if official not in (None, num) else ""
        return f"davis {self.year} {self.split} {self.resolution}{marked}"

    def mask(self, path: Path) -> MaskArray:
        """Return a mask uint8 ``[H, W]``: the object's number, 0 background, 255 void; of 2016, 0 and 1.

        Raises:
            BadImage: the file cannot be read, or holds colours instead of numbers.
        """
        return read_mask(path, single=self.year == "2016")


def read(root: Path, *, year: Literal["auto", "2016", "2017"] = "auto", split: str = "val", resolution: str = "auto") -> Davis:
    """Return the sequences that ``ImageSets/YEAR/SPLIT.txt`` lists below ``root``, or below the folder DAVIS in it.

    Args:
        root: the folder that holds JPEGImages, Annotations and ImageSets.
        year: 2017 (several objects) or 2016 (one); auto takes 2017 where it has such a list.
        split: the list's name.
        resolution: a folder of JPEGImages; auto takes 480p, else the only one.

    Raises:
        DataError: something is missing; the message names it.
    """
    home = root / "DAVIS" if not (root / FRAMES).is_dir() and (root / "DAVIS").is_dir() else root
    lacking = {f"{part}/": what for part, what in _PARTS.items() if not (home / part).is_dir()}
    if lacking:
        raise absent(home, "davis", lacking, WHERE)
    found = next((one for one in YEARS if year in ("auto", one) and (home / LISTS / one / f"{split}.txt").is_file()), None)
    if found is None:
        lists = sorted(f"{file.parent.name}/{file.stem}" for one in YEARS for file in (home / LISTS / one).glob("*.txt"))
        wanted = f"{LISTS}/{'2017 or 2016' if year == 'auto' else year}/{split}.txt"
        raise DataError(f"{home} has no {wanted}{nearest(f'{year}/{split}', lists)}")
    chosen = _resolution(home, resolution)
    names = _names(home / LISTS / found / f"{split}.txt")
    return Davis(home, found, split, chosen, tuple(_sequence(home, chosen, name) for name in names))


_PARTS = {FRAMES: "480p/SEQUENCE/00000.jpg, ...", MASKS: "480p/SEQUENCE/00000.png, ...", LISTS: "2017/val.txt or 2016/val.txt"}


def _resolution(home: Path, asked: str) -> str:
    there = sorted(folder.name for folder in (home / FRAMES).iterdir() if folder.is_dir())
    chosen = asked if asked != "auto" else USUAL if USUAL in there else there[0] if len(there) == 1 else ""
    if not chosen:
        raise DataError(f"{home / FRAMES} has no {USUAL} but {', '.join(there) or 'nothing'}: choose one with resolution=NAME")
    if chosen not in there:
        raise DataError(f"{home / FRAMES} has no resolution '{chosen}'{nearest(chosen, there)}")
    if not (home / MASKS / chosen).is_dir():
        raise DataError(f"{home / MASKS / chosen} is missing: the masks have to be of the frames' resolution")
    return chosen


def _names(file: Path) -> list[str]:
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): unpack the data set again") from error
    if not names:
        raise DataError(f"{file} names no sequence: unpack the data set again")
    return names


def _sequence(home: Path, resolution: str, name: str) -> Video:
    folder, masks = home / FRAMES / resolution / name, home / MASKS / resolution / name
    frames = tuple(sorted(folder.glob("*.jpg")))
    if not frames:
        raise DataError(f"{folder} has no .jpg frames: complete it, or take {name} out of the list")
    if len(frames) < 3:
        raise DataError(f"{folder} has {len(frames)} frames: three are needed, for the first and the last are not measured")
    found = {file.stem: file for file in sorted(masks.glob("*.png"))}
    if frames[0].stem not in found:
        raise DataError(f"{masks / frames[0].stem}.png is missing: the first frame's mask is what is propagated")
    lacking = sorted(found.keys() - {frame.stem for frame in frames})
    if lacking:
        raise DataError(f"{folder} lacks {len(lacking)} of the frames that have a mask (first: {lacking[0]}.jpg): unpack {name} again")
    return Video(name, frames, found)


def read_mask(path: Path, *, single: bool = False) -> MaskArray:
    """Return a mask uint8 ``[H, W]`` of object numbers as they stand in the file; ``single``: 1 wherever it is not 0.

    Raises:
        BadImage: the file cannot be read, or holds colours where numbers are wanted.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            opened.load()
            if opened.mode not in _INDEXED and not single:
                raise BadImage("not a mask", f"it holds colours ({opened.mode}), not the numbers of objects")
            plain = np.asarray(opened) if opened.mode in _INDEXED else np.asarray(opened.convert("RGB")).max(axis=2)
            numbers = plain.astype(np.uint8)
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise nearly every class there is on damaged bytes
        raise BadImage("damaged", str(error).splitlines()[0][:120] if str(error) else type(error).__name__) from error
    return np.minimum(numbers, 1) if single else numbers


def palette() -> bytes:
    """Return the 256 colours of the masks, as in PASCAL VOC: the bits of a number, three at a time, from the top of red, green and blue."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours.tobytes()


def write_mask(path: Path, mask: MaskArray) -> None:
    """Write a mask as a PNG with a palette, as the official evaluator reads it."""
    image = Image.fromarray(mask)
    image.putpalette(palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    save_drawing(image, path, tagged=False)  # a submission holds nothing but masks
