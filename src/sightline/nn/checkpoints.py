"""Weights from files in the public layouts: timm's, a Sightline model folder, DINO's and SelfPatch's, and the JAX originals of ViT, hybrids and BiT.

Every layout is first put under timm's names, and then held to one rule: all that the network learns is in the file, and what the file
holds beyond it is a head, which is listed and left out. A file is read as numbers: none can run code.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sightline.errors import ModelError, first_line
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
)
"""Weights that a file may hold and a headless backbone has no place for: the one list that loading may leave out."""

SELFPATCH_NAMES = (
    ("ca_head.cls_token", "class_attention.class_token"),
    ("ca_head.cls_blocks.", "class_attention.blocks."),
    ("ca_head.", "class_attention."),
)
"""What the beginning of a name of the SelfPatch authors' class attention becomes in an ``Encoder``; the first that fits is taken."""

TRIGGERS = ("mask_token",)
"""Of no use to a network, but timm knows a layout by them: they are left out after it has renamed."""


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
    weights = {name: value for name, value in weights.items() if name not in left_out or name in TRIGGERS}
    try:
        if positions_resize == "jax":
            weights |= _positions_as_jax(weights, net)
        missing, unexpected = net.load_state_dict(_as_timm(weights, net), strict=False)  # held to the one list just below
    except (RuntimeError, AttributeError) as error:
        lines = str(error).splitlines()
        raise ModelError(
            f"'{source}' holds weights of another shape than this backbone: {lines[min(1, len(lines) - 1)].strip()[:200]}"
        ) from error
    strange = [name for name in unexpected if name not in TRIGGERS]
    if missing or strange:
        raise ModelError(
            f"'{source}' holds weights of another network: {len(missing)} missing (such as {missing[0] if missing else '-'}), "
            f"{len(strange)} unknown (such as {strange[0] if strange else '-'}); set model.backbone to the one that they were made for"
        )
    return left_out


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Return what a file holds under timm's names, heads included (a JAX file's tanh layer is ``pre_logits.weight`` and ``.bias``).

    The file is a ``.safetensors``, a ``.pth``, ``.pt`` or ``.bin`` of torch, an ``.npz`` of the JAX originals, or a model folder.

    Raises:
        ModelError: no such file, or none of these formats.
    """
    file = source / "model.safetensors" if source.is_dir() else source
    if file.suffix not in READERS:
        raise ModelError(f"weights must be a file that ends in {', '.join(READERS)}, or a model folder; got '{source}'")
    if not file.is_file():
        raise ModelError(f"no weights at '{file}': pass a weights file, a model folder, 'hub' or 'random'")
    return READERS[file.suffix](file)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        renamed: dict[str, torch.Tensor] = rename(weights, net)
    return renamed


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        held: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is not a readable safetensors file ({first_line(error)})") from error
    return {name.removeprefix("backbone.net."): value for name, value in held.items()}


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
    """Return the backbone and heads of a torch file: the teacher of a DINO run, which is what its authors evaluate; ``model`` elsewhere."""
    for name in ("teacher", "model", "state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
            break
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, torch.Tensor) for value in held.values()):
        what = f"a dictionary of {', '.join(map(str, list(held)[:5]))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise ModelError(f"'{file}' holds {what}, not weights: save the state_dict, alone or under teacher, model or state_dict")
    return {renamed(str(name).removeprefix("module.").removeprefix("backbone."), SELFPATCH_NAMES): value for name, value in held.items()}


# --- the JAX originals: google-research/vision_transformer and google-research/big_transfer ------------------------------------------

Arrays = dict[str, npt.NDArray[np.float32]]


def _from_one_to_zero(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}."


JAX_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^cls$", "cls_token"),
    (r"^embedding/", "patch_embed.proj."),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"LayerNorm_0/", "norm1."),
    (r"LayerNorm_[12]/", "norm2."),  # the published files count all modules of a block together, Flax Linen each kind by itself
    (r"MultiHeadDotProductAttention_[01]/out/", "attn.proj."),
    (r"MultiHeadDotProductAttention_[01]/(query|key|value)/", r"attn.\1."),
    (r"MlpBlock_[03]/Dense_0/", "mlp.fc1."),
    (r"MlpBlock_[03]/Dense_1/", "mlp.fc2."),
    (r"^(head|pre_logits)/", r"\1."),
    (r"^(?=conv_root/|gn_root/|block\d+/)", "patch_embed.backbone."),
    (r"\bconv_root/", "stem.conv."),
    (r"\bgn_root/", "stem.norm."),
    (r"^resnet/(?:root_block/)?", ""),
    (r"^standardized_conv2d/", "stem.conv."),
    (r"^group_norm/", "norm."),
    (r"^head/conv2d/", "head.fc."),
    (r"\bblock(\d+)/unit(\d+)/", _from_one_to_zero),
    (r"\b(?:a/proj/standardized_conv2d|conv_proj)/", "downsample.conv."),
    (r"\bgn_proj/", "downsample.norm."),
    (r"\b([abc])/standardized_conv2d/", lambda match: f"conv{'abc'.index(match[1]) + 1}."),
    (r"\b([abc])/group_norm/", lambda match: f"norm{'abc'.index(match[1]) + 1}."),
    (r"\bconv(\d)/", r"conv\1."),
    (r"\bgn(\d)/", r"norm\1."),
    (r"\b(?:kernel|scale|gamma)$", "weight"),
    (r"\bbeta$", "bias"),
)
"""What a JAX name becomes in timm's: every pattern is tried once, in this order."""


def _read_jax(file: Path) -> dict[str, torch.Tensor]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays: Arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:  # TypeError: one bare array
        raise ModelError(f"'{file}' is not a readable archive of plain arrays ({first_line(error)})") from error
    kept_beside = "opt/target/"  # what holds the model where an optimiser was saved with it
    arrays = {
        name.removeprefix(kept_beside): array
        for name, array in arrays.items()
        if not name.startswith("opt/") or name.startswith(kept_beside)
    }
    if not {"embedding/kernel", "resnet/root_block/standardized_conv2d/kernel"} & arrays.keys():
        raise ModelError(
            f"'{file}' holds neither a ViT of google-research/vision_transformer nor a ResNet of big_transfer "
            f"(its arrays are {', '.join(list(arrays)[:4]) or 'none'}): convert it to one of these or to safetensors"
        )
    named = {_timm_name(name): torch.from_numpy(_torch_layout(name, array)) for name, array in arrays.items()}
    for query in [name for name in named if ".attn.query." in name]:
        parts = [named.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        named[query.replace("query", "qkv")] = torch.cat(parts)
    if any(name.startswith("conv_root/") for name in arrays) and not any(name.startswith("block") for name in arrays):
        named = {name.replace("backbone.stem.", "backbone."): value for name, value in named.items()}  # a hybrid on a bare stem
    return named


def _timm_name(name: str) -> str:
    for pattern, becomes in JAX_NAMES:
        name = re.sub(pattern, becomes, name)
    return name


def _torch_layout(name: str, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return an array as torch keeps it: kernels with what comes out first, heads side by side, scales and biases flat."""
    if not name.endswith("/kernel"):
        return array.reshape(-1) if name.rpartition("/")[2] in ("scale", "bias", "gamma", "beta") else array
    if array.ndim == 4:  # [H, W, in, out]
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    flat = array.reshape(-1, array.shape[-1]) if "/out/" in name else array.reshape(len(array), -1)  # [heads, D / heads, D], else [D, ...]
    return np.ascontiguousarray(flat.T)


READERS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_jax,
}
"""How a file is read, by how its name ends."""
