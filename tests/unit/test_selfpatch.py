"""DINO and SelfPatch beyond what their authors' numbers hold: neighbours at the border, what a weight of zero leaves, the watch for collapse."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sightline.contracts import Batch
from sightline.errors import ModelError, RecipeError, TrainingError
from sightline.methods import selfpatch
from sightline.methods.self_supervised import cosine_to_one
from sightline.methods.selfpatch import SelfPatch, image_loss, linear_ramp, small
from sightline.nn.class_attention import ClassAttention, closest_neighbours, window
from sightline.nn.collapse import PATIENCE, CollapseMonitor, feature_rank, spread
from sightline.nn.encoder import Encoder
from sightline.recipe import CropSpec
from sightline.settings import override

TINY = [
    "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2",
    "image_px=32",
    "crop_px=32,16",
    "num_crops=2,2",
    "images_per_batch=4",
]
HEADS = ["num_prototypes=8", "num_patch_prototypes=6", "head_hidden=16", "head_bottleneck=8"]


def made(recipe=None, *settings: str) -> SelfPatch:
    torch.manual_seed(0)
    recipe = override(recipe or small(), [*TINY, *HEADS, "drop_path=0", *settings])
    return SelfPatch(recipe, Encoder(recipe.model, recipe.image)).train()


LABELS = torch.zeros(4, dtype=torch.int64), torch.arange(4)


def batch(seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch.of_crops(tuple(torch.randn(2, 4, 3, px, px, generator=random) for px in (32, 16)), *LABELS)


def test_a_corner_has_three_neighbours_and_none_beyond_the_border() -> None:
    rows, is_there = window((3, 4), 3, "clip")
    assert sorted(rows[0][is_there[0]].tolist()) == [1, 4, 5]
    assert sorted(rows[5][is_there[5]].tolist()) == [0, 1, 2, 4, 6, 8, 9, 10]
    assert sorted(window((3, 4), 3, "torus")[0][0].tolist()) == [1, 3, 4, 5, 7, 8, 9, 11]


def test_a_grid_smaller_than_the_window_has_no_torus() -> None:
    with pytest.raises(ModelError, match="smaller than the window of 3: take wrap=clip"):
        window((2, 4), 3, "torus")


def test_the_most_alike_neighbours_are_chosen_and_gaps_are_marked() -> None:
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.9, 0.0]])[None]  # a grid of 2 x 2
    chosen = closest_neighbours(tokens, (2, 2), num=2)
    assert chosen.rows[0, 0].tolist() == [3, 1]
    assert chosen.is_there.all()
    five = closest_neighbours(tokens, (2, 2), num=5)
    assert five.is_there.sum(dim=2).tolist() == [[3, 3, 3, 3]]


@pytest.mark.parametrize("num", [2, 8])
def test_summaries_equal_asking_each_neighbourhood_by_itself(num: int) -> None:
    torch.manual_seed(0)
    head, tokens = ClassAttention(12, 3).double(), torch.randn(2, 12, 12, dtype=torch.float64)
    chosen = closest_neighbours(tokens, (3, 4), num=num)
    image, around = head.with_neighbours(tokens, chosen)
    torch.testing.assert_close(image, head(tokens))
    for row in range(2):
        for patch in range(12):
            own = chosen.rows[row, patch][chosen.is_there[row, patch]]
            torch.testing.assert_close(around[row, patch], head(tokens[row, own][None])[0])


def test_the_mean_of_neighbours_leaves_gaps_out() -> None:
    head, tokens = ClassAttention(8, 2), torch.randn(1, 4, 8)
    mean = head.mean_of_neighbours(tokens, closest_neighbours(tokens, (2, 2), num=8))
    torch.testing.assert_close(mean[0, 0], head.norm(tokens[0, 1:].mean(dim=0)))


def test_the_image_loss_is_the_mean_over_all_pairs_of_two_crops() -> None:
    torch.manual_seed(0)
    student, answers = torch.randn(4, 3, 5), torch.randn(2, 3, 5).softmax(dim=2)
    pairs = [F.cross_entropy(student[s], answers[t]) for t in range(2) for s in range(4) if s != t]
    torch.testing.assert_close(image_loss(student, answers), torch.stack(pairs).mean())


@pytest.mark.parametrize("pooling", ["cls", "class_attention"])
def test_without_patches_a_run_is_dinos_written_out_plainly(pooling: str) -> None:
    method = made(small(), "patch_weight=0", f"pooling={pooling}", "steps=4", "teacher_momentum=0.9").double()
    student, teacher = (copy.deepcopy(branch) for branch in (method.student, method.teacher))
    center, losses = torch.zeros(8, dtype=torch.float64), []
    optimizer, plain = torch.optim.SGD(method.student.parameters(), lr=0.1), torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(3):
        crops = [crop for group in batch(step).crops for crop in group.double()]
        with torch.no_grad():
            taught = [teacher.image_head(teacher.encoder.pool_tokens(teacher.encoder.tokens(crop))) for crop in crops[:2]]
        said = [student.image_head(student.encoder.pool_tokens(student.encoder.tokens(crop))) for crop in crops]
        pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
        loss = torch.stack([F.cross_entropy(said[s] / 0.1, ((taught[t] - center) / 0.04).softmax(dim=1)) for t, s in pairs]).mean()
        plain.zero_grad()
        loss.backward()
        plain.step()
        center = 0.9 * center + 0.1 * torch.cat(taught).mean(dim=0)
        keep = cosine_to_one(0.9, step, 4)
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(keep * slow + (1 - keep) * fast)
        total = method.loss(Batch.of_crops(tuple(group.double() for group in batch(step).crops), *LABELS), step).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.after_step(step)
        losses.append((total.item(), loss.item()))
    assert losses[0][0] != losses[1][0]
    for ours, dinos in losses:
        assert ours == pytest.approx(dinos, rel=1e-12)
    torch.testing.assert_close(method.center, center, rtol=1e-9, atol=1e-12)
    for ours, dinos in zip(method.teacher.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(ours, dinos, rtol=1e-6, atol=1e-9)


def test_without_patches_the_teacher_sees_the_global_crops_alone() -> None:
    seen: dict[float, list[int]] = {}
    for weight in (0.0, 0.1):
        method = made(small(), f"patch_weight={weight}")
        method.teacher.encoder.backbone.register_forward_pre_hook(
            lambda _, images, weight=weight: seen.setdefault(weight, []).append(images[0].shape[-1])
        )
        method.loss(batch(), 0)
    assert seen == {0.0: [32], 0.1: [32, 16]}


def test_the_patch_term_leaves_the_image_term_as_it_was() -> None:
    with_patches = made()
    weighted = with_patches.loss(batch(), 0)
    torch.testing.assert_close(weighted.total.detach(), weighted.terms["image_loss"] + 0.1 * weighted.terms["patch_loss"])
    twin = made(small(), "patch_weight=0")
    twin.student.load_state_dict({n: v for n, v in with_patches.student.state_dict().items() if not n.startswith("patch_head.")})
    twin.teacher.load_state_dict(twin.student.state_dict())
    torch.testing.assert_close(twin.loss(batch(), 0).terms["image_loss"], weighted.terms["image_loss"])


def test_the_teacher_learns_from_nobody_and_follows() -> None:
    method = made(small(), "teacher_momentum=0.5", "steps=10")
    before = copy.deepcopy(method.teacher.state_dict())
    method.loss(batch(), 0).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    method.after_step(0)
    for name, value in method.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.5)


def test_last_layers_stand_still_at_first() -> None:
    method = made(small(), "freeze_last_steps=1")
    method.loss(batch(), 0).total.backward()
    head = method.student.image_head.last_layer.parametrizations.weight.original1
    assert head.grad is not None
    method.before_step(1)
    assert head.grad is not None
    method.before_step(0)
    assert head.grad is None


@pytest.mark.parametrize("num", [2, 8])
def test_without_aggregation_the_teacher_answers_for_the_mean_of_a_patchs_neighbours(num: int) -> None:
    method, given = made(small(), "aggregate=false", f"num_neighbours={num}", "wrap=clip"), batch()
    encoder, asked = method.teacher.encoder, []
    assert method.teacher.patch_head is not None
    method.teacher.patch_head.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    method.loss(given, 0)
    pooling, by_hand = encoder.class_attention, []
    assert isinstance(pooling, ClassAttention)
    with torch.no_grad():
        for group in given.crops:
            tokens = encoder.tokens(group.flatten(0, 1))
            rows, columns = tokens.grid
            for patches in tokens.patches:
                unit = F.normalize(patches, dim=1)
                for patch in range(rows * columns):
                    row, column = divmod(patch, columns)
                    around = [
                        other
                        for other in range(rows * columns)
                        if other != patch and abs(other // columns - row) <= 1 and abs(other % columns - column) <= 1
                    ]
                    around.sort(key=lambda other: -float(unit[patch] @ unit[other]))
                    by_hand.append(pooling.norm(patches[around[:num]].mean(dim=0)))
    torch.testing.assert_close(asked[0], torch.stack(by_hand))


def test_what_tells_of_a_collapse_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    # Half of the images are answered for with prototype 0 and half with 1, each surely: no entropy, and log 2 nats tell the images apart.
    sure = F.one_hot(torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), 8).float()
    monkeypatch.setattr(selfpatch, "teacher_answers", lambda logits, *_: sure if logits.ndim == 3 else logits.softmax(dim=1))
    found = method.loss(batch(), 0).terms
    assert found["teacher_entropy"].item() == pytest.approx(0.0, abs=1e-6)
    assert found["teacher_information"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert found["dead_prototypes"].item() == 0.0  # one step is no time to die in
    # Dead are those with less than a tenth of an even share of the answers: three of eight, and not the two just above it.
    even = 1 / 8
    method.usage = torch.tensor([0.5 - even, 0.5 - even, 0.11 * even, 0.11 * even, 2 * even, 0.09 * even, 0.0, 0.05 * even])
    assert method.loss(batch(), 0).terms["dead_prototypes"].item() == pytest.approx(3 / 8)
    # All images get the same unsure answer: the entropy of it, and nothing that tells them apart.
    sure = torch.full((2, 4, 8), even)
    found = method.loss(batch(), 0).terms
    assert found["teacher_entropy"].item() == pytest.approx(math.log(8), rel=1e-6)
    assert found["teacher_information"].item() == pytest.approx(0.0, abs=1e-5)


def test_evaluation_moves_no_centre() -> None:
    method = made().eval()
    method.loss(batch(), 0)
    assert not method.center.any()
    assert not method.patch_center.any()


def test_ramps() -> None:
    assert [linear_ramp(0.0, 1.0, step, 3) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert linear_ramp(0.04, 0.07, 0, 0) == 0.07
    assert cosine_to_one(0.9, 0, 10) == pytest.approx(0.9)
    assert cosine_to_one(0.9, 10, 10) == pytest.approx(1.0)


def test_spread_and_rank_tell_a_collapse() -> None:
    torch.manual_seed(0)
    apart, one = torch.randn(500, 16), torch.ones(500, 16) + 1e-4 * torch.randn(500, 16)
    assert spread(apart) == pytest.approx(1.0, abs=0.02)
    assert spread(one) < 1e-3
    assert spread(torch.arange(16.0) + 1e-4 * torch.randn(500, 16)) < 1e-3  # all images alike, whatever its entries are
    assert feature_rank(apart) > 15
    line = torch.randn(500, 1) @ torch.randn(1, 16)
    assert feature_rank(line) == pytest.approx(1.0, abs=0.01)


def test_a_collapse_ends_the_run_with_a_diagnosis_and_its_count_is_kept() -> None:
    watch, same, apart = CollapseMonitor(5, 10), torch.ones(8, 4), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        watch.look(same, step)  # before the first step that counts
    for step in range(5, 5 + PATIENCE - 1):
        for _ in range(3):  # several batches of one step count once
            watch.look(same, step)
    assert watch.found == PATIENCE - 1
    resumed = CollapseMonitor(5, 10)
    resumed.load_state_dict(watch.state_dict())
    watch.look(apart, 14)
    assert watch.found == 0
    with pytest.raises(TrainingError, match="collapsed at step 15: all images get nearly the same features"):
        resumed.look(same, 14)


def test_a_collapse_counts_from_whatever_step_and_is_told_with_what_may_help() -> None:
    for first in (0, 1, 2):
        watch, same = CollapseMonitor(0, 1), torch.ones(8, 4)
        for step in range(first, first + PATIENCE - 1):
            watch.look(same, step)
        assert watch.found == PATIENCE - 1
        with pytest.raises(TrainingError, match="a lower lr, a lower teacher_temp, fewer num_prototypes, more images a batch, or a larger"):
            watch.look(same, first + PATIENCE)


def test_a_watch_looks_at_the_first_step_and_at_those_that_are_logged() -> None:
    assert [step for step in range(25) if CollapseMonitor(0, 10).is_due(step)] == [0, 9, 19]


def test_a_teacher_without_an_answer_is_a_collapse_too() -> None:
    watch, apart = CollapseMonitor(0, 1), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for step in range(PATIENCE - 1):
        watch.look(apart, step, torch.tensor(1e-5))
    with pytest.raises(TrainingError, match="the teacher gives all images the same answer"):
        watch.look(apart, PATIENCE, torch.tensor(1e-5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampling=class-balanced"], "set sampling=shuffle and images_per_batch"),
        (["image_px=64"], "global crops are what the network is made for"),
        (["window=4"], "window is an odd number"),
        (["pooling=mean"], "patches learn through class attention"),
        (["teacher_temp=0"], "temperatures must be positive"),
        (["head_hidden=0"], "must be positive"),
        (["teacher_temp_steps=-1"], "not negative"),
        (["images_per_batch=1"], "two or more a batch"),
        (["flip=0"], r"augment\.\* is ignored by crops"),
        (["layer_decay=0.5"], "all layers learn at one rate"),
    ],
)
def test_settings_that_cannot_be_say_so(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(small(), [*TINY, *settings])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["crop_px=32,18"], "cuts patches of 8 px: the sides of an image must be multiples, got 18 x 18"),
        (["crop_px=32,8"], "a crop of 8 px has 1 x 1 patches, alone, without neighbours"),
        (["wrap=torus"], "a crop of 16 px has 2 x 2 patches, smaller than the window: take wrap=clip"),
    ],
)
def test_crops_that_do_not_fit_are_refused_before_a_run_is_opened(settings: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        made(small(), *settings)
    if "crop_px=32,8" in settings:
        made(small(), *settings, "patch_weight=0")  # whole images have no neighbours


def test_a_projection_is_of_the_image_alone() -> None:
    method = made(small(), "projection=6")
    assert torch.isfinite(method.loss(batch(), 0).total)
    assert method.encoder().embed_batch(batch().crops[0][0]).shape == (4, 6)


def test_a_run_that_goes_on_needs_no_file_to_start_from() -> None:
    method = made(small(), "start_from=gone.pth")
    with pytest.raises(ModelError, match=r"gone\.pth"):
        method.begin()


def test_images_become_the_recipes_crops() -> None:
    recipe = override(small(), TINY)
    made_of = SelfPatch.transform(recipe)
    crops = made_of.pixels(Image.new("RGB", (50, 40), (10, 120, 200)), 0)
    assert [tuple(crop.shape) for crop in crops] == [(2, 3, 32, 32), (2, 3, 16, 16)]
    assert (made_of.image, made_of.crops) == (recipe.image, recipe.crops)


def test_one_crop_teaches_nothing() -> None:
    with pytest.raises(RecipeError, match="two crops or more"):
        replace(small(), crops=CropSpec(crop_px=(64,), num_crops=(1,), crop_min_area=(0.4,), crop_max_area=(1.0,)))


def test_losses_are_taken_in_float32_under_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    for name in ("image_loss", "patch_loss"):

        def noted(student: torch.Tensor, answers: torch.Tensor, loss=getattr(selfpatch, name)) -> torch.Tensor:
            seen.extend((student.dtype, answers.dtype))
            return loss(student, answers)

        monkeypatch.setattr(selfpatch, name, noted)
    exactly = made().loss(batch(), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = made().loss(batch(), 0)
    assert set(seen) == {mixed.total.dtype, mixed.terms["image_loss"].dtype, mixed.terms["patch_loss"].dtype} == {torch.float32}
    assert not torch.equal(mixed.total, exactly.total)  # the network itself is in bfloat16
    for term in ("image_loss", "patch_loss"):
        torch.testing.assert_close(mixed.terms[term], exactly.terms[term], rtol=0.02, atol=0)
