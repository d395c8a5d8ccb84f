"""DINO and SelfPatch against their authors' code: heads, positions, losses with their centres, and whole training steps. See make_selfpatch_golden.py."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.contracts import Batch
from sightline.errors import ModelError
from sightline.methods.self_supervised import PATCHES_ALONE, cosine_to_one
from sightline.methods.selfpatch import SelfPatch, SelfPatchRecipe, image_loss, linear_ramp, patch_loss, teacher_answers
from sightline.nn.class_attention import ClassAttention, closest_neighbours, window
from sightline.nn.encoder import Encoder
from sightline.nn.projection import PrototypeHead
from sightline.recipe import CropSpec, DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.training.optim import clip_each, decay_at

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "selfpatch.json").read_text(encoding="utf-8"))
VIT = (("embed_dim", 24), ("depth", 2), ("num_heads", 3))
KINDS = ("dino", "selfpatch")


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


filling = _load("filling")


def made(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(filling.fill(name, shape)).double()


def theirs(name: str, kind: str = "dino") -> str:
    """Return the reference's name in the training wrapper of a parameter of a Branch, or of one of its parts."""
    name = name.replace("encoder.backbone.net.", "backbone.").replace("encoder.class_attention.", "ca_head.")
    name = name.replace("image_head.", "head." if kind == "dino" else "c_head.").replace("patch_head.", "p_head.")
    name = name.replace("ca_head.class_token", "ca_head.cls_token").replace("ca_head.blocks.", "ca_head.cls_blocks.")
    return name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")


def fill(module: nn.Module, kind: str = "dino", prefix: str = "", teacher: bool = False) -> Any:
    """Fill a Branch (or the part of one that ``prefix`` names); frozen gains and gammas stay 1."""
    module.double()
    for name, parameter in module.named_parameters():
        own = theirs(prefix + name, kind)
        if "gamma_" in own or (own.endswith("weight_g") and (teacher or not parameter.requires_grad)):
            continue
        parameter.data.copy_(made(("teacher." if teacher else "") + own, *parameter.shape))
    return module


def same(found: torch.Tensor, golden: dict[str, Any], rtol: float = 1e-6, atol: float = 1e-8, num: int = 16) -> None:
    mine = filling.fingerprint(found.reshape(golden["shape"]), num)
    for part in ("sum", "norm", "at"):
        np.testing.assert_allclose(mine[part], golden[part], rtol=rtol, atol=atol * (100 if part == "sum" else 1))


def encoder(kind: str) -> Encoder:
    args, pooling = (VIT, "cls") if kind == "dino" else ((*VIT, *PATCHES_ALONE), "class_attention")
    spec = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=args, weights="random", pooling=pooling, positions_at="dino")
    return Encoder(spec, ImageSpec(image_px=224))


