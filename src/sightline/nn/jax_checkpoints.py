"""The JAX originals: google-research/vision_transformer and google-research/big_transfer."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sightline.errors import ModelError, first_line
from sightline.nn.layouts import Pattern, fuse_qkv, renamed_by

Arrays = dict[str, npt.NDArray[np.float32]]


def _from_one_to_zero(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}."


JAX_NAMES: tuple[Pattern, ...] = (
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


def read_jax(file: Path) -> dict[str, torch.Tensor]:
    """Return what an archive of the JAX originals holds, under timm's names.

    Raises:
        ModelError: it is no archive of plain arrays, or of another network.
    """
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
    named = fuse_qkv({renamed_by(name, JAX_NAMES): torch.from_numpy(_torch_layout(name, array)) for name, array in arrays.items()})
    if any(name.startswith("conv_root/") for name in arrays) and not any(name.startswith("block") for name in arrays):
        named = {name.replace("backbone.stem.", "backbone."): value for name, value in named.items()}  # a hybrid on a bare stem
    return named


def _torch_layout(name: str, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return an array as torch keeps it: kernels with what comes out first, heads side by side, scales and biases flat."""
    if not name.endswith("/kernel"):
        return array.reshape(-1) if name.rpartition("/")[2] in ("scale", "bias", "gamma", "beta") else array
    if array.ndim == 4:  # [H, W, in, out]
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    flat = array.reshape(-1, array.shape[-1]) if "/out/" in name else array.reshape(len(array), -1)  # [heads, D / heads, D], else [D, ...]
    return np.ascontiguousarray(flat.T)
