"""Detection: an encoder under a detector's heads is fine-tuned on one split and measured on the other by COCO's average precision.

Source: Li et al. 2022, arXiv 2203.16527; Yun et al. 2022, arXiv 2206.07990, section 4.2 (Mask R-CNN over a ViT without labels).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from sightline import runtime
from sightline.contracts import Batch, DetectionBatch, Instances
from sightline.data.images import BadFiles
from sightline.data.instances import Sizing, evaluation_batches, mask_tools, training_batches
from sightline.data.sets import coco
from sightline.data.sets.coco import Annotated
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.average_precision import Found, average_precision
from sightline.evaluation.dense.base import DenseProtocol
from sightline.evaluation.dense.drawn import colours, draw_rows
from sightline.evaluation.evaluation import Evaluation
from sightline.methods.detect import Detect as Learning
from sightline.nn.detector import Detector, Head, paste
from sightline.nn.encoder import Encoder
from sightline.progress import Bar
from sightline.recipe import TrainSpec
from sightline.runtime import Precision
from sightline.training.loop import Loop

MASKS_AT_ONCE = 16
"""Masks laid into an image at a time: 100 of them at 12 million pixels would be 5 GB."""


@dataclass(frozen=True, kw_only=True)
class Detect(DenseProtocol):
    """Fine-tune and measure; the defaults fit one core and small images, ``coco`` has those of the literature."""

    learns: ClassVar[bool] = True
    name: ClassVar[str] = "detect"

    steps: int = 500  # 0 measures heads that have learnt nothing
    batch: int = 4
    lr: float = 3e-4
    weight_decay: float = 0.05
    layer_decay: float = 1.0  # each block's rate is this times that of the block above it
    frozen: bool = False  # the backbone stays as it is; pyramid and heads alone learn
    warmup_steps: int = 50
    clip_norm: float = 1.0
    image_px: int = 240  # the short side, or of square both
    long_px: int = 0  # the longest that the long side may get; 0 is no limit
    least_px: int = 0  # in training the short side is drawn evenly from here to image_px; 0 is always image_px
    resize: Literal["short", "square"] = "short"
    flip: float = 0.5  # probability of a mirror in training
    channels: int = 128  # of the pyramid and the heads
    head: Head = "mlp"  # mlp: two layers; conv: four convolutions with norms and one layer, as in ViTDet
    anchor: float = 8.0  # side of an anchor in strides of its level
    proposals: int = 500  # regions an image that the second stage sees
    samples: int = 128  # regions an image that it learns from
    annotations: str = ""  # what the annotation files' names begin with; empty takes instances_, else train.json and val.json
    verify: bool = True  # check that every image is there
    seed: int = 0

    def __post_init__(self) -> None:
        whole = (self.batch, self.image_px, self.channels, self.proposals, self.samples)
        if min(whole) < 1 or min(self.steps, self.warmup_steps, self.long_px, self.least_px, self.seed) < 0:
            raise UsageError(
                "detect: batch, image_px, channels, proposals and samples are positive; steps, warmup_steps, long_px, least_px, seed not negative"
            )
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 < self.layer_decay <= 1 and 0 <= self.flip <= 1 and self.anchor > 0):
            raise UsageError("detect: lr and anchor are positive, weight_decay not negative, layer_decay in (0, 1], flip a probability")
        if self.least_px > self.image_px or 0 < self.long_px < self.image_px:
            raise UsageError("detect: least_px is at most image_px, and long_px at least image_px (or 0)")

    @property
    def sizing(self) -> Sizing:
        """To which size images are brought."""
        return Sizing(image_px=self.image_px, long_px=self.long_px, least_px=self.least_px, resize=self.resize)

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
        """Return ``ap`` and its kin of boxes, and with masks in the data ``ap_mask``; the encoder that is given stays as it was."""
        mask_tools()  # before an hour of training, not after it
        training = coco.read(train_root or root, "train", annotations=self.annotations, verify=self.verify)
        truth = coco.read(root, "val", annotations=self.annotations, verify=self.verify)
        if training.class_names != truth.class_names:
            splits = f"the two splits of {root}" if train_root is None else f"{train_root} (train) and {root} (val)"
            raise DataError(f"the categories of {splits} differ: take annotations of one set")
        if truth.is_crowd.all():
            raise DataError(f"no image of the val split of {root} shows an object to find: get the annotations again")
        with_masks = training.has_masks and truth.has_masks
        detector = self._fine_tuned(encoder, training, bad_files, with_masks=with_masks, precision=precision)
        found = self._found(detector, truth, bad_files, precision=precision)
        metrics, groups = average_precision(truth, found)
        if not metrics:
            raise DataError(f"no image of the val split of {root} that shows an object can be read: {bad_files.summary()}")
        if with_masks:
            of_masks, groups_of_masks = average_precision(truth, found, "mask")
            metrics |= of_masks
            groups = {name: values | groups_of_masks.get(name, {}) for name, values in groups.items()}
        num_objects = int(np.isin(truth.image_of[~truth.is_crowd], list(found)).sum())
        return Evaluation(
            protocol="detect" if self.verify else "detect (not verified)",
            metrics=metrics,
            groups=groups,
            counts={"images": len(found), "objects": num_objects, "classes": len(truth.class_names), "training images": len(training)},
            settings={**asdict(self), "detector": "Mask R-CNN" if with_masks else "Faster R-CNN"},
            shown=draw_rows(truth, found, num_shown),
            colours=colours(truth.class_names) if num_shown else (),
        )

    def _fine_tuned(self, encoder: Encoder, data: Annotated, bad_files: BadFiles, *, with_masks: bool, precision: Precision) -> Detector:
        with torch.random.fork_rng(devices=[]):  # the heads' first weights are the seed's, and nobody else's chance is touched
            torch.manual_seed(self.seed)
            detector = Detector(
                copy.deepcopy(encoder),
                len(data.class_names),
                with_masks=with_masks,
                channels=self.channels,
                anchor=self.anchor,
                num_proposals=self.proposals,
                num_samples=self.samples,
                head=self.head,
            ).to(encoder.device)
            if self.steps:
                self._train(detector, data, bad_files, with_masks=with_masks, precision=precision)
        return detector.eval()

    def _train(self, detector: Detector, data: Annotated, bad_files: BadFiles, *, with_masks: bool, precision: Precision) -> None:
        encoder = detector.features.encoder

        def batches(first: int) -> Iterator[Batch]:
            return training_batches(
                data,
                self.sizing,
                encoder.image,
                batch=self.batch,
                first_step=first,
                num_steps=self.steps - first,
                seed=self.seed,
                flip=self.flip,
                with_masks=with_masks,
                multiple_px=detector.features.multiple_px,
                num_threads=runtime.num_cpus(),
                bad_files=bad_files,
            )

        spec = TrainSpec(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            warmup_steps=min(self.warmup_steps, self.steps - 1),
            schedule="cosine",
            clip_norm=self.clip_norm,
            precision=precision,
            seed=self.seed,
        )
        progress = Loop(Learning(detector, frozen=self.frozen), batches, spec, None, device=encoder.device).run()
        if progress.stopped_by:
            raise KeyboardInterrupt

    @torch.no_grad()
    def _found(self, detector: Detector, truth: Annotated, bad_files: BadFiles, *, precision: Precision) -> dict[int, Found]:
        device = detector.features.encoder.device
        dtype = runtime.autocast_dtype(precision, device)
        found: dict[int, Found] = {}
        stream = evaluation_batches(
            truth,
            self.sizing,
            detector.features.encoder.image,
            batch=self.batch,
            multiple_px=detector.features.multiple_px,
            num_threads=runtime.num_cpus(),
            bad_files=bad_files,
        )
        with Bar("detecting", len(truth)) as bar:
            for batch in stream:
                with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                    answers = detector.detect(batch.to(device))
                found |= _in_files_pixels(batch, answers, truth)
                bar.update(int(batch.rows[-1]) + 1)
        if not found:
            raise DataError(f"none of the {len(truth):,} images of the val split in {truth.root} can be read: repair them")
        return found


def _in_files_pixels(batch: DetectionBatch, answers: list[Instances], truth: Annotated) -> dict[int, Found]:
    found = {}
    for row, size, one in zip(batch.rows.tolist(), batch.sizes, answers, strict=True):
        width, height = (int(side) for side in truth.sizes[row])
        assert one.scores is not None
        boxes = one.boxes.cpu() * torch.tensor([width / size[1], height / size[0]] * 2)
        masks = None
        if one.masks is not None:
            masks = []
            for start in range(0, len(one), MASKS_AT_ONCE):
                some = slice(start, start + MASKS_AT_ONCE)
                laid = paste(one.masks.cpu()[some], boxes[some], (height, width)).numpy()
                masks += [mask_tools().encode(np.asfortranarray(mask)) for mask in laid]
        found[row] = Found(boxes.numpy(), one.labels.cpu().numpy(), one.scores.cpu().numpy(), masks)
    return found


def coco_schedule() -> Detect:
    """Return the setting of SelfPatch's COCO evaluation: Mask R-CNN, 12 passes over train2017, short side 480 to 800, AdamW 5e-5 a batch of 8.

    Departs: the rate follows a cosine where theirs falls twice in stairs; no random crop before resizing; the pyramid is ViTDet's, over the last
    tokens, where theirs takes blocks 4, 6, 8 and 12; a batch is of one GPU, where theirs are eight GPUs of one image each.
    """
    return Detect(
        steps=176_000,
        batch=8,
        lr=5e-5,
        warmup_steps=1_000,
        clip_norm=0.0,
        image_px=800,
        long_px=1333,
        least_px=480,
        channels=256,
        proposals=1_000,
        samples=512,
    )
