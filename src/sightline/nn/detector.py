"""A detector over a pyramid: torchvision's region proposals and box and mask heads, on maps of known strides.

Source: Ren et al. 2015, arXiv 1506.01497 (Faster R-CNN); He et al. 2017, arXiv 1703.06870 (Mask R-CNN); heads and thresholds are torchvision's.

Departs: strides are given to anchors and to RoI align, where torchvision infers them from sizes: inferred ones are off where a map's side is no
exact share of the image's, and for patches of 14 px.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from sightline.contracts import DetectionBatch, Instances
from sightline.nn.encoder import Encoder
from sightline.nn.pyramid import PyramidFeatures

ASPECTS = (0.5, 1.0, 2.0)
BOX_GRID, MASK_GRID = 7, 14
WIDTH_OF_HEAD = 1024
LOSSES = {
    "loss_objectness": "proposal_object",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}

Head = Literal["mlp", "conv"]


class Anchors(AnchorGenerator):
    """Anchors of one size a level, ``size`` times its stride, at the pyramid's own strides."""

    def __init__(self, strides: tuple[float, ...], size: float) -> None:
        super().__init__(tuple((size * stride,) for stride in strides), (ASPECTS,) * len(strides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the anchors ``[A, 4]`` of each image."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        grids = [list(found.shape[-2:]) for found in feature_maps]
        steps = [[first.new_tensor(stride)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, steps))
        return [anchors] * len(image_list.image_sizes)


class Detector(nn.Module):
    """Faster R-CNN, or with ``with_masks`` Mask R-CNN, over an encoder's backbone; class 0 is background, 1 to ``num_classes`` are things."""

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        with_masks: bool,
        channels: int = 256,
        anchor: float = 8.0,
        num_proposals: int = 1_000,
        num_samples: int = 512,
        head: Head = "mlp",
    ) -> None:
        """``anchor`` is the side of an anchor in strides of its level; ``num_samples`` regions an image are learnt from."""
        super().__init__()
        self.features = PyramidFeatures(encoder, channels)
        strides = self.features.strides
        is_conv = head == "conv"
        self.rpn = RegionProposalNetwork(
            Anchors(strides, anchor),
            RPNHead(channels, len(ASPECTS), conv_depth=2 if is_conv else 1),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * num_proposals, "testing": num_proposals},
            post_nms_top_n={"training": num_proposals, "testing": num_proposals},
            nms_thresh=0.7,
        )
        masks: dict[str, Any] = {}
        if with_masks:
            masks = {
                "mask_roi_pool": _roi_pool(strides, MASK_GRID),
                "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=LayerNorm2d if is_conv else None),
                "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
            }
        inside = channels * BOX_GRID**2
        self.roi_heads = RoIHeads(
            _roi_pool(strides, BOX_GRID),
            FastRCNNConvFCHead((channels, BOX_GRID, BOX_GRID), [channels] * 4, [WIDTH_OF_HEAD], norm_layer=partial(LayerNorm2d))
            if is_conv
            else TwoMLPHead(inside, WIDTH_OF_HEAD),
            FastRCNNPredictor(WIDTH_OF_HEAD, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=num_samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **masks,
        )

    def losses(self, batch: DetectionBatch) -> dict[str, torch.Tensor]:
        """Return the parts of the loss by name; the module must be in training mode."""
        targets = [_as_torchvision(instances) for instances in batch.instances]
        maps, images = self._features(batch)
        # In bfloat16 torchvision would hold box coordinates in it too: 8 bits tell 1,000 px from 1,004.
        with torch.autocast(batch.images.device.type, enabled=False):
            proposals, of_proposals = self.rpn(images, maps, targets)
            _, of_regions = self.roi_heads(maps, proposals, images.image_sizes, targets)
        return {LOSSES[name]: value for name, value in {**of_proposals, **of_regions}.items()}

    def detect(self, batch: DetectionBatch) -> list[Instances]:
        """Return what is found in each image of the batch, in its pixels, best first; masks ``[K, 28, 28]`` are the chances within the box. Evaluation mode."""
        maps, images = self._features(batch)
        with torch.autocast(batch.images.device.type, enabled=False):
            proposals, _ = self.rpn(images, maps)
            found, _ = self.roi_heads(maps, proposals, images.image_sizes)
        return [Instances(one["boxes"], one["labels"], one["masks"][:, 0] if "masks" in one else None, one["scores"]) for one in found]

    def _features(self, batch: DetectionBatch) -> tuple[dict[str, torch.Tensor], ImageList]:
        maps = {str(level): found for level, found in enumerate(self.features(batch.images))}
        return maps, ImageList(batch.images, list(batch.sizes))


def paste(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the masks ``[K, 28, 28]`` laid into their boxes in an image of ``size`` (height, width), uint8 ``[K, H, W]``."""
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.uint8)
    laid: torch.Tensor = paste_masks_in_image(masks[:, None], boxes, size)[:, 0]
    return (laid > 0.5).to(torch.uint8)


def _roi_pool(strides: tuple[float, ...], side: int) -> MultiScaleRoIAlign:
    levels = strides[:-1]  # the last is for proposals alone
    pool = MultiScaleRoIAlign([str(level) for level in range(len(levels))], side, sampling_ratio=2)
    pool.scales = [1.0 / stride for stride in levels]
    first = round(math.log2(levels[0]))
    pool.map_levels = initLevelMapper(first, first + len(levels) - 1)
    return pool


def _as_torchvision(instances: Instances) -> dict[str, torch.Tensor]:
    found = {"boxes": instances.boxes, "labels": instances.labels}
    return found if instances.masks is None else {**found, "masks": instances.masks}
