"""What make_selfpatch_golden.py asks of the authors' MoBY (SwinTransformer/Transformer-SSL).

Names. Everything is filled by its name in the model: `encoder.`, `projector.`, `predictor.`, and the keys' `encoder_k.` and `projector_k.`
unlike the reference, whose keys begin as the online weights. `queue1` and `queue2` [16, 16], columns L2-normed in float64, follow from their
names too. In float64 compare gradients of biases before BatchNorm, 0 but for rounding, with an absolute tolerance, as those of keys' biases.
The reference's sizes of 4096 and 256 (MLP) and 4096 (queue) are 32, 16 and 16 here; drop path is 0 in place of the online encoder's 0.2.

Encoders. "swin": 56 px, patches of 4 px, widths 12 and 24, 2 and 4 heads, 2 + 2 blocks, windows of 7 (so the second block shifts by 3 and
the second stage does not), LayerNorm's eps 1e-5, mean of the normed tokens. "vit": the ViT of DINO above at 96 px, its class token. MLP:
Identity, Linear, BatchNorm, ReLU, then Linear; torch's own initial values.

A step, in this order: `encoder`, `projector`, `predictor` of view 1, then of view 2 (BatchNorm sees one view at a time, and its running
statistics move twice); keys' weights move by m, BatchNorm's weights with them and its running statistics not; keys of view 1, then 2, in train mode;
CE(query 1, key 2 against queue2) + CE(query 2, key 1 against queue1) over temperature 0.2, positive first; queues take keys in; backward; the
norm of all gradients together clipped to 5; AdamW (0.9, 0.999, eps 1e-8, decay 0.05); rate of the next step. Decayed: all but `.bias` and
what has one dimension: MoBY hides the encoder's own exceptions, so relative position tables decay, as tokens do.

Rates. Step t uses the rate of update t - 1 (the first two that of 0, the warm-up's first), for the scheduler steps last; after the warm-up the
cosine is where it would be without one. m = 1 - 0.01 (cos(pi k / K) + 1) / 2, k = 0 in the first step, K whole batches per epoch times epochs.
"""

from __future__ import annotations

import ast
import datetime
import importlib.util
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from filling import fill_module, fingerprint, rounded
from references import both, gradient_norms, imported, in_both, made, parameters, tiny_vit
from torch import nn

BATCH, NUM_NEGATIVES, WIDTH, BOTTLENECK, HIDDEN = 4, 16, 24, 16, 32
STEPS_PER_EPOCH = 2
TRAIN = {
    "START_EPOCH": 0,
    "EPOCHS": 3,
    "WARMUP_EPOCHS": 1,
    "WEIGHT_DECAY": 0.05,
    "BASE_LR": 1e-3,
    "WARMUP_LR": 5e-4,
    "MIN_LR": 1e-5,
    "CLIP_GRAD": 5.0,
}
PX = {"swin": 56, "vit": 96}


def configured() -> SimpleNamespace:
    """Return what the reference reads of its configuration."""
    return SimpleNamespace(
        MODEL=SimpleNamespace(SWIN=SimpleNamespace(NORM_BEFORE_MLP="ln")),
        DATA=SimpleNamespace(TRAINING_IMAGES=STEPS_PER_EPOCH * BATCH, BATCH_SIZE=BATCH),
        TRAIN=SimpleNamespace(
            **TRAIN,
            LR_SCHEDULER=SimpleNamespace(NAME="cosine", DECAY_EPOCHS=30),
            OPTIMIZER=SimpleNamespace(NAME="adamw", EPS=1e-8, BETAS=(0.9, 0.999)),
        ),
        AMP_OPT_LEVEL="O0",
        PRINT_FREQ=10,
    )


