"""How fast are labels propagated through a video at 480p, beside the dense form that the reference computes, and are the masks the same?

    python benchmarks/label_propagation.py --data DAVIS                  # the first sequence of its list
    python benchmarks/label_propagation.py --frames 8                    # a made-up video: a textured square over textured ground

Both get the same features and the same labels of the first frame, and each goes on with its own; frame by frame they take turns. The
dense form is written here as it is described: exp(cosine / 0.1) of all patches with all patches of every context frame, times a mask of
the windows (made once, outside the time), all but the five largest of a column set to 0, and a product with the labels. The time of the
model, of reading and of measuring is in neither. Context of the first frame and 7 latest, radius 12.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from _common import Run, head, machine, median_ratio, run, table

CONTEXT, TOPK, RADIUS, TEMPERATURE = 7, 5, 12, 0.1
SIZE = (480, 854)


class Dense:
    """The dense form, with the two verbs of ``Propagation``."""

    def __init__(self, grid: tuple[int, int]) -> None:
        import torch

        self.grid, self.seen = grid, []
        place = torch.arange(grid[0] * grid[1])
        rows, columns = place // grid[1], place % grid[1]
        far = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) > RADIUS
        self.window = (~far).float()

    def see(self, features: Any, labels: Any) -> None:
        self.seen.append((features.T, labels))
        if len(self.seen) > 1 + CONTEXT:
            del self.seen[1]

    def labels_of(self, features: Any) -> Any:
        import torch
        import torch.nn.functional as F

        num = len(self.seen)
        sources = F.normalize(torch.stack([feats for feats, _ in self.seen]), dim=1)
        targets = F.normalize(features, dim=1)[None].repeat(num, 1, 1)
        affinity = torch.exp(torch.bmm(targets, sources) / TEMPERATURE)
        affinity *= self.window
        affinity = affinity.transpose(2, 1).reshape(-1, len(features))
        least = affinity.topk(TOPK, dim=0).values.min(dim=0).values
        affinity[affinity < least] = 0
        affinity = affinity / affinity.sum(dim=0, keepdim=True)
        labels = torch.cat([one.flatten(1) for _, one in self.seen], dim=1)
        return (labels @ affinity).view(-1, *self.grid)


def made_up(num: int) -> tuple[list[Any], list[Any]]:
    """Return frames and masks uint8 of a square that goes to the right by 6 px a frame."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (30, 54, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    thing = random.integers(0, 256, (160, 160, 3), dtype=np.uint8)
    frames, masks = [], []
    for step in range(num):
        frame, mask = ground.copy(), np.zeros(SIZE, np.uint8)
        box = slice(160, 320), slice(200 + 6 * step, 360 + 6 * step)
        frame[box], mask[box] = thing, 1
        frames.append(Image.fromarray(frame))
        masks.append(mask)
    return frames, masks


def read(data: Path, num: int) -> tuple[list[Any], list[Any]]:
    from sightline.data.images import decode
    from sightline.data.sets import davis

    found = davis.read(data)
    video = found.sequences[0]
    paths = video.frames[:num]
    return [decode(path) for path in paths], [found.mask(video.masks[path.stem]) for path in paths]


def extract(model: str, frames: list[Any]) -> tuple[list[Any], tuple[int, int], tuple[int, int]]:
    """Return the features of each frame, their grid and the (height, width) that the model saw."""
    import torch

    from sightline.evaluation.dense.davis import Frames, frame_size
    from sightline.nn import model_folder

    encoder = model_folder.load(model).eval()
    size = frame_size(frames[0].height, frames[0].width, 480, encoder.backbone.multiple_px)
    transform = Frames(size, encoder.image)
    features = []
    with torch.no_grad():
        for frame in frames:
            tokens = encoder.tokens(transform.normalise(transform.pixels(frame)[None]))
            features.append(tokens.patches[0])
    return features, tokens.grid, size


