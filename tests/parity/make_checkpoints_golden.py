"""Make golden/checkpoints.json: what the authors' own ViT, hybrid, DINO and fixed positions answer. Not part of the test run.

    python tests/parity/make_checkpoints_golden.py --vit CHECKOUT --dino CHECKOUT --moco CHECKOUT

It needs checkouts of google-research/vision_transformer, facebookresearch/dino and facebookresearch/moco-v3, and jax and flax beside
torch and timm. Weights and images are waves that follow from a name and a shape, so the file holds names, shapes and answers alone,
and the test depends on no random generator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

PX, PATCH, WIDTH, HEADS, DEPTH, NUM_CLASSES = 32, 8, 16, 2, 2, 5
GOLDEN = Path(__file__).parent / "golden" / "checkpoints.json"


def wave(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return numbers in [-1, 1] without a pattern that a transposed axis would keep; scales of norms are near 1, the rest is small."""
    steps = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = np.sin(zlib.crc32(name.encode()) % 1000 + 0.7 * steps**2).reshape(shape).astype(np.float32)
    if name == "images":
        return values
    return 1 + 0.2 * values if name.endswith("scale") or ("norm" in name and name.endswith("weight")) else 0.2 * values


def jax_answers(resnet_layers: tuple[int, ...]) -> dict[str, Any]:
    """Return the arrays of a ViT (over a ResNet of these layers), its class tokens and its logits through the tanh layer."""
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict
    from vit_jax.models_vit import VisionTransformer

    transformer = {"num_layers": DEPTH, "num_heads": HEADS, "mlp_dim": 4 * WIDTH, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    settings = {"transformer": transformer, "hidden_size": WIDTH, "classifier": "token"}
    if resnet_layers:
        settings |= {"patches": SimpleNamespace(size=(1, 1)), "resnet": SimpleNamespace(num_layers=resnet_layers, width_factor=1)}
    else:
        settings |= {"patches": SimpleNamespace(size=(PATCH, PATCH))}
    whole = VisionTransformer(num_classes=NUM_CLASSES, representation_size=WIDTH, **settings)
    headless = VisionTransformer(num_classes=0, **settings)
    images = wave("images", (2, 3, PX, PX)).transpose(0, 2, 3, 1)
    flat = flatten_dict(whole.init(jax.random.PRNGKey(0), images, train=False)["params"])
    arrays = {path: wave("/".join(path), value.shape) for path, value in flat.items()}
    body = {path: value for path, value in arrays.items() if path[0] not in ("head", "pre_logits")}
    return {
        "resnet_layers": resnet_layers,
        "shapes": {"/".join(path): value.shape for path, value in arrays.items()},
        "class_tokens": headless.apply({"params": unflatten_dict(body)}, images, train=False).tolist(),
        "logits": whole.apply({"params": unflatten_dict(arrays)}, images, train=False).tolist(),
    }


def dino_answers() -> dict[str, Any]:
    """Return the names and shapes of DINO's own ViT and its class tokens."""
    from vision_transformer import VisionTransformer

    norm = partial(nn.LayerNorm, eps=1e-6)
    net = VisionTransformer([PX], PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, qkv_bias=True, norm_layer=norm).eval()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(wave(name, shape)) for name, shape in shapes.items()})
    with torch.no_grad():
        return {"shapes": shapes, "class_tokens": net(torch.from_numpy(wave("images", (2, 3, PX, PX)))).tolist()}


def moco_positions() -> list[list[float]]:
    """Return the fixed positions of MoCo v3 for a grid of 3 x 3, the class token's first."""
    import timm.layers.helpers

    sys.modules["timm.models.layers.helpers"] = timm.layers.helpers  # where the timm of their day kept it
    from vits import VisionTransformerMoCo

    holder = SimpleNamespace(patch_embed=SimpleNamespace(grid_size=(3, 3)), embed_dim=WIDTH, num_tokens=1, pos_embed=None)
    VisionTransformerMoCo.build_2d_sincos_position_embedding(holder)
    return holder.pos_embed[0].tolist()


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    repositories = {"vit": "google-research/vision_transformer", "dino": "facebookresearch/dino", "moco": "facebookresearch/moco-v3"}
    for option, repository in repositories.items():
        parser.add_argument(f"--{option}", type=Path, required=True, help=f"checkout of {repository}")
    checkouts = vars(parser.parse_args())
    origins = []
    for option, repository in repositories.items():
        sys.path.insert(0, str(checkouts[option]))
        commit = subprocess.run(["git", "-C", str(checkouts[option]), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        origins.append(f"github {repository} {commit.stdout.strip()}")
    golden = {
        "origin": origins,
        "made": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("jax", "flax", "torch", "timm")},
        "seed": "none: every input is a wave of its name and shape",
        "image_px": PX,
        "jax": [jax_answers(layers) for layers in ((), (1, 1))],
        "dino": dino_answers(),
        "moco_positions": moco_positions(),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
