"""Classification: its loss worked by hand and against timm's, a head that begins at zero, recipes that say what is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from sightline.contracts import Batch
from sightline.data.mixing import Mix
from sightline.data.records import of_labels
from sightline.errors import ModelError, RecipeError
from sightline.methods.classify import Classify, ClassifyRecipe, cross_entropy, imagenet_b16, small
from sightline.nn import model_folder
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder, with_scales_of
from sightline.settings import override

TINY = ["backbone=vit_tiny_patch16_224", "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2", "weights=random", "image_px=16"]


def made(recipe: ClassifyRecipe, *settings: str, labels: tuple[int, ...] = (3, 3, 7, 9)) -> Classify:
    torch.manual_seed(0)
    recipe = override(recipe, [*TINY, *settings])
    return Classify(recipe, Encoder(recipe.model, recipe.image), of_labels(np.array(labels)))


def batch(num: int = 4) -> Batch:
    images = torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor([7, 3, 9, 3])[:num], torch.arange(num))


def test_a_smoothed_and_mixed_target_worked_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4, 1/4 and 1/2, 1/2
    targets = torch.tensor([0, 1])
    first = -math.log(3 / 4), -math.log(1 / 4)
    torch.testing.assert_close(cross_entropy(logits, targets), torch.tensor([first[0], math.log(2)]))
    smoothed = 0.9 * first[0] + 0.1 * first[1]  # a fifth is shared among two classes
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=0.2)[0], torch.tensor(smoothed))
    mixed = 0.7 * first[0] + 0.3 * first[1]  # the partner is of the other class
    torch.testing.assert_close(cross_entropy(logits, targets, mix=Mix(0.7))[0], torch.tensor(mixed))


def test_it_equals_timms_cross_entropy_with_dense_targets() -> None:
    random = torch.Generator().manual_seed(0)
    logits, targets, smoothing, share = torch.randn(6, 5, generator=random), torch.tensor([0, 1, 4, 4, 2, 3]), 0.1, 0.3
    dense = (1 - smoothing) * torch.eye(5) + smoothing / 5
    expected = SoftTargetCrossEntropy()(logits, share * dense[targets] + (1 - share) * dense[targets[[1, 0, 3, 2, 5, 4]]])
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=smoothing, mix=Mix(share)).mean(), expected)


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_training_begins_with_every_class_equally_likely(head: str) -> None:
    method = made(small(), f"head={head}", "mixup=0", "cutmix=0", "label_smoothing=0")
    assert float(method.loss(batch(), 0).total.detach()) == pytest.approx(math.log(3), abs=1e-6)
    assert isinstance(method.encoder().classifier, Classifier)
    assert method.encoder().logits(batch().images).shape == (4, 3)


def test_targets_are_the_places_of_the_classes_that_occur() -> None:
    method = made(small(), "mixup=0", "cutmix=0", "label_smoothing=0", "drop_path=0")
    with torch.no_grad():
        method.encoder().classifier.logits.bias.copy_(torch.tensor([1.0, 2.0, 4.0]))  # type: ignore[union-attr, operator]
    total = math.log(math.exp(1) + math.exp(2) + math.exp(4))
    expected = np.mean([total - logit for logit in (2, 1, 4, 1)])  # of labels 7, 3, 9, 3
    assert float(method.loss(batch(), 0).total.detach()) == pytest.approx(expected, abs=1e-5)


def test_the_draw_of_a_step_depends_on_seed_and_step_alone() -> None:
    method = made(small(), "drop_path=0")
    torch.nn.init.normal_(method.encoder().classifier.logits.weight)  # type: ignore[union-attr, arg-type]
    losses = []
    for torch_seed, step in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(torch_seed)
        losses.append(float(method.loss(batch(), step).total.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_descriptors_do_not_depend_on_the_classifier() -> None:
    encoder = made(small()).encoder()
    before = encoder.embed_batch(batch().images)
    torch.nn.init.normal_(encoder.classifier.logits.weight)  # type: ignore[union-attr, arg-type]
    np.testing.assert_array_equal(encoder.embed_batch(batch().images), before)


def test_a_model_folder_keeps_the_classifier_and_its_names(tmp_path: Path) -> None:
    encoder = made(imagenet_b16()).encoder().eval()
    encoder.classifier.class_names = ("ant", "bee", "cat")  # type: ignore[union-attr, assignment]
    torch.nn.init.normal_(encoder.classifier.logits.weight)  # type: ignore[union-attr, arg-type]
    model_folder.save(encoder, tmp_path)
    loaded = model_folder.load(tmp_path)
    assert isinstance(loaded.classifier, Classifier)
    assert loaded.classifier.class_names == ("ant", "bee", "cat")
    torch.testing.assert_close(loaded.logits(batch().images), encoder.logits(batch().images))
    scaled = with_scales_of(loaded, replace(loaded.model, scales=(1.0, 0.5)))
    torch.testing.assert_close(scaled.eval().logits(batch().images), loaded.logits(batch().images))


def test_a_model_without_a_classifier_says_so(tmp_path: Path) -> None:
    recipe = override(small(), TINY)
    encoder = Encoder(recipe.model, recipe.image)
    with pytest.raises(ModelError, match="no classifier: train one"):
        encoder.logits(batch().images)
    model_folder.save(encoder, tmp_path)
    assert "classifier" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("images_per_batch=0", "images_per_batch, negatives"),
        ("sampling=pk", "set sampling=shuffle or class-balanced"),
        ("label_smoothing=1", "label_smoothing is in"),
        ("mixup=-1", "not negative"),
    ],
)
def test_a_recipe_that_cannot_be_says_why(setting: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        override(small(), [setting])
