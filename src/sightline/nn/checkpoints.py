"""Weights from files in the public layouts: timm's, a Sightline model folder, the JAX originals of ViT, hybrids and BiT, and those of ``layouts``.

Every layout is first put under timm's names, and then held to one rule: all that the network learns is in the file, and what the file
holds beyond it is a head, which is listed and left out. A file is read as numbers: none can run code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from sightline.errors import ModelError, first_line
from sightline.nn import which_backbone
from sightline.nn.jax_checkpoints import read_jax
from sightline.nn.layouts import AVERAGES, BESIDE, CONTAINERS, as_timm_names, unread
from sightline.nn.positions import resize_positions
from sightline.recipe import PositionsResize

HEAD_PREFIXES = (
    "head.",
    "head_dist.",
    "fc.",
    "classifier.",
    "segmenter.",
    "fc_norm.",
    "attn_pool.",
    "pre_logits.",
    "projection.",
    "reduction.",
    "class_attention.",
    "c_head.",
    "p_head.",
    "heads.",
    "pooler.",
    "cls_classifier.",
    "distillation_classifier.",
    "decoder.",
    "text_model.",
    "text_projection",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    BESIDE,
)
"""Weights that a file may hold and a headless backbone has no place for: the one list that loading may leave out."""

SELFPATCH_NAMES = (
    ("ca_head.cls_token", "class_attention.class_token"),
    ("ca_head.cls_blocks.", "class_attention.blocks."),
    ("ca_head.", "class_attention."),
)
"""What the beginning of a name of the SelfPatch authors' class attention becomes in an ``Encoder``; the first that fits is taken."""

log = logging.getLogger(__name__)

TRIGGERS = ("mask_token", "storage_tokens", "register_tokens")
"""What timm knows a layout by, under names that no network has."""


def load_weights(net: nn.Module, source: Path, positions_resize: PositionsResize = "timm") -> list[str]:
    """Load a file, or the backbone of a model folder, into a timm network; learned positions are resampled to its image size.

    Returns:
        the names of what the file holds and the network has no place for: heads, and positions where the network's are fixed.

    Raises:
        ModelError: no such file, another format, or weights of another network.
    """
    weights = read_weights(source)
    learned = net.state_dict().keys()
    computed = {name for name, _ in net.named_buffers()} - learned
    left_out = [name for name in weights if name not in learned and (name in computed or name.startswith((*HEAD_PREFIXES, *TRIGGERS)))]
    held, weights = weights, {name: value for name, value in weights.items() if name not in left_out or name in TRIGGERS}
    try:
        if positions_resize == "jax":
            weights |= _positions_as_jax(weights, net)
        weights = _as_timm(weights, net)
        _require_numbers(weights, source)
        missing, unexpected = net.load_state_dict(weights, strict=False)  # held to the one list just below
    except (RuntimeError, AttributeError, KeyError, IndexError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"'{source}' holds weights of another shape than this backbone: {lines[min(1, len(lines) - 1)].strip()[:200]}{_remedy(held, source)}"
        ) from error
    heads = [name for name in unexpected if name.startswith(HEAD_PREFIXES)]
    strange = [name for name in unexpected if name != "mask_token" and name not in heads]
    if missing or strange:
        raise ModelError(
            f"'{source}' holds weights of another network: {len(missing)} missing (such as {missing[0] if missing else '-'}), "
            f"{len(strange)} unknown (such as {strange[0] if strange else '-'}){_remedy(held, source)}"
        )
    require_finite(net.state_dict(), source)
    return [name for name in left_out if name not in TRIGGERS] + heads


def _remedy(weights: dict[str, torch.Tensor], source: Path) -> str:
    """Return what to do where a file and a network do not fit: the backbone that would, where the file or its weights tell it."""
    told = which_backbone.told(source) or which_backbone.told_by_transformers(source, weights)
    fitting = [told] if told else which_backbone.fitting(weights)
    if fitting:
        return f"; they fit backbone={' or backbone='.join(fitting)}"
    whose = unread(weights)
    if whose:
        return f"; its names are of {whose}: take timm's own file of this network"
    return "; name the timm network that they were made for as the backbone, or save them under timm's names"


