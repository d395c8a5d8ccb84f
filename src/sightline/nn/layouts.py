"""Names of weights in other layouts than timm's, put under names that timm reads: wrappers, Hugging Face transformers, torchvision, CLIP.

Whatever a file holds beside the backbone, such as heads, a text tower or a student, keeps its name or goes under ``BESIDE``, so that loading
can list what it leaves out. Layouts that timm reads by itself (DINOv2's and DINOv3's own, OpenAI's CLIP) are only unwrapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

Weights = dict[str, torch.Tensor]

CONTAINERS = ("state_dict_ema", "model_ema", "ema", "teacher", "model", "state_dict", "model_state_dict", "net", "network", "student")
"""Under what a file may keep its weights, the first that is there: averages before what they are averages of, as timm prefers them."""

AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_model", "teacher")

WRAPPERS = (
    *("model_ema", "ema_model", "ema", "teacher"),
    *(
        "model",
        "backbone",
        "net",
        "network",
        "encoder",
        "base_model",
        "base_encoder",
        "encoder_q",
        "student",
        "momentum_encoder",
        "encoder_k",
    ),
    *("module", "_orig_mod"),
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vision_model", "clip", "visual", "trunk", "image_encoder"),
)
"""Words that may stand before a backbone's names, the preferred first: averages, but MoCo's, whose authors evaluate the network that learnt."""

BESIDE = "beside."
"""Before the name of what a file holds outside the backbone and no head's prefix tells."""

_STEM = re.compile(
    r"(?:^|\.)(?=(?:patch_embeds?|conv1|conv_proj|conv_stem|stem|features|stages|layers)\.|pos_embed$|cls_token$|embeddings\.patch_embed)"
)
"""Where the names of a backbone begin: at the names of its first layers."""

Pattern = tuple[str, str | Callable[[re.Match[str]], str]]

