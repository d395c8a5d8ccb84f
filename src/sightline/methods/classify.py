"""Classify: pre-training and fine-tuning a Vision Transformer on labelled images (Dosovitskiy et al. 2021, arXiv 2010.11929).

The image's representation y is the class token, or the mean of the patches, behind the last norm (their eq. 4). Pre-training puts a head
with one hidden layer on it, fine-tuning takes that head off and puts a linear layer of zeros in its place (section 3.1 and 3.2):

    logits = W_2 tanh(W_1 y + b_1) + b_2        (``head=mlp``)        logits = W y + b        (``head=linear``)

The loss is softmax cross-entropy. Where mixup or cutmix makes one image of two, it is the mean of both their losses, each weighted with
the share that its image has in the mixture. The descriptor of search is y itself, at unit length: whatever classification trained is
searched, indexed and inspected like any other model.

The recipes for ImageNet-1k are the paper's own (table 3, ViT-B/16) and the later, stronger baseline of two of its authors (Beyer, Zhai and
Kolesnikov 2022, arXiv 2205.01580, ViT-S/16).

Departs:
    - weight decay is AdamW's, which the optimiser multiplies with the learning rate; the S/16's authors decay by 1e-4 a step apart from it
      (but with its schedule), which is 0.1 here; none is put on biases, norms, positions and the class token, as in their code, which
      decays kernels alone; the ViT paper does not say what it decays;
    - images are normalised with ImageNet's mean and deviation, theirs go to -1..1;
    - mixup pairs neighbours of a shuffled batch instead of an image and the one behind it, so that it is the same in any number of processes;
    - all training images are learnt from where the S/16's authors hold out 1 % (111,476 of their steps are 90 epochs, 112,603 of ours);
    - RandAugment is torchvision's. The S/16's authors draw two of 16 operations at level 10 of 10 and apply each with a chance of 0.2 to
      0.8, so one an image on average: here one of 14 at 30 of 30 (the same 30 degrees, shear of 0.3, 45 % of the side), and none of them is
      Invert, SolarizeAdd or Cutout;
    - erased boxes are the mean colour, not noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from sightline.contracts import Batch, LossTerms
from sightline.data.mixing import Mix, draw_mix, mix_images, partners
from sightline.data.records import Records
from sightline.errors import RecipeError
from sightline.methods.base import Method, encoder_groups
from sightline.nn.classifier import Classifier
from sightline.nn.collectives import gather
from sightline.nn.encoder import Encoder
from sightline.recipe import AugmentSpec, DataSpec, ImageSpec, ModelSpec, Recipe, TrainSpec

Head = Literal["mlp", "linear"]


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(Recipe):
    """What classification adds to a run."""

    head: Head = "mlp"  # mlp: one hidden tanh layer, for pre-training; linear: one layer, for fine-tuning; both begin at zero logits
    label_smoothing: float = 0.0  # the share of a target that all classes divide among them
    mixup: float = 0.0  # a batch's images are blended in pairs, by a share from Beta(this, this); 0 does not
    cutmix: float = 0.0  # or a box of one replaces the other's; with both, a batch takes one of them

    def __post_init__(self) -> None:
        if not (0 <= self.label_smoothing < 1 and self.mixup >= 0 and self.cutmix >= 0):
            raise RecipeError("label_smoothing is in [0, 1), mixup and cutmix are not negative")
        if self.data.sampling in ("pk", "tuples"):
            raise RecipeError("classification learns from single images: set sampling=shuffle or class-balanced")


# --- named recipes --------------------------------------------------------------------------------------------------------------


def imagenet_b16() -> ClassifyRecipe:
    """ImageNet-1k, ViT-B/16 at 224 px, the ViT paper's table 3: AdamW 3e-3, weight decay 0.3, dropout 0.1, batch 4,096, 300 epochs."""
    return ClassifyRecipe(
        name="classify/imagenet-b16",
        model=ModelSpec(
            backbone="vit_base_patch16_224",
            # dropout behind the positions and behind every dense layer but queries, keys and values, as the paper's appendix B.1 has it
            backbone_args=(("weight_init", "jax"), ("pos_drop_rate", 0.1), ("proj_drop_rate", 0.1)),
            weights="random",
        ),
        image=ImageSpec.of_backbone(image_px=224),
        augment=AugmentSpec(augment="random_resized", min_area=0.05, flip=0.5),
        data=DataSpec(
            sampling="shuffle", images_per_batch=1_024, validation=0.0
        ),  # all images are learnt from, and the last step is the model
        train=TrainSpec(
            steps=93_836,  # 300 epochs of 1,281,167 images in batches of 4,096
            accumulate=4,
            lr=3e-3,
            weight_decay=0.3,
            warmup_steps=10_000,
            schedule="cosine",
            clip_norm=1.0,  # which the paper uses on ImageNet alone
            validate_every=2_000,
            save_every=1_000,
            log_every=50,
        ),
    )


def imagenet_s16() -> ClassifyRecipe:
    """ImageNet-1k, ViT-S/16 at 224 px, "Better plain ViT baselines": mean pooling, fixed 2-D positions, RandAugment, mixup, 90 epochs."""
    base = imagenet_b16()
    return replace(
        base,
        name="classify/imagenet-s16",
        mixup=0.2,  # the head has a hidden layer, as in the authors' configuration
        model=ModelSpec(
            backbone="vit_small_patch16_224",
            backbone_args=(("weight_init", "jax"), ("pos_embed", "sine2d"), ("class_token", False), ("global_pool", "")),
            weights="random",
            pooling="mean",
        ),
        augment=replace(base.augment, rand_augment=30, rand_augment_ops=1),
        train=replace(base.train, steps=112_603, accumulate=1, lr=1e-3, weight_decay=0.1),
    )