def require_finite(weights: Mapping[str, torch.Tensor], source: Path | str) -> None:
    """Hold weights and statistics to being numbers, whatever they come from.

    Raises:
        ModelError: one holds NaN or infinity.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            num = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"'{source}' holds NaN or infinity in {name} ({num:,} of {value.numel():,} values), so no descriptor of it means anything: "
                "take weights of before that, or another file"
            )


def _require_numbers(weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Refuse quantised weights, whose integers would be taken for the values that they stand for."""
    for name, value in weights.items():
        if name.endswith(".weight") and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(f"'{source}' holds {name} as {kind}, quantised: give the weights in float16, bfloat16 or float32")


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Return what a file holds under timm's names, heads included (a JAX file's tanh layer is ``pre_logits.weight`` and ``.bias``).

    The file is a ``.safetensors`` (or the ``.index.json`` of several), a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.pth.tar`` of torch, an
    ``.npz`` of the JAX originals, or a folder that holds ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        ModelError: no such file, or none of these formats.
    """
    file = weights_in(source)
    kind = next((ending for ending in READERS if file.name.endswith(ending)), None)
    if kind is None:
        raise ModelError(f"weights must be a file that ends in {', '.join(READERS)}, or a model folder; got '{source}'")
    if not file.is_file():
        raise ModelError(f"no weights at '{file}': pass a weights file, a model folder, 'hub' or 'random'")
    return READERS[kind](file)


def layout_of(source: Path) -> str:
    """Return the layout of a weights file where that tells how its authors give it images: ``torchvision`` (a ViT), ``dino`` (a whole run), or "".

    A file that cannot be read has none: what is wrong with it is said when it is loaded.
    """
    file = weights_in(source)
    try:
        if file.name.endswith(".safetensors"):
            with safe_open(file, "pt") as held:
                names = set(held.keys())
        elif file.suffix in (".pth", ".pt", ".bin"):
            whole = read_torch(file)
            if isinstance(whole, Mapping) and {"teacher", "student"} <= whole.keys():
                return "dino"
            inner = next((whole[name] for name in CONTAINERS if isinstance(whole, Mapping) and isinstance(whole.get(name), Mapping)), whole)
            names = set(map(str, inner)) if isinstance(inner, Mapping) else set()
        else:
            return ""
    except (ModelError, SafetensorError, OSError):
        return ""
    return "torchvision" if any(name.endswith("encoder.layers.encoder_layer_0.ln_1.weight") for name in names) else ""


def weights_in(source: Path) -> Path:
    """Return the file of a folder's weights, by the names that Sightline, timm and transformers give them; a file as it is."""
    if not source.is_dir():
        return source
    names = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "open_clip_model.safetensors",
    )
    return next((source / name for name in names if (source / name).is_file()), source / names[0])


def _positions_as_jax(weights: dict[str, torch.Tensor], net: Any) -> dict[str, torch.Tensor]:
    """Return the learned positions at the network's size, where it has any that differ from the file's."""
    name = "pos_embed"
    if name not in weights or name not in net.state_dict() or weights[name].shape == net.pos_embed.shape:
        return {}
    num_prefix = net.pos_embed.shape[1] - net.patch_embed.num_patches
    return {name: resize_positions(weights[name], net.patch_embed.grid_size, num_prefix)}


