"""Which timm network a weights file is of: by its name, by what lies beside it, or by the shapes of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from sightline import runtime
from sightline.imports import load_meta_kernels

SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1152: "so400m", 1536: "giant"}
"""What timm calls a ViT of a width."""

NAMES_OF_THE_HUB = re.compile(
    r"(?:model|pytorch_model|open_clip_model|open_clip_pytorch_model)\.(?:safetensors|bin|safetensors\.index\.json)"
)
"""How files are called that have a folder to themselves, whose ``config.json`` therefore tells of them."""


def facts_beside(file: Path, name: str) -> dict[str, Any]:
    """Return what a JSON file of that ``name`` in a weights file's own folder tells; nothing where the folder holds other files too."""
    beside = (file if file.is_dir() else file.parent) / name
    if not beside.is_file() or not (file.is_dir() or NAMES_OF_THE_HUB.fullmatch(file.name)):
        return {}
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def local_weights(name: str) -> Path | None:
    """Return the file (or folder as the hub has it) of ``SIGHTLINE_WEIGHTS`` that holds the weights of the timm network ``name``.

    It is called as the network is, with or without the tag where that is the one that timm takes by itself.
    """
    folder = runtime.weights_folder()
    if folder is None:
        return None
    base, _, tag = name.partition(".")
    configured = timm.get_pretrained_cfg(base) if timm.is_model(base) else None
    own = (configured.tag or "") if configured is not None else ""
    names = [name] if tag and tag != own else [base, f"{base}.{own}"]
    endings = (".safetensors", ".pth", ".pt", ".bin", ".npz", "")
    found = (folder / f"{called}{ending}" for called in names for ending in endings)
    return next((path for path in found if path.exists()), None)


def told(file: Path) -> str:
    """Return the timm network that a file's name or the ``config.json`` beside it tells, with its tag; "" where neither does."""
    config = facts_beside(file, "config.json")
    architecture = str(config.get("architecture", ""))
    tag = config.get("pretrained_cfg", {}).get("tag") if isinstance(config.get("pretrained_cfg"), dict) else None
    for name in (f"{architecture}.{tag}", architecture):
        if _is_known(name):
            return name
    stem = re.sub(r"\.(?:safetensors|pth|pt|bin|ckpt|tar|npz|index|json)\b", "", file.name)
    for name in (stem, re.sub(r"-[0-9a-f]{8}$", "", stem)):
        if _is_known(name):
            return name
    return ""


def told_by_transformers(file: Path, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the timm network that transformers' ``config.json`` beside the file and the shapes of its weights agree on; "" if none."""
    config = facts_beside(file, "config.json")
    kind = str(config.get("model_type", ""))
    if not kind:
        return ""
    fits = fitting(weights)
    if kind.startswith("clip"):
        acts = (config.get("vision_config") or config).get("hidden_act", "quick_gelu")
        fits = [name for name in fits if ("quickgelu" in name) == (acts == "quick_gelu")]
    if kind == "vit_mae":
        fits = [f"{name}.mae" for name in fits if _is_known(f"{name}.mae")] or fits
    if kind == "deit":
        fits = [name.replace("vit_", "deit_", 1) for name in fits if _is_known(name.replace("vit_", "deit_", 1))] or fits
    return fits[0] if fits else ""


def fitting(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the timm ViTs that weights (as ``read_weights`` gives them) are of by their shapes, or nothing where they are of no ViT known here.

    Two names stand for one shape where networks differ in what no weight shows: CLIP's activation.
    """
    return [name for name in _candidates(weights) if _is_known(name) and _agrees(name, weights)]


def _is_known(name: str) -> bool:
    base, _, tag = name.partition(".")
    return bool(base) and timm.is_model(base) and (not tag or timm.is_model_pretrained(name))


def _candidates(weights: Mapping[str, torch.Tensor]) -> list[str]:
    stem = next((weights[name] for name in ("patch_embed.proj.weight", "visual.conv1.weight") if name in weights), None)
    if (
        stem is None
        or stem.ndim != 4
        or ("visual.conv1.weight" not in weights and not any(name.startswith("blocks.0.") for name in weights))
    ):
        return []
    size, patch = SIZES.get(len(stem), ""), stem.shape[-1]
    registers = next((weights[name].shape[1] for name in ("register_tokens", "storage_tokens", "reg_token") if name in weights), 0)
    positions = next((weights[name] for name in ("pos_embed", "visual.positional_embedding") if name in weights), None)
    if positions is None:
        biased = any(bool(value.nan_to_num().any()) for name, value in weights.items() if name.endswith((".attn.qkv.bias", ".attn.q_bias")))
        kinds = ("_qkvb", "") if biased else ("",)
        return [f"vit_{size}{plus}_patch{patch}_dinov3{kind}" for plus in ("", "_plus") for kind in kinds]
    has_token = "cls_token" in weights or "visual.class_embedding" in weights
    has_distillation = "dist_token" in weights
    tokens = positions.shape[-2] - has_token - has_distillation - (registers if "reg_token" in weights else 0)
    side_px = round(tokens**0.5) * patch
    if "norm_pre.weight" in weights or "visual.class_embedding" in weights:
        return [f"vit_{size}_patch{patch}_clip_quickgelu_{side_px}", f"vit_{size}_patch{patch}_clip_{side_px}"]
    if "blocks.0.ls1.gamma" in weights:
        return [f"vit_{size}_patch{patch}_{f'reg{registers}_' if registers else ''}dinov2"]
    if has_distillation:
        return [f"deit_{size}_distilled_patch{patch}_{px}" for px in (side_px, 224)][:1]
    if not has_token:
        pooled = "" if "attn_pool.latent" in weights else "gap_"
        return [f"vit_{size}_patch{patch}_siglip_{pooled}{side_px}", f"vit_{size}_patch{patch}_gap_{side_px}"]
    return [f"vit_{size}_patch{patch}_{px}" for px in dict.fromkeys((side_px, 224))]


def _agrees(name: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the network has the blocks and the widths of the weights."""
    load_meta_kernels()
    with torch.device("meta"):
        own = timm.create_model(name, num_classes=0).state_dict()
    if "visual.conv1.weight" in weights:
        depth = {match[1] for found in weights if (match := re.match(r"visual\.transformer\.resblocks\.(\d+)\.", found))}
        fc1 = weights["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    else:
        depth = {match[1] for found in weights if (match := re.match(r"blocks\.(\d+)\.", found))}
        first = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.w12.weight", "blocks.0.mlp.w1.weight")
        fc1 = next((weights[found] for found in first if found in weights), torch.empty(0))
    own_depth = {match[1] for found in own if (match := re.match(r"blocks\.(\d+)\.", found))}
    own_fc1 = next((own[found] for found in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1_g.weight") if found in own), torch.empty(0))
    return depth == own_depth and fc1.shape == own_fc1.shape
