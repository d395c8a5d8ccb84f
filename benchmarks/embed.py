"""How many images a second are embedded, beside the usual script: timm, torchvision transforms, a DataLoader, float32?

    python benchmarks/embed.py [--repeats 5] [--images 512] [--sizes 4000x3000 ...] [--models vit_small_patch16_224 ...] [--json]

Both sides read the same JPEG files (quality 90, made of photographs that scikit-image and scikit-learn carry) and hold the same weights.
The usual script decodes in as many DataLoader workers as there are cores and computes in batches of 64 under inference_mode: with fewer files
than workers times 64 some of its workers would have nothing to do, and of 64 files nothing would overlap.
Ours computes as ``sightline embed`` does, in bfloat16 where the processor multiplies it; there it is measured in float32 too. A ratio is that
of one run to the one beside it; the median is of these.
"model alone" is our rate without any file, the most that ours can reach; its share of the matrix-product ceilings counts the model's
operations by torch's own counter. Where others use the machine too, trust the ratio of processor times, and neither quite: torch's
threads wait for each other, so a busy machine costs the usual script more than ours. The last table is resident memory along one
stream of 20,000 files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import head, interleaved, machine, median_ratio, seconds, table
from PIL import Image

NUM_DISTINCT = 16
BATCH_SIZE = 64
QUALITY = 90
MEMORY_AT = (1_000, 5_000, 20_000)


# --- photographs ------------------------------------------------------------------------------------------------------------------


def sources() -> list[Image.Image]:
    """Return the photographs that come inside scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = (*load_sample_images().images, data.astronaut(), data.chelsea(), data.coffee())
    return [Image.fromarray(pixels).convert("RGB") for pixels in pictures]


def make_photos(folder: Path, width: int, height: int, num_files: int) -> None:
    """Write JPEGs of photographs, enlarged, with the fine texture and the noise of a sensor; beyond ``NUM_DISTINCT`` they are links."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    photos = sources()
    for number in range(min(num_files, NUM_DISTINCT)):
        enlarged = _crop(photos[number % len(photos)], width / height, generator).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(enlarged, dtype=np.float32)
        texture = np.repeat(np.repeat(generator.standard_normal((-(-height // 4), -(-width // 4), 1), dtype=np.float32), 4, 0), 4, 1)
        pixels = pixels + 6 * texture[:height, :width] + 4 * generator.standard_normal(pixels.shape, dtype=np.float32)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=QUALITY)
    for number in range(NUM_DISTINCT, num_files):
        (folder / f"{number:05}.jpg").hardlink_to(folder / f"{number % NUM_DISTINCT:05}.jpg")


def _crop(photo: Image.Image, aspect: float, generator: np.random.Generator) -> Image.Image:
    share = generator.uniform(0.6, 1)
    width = share * min(photo.width, photo.height * aspect)
    height = width / aspect
    left, top = generator.uniform(0, photo.width - width), generator.uniform(0, photo.height - height)
    return photo.resize((round(width), round(height)), box=(left, top, left + width, top + height))


# --- the two sides ----------------------------------------------------------------------------------------------------------------


class Files:
    """The data set of the usual script."""

    def __init__(self, files: list[Path], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return self.transform(Image.open(self.files[row]).convert("RGB"))


class UsualScript:
    """timm's model and transform, torch's DataLoader, float32."""

    def __init__(self, encoder: Any, num_workers: int) -> None:
        import timm

        spec = encoder.image
        self.num_workers = num_workers
        self.model = timm.create_model(encoder.model.backbone, num_classes=0).eval()
        self.model.load_state_dict(encoder.backbone.net.state_dict())
        self.transform = timm.data.create_transform(
            spec.image_px, interpolation=spec.interpolation, mean=spec.mean, std=spec.std, crop_pct=spec.image_px / spec.resized_px
        )

    def embed(self, files: list[Path]) -> np.ndarray:
        import torch
        from torch.utils.data import DataLoader

        loader = DataLoader(Files(files, self.transform), BATCH_SIZE, num_workers=self.num_workers)
        with torch.inference_mode():
            return torch.cat([torch.nn.functional.normalize(self.model(images), dim=1) for images in loader]).numpy()


def ours(encoder: Any, files: list[Path], precision: str = "auto") -> np.ndarray:
    from sightline.data.images import BadFiles
    from sightline.data.records import Records
    from sightline.search.embed import embed_records

    records = Records(files[0].parent, tuple(file.name for file in files))
    return embed_records(encoder, records, BadFiles(), batch_size=BATCH_SIZE, precision=precision, show=False).vectors


def make_encoder(name: str, image_px: int = 224, **arguments: Any) -> Any:
    import torch

    from sightline.nn.encoder import Encoder
    from sightline.recipe import ImageSpec, ModelSpec

    torch.manual_seed(0)
    model = ModelSpec(backbone=name, weights="random", backbone_args=tuple(arguments.items()))
    return Encoder(model, ImageSpec(image_px=image_px)).eval()


# --- what is measured -------------------------------------------------------------------------------------------------------------


def model_alone(encoder: Any, repeats: int) -> dict[str, float]:
    """Return images a second of batches that are already there, worked through as ours are, and the operations of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sightline.search import embed

    images = torch.randn(BATCH_SIZE, 3, encoder.image.image_px, encoder.image.image_px)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(images[:1])
    batches = [(np.arange(len(part)), part) for part in images.split(embed.CPU_BATCH_SIZE)]
    times = [seconds(lambda: list(embed._on_cores(encoder, iter(batches), "auto"))) for _ in range(repeats)]
    return {"images_per_s": BATCH_SIZE / statistics.median(times), "gflop": counter.get_total_flops() / 1e9}


