"""Pictures as a person has them: paths, bytes of files, PIL images, arrays, tensors; one of them or many."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sightline.data.deep import DeepRange
from sightline.data.images import BadImage, decode, own_size, read_bytes, upright_rgb
from sightline.errors import DataError

Picture = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | torch.Tensor
"""An image: a path, the bytes of a file, a PIL image, an array ``[H, W, 3]`` (or ``[H, W]``, ``[H, W, 4]``) or a tensor ``[3, H, W]``.

Arrays and tensors are uint8, or floats from 0 to 1.
"""

Pictures = Picture | Iterable[Picture]
"""One picture, or many: a list, whatever else yields them, an array ``[M, H, W, 3]`` or a tensor ``[M, 3, H, W]``."""

_HINT = "give a path, the bytes of a file, a PIL image, an array [H, W, 3], a tensor [3, H, W], or a list of them"


def each(pictures: Pictures) -> Iterator[Picture]:
    """Yield the pictures one by one; a single one is a list of one.

    Raises:
        DataError: it is neither a picture nor anything that yields some.
    """
    if isinstance(pictures, np.ndarray | torch.Tensor) and not _is_many(pictures):
        return iter((pictures,))
    if isinstance(pictures, str | os.PathLike | bytes | Image.Image):
        return iter((pictures,))
    try:
        return iter(pictures)
    except TypeError as error:
        raise DataError(f"{_kind(pictures)} is no picture: {_HINT}") from error


def opened(picture: Picture, short_px: int | None, deep: DeepRange | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Return the picture upright in RGB, perhaps at a reduced scale whose short side is still ``short_px``, and its own (width, height).

    ``deep`` is what of a deep grey becomes black and white, None by the picture alone.

    Raises:
        DataError: it cannot be read as an image.
    """
    if isinstance(picture, np.ndarray | torch.Tensor):
        picture = _of_values(picture)
    try:
        if isinstance(picture, Image.Image):
            image = upright_rgb(picture, deep)
            return image, image.size
        if not isinstance(picture, str | os.PathLike | bytes):
            raise DataError(f"{_kind(picture)} is no picture: {_HINT}")
        content = picture if isinstance(picture, bytes) else read_bytes(Path(picture))
        image = decode(content, short_px=short_px, deep=deep)
        return image, own_size(content, image)
    except BadImage as error:
        name = f"'{os.fspath(picture)}'" if isinstance(picture, str | os.PathLike) else "the picture"
        raise DataError(f"{name} cannot be read as an image: {error}") from error


def _is_many(values: npt.NDArray[Any] | torch.Tensor) -> bool:
    return values.ndim == 4 or (isinstance(values, np.ndarray) and values.dtype.kind in "OUS")


def _of_values(values: npt.NDArray[Any] | torch.Tensor) -> Image.Image:
    kind = _kind(values)
    if isinstance(values, torch.Tensor):
        plain = values.detach().cpu().numpy()
        plain = np.moveaxis(plain, 0, -1) if plain.ndim == 3 else plain
        wanted = "[3, H, W]"
    else:
        plain, wanted = values, "[H, W, 3]"
    if plain.ndim not in (2, 3) or (plain.ndim == 3 and plain.shape[2] not in (1, 3, 4)) or 0 in plain.shape:
        raise DataError(f"{kind} of shape {list(values.shape)} is no picture: give {wanted}")
    if plain.dtype.kind == "f":
        if not (plain.min() >= 0 and plain.max() <= 1):  # written so that NaN fails too
            raise DataError(f"{kind} has values outside 0 to 1: a picture of floats spans 0 to 1 (normalised images go to encoder(images))")
        plain = np.rint(plain.astype(np.float32) * 255).astype(np.uint8)
    if plain.dtype != np.uint8:
        raise DataError(f"{kind} of {values.dtype} is no picture: make it uint8 (0 to 255) or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(plain[:, :, 0] if plain.ndim == 3 and plain.shape[2] == 1 else plain))


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return "an array" if isinstance(value, np.ndarray) else f"{type(value).__name__} {value!r:.60}"
