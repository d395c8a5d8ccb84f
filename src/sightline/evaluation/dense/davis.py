"""DAVIS by label propagation: the first frame's masks are carried through the video by patch features alone; nothing is trained.

Source: Caron et al. 2021, arXiv 2104.14294, section 4.2.2, and its code (facebookresearch/dino, ``eval_video_segmentation.py``): context of
the first frame and the seven latest, the five closest patches, within 12 patches, exp(cosine / 0.1); frames at a short side of 480 px.

Departs: frames are normalised as the model was trained, where the code divides red by .228 instead of ImageNet's .229 for every model
(``std=dino`` does so too). Sides that the model's patch does not divide are rounded down until it does; the code takes patches of 8 and
16 px alone. Void pixels are left out of what is measured, as the official metrics define it; the official reader turns them into
background before its metrics can see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sightline import runtime
from sightline.data.images import BadFiles, BadImage, decode
from sightline.data.loading import decode_stream
from sightline.data.sets import davis
from sightline.data.sets.davis import VOID, Davis, MaskArray, Video
from sightline.data.transforms import eval_transform, to_pixels
from sightline.errors import DataError, UsageError, explain_os_error
from sightline.evaluation.dense.base import DenseProtocol
from sightline.evaluation.dense.jandf import DoubleArray, boundary, contour, course, region
from sightline.evaluation.dense.propagation import Propagation
from sightline.evaluation.evaluation import Evaluation
from sightline.html import Picture
from sightline.nn.encoder import Encoder, evaluating
from sightline.progress import Bar
from sightline.recipe import IMAGENET_MEAN, ImageSpec
from sightline.runtime import Precision

LONG_MULTIPLE_PX = 64
DINO_STD = (0.228, 0.224, 0.225)
BATCH_FRAMES = 4
"""Frames that go through the model at a time; their labels follow one by one."""

SHOWN_PX = 640


@dataclass(frozen=True, kw_only=True)
class DavisProtocol(DenseProtocol):
    """Video object segmentation on DAVIS-2016 or DAVIS-2017: J (region), F (contour) and their mean."""

    name: ClassVar[str] = "davis"

    context: int = 7  # latest frames that labels are taken from, beside the first
    topk: int = 5  # most similar patches, over all context frames, that a patch takes its label from
    radius: int = 12  # how far away they may be, in patches; 0 is anywhere
    temperature: float = 0.1
    short_px: int = 480  # of a frame as the model sees it
    std: Literal["model", "dino"] = "model"  # dino: mean and deviation of its code, for any model
    year: Literal["auto", "2016", "2017"] = "auto"  # 2017 has several objects a sequence, 2016 one; auto is 2017 where it has the list
    split: str = "val"  # the list's name
    resolution: str = "auto"  # a folder of JPEGImages; auto is 480p, else the only one
    masks: str = ""  # a folder to write the predicted masks into, as they are submitted

    def __post_init__(self) -> None:
        if self.context < 0 or self.topk < 1 or self.radius < 0 or self.temperature <= 0 or self.short_px < LONG_MULTIPLE_PX:
            raise UsageError(
                "davis: context and radius are at least 0, topk at least 1, temperature above 0 and short_px at least "
                f"{LONG_MULTIPLE_PX}; got {self.context}, {self.radius}, {self.topk}, {self.temperature:g} and {self.short_px}"
            )

    def run(
        self,
        encoder: Encoder,
        root: Path,
        bad_files: BadFiles,
        *,
        train_root: Path | None = None,
        precision: Precision = "auto",
        num_shown: int = 0,
    ) -> Evaluation:
        """Return ``j&f``, ``j``, ``f`` and the recall and decay of both, means over objects; groups are sequence and object (``dog_1``).

        Frames come one batch at a time. A frame that cannot be read keeps the mask before it; a mask that cannot be read is not
        measured; a sequence that cannot begin is left out.

        Raises:
            DataError: the layout is not DAVIS's, or nothing in it can be measured.
        """
        del train_root  # nothing is fitted
        videos = davis.read(root, year=self.year, split=self.split, resolution=self.resolution)
        judged = self._judged(videos)
        groups: dict[str, dict[str, float]] = {}
        shown: list[tuple[float, Rows]] = []
        num_frames = 0
        with evaluating(encoder), Bar(videos.name, sum(len(video.frames) for video in videos.sequences)) as bar:
            for video in videos.sequences:
                first = _first_mask(videos, video, bad_files)
                if first is None:
                    continue
                run = _Run(self, encoder, videos, video, first, bad_files, precision)
                measured = run.scores(judged, partial(_tell, bar, num_frames, video.name))
                groups |= {f"{video.name}_{number}": values for number, values in enumerate(measured, 1)}
                num_frames += len(video.frames)
                if num_shown:
                    shown.append(run.shown(float(np.mean([values.get("j&f", math.nan) for values in measured]))))
        if not num_frames:
            raise DataError(f"no sequence of {videos.root} could be followed (first: {': '.join(bad_files.items()[0])})")
        counts = {"sequences": len({name.rpartition("_")[0] for name in groups}), "objects": len(groups), "frames": num_frames}
        groups = {name: values for name, values in groups.items() if values}
        settings = {**asdict(self), "year": videos.year, "resolution": videos.resolution}
        return Evaluation(
            protocol=videos.name,
            metrics=_means(groups),
            groups=groups,
            counts=counts,
            settings=settings,
            shown=_spread(shown, num_shown // 3),
        )

    def _judged(self, videos: Davis) -> bool:
        lacking = next((video for video in videos.sequences if video.unmasked), None)
        if lacking is not None and not self.masks:
            raise DataError(
                f"{videos.name} cannot be measured: {lacking.name} has no mask of frame {lacking.unmasked[0]}. Complete "
                f"{videos.root / davis.MASKS}, or, where only a server has the masks, write the predicted ones with masks=FOLDER"
            )
        return lacking is None

    def image_spec(self, encoder: Encoder) -> ImageSpec:
        """Return what frames are normalised by."""
        return ImageSpec(mean=IMAGENET_MEAN, std=DINO_STD) if self.std == "dino" else encoder.image


Rows = tuple[tuple[Picture, ...], ...]
Read = TypeVar("Read")

_METRICS = ("j&f", "j", "f", "j_recall", "j_decay", "f_recall", "f_decay")


def frame_size(height: int, width: int, short_px: int, multiple_px: int) -> tuple[int, int]:
    """Return the (height, width) that a frame is resized to.

    The short side becomes ``short_px``, the long one the multiple of 64 below what keeps the aspect, and both are then rounded down to
    multiples of the patch: 854 x 480 becomes 832 x 480 for patches of 8, 16 and 32 px, 826 x 476 for 14.
    """
    short, long = min(height, width), max(height, width)
    long_px = short_px * long // short // LONG_MULTIPLE_PX * LONG_MULTIPLE_PX
    sides = [max(multiple_px, side // multiple_px * multiple_px) for side in (short_px, long_px)]
    return (sides[1], sides[0]) if height > width else (sides[0], sides[1])


@dataclass(frozen=True)
class Frames:
    """The transform of a video's frames: resized to one size, bilinear without smoothing, and normalised."""

    size: tuple[int, int]
    image: ImageSpec
    short_px: int | None = None  # frames are decoded in full, as they are for the published numbers

    def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """Return uint8 ``[3, H, W]``: OpenCV's default resize, within one level of 255."""
        resized = F.interpolate(to_pixels(image)[None].float(), self.size, mode="bilinear", align_corners=False)
        return resized[0].round().to(torch.uint8)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, 3, H, W]``."""
        return eval_transform(self.image).normalise(pixels)


def stretch(labels: torch.Tensor) -> torch.Tensor:
    """Return soft labels ``[C, H, W]`` with each channel that has any stretched to 0..1, so that a small object is not outvoted.

    Departs: a channel that is the same everywhere becomes infinite, where the DINO code divides 0 by 0; either way it wins.
    """
    low, high = labels.amin(dim=(1, 2), keepdim=True), labels.amax(dim=(1, 2), keepdim=True)
    moved = labels - low
    top = moved.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > 0, torch.where(top > 0, moved / top, torch.inf), labels)


def _first_mask(videos: Davis, video: Video, bad_files: BadFiles) -> MaskArray | None:
    """Return the mask that is given, void as background; None, and the file noted, where it or its frame cannot be read."""
    path = video.first_mask
    try:
        mask = videos.mask(path)
        path = video.frames[0]
        decode(path)
    except BadImage as error:
        bad_files.add(path, error)
        return None
    mask[mask == VOID] = 0
    if not mask.any():
        raise DataError(f"{video.first_mask} shows no object: year=2016 takes masks of 0 and 255, year=2017 those of numbers")
    return mask


def _tell(bar: Bar, before: int, name: str, row: int) -> None:
    bar.update(before + row + 1, name)


@dataclass(eq=False)
class _Run:
    """One video on its way."""

    protocol: DavisProtocol
    encoder: Encoder
    videos: Davis
    video: Video
    first: MaskArray
    bad_files: BadFiles
    precision: Precision

    def __post_init__(self) -> None:
        self.kept = {0: self.first}
        self.looked_at = tuple(dict.fromkeys((0, len(self.video.frames) // 2, len(self.video.frames) - 1)))

    @property
    def num_objects(self) -> int:
        return int(self.first.max())

    def scores(self, judged: bool, seen: Callable[[int], None]) -> list[dict[str, float]]:
        """Follow the video to its end and return the measures of each object; where not ``judged``, only the masks are made."""
        values: DoubleArray = np.full((2, self.num_objects, len(self.video.frames) - 2), np.nan)
        for row, found in self._follow():
            if row in self.looked_at:
                self.kept[row] = found
            frame = self.video.frames[row]
            if self.protocol.masks:
                _write(Path(self.protocol.masks) / self.video.name / f"{frame.stem}.png", found)
            if judged and 0 < row < len(self.video.frames) - 1:
                self._compare(frame.stem, found, values[:, :, row - 1])
            seen(row)
        return [_summary(j, f) for j, f in zip(*values, strict=True)]

    def _compare(self, name: str, found: MaskArray, values: DoubleArray) -> None:
        path = self.video.masks[name]
        try:
            truth = self.videos.mask(path)
            if truth.shape != found.shape:
                raise BadImage(
                    "another size", f"{truth.shape[1]} x {truth.shape[0]} beside {found.shape[1]} x {found.shape[0]} at the start"
                )
        except BadImage as error:
            self.bad_files.add(path, error)
            return
        void = truth == VOID
        for number in range(1, self.num_objects + 1):
            pair = truth == number, found == number
            values[:, number - 1] = region(*pair, void), contour(*pair, void)

    def _follow(self) -> Iterator[tuple[int, MaskArray]]:
        """Yield the row and predicted mask uint8 ``[H, W]`` of every frame in order; the first one's is the given one."""
        last_row, mask = -1, self.first
        labels = None
        for row, features, grid, size in self._features():
            for missing in range(last_row + 1, row):
                yield missing, mask
            if labels is None:
                settings = self.protocol
                memory = Propagation(
                    grid, context=settings.context, topk=settings.topk, radius=settings.radius, temperature=settings.temperature
                )
                labels = self._first_labels(grid, features.device)
            else:
                labels = memory.labels_of(features)
                mask = self._to_mask(labels, size)
            memory.see(features, labels)
            yield row, mask
            last_row = row
        for missing in range(last_row + 1, len(self.video.frames)):
            yield missing, mask

    @torch.inference_mode()
    def _features(self) -> Iterator[tuple[int, torch.Tensor, tuple[int, int], tuple[int, int]]]:
        """Yield of every frame that can be read its row, features ``[N, D]``, their grid, and the (height, width) that the model saw."""
        encoder, device = self.encoder, self.encoder.device
        height, width = self.first.shape
        size = frame_size(height, width, self.protocol.short_px, encoder.backbone.multiple_px)
        transform = Frames(size, self.protocol.image_spec(encoder))
        dtype = runtime.autocast_dtype(self.precision, device)
        for rows, images in decode_stream(
            self.video.frames,
            transform,
            batch_size=BATCH_FRAMES,
            num_threads=min(BATCH_FRAMES, runtime.num_cpus()),
            bad_files=self.bad_files,
            device=device,
        ):
            with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                tokens = encoder.tokens(images)
            for row, features in zip(rows, tokens.patches.float(), strict=True):
                yield int(row), features, tokens.grid, size

    def _first_labels(self, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
        small = np.asarray(Image.fromarray(self.first).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
        numbers = torch.from_numpy(small.astype(np.int64)).to(device)
        return F.one_hot(numbers, self.num_objects + 1).permute(2, 0, 1).float()

    def _to_mask(self, labels: torch.Tensor, size: tuple[int, int]) -> MaskArray:
        large = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
        numbers = stretch(large).argmax(dim=0).to(torch.uint8).cpu().numpy()
        height, width = self.first.shape
        return np.array(Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST))

    def shown(self, score: float) -> tuple[float, Rows]:
        """Return the score and two rows: the first, middle and last frame with the masks that were found over them, and with the true ones."""
        note = "" if math.isnan(score) else f"; J&F of the sequence {100 * score:.1f} %"
        found: list[Picture] = []
        truth: list[Picture] = []
        for row in self.looked_at:
            path = self.video.frames[row]
            name = f"{self.video.name}, frame {row + 1} of {len(self.video.frames)}"
            frame, mask = self._read(path, decode), None
            if path.stem in self.video.masks:
                mask = self._read(self.video.masks[path.stem], self.videos.mask)
            drawn = frame and overlay(frame, self.kept.get(row, self.first), mask)
            found.append(Picture(drawn, name, "given" if row == 0 else f"found{note}"))
            right = frame if frame is None or mask is None else overlay(frame, np.where(mask == VOID, 0, mask))
            truth.append(Picture(right, name, "no mask" if mask is None else "truth"))
        return score, (tuple(found), tuple(truth))

    def _read(self, path: Path, read: Callable[[Path], Read]) -> Read | None:
        try:
            return read(path)
        except BadImage as error:
            self.bad_files.add(path, error)
            return None


def overlay(frame: Image.Image, found: MaskArray, truth: MaskArray | None = None, *, width_px: int = SHOWN_PX) -> Image.Image:
    """Return a small copy of a frame with each object of ``found`` tinted in its colour and the contours of ``truth`` in white."""
    size = (width_px, max(1, round(width_px * frame.height / frame.width)))
    pixels = np.asarray(frame.resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    colours = np.frombuffer(davis.palette(), np.uint8).reshape(256, 3)
    numbers = _small(found, size)
    pixels = np.where(numbers[..., None] > 0, 0.45 * pixels + 0.55 * colours[numbers], pixels)
    if truth is not None:
        numbers = _small(truth, size)
        for number in np.setdiff1d(numbers, (0, VOID)):
            pixels[boundary(numbers == number)] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def _small(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _write(path: Path, mask: MaskArray) -> None:
    try:
        davis.write_mask(path, mask)
    except OSError as error:
        raise explain_os_error(error, f"writing the mask {path}") from error


def _summary(j: DoubleArray, f: DoubleArray) -> dict[str, float]:
    of_j, of_f = course(j), course(f)
    values = {
        "j&f": (of_j.mean + of_f.mean) / 2,
        "j": of_j.mean,
        "f": of_f.mean,
        "j_recall": of_j.recall,
        "j_decay": of_j.decay,
        "f_recall": of_f.recall,
        "f_decay": of_f.decay,
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _means(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the mean of each measure over the objects that have it."""
    of = {name: [values[name] for values in groups.values() if name in values] for name in _METRICS}
    return {name: float(np.mean(values)) for name, values in of.items() if values}


def _spread(shown: list[tuple[float, Rows]], num: int) -> Rows:
    """Return the rows of up to ``num`` sequences, evenly from the best to the worst."""
    if not shown:
        return ()
    best_first = [rows for _, rows in sorted(shown, key=lambda pair: (math.isnan(pair[0]), -pair[0]))]
    places = np.linspace(0, len(best_first) - 1, min(num, len(best_first))).round().astype(int)
    return tuple(row for place in places for row in best_first[place])
