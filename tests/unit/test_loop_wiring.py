"""What the loop itself applies: each setting against the same training written out by hand, and what ends up on the disk.

The equations of a method are held to their authors' numbers elsewhere. Here the real loop runs: a schedule, a clip, a decay or a freeze
that it forgets to apply, or a model that it saves in the place of another, is seen here and nowhere else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.contracts import Batch, LossTerms
from sightline.data.records import of_labels
from sightline.errors import ModelError
from sightline.methods import moby, selfpatch
from sightline.methods.base import Method
from sightline.methods.irt import IRT, IRTRecipe
from sightline.methods.moby import Moby, MobyRecipe
from sightline.methods.self_supervised import cosine_to_one
from sightline.methods.selfpatch import SelfPatch, SelfPatchRecipe
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.settings import override
from sightline.training import checkpoint
from sightline.training.choice import Validation
from sightline.training.loop import Loop

CPU = torch.device("cpu")
STEPS = 6


def batches(first: int) -> Iterator[Batch]:
    while True:
        images = torch.randn(5, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(first))
        yield Batch(images, torch.zeros(5, dtype=torch.int64), torch.arange(5))
        first += 1


class Plain(Method):
    """Two layers that learn to answer with the sum of their input; the last stands still in the first ``frozen`` steps."""

    def __init__(self, frozen: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        self.first = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=random))
        self.last = nn.Parameter(torch.randn(4, dtype=torch.float64, generator=random))
        self.frozen = frozen
        self.dtypes: set[torch.dtype] = set()

    def loss(self, batch: Batch, step: int) -> LossTerms:
        pixels = batch.images.flatten(1)
        said = torch.tanh(pixels @ self.first.T) @ self.last
        self.dtypes.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)  # a product in float32, unless something casts it
        return LossTerms(20.0 * (said - pixels.sum(dim=1)).square().mean(), {})

    def before_step(self, step: int) -> None:
        if step < self.frozen:
            self.last.grad = None

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        decayed = {"params": [self.first], "lr": spec.lr, "weight_decay": spec.weight_decay}
        return [decayed, {"params": [self.last], "lr": 2 * spec.lr, "weight_decay": 0.0}]

    def encoder(self) -> Encoder:
        raise AssertionError("nothing is kept here")


PLAIN: dict[str, Any] = {
    "steps": STEPS, "optimizer": "sgd", "lr": 1e-3, "weight_decay": 0.1, "precision": "fp32", "log_every": 1
}  # fmt: skip
APPLIED: dict[str, dict[str, Any]] = {
    "warm-up": {"warmup_steps": 3},
    "cosine": {"schedule": "cosine", "final_lr": 0.1},
    "stairs": {"schedule": "exponential", "lr_decay": 0.5, "lr_decay_steps": 2},
    "growing decay": {"weight_decay_growth": 10.0},
    "clip of all": {"clip_norm": 5.0},
    "clip of each": {"clip_each_norm": 4.0},
    "frozen at first": {"frozen": 2},
    "two batches a step": {"accumulate": 2},
}
APPLIED["all at once"] = {
    name: value for one in APPLIED.values() for name, value in one.items() if name not in ("lr_decay", "lr_decay_steps")
}
APPLIED["all at once"]["schedule"] = "cosine"


def by_hand(settings: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the weights after SGD with a momentum of 0.9, with every setting written out."""
    given = {
        "warmup_steps": 0, "schedule": "constant", "final_lr": 0.0, "weight_decay_growth": 1.0, "clip_norm": 0.0, "clip_each_norm": 0.0,
        "frozen": 0, "accumulate": 1, "lr_decay": 1.0, "lr_decay_steps": 1,
    } | dict(settings)  # fmt: skip
    method, stream = Plain(), batches(0)
    weights, decays, rates = [method.first, method.last], [0.1, 0.0], [1e-3, 2e-3]
    moving: list[torch.Tensor | None] = [None, None]
    for step in range(STEPS):
        share = 1.0
        if step < given["warmup_steps"]:
            share = (step + 1) / given["warmup_steps"]
        elif given["schedule"] == "cosine":
            done = (step - given["warmup_steps"]) / (STEPS - given["warmup_steps"])
            share = given["final_lr"] + (1 - given["final_lr"]) * (1 + math.cos(math.pi * done)) / 2
        elif given["schedule"] == "exponential":
            share = given["lr_decay"] ** (step // given["lr_decay_steps"])
        growth = given["weight_decay_growth"]
        grown = growth + (1 - growth) * (1 + math.cos(math.pi * step / STEPS)) / 2
        gradients = [torch.zeros_like(weight) for weight in weights]
        for _ in range(given["accumulate"]):
            found = torch.autograd.grad(method.loss(next(stream), step).total, weights)
            gradients = [total + one / given["accumulate"] for total, one in zip(gradients, found, strict=True)]
        if given["clip_each_norm"]:
            gradients = [one * min(1.0, given["clip_each_norm"] / (float(one.norm()) + 1e-6)) for one in gradients]
        norm = math.sqrt(sum(float(one.square().sum()) for one in gradients))
        if given["clip_norm"]:
            gradients = [one * min(1.0, given["clip_norm"] / (norm + 1e-6)) for one in gradients]
        with torch.no_grad():
            for place, weight in enumerate(weights):
                if place == 1 and step < given["frozen"]:
                    continue
                change = gradients[place] + grown * decays[place] * weight
                before = moving[place]
                moving[place] = change = change if before is None else 0.9 * before + change
                weight -= share * rates[place] * change
    return [weight.detach() for weight in weights]


def looped(settings: Mapping[str, Any]) -> list[torch.Tensor]:
    method = Plain(settings.get("frozen", 0))
    spec = TrainSpec(**PLAIN | {name: value for name, value in settings.items() if name != "frozen"})
    Loop(method, batches, spec, None, device=CPU).run()
    return [method.first.detach(), method.last.detach()]


@pytest.mark.parametrize("name", APPLIED)
def test_a_setting_is_applied_by_the_loop_as_by_hand(name: str) -> None:
    found, wanted, without = looped(APPLIED[name]), by_hand(APPLIED[name]), by_hand({})
    for ours, hand in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, hand, rtol=0, atol=1e-13)
    assert max(float((one - other).abs().max()) for one, other in zip(wanted, without, strict=True)) > 1e-5  # it is felt at all


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_mixed_precision_is_the_loops(precision: str, dtype: torch.dtype) -> None:
    method = Plain()
    Loop(method, batches, TrainSpec(**PLAIN | {"precision": precision, "steps": 2}), None, device=CPU).run()
    assert method.dtypes == {dtype}