@pytest.mark.parametrize("learn_gains", [False, True])
def test_the_head_is_theirs(learn_gains: bool) -> None:
    golden = GOLDEN["dino"]["head"][f"norm_last_layer={not learn_gains}"]["float64"]
    head = fill(PrototypeHead(24, 64, hidden=32, bottleneck=16, learn_gains=learn_gains), prefix="image_head.")
    output = head(made("head.input", 5, 24))
    (output * made("head.cotangent", 5, 64)).sum().backward()
    same(output, golden["output"])
    norms = {
        theirs("image_head." + name).removeprefix("head."): float(p.grad.norm())
        for name, p in head.named_parameters()
        if p.grad is not None
    }
    assert norms == pytest.approx(golden["gradient_norms"], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vit_is_theirs_at_every_size(kind: str) -> None:
    made_encoder = fill(encoder(kind).eval(), kind, prefix="encoder.")
    for size, golden in GOLDEN[kind]["vit"]["float64"]["output"].items():
        height, width = map(int, size.split("x"))
        tokens = made_encoder.tokens(made(f"images {size}", 2, 3, height, width))
        same(tokens.prefix[:, 0] if kind == "dino" else tokens.patches, golden)


def test_neighbours_on_the_torus_are_theirs() -> None:
    for num, golden in GOLDEN["selfpatch"]["local_index"].items():
        side = int(int(num) ** 0.5)
        rows = np.sort(window((side, side), 3, "torus")[0].numpy(), axis=1)
        for place, expected in golden.items() if isinstance(golden, dict) else enumerate(golden):
            assert rows[int(place)].tolist() == expected


@pytest.mark.parametrize("num", [196, 36])
def test_class_attention_is_theirs(num: int) -> None:
    golden = GOLDEN["selfpatch"]["head"]["float64"][str(num)]
    head = fill(ClassAttention(24, 3), "selfpatch", prefix="encoder.class_attention.")
    tokens, side = made(f"tokens {num}", 2, num, 24).requires_grad_(), int(num**0.5)
    output = torch.cat([head(tokens)[:, None], head.norm(tokens)], dim=1)
    (output * made(f"tokens {num} cotangent", *output.shape)).sum().backward()
    same(output, golden["loc=False"])
    same(tokens.grad, golden["gradient"])
    chosen = closest_neighbours(tokens, (side, side), wrap="torus")
    image, around = head.with_neighbours(tokens, chosen)
    same(torch.cat([image[:, None], around], dim=1), golden["loc=True"])


def test_the_losses_and_centres_of_dino_are_theirs() -> None:
    center = torch.zeros(64, dtype=torch.float64)
    for step, golden in enumerate(GOLDEN["dino"]["loss"]["float64"]):
        epoch = golden["epoch"]
        assert linear_ramp(0.04, 0.07, epoch, 3) == pytest.approx(golden["teacher_temperature"], rel=1e-8), step
        student = made(f"student {epoch}", 10, 64).requires_grad_()
        teacher = made(f"teacher {epoch}", 4, 64).unflatten(0, (2, 2))
        value = image_loss(student.unflatten(0, (5, 2)) / 0.1, teacher_answers(teacher, center, golden["teacher_temperature"]))
        value.backward()
        assert value.item() == pytest.approx(golden["loss"], rel=1e-7)
        same(student.grad, golden["gradient"])
        center = center.lerp(teacher.mean(dim=(0, 1)), 0.1)
        same(center, golden["center_after"])


def test_the_patch_losses_of_selfpatch_are_theirs() -> None:
    center = torch.zeros(48, dtype=torch.float64)
    for golden in GOLDEN["selfpatch"]["loss"]["float64"]:
        costs, taught, epoch = [], [], golden["epoch"]
        for group, (num_crops, num) in enumerate(((2, 196), (3, 36))):
            student, teacher = (
                made(f"{who} {epoch} patch {group}", num_crops * 2, num, 48).flatten(0, 1) for who in ("student", "teacher")
            )
            costs.append(num_crops * patch_loss(student / 0.1, teacher_answers(teacher, center, golden["teacher_temperature"])))
            taught.append(teacher)
        assert float(sum(costs)) / 5 == pytest.approx(golden["p"], rel=1e-7)
        center = center.lerp(torch.cat(taught).mean(dim=0), 0.1)
        same(center, golden["patch_center_after"])


def test_the_schedules_are_theirs() -> None:
    golden = GOLDEN["dino"]["schedules"]
    steps = range(20)
    assert [cosine_to_one(0.996, step, 20) for step in steps] == pytest.approx(golden["momentum"]["values"], rel=1e-8)
    spec = TrainSpec(steps=20, weight_decay=0.04, weight_decay_growth=10.0)
    assert [0.04 * decay_at(step, spec) for step in steps] == pytest.approx(golden["weight_decay"]["values"], rel=1e-8)


def method(kind: str, learn_gains: bool = False) -> SelfPatch:
    given = encoder(kind)
    recipe = SelfPatchRecipe(
        name=f"selfpatch/{kind}",
        crops=CropSpec(crop_px=(224, 96), num_crops=(2, 3)),
        num_prototypes=64,
        num_patch_prototypes=48,
        head_hidden=32,
        head_bottleneck=16,
        learn_gains=learn_gains,
        freeze_last_steps=1,
        teacher_temp=0.07,
        teacher_temp_steps=2,
        teacher_momentum=0.9,
        patch_weight=0.1 if kind == "selfpatch" else 0.0,
        wrap="torus",
        model=given.model,
        image=given.image,
        data=DataSpec(sampling="shuffle", images_per_batch=2),
        train=TrainSpec(steps=4, lr=1e-3, weight_decay=0.04, weight_decay_growth=10.0, clip_each_norm=3.0),
    )
    made_method = SelfPatch(recipe, given)
    fill(made_method.student, kind)
    fill(made_method.teacher, kind, teacher=True)
    return made_method.double().train()


@pytest.mark.parametrize(("kind", "learn_gains"), [("dino", False), ("dino", True), ("selfpatch", False)])
def test_two_whole_training_steps_are_theirs(kind: str, learn_gains: bool) -> None:
    ours = method(kind, learn_gains)
    optimizer = torch.optim.AdamW(ours.parameter_groups(ours.recipe.train), betas=(0.9, 0.999), eps=1e-8)
    own = {theirs(name, kind): parameter for name, parameter in ours.student.named_parameters()}
    followed = {theirs(name, kind): parameter for name, parameter in ours.teacher.named_parameters()}
    for step, golden in enumerate(GOLDEN[kind]["training"][f"norm_last_layer={not learn_gains}"]["steps"]):
        crops = [made(f"epoch {step} crop {crop}", 2, 3, px, px) for crop, px in enumerate((224, 224, 96, 96, 96))]
        batch = Batch.of_crops((torch.stack(crops[:2]), torch.stack(crops[2:])), torch.zeros(2, dtype=torch.int64), torch.arange(2))
        optimizer.param_groups[0]["weight_decay"] = golden["weight_decay"]
        for group in optimizer.param_groups:
            group["lr"] = golden["lr"]
        terms = ours.loss(batch, step)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        assert terms.total.item() == pytest.approx(golden["loss"], rel=1e-7)
        if kind == "selfpatch":
            assert float(terms.terms["image_loss"]) == pytest.approx(golden["clsloss"], rel=1e-7)
            assert float(terms.terms["patch_loss"]) == pytest.approx(golden["patchloss"], rel=1e-7)
        clip_each([parameter for group in optimizer.param_groups for parameter in group["params"]], 3.0)
        ours.before_step(step)
        norms = {name: float(p.grad.norm()) for name, p in own.items() if p.grad is not None}
        frozen = [name for name in golden["gradient_norms"] if "last_layer" in name] if step == 0 else []
        assert norms == pytest.approx({n: v for n, v in golden["gradient_norms"].items() if n not in frozen}, rel=1e-5, abs=1e-9)
        optimizer.step()
        ours.after_step(step)
        same(ours.center, golden["center"])
        if kind == "selfpatch":
            same(ours.patch_center, golden["patch_center"])
        for whose, branch in (("student", own), ("teacher", followed)):
            for name, expected in golden[whose].items():
                # AdamW makes a step of the rounding in a keys' bias, whose gradient is zero.
                at = 2e-3 if name.endswith(("qkv.bias", "attn.k.bias")) else 1e-7
                same(branch[name], expected, rtol=1e-5, atol=at, num=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", ["weight norm", "parametrisation"])
def test_a_full_checkpoint_of_theirs_goes_on_where_they_stopped(kind: str, naming: str, tmp_path: Path) -> None:
    golden = GOLDEN[kind]["training"]["norm_last_layer=True"]["steps"][0]
    ours = method(kind)

    def weights(branch: nn.Module) -> dict[str, torch.Tensor]:
        named = {f"module.{theirs(name, kind)}": value.float() for name, value in branch.named_parameters() if "gamma_" not in name}
        if naming == "weight norm":
            return named
        new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        return {
            name.replace(name.rpartition(".")[2], new.get(name.rpartition(".")[2], name.rpartition(".")[2])): v for name, v in named.items()
        }

    centers = {"center": torch.zeros(1, 1, 64), "patch_center": torch.zeros(1, 48)}
    held = {"student": weights(ours.student), "teacher": weights(ours.teacher), "dino_loss": centers, "epoch": 1}
    torch.save(held, tmp_path / "full.pth")
    recipe = replace(ours.recipe, start_from=str(tmp_path / "full.pth"))
    loaded = SelfPatch(recipe, encoder(kind)).train()
    loaded.begin()
    loaded.double()
    crops = [made(f"epoch 0 crop {crop}", 2, 3, px, px) for crop, px in enumerate((224, 224, 96, 96, 96))]
    batch = Batch.of_crops((torch.stack(crops[:2]), torch.stack(crops[2:])), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert loaded.loss(batch, 0).total.item() == pytest.approx(golden["loss"], rel=1e-5)


def test_a_checkpoint_of_other_heads_says_so(tmp_path: Path) -> None:
    ours = method("dino")
    torch.save({"student": {}, "teacher": {}}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="is another network"):
        SelfPatch(replace(ours.recipe, start_from=str(tmp_path / "empty.pth")), encoder("dino")).begin()
    torch.save({"model": {}}, tmp_path / "backbone.pth")
    with pytest.raises(ModelError, match="no full checkpoint"):
        SelfPatch(replace(ours.recipe, start_from=str(tmp_path / "backbone.pth")), encoder("dino")).begin()


@pytest.mark.parametrize("learn_gains", [False, True])
def test_lengths_of_prototypes_come_along_and_learn_where_asked(
    learn_gains: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs_had = method("dino")
    gains = "image_head.last_layer.parametrizations.weight.original0"
    for branch in (theirs_had.student, theirs_had.teacher):
        branch.get_parameter(gains).data.uniform_(0.5, 2.0)
    parts = {
        part: {theirs(name): value.float() for name, value in branch.named_parameters()}
        for part, branch in (("student", theirs_had.student), ("teacher", theirs_had.teacher))
    }
    torch.save(parts | {"dino_loss": {"center": torch.zeros(1, 64)}}, tmp_path / "full.pth")
    recipe = replace(theirs_had.recipe, start_from=str(tmp_path / "full.pth"), learn_gains=learn_gains)
    with caplog.at_level(logging.WARNING):
        loaded = SelfPatch(recipe, encoder("dino"))
        loaded.begin()
    own = loaded.student.get_parameter(gains)
    assert torch.equal(own, theirs_had.student.get_parameter(gains).float())
    head, x = loaded.student.image_head, torch.randn(3, 24)
    torch.testing.assert_close(head(x), theirs_had.student.image_head.float()(x))
    head(x).square().sum().backward()
    assert (own.grad is not None) == learn_gains
    assert ("full.pth: its prototypes have lengths of their own" in caplog.text) != learn_gains
