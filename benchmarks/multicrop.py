"""How many images a second become DINO's crops on one core, beside the reference's way: torchvision's transforms on Pillow images?

    python benchmarks/multicrop.py [--repeats 7] [--images 64] [--size 500x375] [--crops 224,96:2,8 64,32:2,6] [--json]

Both sides start from the same JPEG files (quality 90, made of photographs that scikit-image and scikit-learn carry), or from the images
already decoded, and end with normalised float32 tensors. The reference's way is written here from its description: a random resized crop
(bicubic), a mirror, colour jitter, grey, Pillow's Gaussian blur, solarize, each crop from the whole image on its own. One thread each;
ratios are medians over neighbouring runs. Where others use the machine too, trust the ratio of processor times.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import head, interleaved, machine, median_ratio, table
from embed import make_photos
from PIL import Image, ImageFilter, ImageOps

from sightline.data.images import decode
from sightline.data.multicrop import MultiCropTransform
from sightline.recipe import CropSpec, ImageSpec


class Maybe:
    """A change of a Pillow image that comes with a probability."""

    def __init__(self, probability: float, change: Callable[[Image.Image], Image.Image]) -> None:
        self.probability, self.change = probability, change

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.change(image) if random.random() < self.probability else image


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class ReferenceWay:
    """Each kind of crop a chain of torchvision's transforms on Pillow images."""

    def __init__(self, spec: CropSpec, image: ImageSpec) -> None:
        from torchvision import transforms as tv

        def chain(group: int, kind: int) -> Any:
            areas = (spec.crop_min_area[group], spec.crop_max_area[group])
            return tv.Compose(
                [
                    tv.RandomResizedCrop(spec.crop_px[group], scale=areas, interpolation=tv.InterpolationMode.BICUBIC),
                    tv.RandomHorizontalFlip(spec.crop_flip),
                    tv.RandomApply([tv.ColorJitter(*spec.crop_jitter)], spec.crop_jitter_p),
                    tv.RandomGrayscale(spec.crop_gray),
                    Maybe(spec.crop_blur[kind], blurred),
                    Maybe(spec.crop_solarize[kind], ImageOps.solarize),
                    tv.ToTensor(),
                    tv.Normalize(image.mean, image.std),
                ]
            )

        self.chains = [chain(0, 0), *[chain(0, 1)] * (spec.num_crops[0] - 1), *[chain(1, 2)] * spec.num_crops[1]]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [chain(image) for chain in self.chains]


def sides(spec: CropSpec, contents: list[bytes], *, from_files: bool) -> dict[str, Callable[[], object]]:
    """Return both ways over all files, as calls."""
    image = ImageSpec(image_px=spec.crop_px[0])
    ours, reference, seeds = MultiCropTransform(image, spec), ReferenceWay(spec, image), itertools.count()
    decoded = [] if from_files else [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]

    def run_ours() -> None:
        for opened in (decode(content, short_px=ours.short_px) for content in contents) if from_files else decoded:
            for crops in ours.pixels(opened, next(seeds)):
                ours.normalise(crops)

    def run_reference() -> None:
        for opened in (Image.open(io.BytesIO(content)).convert("RGB") for content in contents) if from_files else decoded:
            reference(opened)

    return {"reference": run_reference, "ours": run_ours}


def measure(spec: CropSpec, contents: list[bytes], repeats: int, *, from_files: bool) -> dict[str, Any]:
    """Return the rates of both ways and the ratio of ours to the reference's."""
    calls = sides(spec, contents, from_files=from_files)
    interleaved(calls, 1)  # warm
    runs = interleaved(calls, repeats)
    walls = {name: [run.wall_s for run in taken] for name, taken in runs.items()}
    ratios = [a / b for a, b in zip(walls["reference"], walls["ours"], strict=True)]
    return {
        "crops": " + ".join(f"{num} x {px}" for num, px in zip(spec.num_crops, spec.crop_px, strict=True)),
        "from": "files" if from_files else "decoded images",
        **{name: len(contents) / statistics.median(taken) for name, taken in walls.items()},
        "ratio": median_ratio(walls["reference"], walls["ours"]),
        "least": min(ratios),
        "most": max(ratios),
        "cpu_ratio": median_ratio(*([run.cpu_s for run in runs[name]] for name in ("reference", "ours"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=64, help="images a run")
    parser.add_argument("--size", default="500x375", help="of the photographs")
    parser.add_argument("--crops", nargs="+", default=["224,96:2,8", "64,32:2,6"], help="sides in pixels : crops of each, global first")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder, "photos"), *map(int, options.size.split("x")), options.images)
        contents = [file.read_bytes() for file in sorted(Path(folder, "photos").iterdir())]
    found = []
    for asked in options.crops:
        crop_px, num_crops = (tuple(map(int, part.split(","))) for part in asked.split(":"))
        spec = CropSpec(crop_px=crop_px, num_crops=num_crops)
        found += [measure(spec, contents, options.repeats, from_files=from_files) for from_files in (True, False)]
    answer = {"machine": facts, "photographs": options.size, "runs": found}
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def as_text(answer: dict[str, Any]) -> str:
    rows = [
        (
            run["crops"],
            run["from"],
            f"{run['reference']:.1f}",
            f"{run['ours']:.1f}",
            f"{run['ratio']:.2f} ({run['least']:.2f} to {run['most']:.2f})",
            f"{run['cpu_ratio']:.2f}",
        )
        for run in answer["runs"]
    ]
    columns = ("crops", "from", "reference images/s", "ours", "ratio (least to most)", "processor time ratio")
    return f"{head(__doc__.splitlines()[0], answer['machine'])}\nphotographs of {answer['photographs']}\n\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
