"""What every recipe of the catalog, and the method behind it, must do: the training loop relies on nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline import catalog
from sightline.contracts import Batch, SegmentationBatch
from sightline.data.records import of_labels
from sightline.methods.base import Method
from sightline.nn.collapse import PATIENCE
from sightline.nn.encoder import Encoder
from sightline.recipe import Recipe
from sightline.settings import from_plain, override, recipe_hash, to_plain
from sightline.training.loop import Loop

TINY = ["backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2", "weights=random", "image_px=16"]
BATCH = ["classes_per_batch=2", "images_per_class=2"]
TUPLE = ["tuples_per_batch=1", "negatives=2"]
SHUFFLED = ["images_per_batch=4"]
CROPS = ["crop_px=16,8", "num_crops=2,2", "crop_min_area=0.4,0.1", "crop_max_area=1.0,0.4", "wrap=clip"]
HEADS = ["num_prototypes=8", "num_patch_prototypes=8", "head_hidden=16", "head_bottleneck=8", "freeze_last_steps=1"]
SEGMENTS = ["image_px=32", "resize_px=32", "pyramid_channels=16", "head_channels=16"]
UNLABELLED = {"selfpatch": [*CROPS, *HEADS], "moby": ["crop_px=16", "projector_hidden=16", "projector_out=8", "queue_length=8"]}


def make(name: str) -> tuple[Recipe, Method]:
    name, *settings = name.split()
    torch.manual_seed(0)
    named = catalog.find("recipes", name)()
    batches = {"shuffle": SHUFFLED, "tuples": TUPLE, "pk": BATCH}[named.data.sampling]
    tiny = TINY
    if catalog.find("methods", name.partition("/")[0]).learns_from == "masks":
        batches = [*batches, *SEGMENTS]
    if not catalog.find("methods", name.partition("/")[0]).needs_labels:
        has_patches = named.model.pooling == "class_attention"
        args = ",class_token=false,final_norm=false,global_pool=" if has_patches else ""
        finer = [setting.replace("patch_size=8", "patch_size=4") for setting in TINY]  # the smaller crops have neighbours then
        tiny = [setting + args * setting.startswith("backbone_args") for setting in finer]
        batches = [*batches, *UNLABELLED[name.partition("/")[0]]]
    recipe = override(named, [*tiny, *batches, *settings])
    method = catalog.find("methods", name.partition("/")[0])
    return recipe, method(recipe, Encoder(recipe.model, recipe.image), of_labels(np.repeat(np.arange(6), 2)))


def batch(name: str, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    if catalog.find("methods", name.partition("/")[0]).learns_from == "masks":
        masks = torch.randint(-1, 6, (4, 32, 32), generator=random)
        return SegmentationBatch(torch.randn(4, 3, 32, 32, generator=random), torch.zeros(4).long(), torch.arange(4), masks=masks)
    crops = tuple(torch.randn(2, 4, 3, px, px, generator=random) for px in (16, 8))
    return Batch.of_crops(crops, torch.tensor([0, 0, 1, 1]), torch.arange(4))


@pytest.fixture(params=[*catalog.names("recipes"), "irt/cub objective=normalised_softmax", "irt/cub objective=snca"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_recipe_carries_its_own_name_and_replays(name: str) -> None:
    recipe, _ = make(name)
    assert recipe.name == name.split()[0]
    assert recipe_hash(from_plain(type(recipe), to_plain(recipe))) == recipe_hash(recipe)


def test_a_collapse_could_end_the_run_before_it_is_over() -> None:
    for name in catalog.names("recipes"):
        recipe = catalog.find("recipes", name)()
        if hasattr(recipe, "watch_from"):
            assert recipe.watch_from + (PATIENCE + 1) * recipe.train.log_every <= recipe.train.steps / 2, name


def test_groups_hold_every_learning_parameter_once(name: str) -> None:
    recipe, method = make(name)
    held = [id(parameter) for group in method.parameter_groups(recipe.train) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in method.parameters() if parameter.requires_grad)
    assert all({"lr", "weight_decay"} <= group.keys() for group in method.parameter_groups(recipe.train))


def test_a_step_descends_and_everything_it_needs_next_is_saved(name: str) -> None:
    recipe, method = make(name)
    optimizer = torch.optim.SGD(method.parameter_groups(recipe.train))
    for step in range(3):
        terms = method.loss(batch(name, step), step)
        assert torch.isfinite(terms.total)
        assert all(not value.requires_grad for value in terms.terms.values())
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        method.after_step(step)
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in method.parameters())
    _, other = make(name)
    other.load_state_dict(method.state_dict())
    late = recipe.train.steps
    assert torch.equal(other.eval().loss(batch(name, 9), late).total, method.eval().loss(batch(name, 9), late).total)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    def run(folder: Path, last: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
        short = ["steps=4", "warmup_steps=0", "save_every=2", "log_every=1", "accumulate=1", "precision=fp32", "drop_path=0.2"]
        recipe, method = make(" ".join([name, *short]))

        def batches(first: int) -> Iterator[Batch]:
            for step in range(first, last):
                yield batch(name, step)
            raise InterruptedError

        folder.mkdir(exist_ok=True)
        with contextlib.suppress(InterruptedError):
            Loop(method, batches, recipe.train, folder, device=torch.device("cpu"), resume=resume).run()
        return method.state_dict()

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "broken", 3)  # dies in the fourth step; the last checkpoint is of the second
    resumed = run(tmp_path / "broken", 4, resume=True)
    assert all(torch.equal(resumed[part], value) for part, value in whole.items())


def test_the_encoder_makes_unit_vectors(name: str) -> None:
    vectors = make(name)[1].encoder().embed_batch(batch(name).images)
    assert vectors.shape == (4, 16)
    torch.testing.assert_close(torch.from_numpy(vectors).norm(dim=1), torch.ones(4))