def small() -> ClassifyRecipe:
    """From scratch on small images and few of them, on a CPU: ViT-Ti/8 at 64 px, with every augmentation that small data asks for.

    For images of 32 px: image_px=32 backbone_args=patch_size=4,depth=6.
    """
    return ClassifyRecipe(
        name="classify/small",
        head="linear",  # a hidden layer is for features that are to move to other labels
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        model=ModelSpec(backbone="vit_tiny_patch8_64", backbone_args=(("depth", 6),), weights="random", pooling="mean", drop_path=0.1),
        image=ImageSpec.of_backbone(image_px=64),
        augment=AugmentSpec(augment="random_resized", min_area=0.4, rand_augment=9, erase=0.25),
        data=DataSpec(sampling="shuffle", images_per_batch=128),
        train=TrainSpec(
            steps=2_000,
            lr=1e-3,
            weight_decay=0.05,
            warmup_steps=100,
            schedule="cosine",
            clip_norm=1.0,
            validate_every=200,
            save_every=200,
        ),
    )


def finetune() -> ClassifyRecipe:
    """Any labelled images, from ViT-B/16 of ImageNet-21k at 384 px, as the ViT paper does: SGD 0.03, cosine, clip 1, batch 512, 20,000 steps.

    The paper's grid is lr=0.003, 0.01, 0.03 and 0.06. Other weights: weights= and backbone=.
    """
    return ClassifyRecipe(
        name="classify/finetune",
        head="linear",
        model=ModelSpec(backbone="vit_base_patch16_224.augreg_in21k", weights="hub"),
        image=ImageSpec.of_backbone(image_px=384),
        augment=AugmentSpec(augment="random_resized", min_area=0.05, flip=0.5),
        data=DataSpec(sampling="shuffle", images_per_batch=512),
        train=TrainSpec(
            steps=20_000,
            optimizer="sgd",
            lr=0.03,
            weight_decay=0.0,
            warmup_steps=500,  # the authors' configuration; their table 4 tells the rest
            schedule="cosine",
            clip_norm=1.0,
            validate_every=1_000,
            save_every=500,
        ),
    )


def finetune_small() -> ClassifyRecipe:
    """What classify/small trained, at one and a half times its resolution: weights=RUN/model, on the same images or others."""
    base, pretrained = finetune(), small()
    return replace(
        base,
        name="classify/finetune-small",
        model=replace(pretrained.model, weights=""),  # there is none to begin with: a run says which
        image=replace(pretrained.image, image_px=96),
        augment=replace(base.augment, min_area=0.4),
        data=replace(base.data, images_per_batch=128),
        train=replace(base.train, steps=500, lr=0.01, warmup_steps=50, validate_every=100, save_every=100),
    )


# --- losses ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, mix: Mix | None = None) -> torch.Tensor:
    """Return the softmax cross-entropy of each image, ``[B]``, of ``logits`` ``[B, C]`` against the classes ``targets`` int64 ``[B]``.

    Of mixed images it is the mean of their own and their partner's, by their shares: cross-entropy is linear in its targets, so that is
    the cross-entropy against the mixed and smoothed target.
    """
    own = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    if mix is None:
        return own
    others = targets[partners(len(targets)).to(targets.device)]
    return mix.share * own + (1.0 - mix.share) * F.cross_entropy(logits, others, label_smoothing=smoothing, reduction="none")


# --- the method -----------------------------------------------------------------------------------------------------------------


class Classify(Method):
    """The encoder with a head on it, which tells the training classes apart."""

    validation: ClassVar[str] = "held-out-images"
    target_of: torch.Tensor

    def __init__(self, recipe: ClassifyRecipe, encoder: Encoder, records: Records) -> None:
        """Logit c is of the c-th of the classes that have an image in ``records``."""
        super().__init__()
        self.recipe, self.learner = recipe, encoder
        classes = np.flatnonzero(records.class_counts())
        self.learner.classifier = Classifier(encoder.width, [records.class_names[label] for label in classes], hidden=recipe.head == "mlp")
        self.register_buffer("target_of", torch.from_numpy(np.searchsorted(classes, np.arange(classes[-1] + 1))))

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return the mean cross-entropy over the batch of all ranks, which mix by one and the same draw a step."""
        recipe, images = self.recipe, batch.images
        mix = draw_mix(np.random.default_rng([recipe.train.seed, step, 6]), recipe.mixup, recipe.cutmix, *images.shape[-2:])
        logits = self.learner.logits(images if mix is None else mix_images(images, mix))
        with torch.autocast(logits.device.type, enabled=False):
            costs = cross_entropy(logits.float(), self.target_of[batch.labels], smoothing=recipe.label_smoothing, mix=mix)
            total = gather(costs).mean()
        return LossTerms(total, {"cross_entropy": total.detach()})

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups, its head among them."""
        return encoder_groups(self.learner, spec)

    def encoder(self) -> Encoder:
        """Return the learner, head and all."""
        return self.learner
