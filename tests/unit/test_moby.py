"""MoBY's losses by hand, its queues and keys step by step, and the patches that learn on it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sightline import catalog
from sightline.contracts import Batch
from sightline.errors import RecipeError
from sightline.methods import moby
from sightline.methods.moby import (
    Moby,
    MobyRecipe,
    contrastive_loss,
    cosine_distance,
    ring_write,
    rotating_stride,
    small,
    swin_small,
    two_crops,
)
from sightline.nn import backbone as backbones
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.settings import flatten, override

TINY = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))


def made(steps: int = 20, **changes: object) -> Moby:
    torch.manual_seed(0)
    given = {
        "crops": two_crops(32),
        "projector_hidden": 32,
        "projector_out": 16,
        "queue_length": 24,
        "patch_queue_length": 64,
        "patch_keys": 16,
        "model": ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=TINY, weights="random", pooling="class_attention"),
        "image": ImageSpec(image_px=32),
        "data": DataSpec(sampling="shuffle", images_per_batch=8),
        "train": TrainSpec(steps=steps, lr=2e-3, weight_decay=0.05),
    } | changes
    recipe = MobyRecipe(**given)  # type: ignore[arg-type]
    return Moby(recipe, Encoder(recipe.model, recipe.image)).train()


def batch(seed: int = 0) -> Batch:
    """Eight images of one colour a quarter, and two noisy crops of each."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(9)).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    return Batch.of_crops(
        (images + 0.3 * torch.randn(2, 8, 3, 32, 32, generator=random),), torch.zeros(8, dtype=torch.int64), torch.arange(8)
    )


def descend(method: Moby, num_steps: int, seed: int = 0) -> list[dict[str, float]]:
    spec = method.recipe.train
    optimizer = torch.optim.AdamW(method.parameter_groups(spec))
    told = []
    for step in range(num_steps):
        terms = method.loss(batch(seed + step), step)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        method.after_step(step)
        told.append({"total": terms.total.item(), **{name: float(value) for name, value in terms.terms.items()}})
    return told


# --- by hand --------------------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    queue = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    # the first query: its key at cosine 1, the other at 0; the second the other way round; T = 0.5
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert contrastive_loss(queries, keys, queue, 0.5).item() == pytest.approx(expected, rel=1e-12)
    assert cosine_distance(queries, keys).item() == pytest.approx((0 + 2) / 2)


def test_the_loss_is_the_cross_entropy_of_place_0() -> None:
    random = torch.Generator().manual_seed(0)
    queries, keys, queue = (F.normalize(torch.randn(num, 8, generator=random, dtype=torch.float64), dim=1) for num in (5, 5, 7))
    queries.requires_grad_()
    logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queue.T], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    found = contrastive_loss(queries, keys, queue, 0.2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, queries)[0] for value in (found, expected)))


@pytest.mark.parametrize("num", [1, 3, 5, 7, 12])
def test_a_queue_keeps_the_newest_keys_whatever_a_batch_has(num: int) -> None:
    queue, start = torch.full((2, 5, 1), -1.0), torch.tensor(0)
    put = 0
    for _ in range(4):
        keys = torch.arange(put, put + num, dtype=torch.float32)[None, :, None].expand(2, -1, -1)
        former = queue
        queue, start = ring_write(queue, start, keys)
        put += num
        assert queue is not former
        newest = set(range(max(0, put - 5), put))
        assert {int(value) for value in queue[0, :, 0] if value >= 0} == newest
        assert torch.equal(queue[0], queue[1])
        assert int(start) == put % 5


def test_sampled_rows_are_apart_and_turn_through_all() -> None:
    assert rotating_stride(10, 3, 0).tolist() == [0, 3, 6]
    assert rotating_stride(10, 99, 7).tolist() == list(range(10))
    seen = torch.cat([rotating_stride(64, 16, step) for step in range(4)])
    assert sorted(seen.tolist()) == list(range(64))
    # the halves of two processes are what one would take
    assert torch.equal(torch.cat([rotating_stride(32, 8, 3), 32 + rotating_stride(32, 8, 3)]), rotating_stride(64, 16, 3))


