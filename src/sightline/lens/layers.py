"""One walk through a model with some images, and what its layers show on the way: reach of attention, lengths of tokens, Gram matrices.

Nothing of a layer outlives its batch but sums, one norm a token and a matrix of B x B numbers, so memory does not grow with depth or images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.contracts import FloatArray, IntArray, Tokens
from sightline.data.images import BadFiles
from sightline.data.loading import decode_stream
from sightline.data.records import Records
from sightline.data.transforms import eval_transform
from sightline.errors import DataError, ModelError
from sightline.lens.attention import attention_hooks
from sightline.lens.distance import DistanceMeter
from sightline.lens.embedding import Float64Array
from sightline.nn.encoder import Encoder
from sightline.progress import Bar
from sightline.runtime import num_cpus

NUM_IMAGES = 128
"""Images that the ViT paper averages attention distance over."""

BATCH_SIZE = 32
"""As many pairs as HSIC needs for an estimate of little noise, in a batch that a CPU still holds."""


@dataclass(eq=False)
class Layers:
    """What the layers ``names`` (timm's, where its features are taken) of a model showed of images.

    ``rows`` int64 are the images of each batch, and ``grams`` float64 ``[L, B, B]`` theirs; ``norms`` float32 ``[M, rows, columns]`` are the
    lengths of the last layer's patch tokens before the network's last norm, ``prefix_norms`` ``[M, P]`` those of its prefix tokens.
    """

    names: tuple[str, ...]
    distance: DistanceMeter
    rows: list[IntArray] = field(default_factory=list)
    grams: list[Float64Array] = field(default_factory=list)
    norms: FloatArray = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))
    prefix_norms: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def layer_names(net: nn.Module) -> tuple[str, ...]:
    """Return the modules whose outputs are the layers: every block of a ViT, every stage of other networks.

    Raises:
        ModelError: timm has no table of them for this network.
    """
    modules = dict(net.named_modules())
    names = tuple(str(info["module"]) for info in getattr(net, "feature_info", []) if info["module"] in modules)
    if not names:
        raise ModelError(f"{type(net).__name__} has no table of its layers in timm")
    return names


def walk(encoder: Encoder, batches: Iterable[tuple[IntArray, torch.Tensor]]) -> Layers:
    """Return what the layers show of normalised images: batches of (rows int64 ``[B]``, float32 ``[B, 3, H, W]``), in float32.

    Raises:
        ModelError: timm has no table of the network's layers.
    """
    seen = Layers(layer_names(encoder.backbone.net), DistanceMeter(encoder))
    norms: list[tuple[FloatArray, FloatArray]] = []
    grams: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def take(features: torch.Tensor) -> None:
        grams.append(gram(features))
        last[:] = [features]

    with torch.inference_mode(), _hooks(encoder.backbone.net, seen.names, take), attention_hooks(encoder, seen.distance.see):
        for rows, images in batches:
            grams.clear()
            seen.distance.begin(len(images))
            tokens = encoder.tokens(images.to(encoder.device))
            seen.rows.append(rows)
            seen.grams.append(torch.stack(grams).cpu().numpy().astype(np.float64))
            norms.append(token_norms(last[0], tokens, channels_last=getattr(encoder.backbone.net, "output_fmt", "NCHW") == "NHWC"))
    if norms:
        seen.norms, seen.prefix_norms = (np.concatenate(parts) for parts in zip(*norms, strict=True))
    return seen


def gram(features: torch.Tensor) -> torch.Tensor:
    """Return the inner products ``[B, B]`` of the features of images, all tokens together, about their mean."""
    flat = features.flatten(1).float()
    flat = flat - flat.mean(dim=0)  # what is common to all would drown the rest in rounding; centring later takes it away in any case
    return flat @ flat.T


def token_norms(features: torch.Tensor, tokens: Tokens, *, channels_last: bool) -> tuple[FloatArray, FloatArray]:
    """Return the lengths ``[B, rows, columns]`` of the patches and ``[B, P]`` of the prefix tokens in a layer's output.

    The output is ``[B, P + N, D]`` in the order of ``tokens``, or a map ``[B, D, rows, columns]`` (``channels_last``: D at the end).
    """
    if features.ndim == 4:
        lengths = features.float().norm(dim=-1 if channels_last else 1)
        return lengths.cpu().numpy(), np.zeros((len(lengths), 0), np.float32)
    lengths = features.float().norm(dim=-1)
    num_prefix = tokens.prefix.shape[1]
    return lengths[:, num_prefix:].reshape(-1, *tokens.grid).cpu().numpy(), lengths[:, :num_prefix].cpu().numpy()


def read_batches(
    encoder: Encoder, records: Records, rows: IntArray, *, what: str, show: bool = True
) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Yield (rows, normalised images) of the rows of the records, in batches of ``BATCH_SIZE``; a file that has gone leaves its own batch."""
    with Bar(what, len(rows), show=show and len(rows) > BATCH_SIZE) as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            chosen = rows[start : start + BATCH_SIZE]
            transform = eval_transform(encoder.image)
            images_of = decode_stream(
                records.select(chosen), transform, batch_size=len(chosen), num_threads=num_cpus(), bad_files=BadFiles()
            )
            with suppress(DataError):  # not one of them is there any more
                for places, images in images_of:
                    yield chosen[places], images
            bar.update(start + len(chosen), "")


@contextmanager
def _hooks(net: nn.Module, names: tuple[str, ...], take: Callable[[torch.Tensor], None]) -> Iterator[None]:
    modules = dict(net.named_modules())

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        take(output[0] if isinstance(output, tuple) else output)

    handles = [modules[name].register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