# --- what is kept ---------------------------------------------------------------------------------------------------------------

MODEL = ModelSpec(
    backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2)), weights="random"
)
SPEC = TrainSpec(steps=6, lr=1e-2, precision="fp32", log_every=1, validate_every=2, save_every=2)


def labelled(first: int) -> Iterator[Batch]:
    while True:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(first))
        yield Batch(images, torch.tensor([0, 0, 1, 1]), torch.arange(4))
        first += 1


def irt(**changes: Any) -> IRT:
    torch.manual_seed(0)
    recipe = IRTRecipe(
        model=MODEL, image=ImageSpec(image_px=16), data=DataSpec(classes_per_batch=2, images_per_class=2), memory=0.0, train=SPEC
    )
    recipe = replace(recipe, **changes)
    return IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(8) // 2))


def weights_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in encoder.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_model_is_kept_and_not_the_last(ema: float, tmp_path: Path) -> None:
    told = {0: 0.1, 2: 0.5, 4: 0.9, 6: 0.3}
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def validate(encoder: Encoder) -> Validation:
        seen[running.progress.step] = weights_of(encoder)
        return Validation({"map@r": told[running.progress.step]})

    running = Loop(irt(), labelled, replace(SPEC, ema=ema), tmp_path, device=CPU, validate=validate)
    done = running.run()
    assert (done.best, done.best_step) == (0.9, 4)
    kept = weights_of(model_folder.load(tmp_path / "model"))
    assert same(kept, seen[4])
    assert not same(kept, weights_of(running.encoder()))
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["progress"]["step"] == 6  # to go on from the last, not from the best


def test_a_run_goes_on_only_where_it_is_asked_to(tmp_path: Path) -> None:
    Loop(irt(), labelled, replace(SPEC, steps=2), tmp_path, device=CPU).run()
    assert Loop(irt(), labelled, SPEC, tmp_path, device=CPU).progress.step == 0
    assert Loop(irt(), labelled, SPEC, tmp_path, device=CPU, resume=True).progress.step == 2


def crops(first: int) -> Iterator[Batch]:
    while True:
        random = torch.Generator().manual_seed(first)
        given = (torch.randn(2, 4, 3, 32, 32, generator=random), torch.randn(2, 4, 3, 16, 16, generator=random))
        yield Batch.of_crops(given, torch.zeros(4, dtype=torch.int64), torch.arange(4))
        first += 1


def dino(*settings: str) -> SelfPatch:
    torch.manual_seed(0)
    tiny = ["backbone_args=patch_size=8,depth=1,embed_dim=16,num_heads=2", "image_px=32", "crop_px=32,16", "num_crops=2,2"]
    heads = ["images_per_batch=4", "num_prototypes=8", "num_patch_prototypes=6", "head_hidden=16", "head_bottleneck=8", "drop_path=0"]
    recipe: SelfPatchRecipe = override(selfpatch.small(), [*tiny, *heads, "steps=4", "warmup_steps=0", "teacher_momentum=0.9", *settings])
    return SelfPatch(recipe, Encoder(recipe.model, recipe.image))