# --- keys and queues ------------------------------------------------------------------------------------------------------------


def test_keys_move_by_the_next_steps_momentum_and_have_no_gradient() -> None:
    method = made(steps=4)
    assert all(torch.equal(one, other) for one, other in zip(method.key.parameters(), method.online.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in method.key.parameters())
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter += 1.0
    before = [parameter.clone() for parameter in method.key.parameters()]
    method.after_step(0)
    moved = 0.5 * 0.01 * (1 + math.cos(math.pi / 4))  # of step 1 of 4
    for key, former in zip(method.key.parameters(), before, strict=True):
        torch.testing.assert_close(key, former + moved, rtol=0, atol=1e-6)
    standing = [parameter.clone() for parameter in method.key.parameters()]
    method.after_step(3)  # by the end the momentum is 1
    assert all(torch.equal(key, former) for key, former in zip(method.key.parameters(), standing, strict=True))


def test_a_loss_asks_the_queues_as_they_were_and_training_alone_fills_them() -> None:
    method = made()
    queue = method.queue.clone()
    method.eval().loss(batch(), 0)
    assert torch.equal(method.queue, queue)
    terms = method.train().loss(batch(), 0)
    assert torch.equal(method.queue[:, 8:], queue[:, 8:])
    assert not torch.isclose(method.queue[:, :8], queue[:, :8]).all(dim=2).any()
    torch.testing.assert_close(method.queue.norm(dim=2), torch.ones(2, 24))
    assert int(method.queue_start) == 8
    terms.total.backward()  # the queue it was computed with is still there


def test_drop_path_is_the_online_branchs_alone() -> None:
    method = made(model=replace(swin_small().model, drop_path=0.2), crops=two_crops(32), image=ImageSpec(image_px=32))
    rates = [{part.drop_prob for part in branch.modules() if hasattr(part, "drop_prob")} for branch in (method.online, method.key)]
    assert max(rates[0]) == pytest.approx(0.2)
    assert rates[1] <= {0.0}


def test_a_swin_without_drop_path_drops_none() -> None:
    swin = backbones.build(swin_small().model, 32)
    still = backbones.build(replace(swin_small().model, drop_path=0.0), 32)
    assert any(getattr(part, "drop_prob", 0) for part in swin.modules())
    assert not any(getattr(part, "drop_prob", 0) for part in still.modules())


def test_what_is_evaluated_is_the_online_encoder() -> None:
    method = made()
    assert method.encoder() is method.online.encoder


# --- patches --------------------------------------------------------------------------------------------------------------------


def test_without_patch_weight_it_is_moby_bit_for_bit() -> None:
    plain, patchy = made(), made(patch_weight=0.1, patch_negatives=True)
    assert not any("patch_p" in name for name, _ in plain.named_parameters())
    assert len(plain.patch_queue) == 0
    terms = plain.loss(batch(), 0)
    assert torch.equal(terms.total, terms.terms["image_loss"])
    assert "patch_loss" not in terms.terms
    of_patches = patchy.loss(batch(), 0).terms
    assert torch.equal(of_patches["image_loss"], terms.terms["image_loss"])
    shared, same = plain.state_dict(), patchy.state_dict()
    assert all(torch.equal(shared[name], same[name]) for name in shared if not name.startswith("patch"))


@pytest.mark.parametrize("negatives", [False, True])
def test_patches_learn_what_lies_around_them(negatives: bool) -> None:
    method = made(patch_weight=1.0, patch_negatives=negatives)
    told = descend(method, 12)
    assert told[-1]["patch_loss"] < 0.9 * told[0]["patch_loss"]
    assert told[-1]["total"] == pytest.approx(told[-1]["image_loss"] + told[-1]["patch_loss"], rel=1e-5)
    assert int(method.patch_queue_start) == (12 * 2 * 16 % 64 if negatives else 0)
    if negatives:
        torch.testing.assert_close(method.patch_queue.norm(dim=1), torch.ones(64))


def test_patches_have_a_temperature_of_their_own() -> None:
    def terms(**changes: float) -> tuple[float, float]:
        found = made(patch_weight=1.0, patch_negatives=True, **changes).loss(batch(), 0).terms
        return found["image_loss"].item(), found["patch_loss"].item()

    image, patch = terms()
    of_patches, of_images = terms(patch_temperature=0.05), terms(temperature=0.05)
    assert (of_patches[0], of_images[1]) == (image, patch)
    assert abs(of_patches[1] - patch) > 0.1
    assert abs(of_images[0] - image) > 0.1


def test_several_batches_a_step_move_the_keys_once_and_fill_the_queues_with_each() -> None:
    method = made()
    keys = [parameter.clone() for parameter in method.key.parameters()]
    for part in range(2):
        method.loss(batch(part), 0)
    assert all(torch.equal(key, former) for key, former in zip(method.key.parameters(), keys, strict=True))
    assert int(method.queue_start) == 16


def test_gradients_reach_the_online_branch_through_every_part() -> None:
    method = made(patch_weight=0.5, patch_negatives=True)
    method.loss(batch(), 0).total.backward()
    learning = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in method.named_parameters() if parameter.grad is not None}


