"""What every recipe of the catalog, and the method behind it, must do: the training loop relies on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline import catalog
from sightline.contracts import Batch
from sightline.methods.base import Method
from sightline.nn.encoder import Encoder
from sightline.recipe import Recipe, from_plain, override, recipe_hash, to_plain

TINY = ["backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2", "weights=random", "image_px=16"]
BATCH = ["classes_per_batch=2", "images_per_class=2"]
TUPLE = ["tuples_per_batch=1", "negatives=2"]
SHUFFLED = ["images_per_batch=4"]
CROPS = {1: ["crop_px=16"], 2: ["crop_px=16,8"]}


def make(name: str) -> tuple[Recipe, Method]:
    name, *settings = name.split()
    torch.manual_seed(0)
    named = catalog.find("recipes", name)()
    batches = SHUFFLED if named.data.images_per_batch else TUPLE if named.data.tuples_per_batch else BATCH
    crops = CROPS[len(named.crops.crop_px)] if hasattr(named, "crops") else []
    recipe = override(named, [*TINY, *batches, *crops, *settings])
    method = catalog.find("methods", name.partition("/")[0])
    return recipe, method(recipe, Encoder(recipe.model, recipe.image), labels=np.repeat(np.arange(6), 2))


def batch(recipe: Recipe, seed: int = 0) -> Batch:
    random, labels, rows = torch.Generator().manual_seed(seed), torch.tensor([0, 0, 1, 1]), torch.arange(4)
    spec = getattr(recipe, "crops", None)
    if spec is None:
        return Batch(torch.randn(4, 3, 16, 16, generator=random), labels, rows)
    groups = zip(spec.num_crops, spec.crop_px, strict=True)
    return Batch.of_crops(tuple(torch.randn(num, 4, 3, px, px, generator=random) for num, px in groups), labels, rows)


@pytest.fixture(params=[*catalog.names("recipes"), "irt/cub objective=normalised_softmax", "irt/cub objective=snca"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_recipe_carries_its_own_name_and_replays(name: str) -> None:
    recipe, _ = make(name)
    assert recipe.name == name.split()[0]
    assert recipe_hash(from_plain(type(recipe), to_plain(recipe))) == recipe_hash(recipe)


def test_groups_hold_every_learning_parameter_once(name: str) -> None:
    recipe, method = make(name)
    held = [id(parameter) for group in method.parameter_groups(recipe.train) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in method.parameters() if parameter.requires_grad)
    assert all({"lr", "weight_decay"} <= group.keys() for group in method.parameter_groups(recipe.train))


def test_a_step_descends_and_everything_it_needs_next_is_saved(name: str) -> None:
    recipe, method = make(name)
    optimizer = torch.optim.SGD(method.parameter_groups(recipe.train))
    for step in range(3):
        terms = method.loss(batch(recipe, step), step)
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
    ahead = batch(recipe, 9)
    assert torch.equal(other.eval().loss(ahead, late).total, method.eval().loss(ahead, late).total)


def test_the_encoder_makes_unit_vectors(name: str) -> None:
    recipe, method = make(name)
    vectors = method.encoder().embed_batch(batch(recipe).images)
    assert vectors.shape == (4, 16)
    torch.testing.assert_close(torch.from_numpy(vectors).norm(dim=1), torch.ones(4))