_BLOCK: tuple[Pattern, ...] = (
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^blocks\.(\d+)\.(?:layernorm_before|layer_norm1)\.", r"blocks.\1.norm1."),
    (r"^blocks\.(\d+)\.(?:layernorm_after|layer_norm2)\.", r"blocks.\1.norm2."),
    (r"\.(?:attention|self_attn)\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.(?:attention|self_attn)\.q_proj\.", ".attn.query."),
    (r"\.(?:attention|self_attn)\.k_proj\.", ".attn.key."),
    (r"\.(?:attention|self_attn)\.v_proj\.", ".attn.value."),
    (r"\.attention\.output\.dense\.|\.(?:attention|self_attn)\.(?:o_proj|out_proj)\.", ".attn.proj."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^(?:layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
)
"""What the names of transformers' ViTs become, every pattern tried once in this order."""

_EMBEDDINGS: tuple[Pattern, ...] = (
    (r"^embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(?:position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.(mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
)

_ATTENTION_POOL: tuple[Pattern, ...] = (
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
"""SigLIP's head, which timm counts to the network."""

_TORCHVISION: tuple[Pattern, ...] = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.(?:head\.)?", "head."),
)


def unread(names: Collection[str]) -> str:
    """Say whose layout it is where names are of one that is not read; "" where they are of none known."""
    if any(re.search(r"(?:^|\.)(?:embeddings\.|embedder\.|encoder\.(?:layers?|stages|blocks?)\.\d)", name) for name in names):
        return "transformers, of which ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP are read"
    if any(re.match(r"features\.\d+\.", name) for name in names):
        return "torchvision, of which ViT and ResNets are read"
    return ""


def renamed_by(name: str, patterns: Sequence[Pattern]) -> str:
    """Return the name after every pattern has been tried once, in their order."""
    for pattern, becomes in patterns:
        name = re.sub(pattern, becomes, name)
    return name


def as_timm_names(weights: Mapping[str, torch.Tensor], heads: Sequence[str]) -> tuple[Weights, str]:
    """Return the weights under names that timm reads, and the word of those that one set was chosen by, such as ``teacher``; else "".

    ``heads`` are the beginnings of names that are known to stand beside a backbone.
    """
    bare = {re.sub(r"^(?:_orig_mod\.|module\.)+", "", name): value for name, value in weights.items()}
    prefix = _prefix(bare)
    inside = {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)}
    outside = {name: value for name, value in bare.items() if not name.startswith(prefix)}
    inside = {re.sub(r"^_orig_mod\.", "", name): value for name, value in inside.items()}
    if "class_embedding" in inside and "conv1.weight" in inside:  # OpenAI's CLIP, which timm knows by its prefix
        inside = {f"visual.{name}": value for name, value in inside.items()}
    else:
        inside = _known(inside)
    beside = {name if name.startswith(tuple(heads)) else BESIDE + name: value for name, value in outside.items()}
    return {**beside, **inside}, next((word for word in AVERAGES if word in prefix.split(".")), "")


def _prefix(names: Collection[str]) -> str:
    """Return what stands before the backbone's own names: words of ``WRAPPERS``, of several choices the one of the first word there."""
    found = set()
    for name in names:
        for match in _STEM.finditer(name):
            before = name[: match.end()]
            if all(word in WRAPPERS for word in before.split(".")[:-1]):
                found.add(before)
                break
        if "visual.class_embedding" in name:
            found.add(name.partition("class_embedding")[0])
    if not found:
        return ""
    # "encoder." stands before the layers of transformers' and torchvision's ViTs too, whose first names have nothing before them
    shortest = {one for one in found if not any(other != one and one.startswith(other) for other in found)}
    return min(shortest, key=lambda one: ([WRAPPERS.index(word) for word in one.split(".")[:-1]][:1], one))


def _known(weights: Weights) -> Weights:
    names = weights.keys()
    if "class_token" in names and "conv_proj.weight" in names:
        return {renamed_by(name, _TORCHVISION): value for name, value in weights.items()}
    is_vit = any(re.match(r"(?:encoder\.|model\.)?layers?\.0\.(?:attention|self_attn)\.", name) for name in names)
    is_vit = is_vit and not any("lambda_1" in name or "relative_position" in name for name in names)  # BEiT and its kin
    if is_vit and any(name.startswith("embeddings.patch_embedding") for name in names):
        return _of_transformers(weights)
    return weights


def _of_transformers(weights: Weights) -> Weights:
    patterns = (_ATTENTION_POOL if "head.probe" in weights else ()) + _EMBEDDINGS + _BLOCK
    named = {renamed_by(name, patterns): value for name, value in weights.items() if not name.endswith("position_ids")}
    if "head.attention.in_proj_weight" in named:
        for kind in ("weight", "bias"):
            fused = named.pop(f"head.attention.in_proj_{kind}")
            named[f"attn_pool.q.{kind}"], named[f"attn_pool.kv.{kind}"] = fused[: len(fused) // 3], fused[len(fused) // 3 :]
    for name, axes in (("pos_embed", 2), ("cls_token", 1)):  # CLIP's are a table and a vector
        if name in named and named[name].ndim == axes:
            named[name] = named[name].reshape(1, -1, named[name].shape[-1])
    if "register_tokens" in named and "pos_embed" not in named:
        return _dinov3(fuse_qkv(named))
    return _gated(fuse_qkv(named))


def fuse_qkv(named: Weights) -> Weights:
    """Return the weights with each block's queries, keys and values under one name; a bias that is left out is zero."""
    fused = dict(named)
    for query in [name for name in named if ".attn.query." in name]:
        names = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        given = [fused.pop(name, None) for name in names]
        parts = [torch.zeros_like(named[query]) if part is None and query.endswith(".bias") else part for part in given]
        if any(part is None for part in parts):
            fused |= {name: part for name, part in zip(names, given, strict=True) if part is not None}
            continue
        fused[query.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return fused


def _gated(named: Weights) -> Weights:
    """Return DINOv2's gated layers under its authors' names."""
    gated: Weights = {}
    for name, value in named.items():
        if ".mlp.up_proj." in name:
            gated[name.replace("up_proj", "w12")] = torch.cat([named[name.replace("up_proj", "gate_proj")], value])
        elif ".mlp.gate_proj." not in name:
            gated[name.replace("mlp.weights_in", "mlp.w12").replace("mlp.weights_out", "mlp.w3").replace("mlp.down_proj", "mlp.w3")] = value
    return gated


def _dinov3(named: Weights) -> Weights:
    """Return DINOv3's weights under its authors' names."""
    is_gated = any(".mlp.gate_proj." in name for name in named)
    parts = (("gate_proj", "w1"), ("up_proj", "w2"), ("down_proj", "w3")) if is_gated else (("up_proj", "fc1"), ("down_proj", "fc2"))
    theirs: Weights = {}
    for name, value in named.items():
        for ours, becomes in parts:
            name = name.replace(f".mlp.{ours}.", f".mlp.{becomes}.")
        theirs[{"register_tokens": "storage_tokens"}.get(name, name)] = value
    return theirs
