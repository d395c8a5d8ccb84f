"""Full checkpoints of the DINO and SelfPatch authors: student, teacher, heads and centres, to go on from.

Backbones alone are read by `checkpoints`, from these files too. Heads come in two namings of one thing: ``weight_g`` and ``weight_v`` of
torch's older weight norm, and the parametrisation's ``original0`` and ``original1``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import ModelError
from sightline.nn.checkpoints import SELFPATCH_NAMES, read_torch, renamed, require_finite

OUR_NAMES = (
    ("backbone.", "encoder.backbone.net."),
    *((theirs, f"encoder.{ours}") for theirs, ours in SELFPATCH_NAMES),
    ("head.", "image_head."),
    ("c_head.", "image_head."),
    ("p_head.", "patch_head."),
)
"""What the beginning of a name, but for ``module.``, becomes in a ``Branch``; the first that fits is taken."""

log = logging.getLogger(__name__)


def our_name(name: str) -> str:
    """Return a parameter's name in a ``Branch`` for its name in the authors' checkpoint."""
    name = renamed(name.removeprefix("module."), OUR_NAMES)
    name = name.replace("last_layer.weight_g", "last_layer.parametrizations.weight.original0")
    return name.replace("last_layer.weight_v", "last_layer.parametrizations.weight.original1")


def load_dino(file: Path, student: nn.Module, teacher: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Load a full checkpoint into student, teacher and the centres among ``buffers``, all of which must have its sizes.

    Lengths of prototypes come along, as DINO learnt some (``norm_last_layer=False``); whether they go on learning is the student's to say.

    Raises:
        ModelError: no such file, not a full checkpoint, or of another network or heads.
    """
    held = read_torch(file)
    if not isinstance(held, Mapping) or not all(isinstance(held.get(part), Mapping) for part in ("student", "teacher")):
        raise ModelError(f"'{file}' is no full checkpoint: it must hold student and teacher (a backbone alone is loaded by model.weights)")
    for part, branch in (("student", student), ("teacher", teacher)):
        _load(file, part, branch, {our_name(name): value for name, value in held[part].items()})
    if _has_fixed_gains(student):
        log.warning("%s: its prototypes have lengths of their own, which stay as they are; set learn_gains=true to let them learn on", file)
    loss: Any = held.get("dino_loss", {})
    for name, buffer in buffers.items():
        if buffer.numel():
            if name not in loss or loss[name].numel() != buffer.numel():
                raise ModelError(
                    f"'{file}' has no {name} of {buffer.numel():,} answers: set num_prototypes and num_patch_prototypes to its own"
                )
            buffer.copy_(loss[name].reshape(buffer.shape))


def _has_fixed_gains(student: nn.Module) -> bool:
    """Return whether prototypes have other lengths than 1 that do not learn."""
    gains = (value for name, value in student.named_parameters() if name.endswith("last_layer.parametrizations.weight.original0"))
    return any(not value.requires_grad and bool((value != 1).any()) for value in gains)


def _load(file: Path, part: str, branch: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    own = branch.state_dict()
    fixed = {name for name in own if ".gamma_" in name}  # ones that stay, which the authors' blocks do without
    missing, unknown = own.keys() - weights.keys() - fixed, weights.keys() - own.keys()
    if missing or unknown:
        raise ModelError(
            f"the {part} in '{file}' is another network: {len(missing)} parameters missing (such as {min(missing, default='-')}), "
            f"{len(unknown)} unknown (such as {min(unknown, default='-')}); set backbone, pooling and patch_weight to its own"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ModelError(f"the {part} in '{file}' has {name} of {tuple(value.shape)}, this recipe {tuple(own[name].shape)}")
    require_finite(weights, f"{file}: {part}")
    branch.load_state_dict({**own, **weights})
