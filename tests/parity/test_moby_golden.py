"""Our MoBY against the authors' (SwinTransformer/Transformer-SSL), from recorded numbers: parts, schedules, and two whole training steps on Swin and on ViT.

How everything is filled and in which order the reference goes is told in moby_reference.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline.contracts import Batch
from sightline.methods.moby import Moby, MobyRecipe, contrastive_loss, ring_write, two_crops
from sightline.methods.self_supervised import cosine_to_one
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.training.optim import build_optimizer

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "selfpatch.json").read_text(encoding="utf-8"))["moby"]
SETTINGS = GOLDEN["settings"]
BATCH, LENGTH, OUT = 4, 16, 16
PX = {"swin": 56, "vit": 96}
MODELS = {
    "swin": ModelSpec(
        backbone="swin_tiny_patch4_window7_224",
        backbone_args=(("embed_dim", 12), ("depths", (2, 2)), ("num_heads", (2, 4))),  # type: ignore[arg-type]
        weights="random",
        pooling="mean",
    ),
    "vit": ModelSpec(
        backbone="vit_tiny_patch16_224",
        backbone_args=(("embed_dim", 24), ("depth", 2), ("num_heads", 3)),
        weights="random",
        positions_at="dino",
    ),
}


def load_filling():
    spec = importlib.util.spec_from_file_location("filling", HERE / "filling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


filling = load_filling()


def made(name, *shape):
    return torch.from_numpy(filling.fill(name, shape)).double()


def unit(name, *shape, dim=1):
    return F.normalize(made(name, *shape), dim=dim)


def theirs(name):
    """The reference's name of one of our parameters or buffers."""
    name = re.sub(r"^online\.encoder\.backbone\.net\.", "encoder.", name)
    name = re.sub(r"^key\.encoder\.backbone\.net\.", "encoder_k.", name)
    name = re.sub(r"^online\.projector\.", "projector.", name)
    name = re.sub(r"^key\.projector\.", "projector_k.", name)
    name = re.sub(r"layers\.1\.downsample", "layers.0.downsample", name)  # timm has it before a stage, they behind
    if name.startswith(("projector", "predictor")):
        head, layer, part = name.split(".")
        name = f"{head}.{ {'0': 'linear_hidden.1', '1': 'linear_hidden.2', '3': 'linear_out'}[layer] }.{part}"
    return name


def filled(kind):
    image_px = 56 if kind == "swin" else 224
    recipe = MobyRecipe(
        crops=two_crops(image_px),
        projector_hidden=32,
        projector_out=OUT,
        queue_length=LENGTH,
        model=MODELS[kind],
        image=ImageSpec(image_px=image_px),
        data=DataSpec(sampling="shuffle", images_per_batch=BATCH),
        train=TrainSpec(steps=6, lr=SETTINGS["BASE_LR"], weight_decay=SETTINGS["WEIGHT_DECAY"]),
    )
    method = Moby(recipe, Encoder(recipe.model, recipe.image)).double()
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(made(theirs(name), *parameter.shape))
        method.queue.copy_(torch.stack([unit(name, OUT, LENGTH, dim=0).T for name in ("queue1", "queue2")]))
    return recipe, method.train()


