"""Multi-crop: one image made into several crops of its own, each with chances of its own, for learning without labels.

Source: Caron et al. 2021 (DINO), arXiv 2104.14294, section 3 and appendix; the chances are those of BYOL (Grill et al. 2020, arXiv
    2006.07733, appendix B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from sightline.data.transforms import ASPECT_RATIOS, Normalises, random_area, to_pixels
from sightline.recipe import CropSpec

BLUR_SIGMA_PX = (0.1, 2.0)
SOLARIZE_FROM = 128


@dataclass(frozen=True)
class MultiCropTransform(Normalises):
    """The crops of a recipe: a random area resized, mirrored, jittered, greyed, blurred, solarized."""

    crops: CropSpec

    @property
    def short_px(self) -> int:
        """The short side from which the smallest crop of every size still has all the pixels that the model is given."""
        groups = zip(self.crops.crop_px, self.crops.crop_min_area, strict=True)
        return max(math.ceil(px / math.sqrt(area * ASPECT_RATIOS[0])) for px, area in groups)

    def pixels(self, image: Image.Image, seed: int) -> tuple[torch.Tensor, ...]:
        """Return uint8 ``[V, 3, h, w]`` for each size; the same image and seed give the same pixels in any process."""
        random = Random(seed)
        groups = zip(self.crops.crop_px, self.crops.num_crops, strict=True)
        return tuple(torch.stack([self._crop(random, image, group, i) for i in range(num)]) for group, (_, num) in enumerate(groups))

    def _crop(self, random: Random, image: Image.Image, group: int, place: int) -> torch.Tensor:
        spec = self.crops
        box = random_area(random, image.size, spec.crop_min_area[group], spec.crop_max_area[group])
        side, kind = spec.crop_px[group], (0 if place == 0 else 1) if group == 0 else 2
        pixels = torch.nn.functional.interpolate(to_pixels(image.crop(box))[None], (side, side), mode="bicubic", antialias=True)[0]
        if random.random() < spec.crop_flip:
            pixels = F.horizontal_flip(pixels)
        if random.random() < spec.crop_jitter_p:
            changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
            ranges = [(max(0, 1 - share), 1 + share) for share in spec.crop_jitter[:3]] + [(-spec.crop_jitter[3], spec.crop_jitter[3])]
            for turn in random.sample(range(4), 4):
                pixels = changes[turn](pixels, random.uniform(*ranges[turn]))
        if random.random() < spec.crop_gray:
            pixels = F.rgb_to_grayscale(pixels, 3)
        if random.random() < spec.crop_blur[kind]:
            pixels = to_pixels(F.to_pil_image(pixels).filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_SIGMA_PX))))
        if random.random() < spec.crop_solarize[kind]:
            pixels = F.solarize(pixels, SOLARIZE_FROM)
        return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))