def compare(encoder: Any, files: list[Path], repeats: int, num_workers: int) -> dict[str, float]:
    """Return rates of both sides on the same files, their ratio, and the least cosine between their descriptors."""
    usual = UsualScript(encoder, num_workers)
    few = files[:NUM_DISTINCT]
    truth = usual.embed(few)  # and all are warm
    kinds = {"ours": "auto", **({"ours_fp32": "fp32"} if takes_bf16() else {})}
    cosines = {name: float((truth * ours(encoder, few, precision)).sum(axis=1).min()) for name, precision in kinds.items()}
    calls: dict[str, Any] = {name: partial(ours, encoder, files, precision) for name, precision in kinds.items()}
    runs = interleaved({"usual": lambda: usual.embed(files), **calls}, repeats)
    walls = {name: [run.wall_s for run in taken] for name, taken in runs.items()}
    processor = {name: [run.cpu_s for run in taken] for name, taken in runs.items()}
    found: dict[str, float] = {name: len(files) / statistics.median(taken) for name, taken in walls.items()}
    for name in kinds:
        ratios, ending = [a / b for a, b in zip(walls["usual"], walls[name], strict=True)], name.removeprefix("ours")
        found |= {
            f"ratio{ending}": median_ratio(walls["usual"], walls[name]),
            f"least{ending}": min(ratios),
            f"most{ending}": max(ratios),
            f"cpu_ratio{ending}": median_ratio(processor["usual"], processor[name]),
            f"cosine{ending}": cosines[name],
        }
    return found


def takes_bf16() -> bool:
    """Return whether ours computes in bfloat16 on this processor unless it is told otherwise."""
    import torch

    from sightline.runtime import autocast_dtype

    return autocast_dtype("auto", torch.device("cpu")) is not None


def memory(folder: Path) -> Iterator[tuple[int, float]]:
    """Yield (images so far, resident MiB) along one stream with a very small model."""
    from sightline.data.images import BadFiles
    from sightline.data.records import Records
    from sightline.runtime import resident_bytes
    from sightline.search.embed import embed_stream

    encoder = make_encoder("vit_tiny_patch16_224", image_px=32, depth=1)
    records = Records(folder, tuple(sorted(file.name for file in folder.iterdir())))
    due = list(MEMORY_AT)
    for rows, _ in embed_stream(encoder, records, BadFiles(), batch_size=BATCH_SIZE, show=False):
        if due and rows[-1] + 1 >= due[0]:
            yield due.pop(0), resident_bytes() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="files of each size")
    parser.add_argument("--sizes", nargs="+", default=["4000x3000", "1600x1200", "640x480"])
    parser.add_argument("--models", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--no-memory", action="store_true", help="leave the 20,000 files out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    answer: dict[str, Any] = {"machine": machine(), "bf16": takes_bf16(), "models": {}, "rates": [], "memory_mib": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            make_photos(Path(folder, size), *map(int, size.split("x")), options.images)
        for name in options.models:
            encoder = make_encoder(name)
            answer["models"][name] = model_alone(encoder, options.repeats)
            for size in options.sizes:
                found = compare(encoder, sorted(Path(folder, size).iterdir()), options.repeats, answer["machine"]["cores"])
                answer["rates"].append({"model": name, "size": size, **found})
        if not options.no_memory:
            make_photos(Path(folder, "many"), 640, 480, MEMORY_AT[-1])
            answer["memory_mib"] = dict(memory(Path(folder, "many")))
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def as_text(answer: dict[str, Any]) -> str:
    facts = answer["machine"]
    rows = []
    for run in answer["rates"]:
        alone = answer["models"][run["model"]]["images_per_s"]
        for ending in ("", "_fp32"):
            if f"ratio{ending}" not in run:
                continue
            ratio = f"{run[f'ratio{ending}']:.2f} ({run[f'least{ending}']:.2f} to {run[f'most{ending}']:.2f})"
            rates = (f"{run['usual']:.1f}", f"{run[f'ours{ending}']:.1f}", ratio, f"{run[f'cpu_ratio{ending}']:.2f}")
            computed = "float32" if ending or not answer["bf16"] else "bfloat16"
            rows.append((run["size"], run["model"], computed, *rates, "" if ending else f"{alone:.1f}", f"{run[f'cosine{ending}']:.5f}"))
    columns = (
        "photographs",
        "model",
        "ours in",
        "usual images/s",
        "ours",
        "ratio (least to most)",
        "processor time ratio",
        "model alone",
        "cosine",
    )
    text = f"{head(__doc__.splitlines()[0], facts)}\n{table(columns, rows)}\n\n"
    for name, model in answer["models"].items():
        reached = model["images_per_s"] * model["gflop"]
        text += (
            f"{name} alone: {model['gflop']:.2f} GFLOP an image, {reached:.0f} GFLOP/s, "
            f"{reached / facts['fp32_gflops']:.2f} of the float32 ceiling, {reached / facts['bf16_gflops']:.2f} of the bfloat16 one\n"
        )
    memory = [(f"{number:,}", f"{value:.0f}") for number, value in answer["memory_mib"].items()]
    return f"{text}\n{table(('images so far', 'resident MiB'), memory)}" if memory else text


if __name__ == "__main__":
    main()
