"""How make_selfpatch_golden.py runs the authors' code: its surroundings, the tiny models, and two steps of training by their own loop."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from filling import fill, fill_module, fingerprint, rounded
from torch import nn

DTYPES = (torch.float64, torch.float32)
WIDTH, HEADS, DEPTH, PATCH_PX = 24, 3, 2, 16
HIDDEN, BOTTLENECK, OUT, PATCH_OUT = 32, 16, 64, 48
NUM_NEIGHBOURS, BATCH = 4, 2
CROPS_PX = (224, 224, 96, 96, 96)
SIZES_PX = ((224, 224), (96, 96), (224, 160), (160, 224), (256, 256))
TRAINING = {
    "lr": 0.128,  # at 256 images: 0.001 at BATCH
    "min_lr": 1e-6,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "momentum_teacher": 0.9,
    "clip_grad": 3.0,
    "freeze_last_layer": 1,
    "epochs": 4,
    "warmup_teacher_temp": 0.04,
    "teacher_temp": 0.07,
    "warmup_teacher_temp_epochs": 2,
}
TEMPERATURES = [TRAINING[name] for name in ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs", "epochs")]


def on_one_processor() -> None:
    """Let code that is written for many GPUs run in this process: nothing moves, and all there is to reduce over is this process."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    torch.cuda.synchronize = lambda *_: None
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    warnings.simplefilter("ignore", FutureWarning)


def imported(checkout: Path, *names: str) -> list[ModuleType]:
    """Import modules of a checkout and forget its names again: all three have their own ``utils``."""
    sys.path.insert(0, str(checkout))
    modules = [importlib.import_module(name) for name in names]
    sys.path.remove(str(checkout))
    for name, module in list(sys.modules.items()):
        if str(checkout) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    return modules