def _as_timm(weights: dict[str, torch.Tensor], net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights as timm itself would load them into ``net``: older names brought up to date, positions resampled."""
    rename = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    if "storage_tokens" in weights and not any(name.endswith("q_bias") for name, _ in net.named_parameters()):
        weights = _without_empty_biases(weights)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # timm prints which biases a network lacks
        warnings.simplefilter("ignore")
        renamed: dict[str, torch.Tensor] = rename(dict(weights), net)
    return renamed


def _without_empty_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return DINOv3's weights for a network without biases of queries and values, which timm would drop whatever they are.

    Raises:
        ValueError: they are not zero.
    """
    biases = [name for name in weights if name.endswith("attn.qkv.bias")]
    if any(bool(weights[name].nan_to_num().any()) for name in biases):
        raise ValueError("its biases of queries and values are not zero, and this backbone has none")
    return {name: value for name, value in weights.items() if name not in biases}


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    return _named(_tensors_in(file), file)


def _tensors_in(file: Path) -> dict[str, torch.Tensor]:
    try:
        held: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is not a readable safetensors file ({first_line(error)}): get it again") from error
    return held


def _read_shards(file: Path) -> dict[str, torch.Tensor]:
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"'{file}' does not tell the files of its weights ({first_line(error)})") from error
    held: dict[str, torch.Tensor] = {}
    for part in (file.parent / Path(name).name for name in names):
        if not part.is_file():
            raise ModelError(
                f"'{part.name}' is missing beside '{file}': its weights are spread over {len(names)} files, all of them are needed"
            )
        held |= _tensors_in(part) if part.suffix == ".safetensors" else read_torch(part)
    return _named(held, file)


def _named(held: Mapping[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return the weights under names that timm reads, and say which were taken where a file has an average beside what it is one of."""
    named, chosen = as_timm_names({_as_encoder(name): value for name, value in held.items()}, HEAD_PREFIXES)
    if chosen and any(name.startswith(BESIDE) for name in named):
        log.warning("%s: took %s, of the sets of weights that it holds", file, chosen)
    return named


def _as_encoder(name: str) -> str:
    """Return the name of SelfPatch's class attention as an ``Encoder`` has it; others as they are."""
    bare = re.sub(r"^(?:_orig_mod\.|module\.)+", "", name)
    changed = renamed(bare, SELFPATCH_NAMES)
    return changed if changed != bare else name


# --- torch files: the original DINO and what is laid out like it ---------------------------------------------------------------------


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    return _without_wrappers(read_torch(file), file)


def read_torch(file: Path) -> Any:
    """Return what a torch file holds: tensors and plain data, for nothing else is read.

    Raises:
        ModelError: there is no such file, it is no checkpoint or a damaged one, or it holds what could run code.
    """
    try:
        # DINO keeps the settings of its run, a Namespace, beside the weights. What torch warns of, it then reads or refuses.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_zip_or_pickle(file):
            raise ModelError(f"'{file}' is no checkpoint: give a file that torch.save has written") from error
        raise ModelError(
            f"'{file}' holds more than numbers, which could run code when read, so it was not read: "
            "where you trust it, save its state_dict alone with torch.save or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"'{file}' is not a readable torch file ({first_line(error)})") from error
    return held


def _is_zip_or_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2).startswith((b"PK", b"\x80"))


def renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    """Return the name with its beginning replaced, by the first pair of ``names`` that fits."""
    return next((ours + name.removeprefix(theirs) for theirs, ours in names if name.startswith(theirs)), name)


def _without_wrappers(held: Any, file: Path) -> dict[str, torch.Tensor]:
    """Return the backbone and heads of a torch file: of its sets of weights the first of ``CONTAINERS``, told where others are left."""
    found = [name for name in CONTAINERS if isinstance(held, Mapping) and isinstance(held.get(name), Mapping)]
    if found:
        if len(found) > 1 and found[0] in AVERAGES:
            log.warning("%s: took %s, of %s", file, found[0], ", ".join(found))
        held = held[found[0]]
    whole = held
    if isinstance(held, Mapping):
        held = {name: value for name, value in held.items() if not isinstance(value, int | float | str)}  # an epoch, a version
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, torch.Tensor) for value in held.values()):
        what = f"a dictionary of {', '.join(map(str, list(whole)[:5]))}" if isinstance(whole, Mapping) else f"a {type(held).__name__}"
        raise ModelError(
            f"'{file}' holds {what}, not weights: save the state_dict, alone or under teacher, model, state_dict, model_ema or state_dict_ema"
        )
    return _named({str(name): value for name, value in held.items()}, file)


READERS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".ckpt": _read_torch,
    ".pth.tar": _read_torch,
    ".pt.tar": _read_torch,
    ".npz": read_jax,
    ".safetensors.index.json": _read_shards,
    ".bin.index.json": _read_shards,
}
"""How a file is read, by how its name ends."""

ENDINGS = tuple(READERS)
"""How the names of weights files end."""