class Reference:
    """The parts of the checkout, without yacs, apex, diffdist and the old timm that it asks for."""

    def __init__(self, checkout: Path, vits: ModuleType) -> None:
        from timm.scheduler.cosine_lr import CosineLRScheduler
        from timm.utils import AverageMeter

        sys.modules["diffdist"] = SimpleNamespace(functional=SimpleNamespace(all_gather=lambda _, x: [x]))  # type: ignore[assignment]
        nn.SyncBatchNorm.convert_sync_batchnorm = lambda module: module  # which is for GPUs alone, and of one process the same
        self.vits = vits
        self.moby, self.swin = (self.alone(checkout / "models" / f"{name}.py") for name in ("moby", "swin_transformer"))
        self.moby.MoBYMLP.__init__.__defaults__ = (BOTTLENECK, HIDDEN, BOTTLENECK, 2)
        self.optimizer, self.scheduler = imported(checkout, "optimizer", "lr_scheduler")
        self.scheduler.CosineLRScheduler = lambda *given, t_mul, **named: CosineLRScheduler(*given, cycle_mul=t_mul, **named)
        logger = SimpleNamespace(info=lambda _: None)
        space: dict[str, Any] = {"torch": torch, "time": time, "datetime": datetime, "AverageMeter": AverageMeter, "logger": logger}
        tree = ast.parse((checkout / "moby_main.py").read_text(encoding="utf-8"))
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train_one_epoch"]
        exec(compile(ast.Module(found, []), "moby_main", "exec"), space)
        self.train_one_epoch = space["train_one_epoch"]

    @staticmethod
    def alone(file: Path) -> ModuleType:
        """Return a module of a package whose __init__ cannot be imported today."""
        spec = importlib.util.spec_from_file_location(f"moby_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def encoder(self, kind: str) -> nn.Module:
        if kind == "vit":
            return tiny_vit(self.vits)
        sizes = {"img_size": PX["swin"], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4]}
        return self.swin.SwinTransformer(num_classes=0, drop_path_rate=0.0, **sizes)

    def model(self, kind: str, dtype: torch.dtype = torch.float64, num_negatives: int = NUM_NEGATIVES) -> nn.Module:
        """Return the filled model, queues and all."""
        model = self.moby.MoBY(configured(), self.encoder(kind), self.encoder(kind), contrast_num_negative=num_negatives)
        fill_module(model).to(dtype)
        for name in ("queue1", "queue2"):
            setattr(model, name, normalised(name, (BOTTLENECK, num_negatives), dtype, dim=0))
        return model


def normalised(name: str, shape: tuple[int, ...], dtype: torch.dtype, dim: int = 1) -> torch.Tensor:
    """Return the named filling in unit length, normalised in float64 whatever the dtype is."""
    return nn.functional.normalize(made(name, shape, torch.float64), dim=dim).to(dtype)


def parts(reference: Reference, dtype: torch.dtype) -> dict[str, Any]:
    """Return the encoders of "images PX" [4, 3, PX, PX]; the projector in train mode of "moby.input" [4, 24], twice over, and its running statistics;
    and the loss of "moby.query" and "moby.key" [4, 16], both L2-normed, against queue1, with the gradient of the normed query."""
    model = reference.model("swin", dtype).train()
    vit = reference.model("vit", dtype)
    for _ in range(2):
        projected = model.projector(made("moby.input", (BATCH, WIDTH), dtype))
    query = normalised("moby.query", (BATCH, BOTTLENECK), dtype).requires_grad_()
    value = model.contrastive_loss(query, normalised("moby.key", (BATCH, BOTTLENECK), dtype), model.queue1)
    value.backward()
    norm = model.projector.linear_hidden[2]
    return {
        "swin": fingerprint(model.encoder(made("images 56", (BATCH, 3, 56, 56), dtype))),
        "vit": fingerprint(vit.encoder(made("images 96", (BATCH, 3, 96, 96), dtype))),
        "projector": fingerprint(projected),
        "projector_running": {"mean": fingerprint(norm.running_mean), "var": fingerprint(norm.running_var)},
        "contrastive_loss": {"loss": rounded(value.item()), "gradient": fingerprint(query.grad), "queue": fingerprint(model.queue1)},
    }


