"""Label propagation: each patch of a frame takes the labels of the few patches most like it, nearby, in the frames before.

Source: Jabri, Owens & Efros 2020, arXiv 2006.14613, section 4.1, with the settings of Caron et al. 2021, arXiv 2104.14294, section
4.2.2, as facebookresearch/dino computes them (``eval_video_segmentation.py``).

There the similarity of all patches with all patches of every context frame is one dense matrix, most of which a mask then sets to 0.
Here a few rows of patches at a time are compared with the band of rows and the strip of columns that their windows reach, and the
closest are found in two steps: the best frame for every place, the best places, and then the best pairs of those. The answers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F

BLOCK_BYTES = 4 * 2**20
"""Of similarities on a processor at a time: they then stay in its cache between the product and the search."""

BLOCK_BYTES_GPU = 256 * 2**20
"""And on a GPU, where few large steps are faster than many small ones."""

STRIP = 26
"""Columns of patches that share one copy of the keys: a wider strip compares more that lies outside the window, a narrower one copies more."""


class Propagation:
    """The frames that labels are taken from, and the labels: the first frame for good, and the ``context`` latest.

    ``radius`` is the reach of a patch's window in patches, up, down and sideways; 0 is the whole frame. Features of any device; float32
    inside.
    """

    def __init__(self, grid: tuple[int, int], *, context: int = 7, topk: int = 5, radius: int = 12, temperature: float = 0.1) -> None:
        self.grid, self.topk, self.temperature, self.context = grid, topk, temperature, context
        self.reach = radius or max(grid)
        self._strips = list(_strips(grid[1], self.reach))
        self._keys: list[torch.Tensor] = []  # of each strip [T, rows, columns, D]: a band of rows is one view
        self._labels = torch.empty(0)  # [T, N, C]
        self._num = 0

    def see(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in a frame: features ``[N, D]`` and labels ``[C, rows, columns]``; the oldest but the first makes room."""
        keys = F.normalize(features.float(), dim=1).view(*self.grid, -1)
        if not self._num:
            size = 1 + self.context
            self._keys = [keys.new_empty(size, self.grid[0], strip.num_keys, keys.shape[-1]) for strip in self._strips]
            self._labels = labels.new_empty(size, self.grid[0] * self.grid[1], len(labels), dtype=torch.float32)
        if self._num and not self.context:
            return
        slot = self._num if self._num <= self.context else 1 + (self._num - 1) % self.context
        for strip, held in zip(self._strips, self._keys, strict=True):
            held[slot] = keys[:, strip.first_key : strip.last_key]
        self._labels[slot] = labels.flatten(1).T
        self._num += 1

    def labels_of(self, features: torch.Tensor) -> torch.Tensor:
        """Return the soft labels float32 ``[C, rows, columns]`` of a new frame's features ``[N, D]``: per patch they sum to 1.

        The label of a patch is the mean of those of the ``topk`` most similar, weighted by exp(cosine / ``temperature``). Patches as
        similar as the last of them count too.
        """
        rows, columns = self.grid
        queries = F.normalize(features.float(), dim=1).view(rows, columns, -1)
        num = min(self._num, 1 + self.context)
        labels = self._labels[:num].flatten(0, 1)  # [T N, C]
        found = labels.new_empty(rows, columns, labels.shape[1])
        most = BLOCK_BYTES if queries.device.type == "cpu" else BLOCK_BYTES_GPU
        for strip, held in zip(self._strips, self._keys, strict=True):
            row_bytes = 4 * num * strip.num_queries * min(rows, 2 * self.reach + 1) * strip.num_keys
            step = max(1, min(rows, most // row_bytes))
            for top in range(0, rows, step):
                bottom = min(rows, top + step)
                first, last = max(0, top - self.reach), min(rows, bottom + self.reach)
                block = queries[top:bottom, strip.first : strip.last].reshape(-1, queries.shape[-1])
                keys = held[:num, first:last].flatten(1, 2)  # [T, places, D]
                similarity = torch.matmul(block, keys.transpose(1, 2))  # [T, Q, places]
                outside = _outside(strip, (top, bottom), (first, last), self.reach, queries.device)
                if outside is not None:
                    similarity.masked_fill_(outside, -torch.inf)
                weights, frames, places = _closest(similarity, self.topk, self.temperature)
                at = (first + places // strip.num_keys) * columns + strip.first_key + places % strip.num_keys  # places of the whole grid
                taken = labels[(frames * rows * columns + at).flatten()].view(*at.shape, -1)  # [Q, K, C]
                found[top:bottom, strip.first : strip.last] = (weights[:, None] @ taken).view(bottom - top, strip.num_queries, -1)
        return found.permute(2, 0, 1)


@dataclass(frozen=True)
class _Strip:
    """Columns ``first`` to ``last`` of patches that ask, and the wider ones that their windows reach."""

    first: int
    last: int
    first_key: int
    last_key: int

    @property
    def num_queries(self) -> int:
        return self.last - self.first

    @property
    def num_keys(self) -> int:
        return self.last_key - self.first_key


def _strips(columns: int, reach: int) -> Iterator[_Strip]:
    num = max(1, round(columns / STRIP)) if columns > reach + STRIP // 2 else 1
    edges = [round(place * columns / num) for place in range(num + 1)]
    for first, last in pairwise(edges):
        yield _Strip(first, last, max(0, first - reach), min(columns, last + reach))


@lru_cache(maxsize=512)
def _outside(strip: _Strip, asking: tuple[int, int], band: tuple[int, int], reach: int, device: torch.device) -> torch.Tensor | None:
    """Return which places of a band lie outside the window of which patch, bool ``[Q, places]``; None where none does."""

    def far(asked: range, there: range) -> torch.Tensor:
        return (torch.tensor(asked)[:, None] - torch.tensor(there)).abs() > reach

    rows, columns = far(range(*asking), range(*band)), far(range(strip.first, strip.last), range(strip.first_key, strip.last_key))
    either = rows[:, None, :, None] | columns[None, :, None, :]
    return either.flatten(2).flatten(0, 1).to(device) if bool(either.any()) else None


def _closest(similarity: torch.Tensor, topk: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights ``[Q, K]`` of the ``topk`` most similar of ``[T, Q, places]``, 0 for the rest of K, and their frames and places.

    The best pairs of frame and place lie in the places whose best frame is among the ``topk`` best: those are looked at frame by frame.
    """
    num_frames, num_queries, num_places = similarity.shape
    best = similarity.amax(dim=0)  # [Q, places]
    num = min(topk, num_places)
    while True:
        places = best.topk(num, dim=1).indices
        candidates = similarity.gather(2, places.expand(num_frames, -1, -1))  # [T, Q, num]
        candidates = candidates.permute(1, 0, 2).flatten(1)  # [Q, T num]
        kept = candidates.topk(min(topk, candidates.shape[1]), dim=1).values
        least = kept[:, -1:].clamp_min(torch.finfo(kept.dtype).min)  # -inf, outside the window, is never as good as the last
        tied = int((best >= least).sum(dim=1).max())
        if tied <= num:
            break
        num = tied  # more places than topk are as good as the last of them: all count
    weights = torch.where(candidates >= least, ((candidates - kept[:, :1]) / temperature).exp(), 0.0)
    frames = torch.arange(num_frames, device=places.device).repeat_interleave(num).expand(num_queries, -1)
    return weights / weights.sum(dim=1, keepdim=True), frames, places.repeat(1, num_frames)