def mobys() -> Moby:
    torch.manual_seed(0)
    recipe = MobyRecipe(
        crops=moby.two_crops(32),
        projector_hidden=16,
        projector_out=8,
        queue_length=16,
        model=replace(MODEL, pooling="cls"),
        image=ImageSpec(image_px=32),
        data=DataSpec(sampling="shuffle", images_per_batch=4),
        train=replace(SPEC, steps=4),
    )
    return Moby(recipe, Encoder(recipe.model, recipe.image))


@pytest.mark.parametrize("settings", [(), ("patch_weight=0", "pooling=cls")])
def test_without_labels_the_last_teacher_is_delivered_and_never_the_student(settings: tuple[str, ...], tmp_path: Path) -> None:
    method = dino(*settings)
    told = iter([0.9, 0.5, 0.4, 0.3, 0.2])
    spec = replace(SPEC, steps=4, lr=1e-3)
    running = Loop(method, crops, spec, tmp_path, device=CPU, validate=lambda _: Validation({"knn": next(told)}, chooses=False))
    running.run()
    kept = weights_of(model_folder.load(tmp_path / "model"))
    assert same(kept, weights_of(method.teacher.encoder))
    assert not same(kept, weights_of(method.student.encoder))
    assert method.encoder() is method.teacher.encoder


def test_the_loop_keeps_dinos_last_layers_still_at_first_and_moves_the_teacher_after_each_step() -> None:
    method = dino("freeze_last_steps=2")
    heads = (method.student.image_head, method.student.patch_head)
    layers: list[list[torch.Tensor]] = []
    expected: list[list[torch.Tensor]] = []
    seen: list[list[torch.Tensor]] = []
    after = method.after_step

    def watched(step: int) -> None:
        keep = cosine_to_one(0.9, step, 4)
        pairs = zip(method.teacher.parameters(), method.student.parameters(), strict=True)
        expected.append([keep * slow.detach() + (1 - keep) * fast.detach() for slow, fast in pairs])
        after(step)
        seen.append([slow.detach().clone() for slow in method.teacher.parameters()])
        layers.append([value.detach().clone() for head in heads if head is not None for value in head.last_layer.parameters()])

    method.after_step = watched  # type: ignore[method-assign]
    before = [value.detach().clone() for head in heads if head is not None for value in head.last_layer.parameters()]
    Loop(method, crops, replace(SPEC, steps=4, lr=1e-3), None, device=CPU).run()
    assert len(layers) == 4
    for step, now in enumerate(layers):
        moved = [not torch.equal(old, new) for old, new in zip(before, now, strict=True)]
        assert any(moved) is (step >= 2), step
    for hand, ours in zip(expected, seen, strict=True):
        for one, other in zip(hand, ours, strict=True):
            torch.testing.assert_close(one, other)


def test_the_loop_delivers_mobys_online_branch(tmp_path: Path) -> None:
    method = mobys()

    def two(first: int) -> Iterator[Batch]:
        for batch in crops(first):
            yield Batch.of_crops(batch.crops[:1], batch.labels, batch.rows)

    Loop(method, two, replace(SPEC, steps=3, lr=1e-3), tmp_path, device=CPU).run()
    kept = weights_of(model_folder.load(tmp_path / "model"))
    assert same(kept, weights_of(method.online.encoder))
    assert not same(kept, weights_of(method.key.encoder))


# --- a checkpoint and a kill ------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """What a kill leaves behind: nothing after it is done."""


@pytest.mark.parametrize("at", ["while writing", "before the sync", "before the replacement"])
def test_a_kill_at_any_moment_of_saving_leaves_the_older_checkpoint_whole(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    def torn(state: object, stream: Any) -> None:
        stream.write(b"PK half of a file")
        stream.flush()
        raise KilledError

    if at == "while writing":
        monkeypatch.setattr(torch, "save", torn)
    else:
        monkeypatch.setattr(os, "fsync" if at == "before the sync" else "replace", killed)
    with pytest.raises(KilledError):
        checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path) == {"step": 1}
    monkeypatch.undo()
    checkpoint.save(tmp_path, {"step": 3})
    assert checkpoint.load(tmp_path) == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name)), sync(number))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(("replace", Path(new).name)), move(old, new)))
    checkpoint.save(tmp_path, {"step": 1})
    assert done == [("sync", "checkpoint.pt.part"), ("replace", "checkpoint.pt")]


def test_one_part_of_a_checkpoint_is_read_by_itself(tmp_path: Path) -> None:
    assert checkpoint.peek(tmp_path, "rows") is None
    checkpoint.save(tmp_path, {"rows": [1, 2], "other": torch.zeros(3)})
    assert checkpoint.peek(tmp_path, "rows") == [1, 2]
    assert checkpoint.peek(tmp_path, "none") is None
    (tmp_path / "checkpoint.pt").write_bytes(b"junk")
    with pytest.raises(ModelError, match="delete it to start again"):
        checkpoint.peek(tmp_path, "rows")