def momentum_and_rates(reference: Reference) -> dict[str, Any]:
    """Return m of all steps, as the weight left of a key at 1 of an online weight at 0, and the rate each step takes."""
    model = reference.model("vit")
    kept = []
    for _ in range(STEPS_PER_EPOCH * TRAIN["EPOCHS"]):
        model.encoder.cls_token.data.fill_(0)
        model.encoder_k.cls_token.data.fill_(1)
        model._momentum_update_key_encoder()
        kept.append(rounded(model.encoder_k.cls_token[0, 0, 0].item()))
    optimizer = reference.optimizer.build_optimizer(configured(), model)
    scheduler = reference.scheduler.build_scheduler(configured(), optimizer, STEPS_PER_EPOCH)
    rates = []
    for step in range(len(kept)):
        rates.append(rounded(optimizer.param_groups[0]["lr"]))
        scheduler.step_update(step)
    return {"momentum": kept, "lr": rates}


def queue_updates(reference: Reference) -> list[dict[str, Any]]:
    """Return the pointer and a row of queue1 of 6 places after each of four updates by 2 keys, all 1 in the first, all 2 in the second, ..."""
    model = reference.model("vit", num_negatives=6)
    updates = []
    for number in range(1, 5):
        keys = torch.full((2, BOTTLENECK), float(number), dtype=torch.float64)
        model._dequeue_and_enqueue(keys, -keys)
        updates.append({"pointer": int(model.queue_ptr), "row": [rounded(entry) for entry in model.queue1[0].tolist()]})
    return updates


def decay(reference: Reference, kind: str) -> dict[str, list[str]]:
    model = reference.model(kind)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = reference.optimizer.build_optimizer(configured(), model).param_groups
    return dict(zip(("decayed", "not_decayed"), ([names[id(p)] for p in group["params"]] for group in groups), strict=True))


def steps(reference: Reference, kind: str, dtype: torch.dtype) -> tuple[list[dict[str, Any]], list[nn.Module]]:
    """Train for one epoch of two steps by the reference's own loop; step t sees "step t view 1" and "step t view 2" [4, 3, PX, PX]."""
    model = reference.model(kind, dtype)
    losses: list[float] = []
    model.register_forward_hook(lambda *given: losses.append(given[2].item()))
    optimizer = reference.optimizer.build_optimizer(configured(), model)
    scheduler = reference.scheduler.build_scheduler(configured(), optimizer, STEPS_PER_EPOCH)
    clip, seen, left = nn.utils.clip_grad_norm_, {}, []

    def watched(weights: Any, limit: float) -> Any:
        seen["before"] = gradient_norms(model)
        seen["total"] = clip(weights, limit)
        return seen["total"]

    class Batches:
        def __len__(self) -> int:
            return STEPS_PER_EPOCH

        def __iter__(self) -> Any:
            for step in range(STEPS_PER_EPOCH):
                rate = optimizer.param_groups[0]["lr"]
                views = [made(f"step {step} view {view}", (BATCH, 3, PX[kind], PX[kind]), dtype) for view in (1, 2)]
                yield *views, torch.zeros(BATCH)
                buffers = {name: b for name, b in model.named_buffers() if "queue" in name or "running" in name}
                left.append(
                    {
                        "lr": rounded(rate),
                        "loss": rounded(losses[-1]),
                        "gradient_norm": rounded(seen["total"].item()),
                        "gradient_norms_before_clipping": seen["before"],
                        "parameters": parameters(model),
                        "buffers": {name: fingerprint(b, 4) for name, b in buffers.items()},
                    }
                )

    nn.utils.clip_grad_norm_ = watched
    reference.train_one_epoch(configured(), model, Batches(), optimizer, 0, scheduler)
    nn.utils.clip_grad_norm_ = clip
    return left, [model]


def moby_answers(checkout: Path, vits: ModuleType) -> dict[str, Any]:
    """Return all answers; ``vits`` is DINO's module of vision transformers."""
    reference = Reference(checkout, vits)
    return {
        "settings": TRAIN,
        "parts": both(partial(parts, reference)),
        "schedules": momentum_and_rates(reference),
        "queue_updates": queue_updates(reference),
        "rules": {kind: decay(reference, kind) for kind in PX},
        "training": {kind: in_both(partial(steps, reference, kind)) for kind in PX},
    }
