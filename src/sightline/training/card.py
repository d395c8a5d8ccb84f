"""The model cards that are left beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.errors import counted
from sightline.methods.base import Measure
from sightline.nn.encoder import Encoder
from sightline.nn.segmenter import Segmenter
from sightline.recipe import Recipe
from sightline.settings import flatten, recipe_hash


def model_card(recipe: Recipe, encoder: Encoder, facts: Mapping[str, Any], *, best: tuple[Measure, int, float] | None, command: str) -> str:
    """Return the card as Markdown: what it is, how it was made, what was measured, how to use it; ``best`` is (measure, step, value)."""
    measured = _measured(best, facts, recipe.train.steps) if best else "Nothing was measured on the way: use `sightline evaluate`."
    start = {
        "random": "random weights",
        "hub": "the hub's pretrained weights",
        "auto": "the hub's weights where it could be reached, else random ones",
    }
    settings = "\n".join(f"| `{path}` | `{value}` |" for path, value in flatten(recipe))
    return f"""---
library_name: sightline
tags: [{"image-segmentation" if isinstance(encoder.segmenter, Segmenter) else "image-retrieval, metric-learning"}]
---
# {recipe.name}: {recipe.model.backbone}, {encoder.dim}-d descriptors

{_use(encoder)}
## Measured
{measured}

## Made with
- data: `{facts["data"]}`: {facts["images"]:,} images of {len(facts["training_classes"]):,} classes. The weights may be used as that data's terms allow.
- start: {start.get(recipe.model.weights, f"`{recipe.model.weights}`")}
- command: `{command or "Python"}`
- recipe hash `{recipe_hash(recipe)}`, revision `{facts["git_revision"] or "unknown"}`, {", ".join(f"{name} {number}" for name, number in facts["versions"].items())}
- images enter at {encoder.image}; precision `{recipe.train.precision}`

## Limits
{_limits(encoder)}

## Settings
| setting | value |
|---|---|
{settings}
"""


def _use(encoder: Encoder) -> str:
    if isinstance(encoder.segmenter, Segmenter):
        return f"""Names the class of every pixel, one of {len(encoder.segmenter.class_names)}; its descriptors are its backbone's.

    import sightline
    encoder = sightline.load("this-folder")
    logits = encoder.segmentation(images)            # of normalised images [B, 3, H, W]: [B, {len(encoder.segmenter.class_names)}, h, w]
"""
    return f"""Turns an image into a unit-length vector; images of one class lie close by cosine.

    import sightline
    encoder = sightline.load("this-folder")
    vectors = encoder.embed(["a.jpg", "b.jpg"])      # float32 [2, {encoder.dim}]
"""


def _limits(encoder: Encoder) -> str:
    if isinstance(encoder.segmenter, Segmenter):
        return "Every pixel gets one of the classes of the training data, whatever it shows. On images unlike those, measure first."
    return (
        'Similarity means "same class, as in the training data". On images unlike those, measure first. A similarity is not a probability.'
    )


def _measured(best: tuple[Measure, int, float], facts: Mapping[str, Any], num_steps: int) -> str:
    measure, step, value = best
    num_images, num_classes = facts["validation_images"], len(facts["validation_classes"])
    where = f"on {_held_out(measure, facts)}: {counted(num_images, 'image')} of {counted(num_classes, 'class', 'classes')}"
    name, options = {"accuracy@1": ("Accuracy", " --protocol accuracy"), "miou": ("mIoU", "")}.get(measure, ("MAP@R", ""))
    found = f"{name} **{value:.4f}** at step {step}, {where}"
    if step == 0 and num_steps:
        found += f". That is the start: none of {num_steps:,} steps beat it, so these are the weights that training started from"
    return f"{found}. The same number chose the model, so it is slightly optimistic: measure on a test split with `sightline evaluate{options}`."


def _held_out(measure: Measure, facts: Mapping[str, Any]) -> str:
    """Return in words what a run measured its model on; runs of older versions did not note it, and these took a val split or held out classes."""
    if facts.get("held_out"):
        return str(facts["held_out"])
    apart = not set(facts["validation_classes"]) & set(facts["training_classes"])
    return (
        "held-out classes" if apart else "held-out images" if measure == "accuracy@1" else "the val split, of classes that were learnt from"
    )


def head_card(encoder: Encoder, source: str, *, data: str, num_images: int, command: str) -> str:
    """Return the card of a model whose head was fitted after training, as Markdown; ``source`` names the model it was made from."""
    model = encoder.model
    kind = {"none": "PCA", "pca": "PCA-whitening", "supervised": "whitening learned from positive pairs"}[model.whiten]
    reduction = f"{kind} from {encoder.width} to {encoder.dim}, fitted on {num_images:,} images of `{data}`" if num_images else "none"
    return f"""---
library_name: sightline
tags: [image-retrieval]
---
# {model.backbone}, {encoder.dim}-d descriptors

Turns an image into a unit-length vector; similar images lie close by cosine.

    import sightline
    encoder = sightline.load("this-folder")
    vectors = encoder.embed(["a.jpg", "b.jpg"])      # float32 [2, {encoder.dim}]

## Made with
- weights: those of `{source}`, unchanged; they and what the head learnt may be used as the terms of their data allow
- reduction: {reduction}
- scales: {", ".join(f"{scale:g}" for scale in model.scales)}, combined by the mean of powers {model.scale_p:g}
- pooling: `{model.pooling}`
- command: `{command or "Python"}`
- images enter at {encoder.image}

## Limits
Nothing was measured here: use `sightline evaluate`, on images that neither the weights nor the head were made from.
"""