def test_a_swin_learns_with_patches() -> None:
    model = replace(swin_small().model, backbone_args=(("embed_dim", 8),), pooling="class_attention")
    method = made(patch_weight=0.5, model=model)
    told = descend(method, 2)
    assert math.isfinite(told[1]["patch_loss"])
    assert 0 < told[0]["patch_loss"] < 4


# --- recipes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("images_per_batch=1", "set sampling=shuffle and images_per_batch, such as 64"),
        ("sampling=pk", "set sampling=shuffle and images_per_batch, such as 64"),
        ("num_crops=3", "two crops of one size"),
        ("crop_px=32", "set crop_px=64 or image_px=32"),
        ("temperature=0", "must be positive"),
        ("queue_length=0", "must be positive"),
        ("window=4", "odd number"),
        ("patch_weight=0.1", "set pooling=class_attention, or patch_weight=0"),
    ],
)
def test_a_recipe_that_cannot_be_says_what_to_change(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(small(), [setting])


@pytest.mark.parametrize("negatives", [False, True])
def test_losses_are_taken_in_float32_under_bfloat16(negatives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    for name in ("contrastive_loss", "cosine_distance"):

        def noted(*given: object, loss=getattr(moby, name)) -> torch.Tensor:
            seen.extend(value.dtype for value in given if isinstance(value, torch.Tensor))
            return loss(*given)

        monkeypatch.setattr(moby, name, noted)
    exactly = made(patch_weight=0.5, patch_negatives=negatives).loss(batch(), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = made(patch_weight=0.5, patch_negatives=negatives).loss(batch(), 0)
    assert set(seen) == {mixed.total.dtype, mixed.terms["image_loss"].dtype, mixed.terms["patch_loss"].dtype} == {torch.float32}
    assert not torch.equal(mixed.total, exactly.total)  # the network itself is in bfloat16
    for term in ("image_loss", "patch_loss"):
        torch.testing.assert_close(mixed.terms[term], exactly.terms[term], rtol=0.02, atol=0)


def test_selfpatch_at_the_papers_size_has_mobys_settings_and_selfpatchs() -> None:
    found = dict(flatten(catalog.find("recipes", "moby/selfpatch-imagenet")()))
    published = {  # SwinTransformer/Transformer-SSL configs/moby_deit_small.yaml, config.py
        "model.drop_path": 0.2, "temperature": 0.2, "queue_length": 4_096, "key_momentum": 0.99, "projector_hidden": 4_096, "projector_out": 256,
        "train.lr": 1e-3, "train.final_lr": 5e-6 / 1e-3, "train.weight_decay": 0.05, "train.clip_norm": 5.0, "data.images_per_batch": 512,
        "train.steps": 300 * 2_502, "train.warmup_steps": 5 * 2_502, "crops.crop_min_area": (0.08,), "crops.crop_px": (224,),
        # alinlab/SelfPatch main_selfpatch.py
        "patch_weight": 0.1, "window": 3, "num_neighbours": 4, "patch_negatives": False, "model.pooling": "class_attention",
    }  # fmt: skip
    assert {key: found[key] for key in published} == published