def check(found, expected, rtol=1e-7, atol=1e-9):
    ours = filling.fingerprint(found, len(expected["at"]))
    assert ours["shape"] == expected["shape"]
    for part in ("sum", "norm", "at"):
        np.testing.assert_allclose(ours[part], expected[part], rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", PX)
def test_encoders_give_the_features_that_theirs_give(kind):
    _, method = filled(kind)
    encoder = method.online.encoder
    features = encoder.pool_tokens(encoder.tokens(made(f"images {PX[kind]}", BATCH, 3, PX[kind], PX[kind])))
    check(features, GOLDEN["parts"]["float64"][kind])


def test_projector_and_its_running_statistics():
    _, method = filled("swin")
    projector, expected = method.online.projector, GOLDEN["parts"]["float64"]
    for _ in range(2):
        projected = projector(made("moby.input", BATCH, 24))
    check(projected, expected["projector"])
    check(projector[1].running_mean, expected["projector_running"]["mean"])
    check(projector[1].running_var, expected["projector_running"]["var"])


def test_contrastive_loss_and_its_gradient():
    expected = GOLDEN["parts"]["float64"]["contrastive_loss"]
    query, queue = unit("moby.query", BATCH, OUT).requires_grad_(), unit("queue1", OUT, LENGTH, dim=0).T
    value = contrastive_loss(query, unit("moby.key", BATCH, OUT), queue, 0.2)
    value.backward()
    assert value.item() == pytest.approx(expected["loss"], rel=1e-8)
    check(query.grad, expected["gradient"])


def test_momentum_by_steps():
    assert [cosine_to_one(0.99, step, 6) for step in range(6)] == pytest.approx(GOLDEN["schedules"]["momentum"], rel=1e-8)


def test_the_queue_turns_as_theirs():
    queue, start = unit("queue1", OUT, 6, dim=0).T, torch.tensor(0)
    for number, expected in enumerate(GOLDEN["queue_updates"], start=1):
        queue, start = ring_write(queue, start, torch.full((2, OUT), float(number), dtype=torch.float64))
        assert int(start) == expected["pointer"]
        np.testing.assert_allclose(queue[:, 0], expected["row"], rtol=1e-8)


@pytest.mark.parametrize("kind", PX)
def test_what_decays(kind):
    recipe, method = filled(kind)
    names = {id(parameter): theirs(name) for name, parameter in method.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in method.parameter_groups(recipe.train))
    assert sorted(decayed) == sorted(GOLDEN["rules"][kind]["decayed"])
    assert sorted(spared) == sorted(GOLDEN["rules"][kind]["not_decayed"])


@pytest.mark.parametrize("kind", PX)
def test_two_training_steps(kind):
    recipe, method = filled(kind)
    optimizer = build_optimizer(method.parameter_groups(recipe.train), recipe.train)
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    method.after_step(-1)  # unlike in a run, these keys do not begin as the online weights
    for step, expected in enumerate(GOLDEN["training"][kind]["steps"]):
        crops = torch.stack([made(f"step {step} view {view}", BATCH, 3, PX[kind], PX[kind]) for view in (1, 2)])
        terms = method.loss(Batch.of_crops((crops,), torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH)), step)
        assert terms.total.item() == pytest.approx(expected["loss"], rel=1e-8)
        for group in optimizer.param_groups:
            group["lr"] = expected["lr"]
        optimizer.zero_grad()
        terms.total.backward()
        norms = {theirs(name): p.grad.norm().item() for name, p in method.named_parameters() if p.grad is not None}
        assert norms.keys() == expected["gradient_norms_before_clipping"].keys()
        for name, norm in expected["gradient_norms_before_clipping"].items():
            assert norms[name] == pytest.approx(norm, rel=1e-7, abs=1e-9), name
        total = torch.nn.utils.clip_grad_norm_(learning, SETTINGS["CLIP_GRAD"])
        assert total.item() == pytest.approx(expected["gradient_norm"], rel=1e-8)
        optimizer.step()
        compare_state(method, expected)
        method.after_step(step)


def compare_state(method, expected):
    """Hold all weights, queues and running statistics; where a gradient is rounding alone (keys' biases), AdamW's step goes either way."""
    rounding = {name for name, norm in expected["gradient_norms_before_clipping"].items() if norm < 1e-9}
    ours = {theirs(name): parameter for name, parameter in method.named_parameters()}
    assert ours.keys() == expected["parameters"].keys()
    for name, weights in expected["parameters"].items():
        if name in rounding or name.endswith("qkv.bias"):
            np.testing.assert_allclose(filling.fingerprint(ours[name], 4)["at"], weights["at"], atol=4 * expected["lr"])
        else:
            check(ours[name], weights, rtol=1e-6, atol=1e-7)
    for index, name in enumerate(("queue1", "queue2")):
        check(method.queue[index].T, expected["buffers"][name])
    assert int(method.queue_start) == expected["buffers"]["queue_ptr"]["at"][0]
    running = {theirs(name): buffer for name, buffer in method.named_buffers() if "running" in name}
    assert running.keys() == {name for name in expected["buffers"] if "running" in name}
    for name, buffer in running.items():
        check(buffer, expected["buffers"][name])
