"""The loop: resumed equals uninterrupted bit for bit, signals save, divergence is diagnosed, averages and accumulation are what they say."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.errors import DiskFullError, ModelError, TrainingError
from sightline.methods.irt import IRT, IRTRecipe
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.training import checkpoint
from sightline.training.choice import Validation
from sightline.training.loop import Loop
from sightline.training.optim import build_optimizer, rate_at

TINY = ModelSpec(
    backbone="vit_tiny_patch16_224",
    backbone_args=(("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2)),
    weights="random",
    drop_path=0.2,
)
SPEC = TrainSpec(steps=8, lr=1e-3, warmup_steps=2, schedule="cosine", clip_norm=1.0, ema=0.9, log_every=1, validate_every=4, save_every=3)
RECIPE = IRTRecipe(
    model=TINY,
    image=ImageSpec(image_px=16),
    data=DataSpec(classes_per_batch=2, images_per_class=2),
    memory_start=2,
    momentum=0.9,
    train=SPEC,
)


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    return Batch(torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 0, 1, 1]) + 2 * (number % 2), torch.arange(4))


def batches(first: int) -> Iterator[Batch]:
    while True:
        yield batch(first)
        first += 1


def loop(folder: Path, spec: TrainSpec = SPEC, recipe: IRTRecipe = RECIPE, **arguments: object) -> Loop:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    method = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(10) // 2))
    return Loop(method, arguments.pop("batches", batches), spec, folder, device=torch.device("cpu"), **arguments)  # type: ignore[arg-type]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def interrupted_after(number: int) -> Iterator[Batch]:
    """Batches during the n-th of which Ctrl-C arrives."""
    for position, item in enumerate(batches(0)):
        if position == number:
            os.kill(os.getpid(), signal.SIGINT)
        yield item


@pytest.mark.parametrize("objective", ["contrastive", "normalised_softmax", "snca"])
def test_resumed_equals_uninterrupted_bit_for_bit(objective: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, objective=objective)

    def validate(encoder: Encoder) -> Validation:
        return Validation({"map@r": float(sum(p.sum() for p in encoder.parameters()).detach())})

    whole = loop(tmp_path / "whole", recipe=recipe, validate=validate).run()
    first = loop(tmp_path / "parts", recipe=recipe, validate=validate, batches=lambda _: interrupted_after(4)).run()
    assert (first.step, first.stopped_by) == (5, "SIGINT")
    second = loop(tmp_path / "parts", recipe=recipe, validate=validate, resume=True).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert (second.step, second.best, second.best_step) == (whole.step, whole.best, whole.best_step)
    ours, theirs = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "parts")
    assert ours is not None
    assert theirs is not None
    for part in ("method", "average"):
        for name, value in ours[part].items():
            assert torch.equal(value, theirs[part][name]), name


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_rewrites_the_log_after_it(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def dying(first: int) -> Iterator[Batch]:
        yield from (batch(number) for number in range(first, 5))
        raise KilledError

    loop(tmp_path / "whole").run()
    with pytest.raises(KilledError):
        loop(tmp_path / "parts", batches=dying).run()
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # the torn last line of a kill -9
    loop(tmp_path / "parts", resume=True).run()  # from step 3
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


class CountedEpochs:
    """Epochs of three steps whose batches are shifted by a sum of the weights as they were when the epoch began."""

    def __init__(self) -> None:
        self.steps = 3
        self.shift = torch.zeros(())
        self.asked: list[int] = []

    def refresh(self, epoch: int, encoder: Encoder) -> Mapping[str, float]:
        self.asked.append(epoch)
        self.shift = sum(p.detach().abs().sum() for p in encoder.parameters()) / 100
        return {"shift": float(self.shift)}

    def state(self) -> dict[str, torch.Tensor]:
        return {"shift": self.shift}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.shift = state["shift"]

    def batches(self, first: int) -> Iterator[Batch]:
        shift = self.shift  # a loader's workers see what there was when they began
        while True:
            item = batch(first)
            yield replace(item, images=item.images + shift)
            first += 1


def epoch_lines(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["epoch/shift"]) for line in lines if "epoch/shift" in line]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stopped_in", [2, 3, 4, 5])
def test_a_run_that_goes_on_within_an_epoch_trains_on_what_was_made_at_its_start(tmp_path: Path, stopped_in: int, accumulate: int) -> None:
    spec = replace(SPEC, accumulate=accumulate)
    epochs = CountedEpochs()
    loop(tmp_path / "whole", spec, batches=epochs.batches, epochs=epochs).run()
    assert epochs.asked == [0, 1, 2]
    first = CountedEpochs()

    def interrupted(start: int) -> Iterator[Batch]:
        for number, item in enumerate(first.batches(start), start):
            if number == stopped_in * accumulate:
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    assert loop(tmp_path / "parts", spec, batches=interrupted, epochs=first).run().step == stopped_in + 1
    second = CountedEpochs()
    loop(tmp_path / "parts", spec, batches=second.batches, epochs=second, resume=True).run()
    assert first.asked + second.asked == [0, 1, 2]  # none made twice, none left out
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert epoch_lines(tmp_path / "parts") == epoch_lines(tmp_path / "whole")
    assert [step for step, _ in epoch_lines(tmp_path / "whole")] == [1, 4, 7]


def test_a_killed_run_makes_its_epochs_again_and_logs_each_once(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    epochs, first, second = CountedEpochs(), CountedEpochs(), CountedEpochs()

    def dying(start: int) -> Iterator[Batch]:
        for number, item in enumerate(first.batches(start), start):
            if number == 5:
                raise KilledError
            yield item

    loop(tmp_path / "whole", batches=epochs.batches, epochs=epochs).run()
    with pytest.raises(KilledError):
        loop(tmp_path / "parts", batches=dying, epochs=first).run()
    loop(tmp_path / "parts", batches=second.batches, epochs=second, resume=True).run()  # from step 3, where epoch 1 begins
    assert second.asked == [1, 2]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert epoch_lines(tmp_path / "parts") == epoch_lines(tmp_path / "whole")


def test_divergence_is_diagnosed_and_the_checkpoint_before_it_kept(tmp_path: Path) -> None:
    def poisoned(first: int) -> Iterator[Batch]:
        for number in range(first, 100):
            item = batch(number)
            yield replace(item, images=item.images * float("nan")) if number == 4 else item

    with pytest.raises(TrainingError, match=r"diverged at step 4: .*loss nan.*--set lr=") as caught:
        loop(tmp_path, batches=poisoned).run()
    assert "\n" not in str(caught.value)
    kept = checkpoint.load(tmp_path)
    assert kept is not None
    assert kept["progress"]["step"] == 3


def test_the_start_is_measured_and_kept_where_no_step_beats_it(tmp_path: Path) -> None:
    said = iter([0.5, 0.4, 0.5])
    running = loop(tmp_path, replace(SPEC, ema=0.0), validate=lambda _: Validation({"map@r": next(said)}))
    start = {name: value.clone() for name, value in running.encoder().state_dict().items()}
    progress = running.run()
    assert (progress.best, progress.best_step, progress.start and progress.start.value) == (0.5, 0, 0.5)
    kept = model_folder.load(tmp_path).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in start.items())
    assert not torch.equal(next(iter(running.encoder().parameters())), next(iter(start.values())))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["validation/map@r"]) for line in lines if "validation/map@r" in line] == [(0, 0.5), (4, 0.4), (8, 0.5)]


def test_a_model_that_is_not_surely_better_than_the_start_is_not_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scores = iter([[0.4, 0.6, 0.2], [0.9, 0.5, 0.2], [0.5, 0.7, 0.29]])

    def validate(_: Encoder) -> Validation:
        found = np.array(next(scores))
        return Validation({"map@r": float(found.mean())}, {"map@r": found})

    assert loop(tmp_path, batches=lambda _: interrupted_after(4), validate=validate).run().best_step == 0
    assert "validation map@r 0.5333 (not surely above the start: +0.1333 ± 0.1856)" in capfd.readouterr().err
    progress = loop(tmp_path, resume=True, validate=validate).run()  # what it must beat is in the checkpoint
    assert progress.best == pytest.approx(1.49 / 3)
    assert progress.best_step == 8


def test_a_run_that_goes_on_knows_its_start_and_does_not_ask_again(tmp_path: Path) -> None:
    said = iter([0.3, 0.2, 0.4])
    measure = {"validate": lambda _: Validation({"map@r": next(said)})}
    assert loop(tmp_path, batches=lambda _: interrupted_after(4), **measure).run().step == 5
    progress = loop(tmp_path, resume=True, **measure).run()
    assert (progress.start and progress.start.value, progress.best, progress.best_step) == (0.3, 0.4, 8)


def test_accumulation_is_the_mean_of_the_gradients(tmp_path: Path) -> None:
    recipe = replace(RECIPE, memory=0.0, momentum=0.0, model=replace(TINY, drop_path=0.0))
    spec = TrainSpec(steps=1, lr=0.1, optimizer="sgd", weight_decay=0.0, accumulate=2, precision="fp32")
    running = loop(tmp_path / "two", spec, recipe)
    before = [p.clone() for p in running.method.parameters()]
    running.run()
    torch.manual_seed(0)
    method = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(10) // 2))
    ((method.loss(batch(0), 0).total + method.loss(batch(1), 0).total) / 2).backward()
    for old, new, p in zip(before, running.method.parameters(), method.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * p.grad if p.grad is not None else old, atol=1e-5, rtol=1e-4)


def test_the_average_follows_its_decay(tmp_path: Path) -> None:
    spec = replace(SPEC, steps=2, ema=0.75)
    running = loop(tmp_path, spec)
    seen = []
    after = running.method.after_step
    running.method.after_step = lambda step: (after(step), seen.append([p.detach().clone() for p in running.method.learner.parameters()]))  # type: ignore[func-returns-value,method-assign]
    running.run()
    for first, second, mean in zip(seen[0], seen[1], running.encoder().parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * first + 0.25 * second)  # the first update copies


def test_schedules() -> None:
    spec = TrainSpec(steps=12, warmup_steps=2, schedule="cosine", final_lr=0.1)
    assert [rate_at(step, spec) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert rate_at(7, spec) == pytest.approx(0.55)
    assert rate_at(12, spec) == pytest.approx(0.1)
    assert rate_at(9, TrainSpec()) == 1.0
    stairs = TrainSpec(schedule="exponential", lr_decay=0.5, lr_decay_steps=4, warmup_steps=1)
    assert [rate_at(step, stairs) for step in (0, 3, 4, 7, 8)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_adams_weight_decay_is_added_to_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}], TrainSpec(optimizer="adam", lr=0.1))
    weight.grad = torch.tensor([-1.0])  # with the decay's 0.5 * 2 nothing is left, where AdamW would step and decay apart
    optimizer.step()
    assert weight.item() == 2.0


def test_a_full_disk_while_saving_is_one_line_and_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left on the disk while saving the checkpoint"):
        checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"junk")
    with pytest.raises(ModelError, match="delete it to start again"):
        checkpoint.load(tmp_path)


def test_a_validation_that_measures_nothing_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = loop(tmp_path, validate=lambda _: Validation({"map@r": math.nan})).run()
    assert (progress.best_step, progress.start, progress.measured) == (-1, None, {})
    told = capsys.readouterr().err
    assert "validation measures nothing" in told
    assert "best so far" not in told
    assert "nan" not in (tmp_path / "metrics.jsonl").read_text().lower()
    last, kept = loop(tmp_path, resume=True).encoder().state_dict(), model_folder.load(tmp_path).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in last.items())  # the last step's, as without validation


def test_a_start_that_is_beyond_numbers_does_not_blame_the_rate(tmp_path: Path) -> None:
    def poisoned(first: int) -> Iterator[Batch]:
        for number in range(first, 100):
            yield replace(batch(number), images=batch(number).images * float("nan"))

    with pytest.raises(TrainingError, match=r"cannot begin: .*loss nan.* before any weight was changed.*take other weights") as caught:
        loop(tmp_path, batches=poisoned).run()
    assert "lr" not in str(caught.value)