class Alone(nn.Module):
    """What stands for DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        return self.module(*inputs, **settings)


def made(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(fill(name, shape)).to(dtype)


def both(answer: Callable[[torch.dtype], Any]) -> dict[str, Any]:
    """Return the answer in float64 and in float32, by the names of the two."""
    return {str(dtype).removeprefix("torch."): answer(dtype) for dtype in DTYPES}


def gradient_norms(module: nn.Module) -> dict[str, float]:
    return {name: rounded(p.grad.norm().item()) for name, p in module.named_parameters() if p.grad is not None}


def parameters(module: nn.Module) -> dict[str, Any]:
    return {name: fingerprint(p, 4) for name, p in module.named_parameters()}


def tiny_vit(vits: ModuleType, **settings: Any) -> nn.Module:
    norm = partial(nn.LayerNorm, eps=1e-6)
    given = {"patch_size": PATCH_PX, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "qkv_bias": True, "norm_layer": norm}
    return vits.VisionTransformer(**given | settings)


def dino_head(vits: ModuleType, norm_last_layer: bool = True, out: int = OUT) -> nn.Module:
    return vits.DINOHead(WIDTH, out, norm_last_layer=norm_last_layer, hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK)


def vit_answers(vits: ModuleType, dtype: torch.dtype) -> dict[str, Any]:
    """Return what "images HxW" [2, 3, H, W] give, and the position tables, by size."""
    vit = fill_module(tiny_vit(vits), "backbone.").to(dtype)
    answers: dict[str, Any] = {"output": {}, "positions": {}}
    for height, width in SIZES_PX:
        images = made(f"images {height}x{width}", (BATCH, 3, height, width), dtype)
        answers["output"][f"{height}x{width}"] = fingerprint(vit(images))
        added = int(hasattr(vit, "cls_token"))
        tokens = torch.zeros(1, (height // PATCH_PX) * (width // PATCH_PX) + added, WIDTH, dtype=dtype)
        answers["positions"][f"{height}x{width}"] = fingerprint(vit.interpolate_pos_encoding(tokens, height, width))
    images = made("images 96x96", (BATCH, 3, 96, 96), dtype)
    answers["intermediate 96x96"] = [fingerprint(layer) for layer in vit.get_intermediate_layers(images, 2)]
    if hasattr(vit, "get_last_selfattention"):
        answers["last_selfattention 96x96"] = fingerprint(vit.get_last_selfattention(images))
    return answers


def gradient_rules(utils: ModuleType, build: Callable[[bool], nn.Module]) -> dict[str, Any]:
    """Return which parameters decay, which a frozen last layer leaves without gradient, and what clipping makes of norms."""
    answers: dict[str, Any] = {}
    for norm_last_layer in (True, False):
        model = build(norm_last_layer)
        names = {id(p): name for name, p in model.named_parameters()}
        decayed, spared = ([names[id(p)] for p in group["params"]] for group in utils.get_params_groups(model))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        utils.cancel_gradients_last_layer(0, model, 1)
        cancelled = [name for name, p in model.named_parameters() if p.grad is None]
        answers[f"norm_last_layer={norm_last_layer}"] = {"decayed": decayed, "not_decayed": spared, "cancelled": cancelled}
    pair = nn.ParameterDict({name: nn.Parameter(torch.zeros(9, dtype=torch.float64)) for name in ("large", "small")})
    for name, p in pair.items():
        p.grad = made(f"clip {name}", (9,), torch.float64) * (10 if name == "large" else 0.1)
    before = [rounded(norm) for norm in utils.clip_gradients(pair, 3.0)]
    answers["clip 3.0"] = {"before": before, "after": list(gradient_norms(pair).values())}
    return answers


def self_distillation_steps(
    main: ModuleType, student: nn.Module, teacher: nn.Module, loss: nn.Module, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], list[nn.Module]]:
    """Train for two epochs of one step each by the reference's own loop; return what each left behind, and student and teacher at the end.

    Epoch e sees "epoch e crop i" [2, 3, H, W], i = 0, 1 global (224 px), i = 2, 3, 4 local (96 px).
    """
    student, teacher, loss = student.to(dtype), teacher.to(dtype), loss.to(dtype)
    for p in teacher.parameters():
        p.requires_grad = False
    utils, given = main.utils, SimpleNamespace(**TRAINING)
    utils.MetricLogger.synchronize_between_processes = lambda _: None
    clip, norms = utils.clip_gradients, {}

    def watched(model: nn.Module, limit: float) -> list[float]:
        norms["before"] = gradient_norms(student)
        returned = clip(model, limit)
        norms["after"] = gradient_norms(student)
        return returned

    utils.clip_gradients = watched
    alone = Alone(student)
    optimizer = torch.optim.AdamW(utils.get_params_groups(alone))
    schedules = (
        utils.cosine_scheduler(given.lr * BATCH / 256.0, given.min_lr, given.epochs, 1),
        utils.cosine_scheduler(given.weight_decay, given.weight_decay_end, given.epochs, 1),
        utils.cosine_scheduler(given.momentum_teacher, 1, given.epochs, 1),
    )
    steps = []
    for epoch in (0, 1):
        crops = [made(f"epoch {epoch} crop {i}", (BATCH, 3, px, px), dtype) for i, px in enumerate(CROPS_PX)]
        with contextlib.redirect_stdout(io.StringIO()):
            stats = main.train_one_epoch(alone, teacher, teacher, loss, [(crops, None)], optimizer, *schedules, epoch, None, given)
        lr, weight_decay, momentum = (rounded(schedule[epoch]) for schedule in schedules)
        steps.append(
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "teacher_momentum": momentum,
                "teacher_temperature": rounded(loss.teacher_temp_schedule[epoch]),
                **{name: rounded(value) for name, value in stats.items() if "loss" in name},
                "gradient_norms_before_clipping": norms["before"],
                "gradient_norms": norms["after"],
                **{name: fingerprint(buffer) for name, buffer in loss.named_buffers()},
                "student": parameters(student),
                "teacher": parameters(teacher),
            }
        )
    utils.clip_gradients = clip
    return steps, [student, teacher]


def in_both(run: Callable[[torch.dtype], tuple[list[dict[str, Any]], list[nn.Module]]]) -> dict[str, Any]:
    """Return the steps in float64, and of those in float32 the losses and how far the parameters of each model end from float64's."""
    (steps, models), (short, others) = run(torch.float64), run(torch.float32)
    apart = [
        max((p.double() - q.double()).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))
        for model, other in zip(models, others, strict=True)
    ]
    losses = [{name: value for name, value in step.items() if "loss" in name} for step in short]
    return {"steps": steps, "float32": {"losses": losses, "apart": apart}}
