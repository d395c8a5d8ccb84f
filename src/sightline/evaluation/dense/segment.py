"""Segmentation by a model's own head, which fine-tuning put on it: whole images, or through a sliding window, as its recipe says.

Images are brought to the short side that the model was trained around, and logits to each mask's own size before the largest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sightline.data.segments import padded, resized_short
from sightline.data.sets.segmentation import Mask, Pair, SegmentationSet
from sightline.data.transforms import eval_transform
from sightline.errors import DataError, ModelError, UsageError
from sightline.evaluation.dense.segment_probe import slide
from sightline.evaluation.dense.segmenting import Bench, Fitted, Labeller, Segmentation, classes_at
from sightline.nn.encoder import Encoder, evaluating
from sightline.nn.segmenter import Segmenter
from sightline.runtime import Precision


@dataclass(frozen=True, kw_only=True)
class Segment(Segmentation):
    """The model's own segmentation, on the test images where there are some, else on those of val."""

    learns: ClassVar[bool] = False  # the head has learnt already

    part: Literal["auto", "val", "test"] = "auto"
    short_px: int = 0  # short side of the images; 0 is the model's own
    slide_px: int = -1  # how far the window moves; 0 takes whole images, -1 does as the model's recipe says

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_px < 0 or self.slide_px < -1:
            raise UsageError("short_px is 0 or more, slide_px is -1 or more")

    @property
    def name(self) -> str:
        """See ``Segmentation.name``."""
        return "segment"

    def train_pairs(self, data: SegmentationSet) -> tuple[Pair, ...]:
        """See ``Segmentation.train_pairs``: the head has learnt already."""
        return ()

    def fit(self, bench: Bench, train: Sequence[Pair]) -> Fitted:
        """See ``Segmentation.fit``: what the model's head says, in the numbers of the data.

        Raises:
            ModelError: the model has none.
            DataError: the data has a class that the head does not know.
        """
        head = bench.encoder.segmenter
        if not isinstance(head, Segmenter):
            raise ModelError("this model has no segmentation head: train one with sightline train segment/fpn, or measure in-context")
        image = bench.encoder.image
        short_px = self.short_px or image.resized_px
        slide_px = self.slide_px if self.slide_px >= 0 else head.spec.slide_px
        label = labeller(bench.encoder, bench.data, short_px=short_px, slide_px=slide_px, batch=self.batch, precision=bench.precision)
        chosen = {"short_px": short_px, "slide_px": slide_px, **({"window_px": image.image_px} if slide_px else {})}
        return Fitted(label, 0, {"head": head.spec.head, **chosen})


def labeller(
    encoder: Encoder,
    data: SegmentationSet,
    *,
    short_px: int,
    slide_px: int,
    batch: int,
    precision: Precision,
) -> Labeller:
    """Return what gives each pixel of an image a class of ``data`` by the encoder's segmenter, whose classes are matched by name.

    A class that only the head knows can be guessed nowhere.

    Raises:
        DataError: the data has a class that the head does not know.
    """
    head = encoder.segmenter
    assert isinstance(head, Segmenter)
    place = {name: number for number, name in enumerate(head.class_names)}
    strange = [name for name in data.class_names if name not in place]
    if strange:
        raise DataError(
            f"{data.root} has {len(strange):,} classes that the model's head does not know, such as '{strange[0]}' (it knows "
            f"{', '.join(head.class_names[:3])}, ...): measure on data of its own classes, or train on this"
        )
    order = torch.tensor([place[name] for name in data.class_names])
    transform, multiple, window_px = eval_transform(encoder.image), head.levels.multiple_px, encoder.image.image_px

    @torch.inference_mode()
    def logits(pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[B, C, h, w]`` of uint8 images of one size, padded to what the network takes and cut back."""
        height, width = (math.ceil(side / multiple) * multiple for side in pixels.shape[-2:])
        whole = torch.stack([padded(one, height, width, encoder.image) for one in pixels])
        with evaluating(encoder, precision):
            found = encoder.segmentation(transform.normalise(whole).to(encoder.device))
        found = found.float()[:, order.to(found.device)]
        if (height, width) == tuple(pixels.shape[-2:]):
            return found
        return F.interpolate(found, (height, width), mode="bilinear", align_corners=False)[..., : pixels.shape[-2], : pixels.shape[-1]]

    def one(image: Image.Image) -> Mask:
        pixels = resized_short(image, short_px, encoder.image.interpolation)
        if slide_px:
            scores = slide(logits, pixels, window_px, slide_px, batch)
        else:
            scores = F.interpolate(logits(pixels[None]), tuple(pixels.shape[1:]), mode="bilinear", align_corners=False)[0]
        return classes_at(scores, image.height, image.width)

    return lambda images: [np.asarray(one(image)) for image in images]
