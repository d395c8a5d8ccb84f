"""The few types that travel between layers, each validated once, at birth.

One legend of dimension letters, everywhere in the project:

    B  images in a batch          N  patch tokens of one image      P  prefix tokens (class, distillation, registers)
    M  rows of a collection       D  width of a token or descriptor C  classes
    Q  queries                    G  gallery rows                   K  results a query
    H, W  height and width of an image in pixels                    V  crops of one size of an image

``similarity`` rises when closer, ``distance`` falls when closer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

UNIT_LENGTH_TOLERANCE = 1e-3
"""How far from 1 the length of a descriptor may be (a bf16 round trip stays under it)."""


@dataclass(frozen=True)
class Batch:
    """Images on their way into a model: ``images`` float32 ``[B, 3, H, W]``, ``labels`` int64 ``[B]``, ``rows`` int64 ``[B]``.

    ``rows`` are positions in the ``Records`` that the images came from. ``crops`` are several crops of the same images, one tensor a
    size, float32 ``[V, B, 3, h, w]`` with V crops of each image, the global ones first; ``images`` is then the first global crop,
    ``crops[0][0]`` itself and no copy.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    crops: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        num = self.images.shape[0]
        if self.images.ndim != 4 or self.labels.shape != (num,) or self.rows.shape != (num,):
            raise ValueError(
                f"a Batch needs images [B, 3, H, W], labels [B], rows [B]; got {tuple(self.images.shape)}, {tuple(self.labels.shape)}, {tuple(self.rows.shape)}"
            )
        shapes = [tuple(crops.shape) for crops in self.crops]
        if shapes and (any(len(shape) != 5 or shape[1] != num for shape in shapes) or shapes[0][1:] != self.images.shape):
            raise ValueError(f"a Batch needs crops [V, B, 3, h, w], images being crops[0][0]; got {shapes}, {tuple(self.images.shape)}")

    @classmethod
    def of_crops(cls, crops: tuple[torch.Tensor, ...], labels: torch.Tensor, rows: torch.Tensor) -> Batch:
        """Return the batch of these crops: ``images`` is the first global crop."""
        return cls(crops[0][0], labels, rows, crops)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; copies overlap with compute where the memory is pinned."""
        labels, rows = (part.to(device, non_blocking=True) for part in (self.labels, self.rows))
        if self.crops:
            return Batch.of_crops(tuple(crops.to(device, non_blocking=True) for crops in self.crops), labels, rows)
        return Batch(self.images.to(device, non_blocking=True), labels, rows)


@dataclass(frozen=True)
class Instances:
    """The objects in one image: ``boxes`` float32 ``[K, 4]`` (x0, y0, x1, y1 in pixels of that image), ``labels`` int64 ``[K]`` from 1 (0 is none).

    ``masks`` are uint8 ``[K, H, W]`` of 0 and 1 (None: only boxes are known), ``scores`` float32 ``[K]`` (None: they are the truth).
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    def __post_init__(self) -> None:
        num = len(self.labels)
        others = [part for part in (self.masks, self.scores) if part is not None]
        if self.boxes.shape != (num, 4) or self.labels.ndim != 1 or any(len(part) != num for part in others):
            raise ValueError(
                f"Instances need boxes [K, 4], labels [K] and as many masks and scores; got {tuple(self.boxes.shape)}, {tuple(self.labels.shape)}"
            )
        if self.masks is not None and self.masks.ndim != 3:
            raise ValueError(f"Instances need masks [K, H, W]; got {tuple(self.masks.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Instances:
        """Return them on ``device``."""
        parts = (self.boxes, self.labels, self.masks, self.scores)
        return Instances(*(None if part is None else part.to(device, non_blocking=True) for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DetectionBatch(Batch):
    """A batch with what is to be found: image b fills ``sizes[b]`` (height, width) of its padded ``images[b]`` and shows ``instances[b]``."""

    sizes: tuple[tuple[int, int], ...]
    instances: tuple[Instances, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.sizes) == len(self.instances) == len(self):
            raise ValueError(
                f"a DetectionBatch of {len(self)} images needs as many sizes and instances; got {len(self.sizes)}, {len(self.instances)}"
            )

    def to(self, device: torch.device) -> DetectionBatch:
        """Return the batch on ``device``."""
        images, labels, rows = (part.to(device, non_blocking=True) for part in (self.images, self.labels, self.rows))
        return DetectionBatch(images, labels, rows, sizes=self.sizes, instances=tuple(one.to(device) for one in self.instances))


@dataclass(frozen=True, kw_only=True)
class SegmentationBatch(Batch):
    """A batch with the class of every pixel: ``masks`` int64 ``[B, H, W]``, -1 where nobody says what it is."""

    masks: torch.Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = (self.images.shape[0], *self.images.shape[-2:])
        if tuple(self.masks.shape) != wanted:
            raise ValueError(f"a SegmentationBatch needs masks [B, H, W] of its images' size {wanted}; got {tuple(self.masks.shape)}")

    def to(self, device: torch.device) -> SegmentationBatch:
        """Return the batch on ``device``."""
        images, labels, rows, masks = (part.to(device, non_blocking=True) for part in (self.images, self.labels, self.rows, self.masks))
        return SegmentationBatch(images, labels, rows, masks=masks)


@dataclass(frozen=True)
class Tokens:
    """What a backbone returns: ``prefix`` ``[B, P, D]`` (class token first), ``patches`` ``[B, N, D]`` in row order, ``grid`` (rows, columns)."""

    prefix: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.prefix.ndim != 3 or self.patches.ndim != 3 or self.grid[0] * self.grid[1] != self.patches.shape[1]:
            raise ValueError(
                f"Tokens need prefix [B, P, D] and patches [B, rows * columns, D]; got {tuple(self.prefix.shape)}, {tuple(self.patches.shape)}, grid {self.grid}"
            )


Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right and bottom in the picture's own pixels, from its upper left corner."""


@dataclass(frozen=True)
class PatchFeatures:
    """The patches of one picture: unit-length ``vectors`` float32 ``[N, D]`` in row order, ``grid`` (rows, columns), and ``frame``.

    ``frame`` is the part of the picture that the grid divides evenly: all of it, (0, 0, width, height), unless it was cropped.
    """

    vectors: FloatArray
    grid: tuple[int, int]
    frame: Box

    def __post_init__(self) -> None:
        rows, columns = self.grid
        left, top, right, bottom = self.frame
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or len(self.vectors) != rows * columns or not rows * columns:
            raise ValueError(
                f"PatchFeatures need float32 vectors [rows * columns, D]; got {self.vectors.dtype} {self.vectors.shape}, grid {self.grid}"
            )
        if not (left < right and top < bottom):
            raise ValueError(f"PatchFeatures need a frame with left < right and top < bottom; got {self.frame}")
        if not np.all(np.abs(np.linalg.norm(self.vectors, axis=1) - 1.0) <= UNIT_LENGTH_TOLERANCE):
            raise ValueError("PatchFeatures must have unit length: normalise them first")

    def __len__(self) -> int:
        return len(self.vectors)

    def box_of(self, cells: tuple[int, int, int, int]) -> Box:
        """Return the box of the cells from (top row, left column) up to, not with, (bottom row, right column), in that order."""
        top, left, bottom, right = (int(side) for side in cells)  # NumPy's would print as np.float64(...)
        x, y, x_end, y_end = self.frame
        width, height = (x_end - x) / self.grid[1], (y_end - y) / self.grid[0]
        return x + left * width, y + top * height, x + right * width, y + bottom * height

    def cells_of(self, box: Box) -> tuple[int, int, int, int]:
        """Return the cells (top, left, bottom, right) nearest to a box, at least one: its sides go to the nearest borders of patches.

        Raises:
            ValueError: nothing of the box is within the frame, or it is empty.
        """
        left, top, right, bottom = box
        x, y, x_end, y_end = self.frame
        if not (left < right and top < bottom) or not (left < x_end and right > x and top < y_end and bottom > y):
            raise ValueError(f"the box {box} has nothing of the frame {self.frame}")
        first_row, end_row = _nearest_cells((top - y) / (y_end - y), (bottom - y) / (y_end - y), self.grid[0])
        first_column, end_column = _nearest_cells((left - x) / (x_end - x), (right - x) / (x_end - x), self.grid[1])
        return first_row, first_column, end_row, end_column

    def within(self, cells: tuple[int, int, int, int]) -> FloatArray:
        """Return the vectors ``[rows * columns, D]`` of the cells, in row order."""
        top, left, bottom, right = cells
        part: FloatArray = self.vectors.reshape(*self.grid, -1)[top:bottom, left:right].reshape(-1, self.vectors.shape[1])
        return part


def _nearest_cells(start: float, end: float, num: int) -> tuple[int, int]:
    """Return the cells [first, end) of ``num`` that the part from ``start`` to ``end`` (shares of the whole) is nearest to."""
    start, end = max(0.0, start), min(1.0, end)
    first, last = round(start * num), round(end * num)
    if first == last:  # narrower than a cell and across a border, or within one: the cell that its middle is in
        first = min(num - 1, int((start + end) / 2 * num))
        last = first + 1
    return first, last


@dataclass(frozen=True)
class Descriptors:
    """Unit-length vectors float32 ``[M, D]`` and where each came from: ``rows`` int64 ``[M]`` into the records that were embedded."""

    vectors: FloatArray
    rows: IntArray

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or self.rows.shape != (self.vectors.shape[0],):
            raise ValueError(
                f"Descriptors need float32 vectors [M, D] and rows [M]; got {self.vectors.dtype} {self.vectors.shape}, {self.rows.shape}"
            )
        if len(self.vectors) and not np.allclose(
            np.linalg.norm(self.vectors[:: max(1, len(self.vectors) // 1024)], axis=1), 1.0, atol=UNIT_LENGTH_TOLERANCE
        ):
            raise ValueError("Descriptors must have unit length: normalise them first")

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Ranking:
    """The K closest gallery rows of each query: ``rows`` int64 ``[Q, K]`` (-1 pads), ``similarity`` float32 ``[Q, K]`` (-inf pads), closest first.

    ``how`` says of each query how an index found its answer: "exact", "approximate" or "approximate, widened"; empty elsewhere.
    """

    rows: IntArray
    similarity: FloatArray
    how: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != self.similarity.shape:
            raise ValueError(f"a Ranking needs rows and similarity of one shape [Q, K]; got {self.rows.shape}, {self.similarity.shape}")


@dataclass(frozen=True)
class Hit:
    """One answer of a search: the item's id, its path, how similar it is (cosine, -1 to 1) and its metadata.

    ``box`` is the part of the picture that answers, where regions were looked for.
    """

    id: int
    path: str
    similarity: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    box: Box | None = None


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The answers to one query, closest first; ``how`` as in ``Ranking``."""

    hits: tuple[Hit, ...]
    how: str = ""

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, position: Any) -> Any:
        return self.hits[position]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


@dataclass(frozen=True)
class LossTerms:
    """A loss to descend: ``total`` (a scalar with gradient) and its detached ``terms`` by name, for the log."""

    total: torch.Tensor
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)