def compare(model: str, frames: list[Any], masks: list[Any]) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F
    from PIL import Image

    from sightline.evaluation.dense.davis import stretch
    from sightline.evaluation.dense.jandf import contour, region
    from sightline.evaluation.dense.propagation import Propagation

    features, grid, size = extract(model, frames)
    height, width = masks[0].shape
    num_objects = int(masks[0].max())
    small = np.asarray(Image.fromarray(masks[0]).resize(grid[::-1], Image.Resampling.NEAREST)).astype(np.int64)
    first = F.one_hot(torch.from_numpy(small), num_objects + 1).permute(2, 0, 1).float()
    ours = Propagation(grid, context=CONTEXT, topk=TOPK, radius=RADIUS, temperature=TEMPERATURE)
    memories: dict[str, Any] = {"sightline": ours, "dense": Dense(grid)}
    times: dict[str, list[Run]] = {name: [] for name in memories}
    scores: dict[str, list[float]] = {name: [] for name in memories}
    masks_of: dict[str, Any] = {}
    labels_of: dict[str, Any] = {}
    agree, furthest = [], 0.0
    for row, of_frame in enumerate(features):
        for name, memory in memories.items():

            def step(name: str = name, memory: Any = memory, of_frame: Any = of_frame, is_first: bool = row == 0) -> None:
                labels_of[name] = first if is_first else memory.labels_of(of_frame)
                memory.see(of_frame, labels_of[name])

            taken = run(step)
            if row == 0:
                continue
            if row > CONTEXT:  # from here on all the context is there
                times[name].append(taken)
            large = F.interpolate(labels_of[name][None], size, mode="bilinear", align_corners=False)[0]
            numbers = Image.fromarray(stretch(large).argmax(dim=0).to(torch.uint8).numpy())
            masks_of[name] = np.asarray(numbers.resize((width, height), Image.Resampling.NEAREST))
            if row < len(features) - 1:
                pairs = [(masks[row] == number, masks_of[name] == number) for number in range(1, num_objects + 1)]
                scores[name].append(float(np.mean([(region(*pair) + contour(*pair)) / 2 for pair in pairs])))
        if row:
            agree.append(float((masks_of["sightline"] == masks_of["dense"]).mean()))
            furthest = max(furthest, float((labels_of["sightline"] - labels_of["dense"]).abs().max()))
    return {
        "model": model,
        "frames": len(frames),
        "grid": list(grid),
        "median_s": {name: statistics.median(one.wall_s for one in taken) for name, taken in times.items()},
        "ratio": median_ratio([one.wall_s for one in times["dense"]], [one.wall_s for one in times["sightline"]]),
        "processor_ratio": median_ratio([one.cpu_s for one in times["dense"]], [one.cpu_s for one in times["sightline"]]),
        "j&f": {name: float(np.mean(values)) for name, values in scores.items()},
        "pixels_alike": float(np.mean(agree)),
        "largest_difference": furthest,
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of DAVIS (default: a made-up video)")
    parser.add_argument("--model", action="append", help="may be repeated (default: random:vit_tiny_patch16_224)")
    parser.add_argument("--frames", type=int, default=20, help=f"at least {CONTEXT + 2}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    facts = machine()
    torch.set_num_threads(options.threads)
    num = max(options.frames, CONTEXT + 2)
    frames, masks = read(options.data, num) if options.data else made_up(num)
    found = [compare(model, frames, masks) for model in options.model or ["random:vit_tiny_patch16_224"]]
    print(json.dumps({"machine": facts, "runs": found}, indent=2) if options.json else as_text(facts, found))


def as_text(facts: dict[str, Any], found: list[dict[str, Any]]) -> str:
    rows = []
    for one in found:
        grid = " x ".join(map(str, one["grid"]))
        for name, median_s in one["median_s"].items():
            about = [name, one["model"], one["frames"], grid, f"{1 / median_s:.2f}"]
            score = f"{100 * one['j&f'][name]:.2f}"
            if name == "dense":
                times = f"{one['ratio']:.1f} ({one['processor_ratio']:.1f})"
                rows.append([*about, times, score, f"{100 * one['pixels_alike']:.3f} %", f"{one['largest_difference']:.0e}"])
            else:
                rows.append([*about, "1.0", score, "", ""])
    columns = ("form", "model", "frames", "patches", "frames/s", "times ours (processor)", "J&F", "pixels alike", "largest difference")
    return f"{head(__doc__.splitlines()[0], facts)}\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
