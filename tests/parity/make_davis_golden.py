"""Make golden/davis.json: what DINO's label propagation and DAVIS's own evaluator answer. Not part of the test run.

    python tests/parity/make_davis_golden.py --dino CHECKOUT --davis CHECKOUT

Checkouts of facebookresearch/dino and davisvideochallenge/davis2017-evaluation: run here, copied nowhere. opencv and scikit-image are
needed. Of each file only the functions named below are run; what sends tensors to a GPU is made to leave them where they are.

What is recorded: ``label_propagation`` on random features, on three equal frames and on features that are all equal (ties);
``restrict_neighborhood`` and ``norm_mask``; ``read_frame`` (every fifth row and seventh column) and ``read_seg``; ``db_eval_iou`` and
``db_eval_boundary`` on random masks with and without void pixels; ``db_statistics`` of sequences of several lengths.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "davis.json"
SEED = 20210429
GRID, DIM, CLASSES, FRAMES, RADIUS, TOPK = (6, 9), 5, 3, 4, 2, 5
SIZES = ((24, 31), (60, 107), (240, 428))
LENGTHS = (1, 2, 3, 7, 48, 67)
CASES = ("random", "equal frames", "equal features")


def features(case: str) -> tuple[Any, Any, Any]:
    """Return features float32 of context frames [4, N, 5] and of the frame that asks [N, 5], and labels [4, 3, rows, columns]."""
    generator = np.random.RandomState(SEED)  # its stream is frozen for good, unlike default_rng's
    num = GRID[0] * GRID[1]
    context = generator.randn(FRAMES, num, DIM).astype(np.float32)
    asking = generator.randn(num, DIM).astype(np.float32)
    labels = generator.rand(FRAMES, CLASSES, *GRID).astype(np.float32)
    labels /= labels.sum(axis=1, keepdims=True)
    if case == "equal frames":
        context[:] = context[:1]
    if case == "equal features":
        context[:], asking[:] = 1.0, 1.0
    return context, asking, labels


def picture() -> tuple[Any, Any]:
    """Return a smooth picture uint8 [90, 150, 3] and a mask of three objects uint8 [90, 150]."""
    generator = np.random.RandomState(SEED + 1)
    coarse = Image.fromarray(generator.randint(0, 256, (9, 15, 3)).astype(np.uint8))
    mask = np.repeat(np.repeat(generator.randint(0, 4, (6, 10)), 15, axis=0), 15, axis=1)
    return np.asarray(coarse.resize((150, 90), Image.Resampling.BICUBIC)), mask.astype(np.uint8)


def masks() -> list[tuple[Any, Any, Any]]:
    """Return (truth, found, void) bool [H, W]: blobs alike and unlike, empty and full ones, at several sizes."""
    generator = np.random.RandomState(SEED + 2)
    made = []
    for height, width in SIZES:

        def blob(share: float, size: tuple[int, int] = (height, width)) -> Any:
            coarse = generator.rand(max(2, size[0] // 8), max(2, size[1] // 8)).astype(np.float32)
            return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR)) > share

        truth, none, whole = blob(0.55), np.zeros((height, width), bool), np.ones((height, width), bool)
        nearly = truth ^ (generator.rand(height, width) > 0.98)
        moved = np.roll(truth, (2, -3), axis=(0, 1))
        pairs = [(truth, nearly), (truth, moved), (truth, blob(0.6)), (truth, truth), (truth, none), (none, truth), (none, none)]
        made += [(*pair, none) for pair in [*pairs, (whole, truth), (whole, whole), (whole, none)]]
        made += [(truth, moved, blob(0.7)), (truth, none, truth), (truth, none, whole)]
    return made


def courses() -> list[Any]:
    """Return measures over the frames of sequences, float64 in 0..1."""
    generator = np.random.RandomState(SEED + 3)
    return [generator.rand(length) for length in LENGTHS]


def functions(file: Path, names: tuple[str, ...], given: dict[str, Any]) -> Any:
    """Return some functions of a file, without their decorators, that see ``given`` and each other."""
    body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in body:
        node.decorator_list = []  # type: ignore[attr-defined]
    space = dict(given)
    exec(compile(ast.Module(body=body, type_ignores=[]), str(file), "exec"), space)  # type: ignore[arg-type]
    return space


def propagation(checkout: Path) -> dict[str, Any]:
    import cv2
    import torch

    torch.Tensor.cuda = lambda tensor, **_: tensor  # type: ignore[method-assign,assignment]
    settings = types.SimpleNamespace(size_mask_neighborhood=RADIUS, topk=TOPK)
    asked = ("label_propagation", "norm_mask", "restrict_neighborhood", "read_frame", "read_seg", "color_normalize", "to_one_hot")
    given = {"torch": torch, "F": torch.nn.functional, "np": np, "cv2": cv2, "Image": Image, "args": settings}
    given["extract_feature"] = lambda _, frame, return_h_w: (frame, *GRID)
    theirs = functions(checkout / "eval_video_segmentation.py", asked, given)
    answers = {}
    for case in CASES:
        context, asking, labels = (torch.from_numpy(part) for part in features(case))
        found = theirs["label_propagation"](settings, None, asking, [part.T for part in context], [part[None] for part in labels])[0]
        answers[case] = found[0].double().numpy().round(9).tolist()
    stretched = theirs["norm_mask"](torch.from_numpy(features("random")[2][0]).clone())
    near = theirs["restrict_neighborhood"](*GRID).numpy().astype(int)
    pixels, mask = picture()
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(pixels).save(f"{folder}/frame.png")
        Image.fromarray(mask).save(f"{folder}/mask.png")
        frame, height, width = theirs["read_frame"](f"{folder}/frame.png", [128])
        labels, _ = theirs["read_seg"](f"{folder}/mask.png", 16, [128])
    return {
        "label_propagation": answers,
        "norm_mask": stretched.double().numpy().round(9).tolist(),
        "restrict_neighborhood": ["".join(map(str, row)) for row in near],
        "read_frame": {
            "size": list(frame.shape[1:]),
            "of": [height, width],
            "values": frame[:, ::5, ::7].double().numpy().round(6).tolist(),
        },
        "read_seg": labels[0].argmax(dim=0).tolist(),
    }


def measures(checkout: Path) -> dict[str, Any]:
    import warnings

    import cv2

    needed = ("db_eval_iou", "db_eval_boundary", "f_measure", "_seg2bmap")
    theirs = functions(checkout / "davis2017/metrics.py", needed, {"np": np, "cv2": cv2})
    statistics = functions(checkout / "davis2017/utils.py", ("db_statistics",), {"np": np, "warnings": warnings})["db_statistics"]
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = [[float(theirs[name](*made)) for name in ("db_eval_iou", "db_eval_boundary")] for made in masks()]
    return {"j_f": pairs, "mean_recall_decay": [[float(value) for value in statistics(values)] for values in courses()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dino", type=Path, required=True)
    parser.add_argument("--davis", type=Path, required=True)
    given = parser.parse_args()

    def commit(folder: Path) -> str:
        return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()

    origin = {"facebookresearch/dino": commit(given.dino), "davisvideochallenge/davis2017-evaluation": commit(given.davis)}
    golden = {"origin": origin, "seed": SEED, **propagation(given.dino), **measures(given.davis)}
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
