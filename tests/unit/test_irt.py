"""IRT's losses by hand, by gradcheck, and the memory's bookkeeping."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline import catalog
from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.errors import RecipeError
from sightline.methods import irt
from sightline.methods.irt import IRT, IRTRecipe
from sightline.nn.encoder import Encoder
from sightline.nn.losses import contrastive_loss, gradient_noise, koleo_loss, normalised_softmax_loss, snca_loss, tuple_loss
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec

TINY = ModelSpec(
    backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2)), weights="random"
)

WATCHED = {"gradient_noise", "direction_noise"}

# Three descriptors at 0, 60 and 120 degrees: cosines 0.5 between neighbours, -0.5 between the ends.
Z = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [-0.5, math.sqrt(0.75)]], dtype=torch.float64)


def test_equation_1_by_hand() -> None:
    labels = torch.tensor([0, 0, 1])
    # i = 0: positive (0,1) costs 1 - 0.5, negative (0,2) costs [-0.5 - 0.3]+ = 0        -> 0.5
    # i = 1: positive (1,0) costs 0.5,     negative (1,2) costs [0.5 - 0.3]+ = 0.2       -> 0.7
    # i = 2: negatives (2,0) 0 and (2,1) 0.2                                             -> 0.2
    assert contrastive_loss(Z, labels, margin=0.3).item() == pytest.approx((0.5 + 0.7 + 0.2) / 3)


def test_mean_over_non_zero_pairs_by_hand() -> None:
    labels = torch.tensor([0, 0, 1])
    # positive pairs that cost: two of 0.5; negative pairs that cost: two of 0.2
    assert contrastive_loss(Z, labels, margin=0.3, reduction="mean_nonzero").item() == pytest.approx(0.5 + 0.2)


def test_gradient_noise_by_hand() -> None:
    z = torch.eye(2, dtype=torch.float64).requires_grad_()
    pull = 3 * contrastive_loss(z, torch.tensor([0, 0]), margin=0.5)  # gradients -3 z_1 and -3 z_0: length 3, their mean (-1.5, -1.5)
    of_gradients, of_directions = gradient_noise(pull, z)
    assert of_gradients.item() == pytest.approx(9 - 4.5)
    assert of_directions.item() == pytest.approx(1 - 0.5)
    # Gradients that are not alike by rows and columns: (3, 4), (0, 2) and (5, 0), whose directions are (0.6, 0.8), (0, 1) and (1, 0).
    three, rows = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True), torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]])
    of_gradients, of_directions = gradient_noise((three * rows).sum(), three)
    assert of_gradients.item() == pytest.approx((9 + 0 + 25) / 3 - (8 / 3) ** 2 + (16 + 4 + 0) / 3 - (6 / 3) ** 2)
    assert of_directions.item() == pytest.approx(1 - (1.6 / 3) ** 2 - (1.8 / 3) ** 2)
    push = contrastive_loss(z, torch.tensor([0, 1]), margin=0.5)  # no pair costs anything: no gradient, so no direction
    assert [value.item() for value in gradient_noise(push, z)] == [0.0, 0.0]


def test_watching_the_gradients_changes_none_of_them() -> None:
    found = []
    for _ in range(2):
        method, batch = _method(memory=0.0), _batch([0, 0, 1, 1], 1)
        terms = method.loss(batch, 9)
        if found:
            z = method.learner(batch.images)
            labels = torch.tensor([0, 0, 1, 1])
            total = contrastive_loss(z, labels, margin=method.recipe.margin) + method.recipe.koleo_weight * koleo_loss(z)
            total.backward()
        else:
            terms.total.backward()
        found.append([parameter.grad.clone() for parameter in method.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# An anchor, its positive at 60 degrees, negatives at 36.87 (cosine 0.8) and 90; then a tuple whose positive is the anchor itself.
TUPLES = torch.tensor(
    [[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.8, 0.6], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8], [0.0, -1.0]], dtype=torch.float64
)


def test_tuples_by_hand() -> None:
    # positives 1 - 0.5 and 0; negatives: distance sqrt(2 - 2 * 0.8) of [0.8, 0.6] and of [0.6, 0.8], the others are beyond 0.85
    near = math.sqrt(0.4)
    by_distance = 0.5 + 0.5 * (0.85 - near) ** 2 * 2
    assert tuple_loss(TUPLES, 2, margin=0.85, metric="euclidean").item() == pytest.approx(by_distance, abs=1e-5)
    assert tuple_loss(TUPLES, 2, margin=0.85, metric="cosine").item() == pytest.approx(0.5)
    assert tuple_loss(TUPLES, 2, margin=0.7, metric="cosine").item() == pytest.approx(0.5 + 2 * 0.1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gradients_over_tuples_are_those_of_the_equations(metric: str) -> None:
    raw = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: tuple_loss(F.normalize(z, dim=1), 3, margin=0.9 if metric == "euclidean" else 0.1, metric=metric), raw
    )


def test_a_pair_of_equal_images_has_a_finite_gradient() -> None:
    z = torch.tensor([[1.0, 0.0]] * 3, requires_grad=True)
    tuple_loss(z, 1, margin=0.85, metric="euclidean").backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_the_margin_of_tuples_is_what_they_are_measured_by() -> None:
    data = DataSpec(sampling="tuples", tuples_per_batch=2)
    assert IRTRecipe(data=data, memory=0.0, margin=1.2).margin == 1.2
    with pytest.raises(RecipeError, match=r"margin is a cosine in \[-1, 1\]"):
        IRTRecipe(data=data, memory=0.0, margin=1.2, tuple_metric="cosine")
    with pytest.raises(RecipeError, match=r"margin is a distance in \[0, 2\]"):
        IRTRecipe(data=data, memory=0.0, margin=-0.1)
    with pytest.raises(RecipeError, match="a tuple forms its pairs within itself: set memory=0"):
        IRTRecipe(data=data)


def test_koleo_by_hand() -> None:
    # Every nearest neighbour is a chord of 60 degrees away: length 1, log 1 = 0. Halving the angle of one pair changes two terms.
    assert koleo_loss(Z).item() == pytest.approx(0.0, abs=1e-12)
    z = torch.tensor([[1.0, 0.0], [math.cos(math.pi / 6), 0.5], [-1.0, 0.0]], dtype=torch.float64)
    near, far = 2 * math.sin(math.pi / 12), 2 * math.sin(math.pi * 5 / 12)
    assert koleo_loss(z).item() == pytest.approx(-(2 * math.log(near) + math.log(far)) / 3)


@pytest.mark.parametrize("reduction", ["sum_over_n", "mean_nonzero"])
def test_gradients_are_those_of_the_equations(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    keys = F.normalize(torch.randn(9, 4, dtype=torch.float64, generator=generator), dim=1)
    labels, key_labels = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 2, -1, -1, 3])
    assert torch.autograd.gradcheck(lambda z: contrastive_loss(F.normalize(z, dim=1), labels, margin=0.3, reduction=reduction), raw)
    assert torch.autograd.gradcheck(
        lambda z: contrastive_loss(F.normalize(z, dim=1), labels, keys, key_labels, margin=0.3, reduction=reduction), raw
    )
    assert torch.autograd.gradcheck(lambda z: koleo_loss(F.normalize(z, dim=1)), raw)


def test_koleo_survives_duplicates_and_tiny_batches() -> None:
    z = F.normalize(torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.5]]), dim=1).requires_grad_()
    koleo_loss(z).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().max() < 10  # the duplicates pull at nothing; the third row pulls gently
    one = torch.ones(1, 2, requires_grad=True)
    value = koleo_loss(one)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(one.grad, torch.zeros(1, 2))


@given(st.integers(2, 8), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_batch_against_itself_as_keys_is_equation_1(num: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(num, 3, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 3, (num,), generator=generator)
    by_hand = sum(
        (1 - float(z[i] @ z[j])) if labels[i] == labels[j] else max(0.0, float(z[i] @ z[j]) - 0.2)
        for i in range(num)
        for j in range(num)
        if i != j
    )
    assert contrastive_loss(z, labels, margin=0.2).item() == pytest.approx(by_hand / num, abs=1e-9)


def test_normalised_softmax_by_hand() -> None:
    # Proxies of any length at 0 and 90 degrees: the cosines to Z are (1, 0), (0.5, 0.87), (-0.5, 0.87).
    proxies = torch.tensor([[3.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    high = math.sqrt(0.75)
    by_hand = [
        math.log(1 + math.exp((0 - 1) / 0.5)),
        math.log(1 + math.exp((high - 0.5) / 0.5)),
        math.log(1 + math.exp((-0.5 - high) / 0.5)),
    ]
    found = normalised_softmax_loss(Z, torch.tensor([0, 0, 1]), proxies, temperature=0.5).item()
    assert found == pytest.approx(sum(by_hand) / 3)


def test_snca_by_hand() -> None:
    # Z against itself, of classes 0, 0, 1. The first: 0.5 to its like, -0.5 to the other. The second: 0.5 to both. The last is alone.
    labels = torch.tensor([0, 0, 1])
    found = snca_loss(Z, labels, Z, labels, temperature=0.5, self_columns=torch.arange(3)).item()
    assert found == pytest.approx((math.log(1 + math.exp(-1 / 0.5)) + math.log(2) + 0) / 3)


def test_the_other_objectives_gradients_are_those_of_their_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    raw, proxies = (torch.randn(num, 4, dtype=torch.float64, generator=generator, requires_grad=True) for num in (6, 3))
    keys = F.normalize(torch.randn(9, 4, dtype=torch.float64, generator=generator), dim=1)
    labels, key_labels, rows = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 2, 3, 2, 0, 1]), torch.arange(6)
    assert torch.autograd.gradcheck(
        lambda z, p: normalised_softmax_loss(F.normalize(z, dim=1), labels.clamp_max(2), p, temperature=0.3), (raw, proxies)
    )
    assert torch.autograd.gradcheck(
        lambda z: snca_loss(F.normalize(z, dim=1), labels, keys, key_labels, temperature=0.3, self_columns=rows), raw
    )


def _method(memory: float = 1.0, momentum: float = 0.0, start: int = 1) -> IRT:
    torch.manual_seed(0)
    recipe = IRTRecipe(
        model=TINY,
        image=ImageSpec(image_px=16),
        data=DataSpec(classes_per_batch=2, images_per_class=2),
        memory=memory,
        memory_start=start,
        momentum=momentum,
    )
    return IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(6) // 2))


def _batch(labels: list[int], seed: int) -> Batch:
    images = torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.tensor(labels), torch.arange(len(labels)))


def test_the_memory_starts_late_wraps_round_and_never_pairs_a_row_with_itself() -> None:
    method = _method()
    first = method.loss(_batch([0, 0, 1, 1], 1), 0)
    assert "memory" not in first.terms
    assert method.objective.memory_labels.tolist() == [0, 0, 1, 1, -1, -1]
    second = method.loss(_batch([2, 2, 3, 3], 2), 1)
    assert method.objective.memory_labels.tolist() == [3, 3, 1, 1, 2, 2]
    assert int(method.objective.memory_next) == 2
    # Of the batch's 4 x 6 pairs with the memory, the 4 with itself are out: what is left, by hand.
    z = method.learner(_batch([2, 2, 3, 3], 2).images).detach()
    labels, keys, key_labels = [2, 2, 3, 3], method.objective.memory_vectors, method.objective.memory_labels.tolist()
    own = [4, 5, 0, 1]
    by_hand = 0.0
    for i in range(4):
        for j in range(6):
            if j != own[i]:
                s = float(z[i] @ keys[j])
                by_hand += 1 - s if labels[i] == key_labels[j] else max(0.0, s - 0.5)
    assert second.terms["memory"].item() == pytest.approx(by_hand / 4, rel=1e-4)
    total = second.terms["contrastive"] + second.terms["memory"] + 0.7 * second.terms["koleo"]
    assert second.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_a_memory_smaller_than_a_batch_still_holds_the_batch() -> None:
    method = _method(memory=0.1, start=0)  # a tenth of six images
    assert method.objective.memory_vectors.shape == (4, 16)
    batch = _batch([0, 0, 1, 1], 1)
    found = method.loss(batch, 0)
    z = method.learner(batch.images).detach()
    assert method.objective.memory_labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(method.objective.memory_vectors, z)
    # The memory is the batch itself, no row of which is paired with itself: equation 1 once over and once again.
    assert found.terms["memory"].item() == pytest.approx(found.terms["contrastive"].item(), rel=1e-5)


def test_a_key_has_no_drop_path() -> None:
    torch.manual_seed(0)
    recipe = IRTRecipe(
        model=replace(TINY, drop_path=0.6),
        image=ImageSpec(image_px=16),
        data=DataSpec(classes_per_batch=2, images_per_class=2),
        momentum=0.9,
    )
    method = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(6) // 2)).train()
    assert method.objective.key_encoder is not None
    batch = _batch([0, 0, 1, 1], 1)
    with torch.no_grad():
        whole = copy.deepcopy(method.objective.key_encoder).eval()(batch.images)
        dropped = copy.deepcopy(method.objective.key_encoder).train()(batch.images)
    assert not torch.allclose(whole, dropped)  # the network has paths to drop
    method.loss(batch, 0)
    torch.testing.assert_close(method.objective.memory_vectors[:4], whole)


@pytest.mark.parametrize("objective", ["contrastive", "normalised_softmax", "snca", "tuples"])
def test_losses_are_taken_in_float32_under_bfloat16(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[float, float]] = []  # (as it was, the same in float32) of each loss
    for name in ("contrastive_loss", "tuple_loss", "koleo_loss", "normalised_softmax_loss", "snca_loss"):

        def noted(*given: torch.Tensor, loss=getattr(irt, name), **options: object) -> torch.Tensor:
            value = loss(*given, **options)
            assert value.dtype == torch.float32
            with torch.autocast("cpu", enabled=False):
                plain = [one.detach().float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in given]
                taken.append((value.item(), loss(*plain, **options).item()))
            return value

        monkeypatch.setattr(irt, name, noted)
    if objective == "tuples":
        data, settings = DataSpec(sampling="tuples", tuples_per_batch=1, negatives=2), {"memory": 0.0, "margin": 0.85}
    else:
        data, settings = DataSpec(classes_per_batch=2, images_per_class=2), {"objective": objective, "memory_start": 0}
    torch.manual_seed(0)
    recipe = IRTRecipe(model=TINY, image=ImageSpec(image_px=16), data=data, **settings)
    method, batch = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(6) // 2)), _batch([0, 0, 1, 1], 1)
    exactly = method.loss(batch, 5).total.detach()
    taken.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.loss(batch, 5)
    assert mixed.total.dtype == torch.float32
    assert len(taken) == {"contrastive": 3}.get(objective, 2)
    assert all(value == plain for value, plain in taken)
    assert not torch.equal(mixed.total, exactly)  # the network itself is in bfloat16


def test_the_momentum_encoder_follows_slowly_and_does_not_learn() -> None:
    method = _method(momentum=0.9)
    assert method.objective.key_encoder is not None
    optimizer = torch.optim.SGD(method.parameter_groups(TrainSpec(lr=0.1)))
    before = [p.clone() for p in method.objective.key_encoder.parameters()]
    method.loss(_batch([0, 0, 1, 1], 1), 5).total.backward()
    optimizer.step()
    method.after_step(5)
    for old, slow, fast in zip(before, method.objective.key_encoder.parameters(), method.learner.parameters(), strict=True):
        assert not slow.requires_grad
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)
    assert any(not torch.equal(old, slow) for old, slow in zip(before, method.objective.key_encoder.parameters(), strict=True))


def test_the_memory_and_its_pointer_are_saved() -> None:
    method = _method()
    method.loss(_batch([0, 0, 1, 1], 1), 0)
    state = method.state_dict()
    names = {"memory_vectors", "memory_labels", "memory_next"}
    assert {f"objective.{name}" for name in names} <= state.keys()
    other = _method()
    other.load_state_dict(state)
    assert int(other.objective.memory_next) == 4
    before = {name.removeprefix("objective."): value for name, value in state.items()}  # as it was saved before objectives were parts
    other = _method()
    other.load_state_dict(before)
    assert int(other.objective.memory_next) == 4
    assert names <= before.keys(), "the caller's own table is left alone"


def test_a_batch_has_pairs_of_either_kind() -> None:
    """Refused is what would train in silence on half a loss; what the refusals advise can be set."""
    for objective in ("contrastive", "normalised_softmax", "snca"):
        for batch in ({"images_per_class": 1}, {"classes_per_batch": 1}):
            data = DataSpec(**batch)  # type: ignore[arg-type]
            if objective == "contrastive":
                with pytest.raises(RecipeError, match=f"{next(iter(batch))}=1 gives the contrastive loss no two .* take 2 or more"):
                    IRTRecipe(objective="contrastive", memory=0.0, data=data)
                IRTRecipe(objective="contrastive", memory=1.0, data=data)  # which has the other images
            else:
                IRTRecipe(objective=objective, memory=0.0, data=data)  # type: ignore[arg-type]
    IRTRecipe(memory=0.0, data=DataSpec(images_per_class=2, classes_per_batch=2))
    IRTRecipe(memory=0.0, data=DataSpec(sampling="tuples", tuples_per_batch=2))


def test_your_own_photographs_are_learnt_as_the_studies_found_best() -> None:
    """docs/results.md, "From pretrained weights" and "The ladder O / L / R from scratch": whoever changes these changes the studies."""
    own, small, tuples = (catalog.find("recipes", f"irt/{name}")() for name in ("folder", "small", "tuples"))
    assert (own.reduction, own.koleo_weight, own.memory_start, own.model.frozen) == ("mean_nonzero", 0, 200, ("batch_norm",))
    assert (own.train.lr, own.train.warmup_steps, own.train.schedule, own.data.validation) == (3e-5, 100, "cosine", 0.1)
    assert (small.reduction, small.koleo_weight, small.memory, small.model.frozen, small.train.lr) == ("mean_nonzero", 0, 0, (), 3e-4)
    assert (tuples.koleo_weight, tuples.margin, tuples.data.pool_size) == (0.3, 0.85, 100)


def test_ladder_switches() -> None:
    assert set(_method(memory=0.0).loss(_batch([0, 0, 1, 1], 1), 9).terms) == {"contrastive", "koleo", *WATCHED}
    with pytest.raises(RecipeError, match="margin"):
        IRTRecipe(margin=1.5)


def _other(objective: str, **settings: float) -> IRT:
    torch.manual_seed(0)
    recipe = IRTRecipe(
        objective=objective,
        model=TINY,
        image=ImageSpec(image_px=16),
        data=DataSpec(classes_per_batch=2, images_per_class=2),
        **settings,
    )
    return IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.array([3, 3, 7, 7, 9, 9])))


def test_class_vectors_are_those_of_the_classes_learnt_from_and_learn_at_their_own_rate() -> None:
    method = _other("normalised_softmax", proxy_lr=10.0)
    assert method.objective.proxies is not None
    assert method.objective.proxies.shape == (3, 16)  # not the ten that labels up to 9 would ask for
    assert method.objective.proxy_of[torch.tensor([3, 7, 9])].tolist() == [0, 1, 2]
    assert method.objective.proxies.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.2)
    groups = method.parameter_groups(TrainSpec(lr=0.1, weight_decay=0.2))
    assert [(group["lr"], group["weight_decay"]) for group in groups if group["params"][0] is method.objective.proxies] == [(1.0, 0.2)]
    found = method.loss(_batch([3, 3, 9, 9], 1), 0)
    z = method.learner(_batch([3, 3, 9, 9], 1).images).detach()
    assert found.terms["softmax"].item() == pytest.approx(
        normalised_softmax_loss(z, torch.tensor([0, 0, 2, 2]), method.objective.proxies, temperature=0.05).item(), rel=1e-5
    )
    assert found.total.item() == pytest.approx((found.terms["softmax"] + 0.7 * found.terms["koleo"]).item(), rel=1e-6)


def test_sncas_memory_has_every_image_and_moves_only_where_the_step_looked() -> None:
    method = _other("snca", memory_momentum=0.25)
    before = method.objective.memory_vectors.clone()
    assert before.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.2)
    batch = _batch([3, 3, 7, 7], 1)
    z = method.learner(batch.images).detach()
    found = method.loss(batch, 0)
    assert torch.equal(method.objective.memory_vectors, before)  # its gradient is still to be taken against these
    assert found.total.item() == pytest.approx((found.terms["snca"] + 0.7 * found.terms["koleo"]).item(), rel=1e-6)
    method.after_step(0)
    torch.testing.assert_close(method.objective.memory_vectors[:4], F.normalize(0.25 * before[:4] + 0.75 * z, dim=1))
    assert torch.equal(method.objective.memory_vectors[4:], before[4:])


def test_the_other_objectives_settings_are_checked() -> None:
    for wrong in ({"temperature": 0.0}, {"proxy_lr": 0.0}, {"memory_momentum": 1.0}):
        with pytest.raises(RecipeError, match="temperature"):
            IRTRecipe(**wrong)
