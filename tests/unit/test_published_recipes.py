"""The numbers of every recipe: the papers' against the place where they are printed, our own against what they were measured with.

A recipe is data, and no training in a test is long enough to feel a learning rate that is ten times too high. So each value that a recipe
sets stands here once more, with its source; whoever changes one changes both, and says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

from sightline import catalog
from sightline.recipe import Recipe
from sightline.settings import flatten

IMAGENET, COCO = 1_281_167, 118_287  # training images of ILSVRC 2012 and of COCO train2017
KEPT_BY_US = {"name", "train.log_every", "train.validate_every", "train.save_every", "data.validation", "data.workers", "train.seed"}
"""What a recipe says of looking and keeping, which changes no weight; what is held out is held to another table, below."""

IRT = {
    "objective": "contrastive",
    "reduction": "sum_over_n",  # equation 1 as printed
    "margin": 0.5,
    "koleo_weight": 0.7,
    "memory": 1.0,  # "of the same size as the dataset"
    "momentum": 0.0,  # "not necessary for SOP and CUB-200-2011"
    "memory_start": 1_000,  # of the memory's own code, msight-tech/research-xbm, as are 16 classes of 4
    "data.classes_per_batch": 16,
    "data.images_per_class": 4,
    "train.optimizer": "adamw",
    "train.lr": 3e-5,
    "train.weight_decay": 5e-4,
    "train.schedule": "constant",
    "image.image_px": 224,
    "image.resize_px": 256,
    "augment.augment": "square",
    "augment.flip": 0.5,
    "model.backbone": "deit_small_patch16_224",
    "model.weights": "hub",
    "model.pooling": "cls",
}
OBJECTS = {
    "objective": "contrastive",
    "margin": 0.85,
    "tuple_metric": "euclidean",  # of the code that the paper builds on: filipradenovic/cnnimageretrieval-pytorch
    "koleo_weight": 4.0,  # table 6 and figure 5
    "memory": 0.0,
    "data.tuples_per_batch": 5,
    "data.negatives": 5,
    "data.query_size": 2_000,
    "data.pool_size": 22_000,
    "train.optimizer": "adam",
    "train.lr": 5e-7,
    "train.weight_decay": 1e-6,
    "train.steps": 100 * 2_000 // 5,  # 100 epochs of 2,000 tuples, 5 a step
    "train.schedule": "exponential",  # that code multiplies by exp(-0.01) every epoch
    "train.lr_decay": math.exp(-0.01),
    "train.lr_decay_steps": 2_000 // 5,
    "image.image_px": 224,
    "image.resize": "square",
    "image.resize_px": 224,
    "augment.augment": "square",
    "augment.flip": 0.0,
    "model.backbone": "deit_small_patch16_224",
    "model.weights": "hub",
    "model.pooling": "cls",
}
AS_IMAGENET = {
    "image.resize": "short",
    "image.resize_px": 0,  # 256 for 224
    "image.interpolation": "bicubic",
    "image.mean": (0.485, 0.456, 0.406),
    "image.std": (0.229, 0.224, 0.225),
}
DINO = AS_IMAGENET | {
    "patch_weight": 0.0,
    "num_prototypes": 65_536,
    "head_hidden": 2_048,
    "head_bottleneck": 256,
    "freeze_last_steps": IMAGENET // 512,  # freeze_last_layer 1 epoch
    "student_temp": 0.1,
    "teacher_temp": 0.04,
    "center_momentum": 0.9,
    "teacher_momentum": 0.996,
    "crops.crop_px": (224, 96),
    "crops.num_crops": (2, 8),
    "crops.crop_min_area": (0.4, 0.05),
    "crops.crop_max_area": (1.0, 0.4),
    "crops.crop_flip": 0.5,
    "crops.crop_jitter": (0.4, 0.4, 0.2, 0.1),
    "crops.crop_jitter_p": 0.8,
    "crops.crop_gray": 0.2,
    "crops.crop_blur": (1.0, 0.1, 0.5),
    "crops.crop_solarize": (0.0, 0.2, 0.0),
    "data.images_per_batch": 8 * 64,
    "train.optimizer": "adamw",
    "train.steps": 100 * (IMAGENET // 512),
    "train.lr": 5e-4 * 512 / 256,
    "train.final_lr": 1e-6 / 1e-3,
    "train.warmup_steps": 10 * (IMAGENET // 512),
    "train.schedule": "cosine",
    "train.weight_decay": 0.04,
    "train.weight_decay_growth": 0.4 / 0.04,
    "train.clip_each_norm": 3.0,
    "image.image_px": 224,
    "model.backbone": "vit_small_patch16_224",
    "model.weights": "random",
    "model.pooling": "cls",
    "model.drop_path": 0.1,
    "model.positions_at": "dino",
}
WITHOUT_CLASS_TOKEN = (("class_token", False), ("final_norm", False), ("global_pool", ""))
SELFPATCH = DINO | {
    "patch_weight": 0.1,
    "num_patch_prototypes": 4_096,
    "window": 3,
    "num_neighbours": 4,
    "aggregate": True,
    "wrap": "clip",  # Departs: the published code wraps around
    "freeze_last_steps": IMAGENET // 1_024,
    "crops.crop_min_area": (0.25, 0.05),
    "crops.crop_max_area": (1.0, 0.25),
    "data.images_per_batch": 8 * 128,
    "train.steps": 300 * (IMAGENET // 1_024),
    "train.lr": 5e-4 * 1_024 / 256,
    "train.final_lr": 1e-6 / 2e-3,
    "train.warmup_steps": 10 * (IMAGENET // 1_024),
    "model.pooling": "class_attention",
    "model.backbone_args": WITHOUT_CLASS_TOKEN,
}
MOBY = AS_IMAGENET | {
    "projector_hidden": 4_096,
    "projector_out": 256,
    "temperature": 0.2,
    "queue_length": 4_096,
    "key_momentum": 0.99,
    "crops.crop_px": (224,),
    "crops.num_crops": (2,),
    "crops.crop_min_area": (0.08,),
    "crops.crop_max_area": (1.0,),
    "data.images_per_batch": 512,
    "train.optimizer": "adamw",
    "train.steps": 300 * (IMAGENET // 512),
    "train.lr": 1e-3,
    "train.final_lr": 5e-6 / 1e-3,
    "train.warmup_steps": 5 * (IMAGENET // 512),
    "train.schedule": "cosine",
    "train.weight_decay": 0.05,
    "train.clip_norm": 5.0,
    "image.image_px": 224,
    "model.backbone": "swin_tiny_patch4_window7_224",
    "model.weights": "random",
    "model.pooling": "mean",
    "model.drop_path": 0.2,
}
VIT = {
    "head": "mlp",
    "data.images_per_batch": 1_024,
    "train.accumulate": 4,  # a batch of 4,096
    "train.steps": math.ceil(300 * IMAGENET / 4_096),
    "train.optimizer": "adamw",
    "train.lr": 3e-3,
    "train.weight_decay": 0.3,
    "train.warmup_steps": 10_000,
    "train.schedule": "cosine",
    "train.clip_norm": 1.0,
    "augment.augment": "random_resized",
    "augment.min_area": 0.05,
    "augment.flip": 0.5,
    "image.image_px": 224,
    "model.backbone": "vit_base_patch16_224",
    "model.backbone_args": (("weight_init", "jax"), ("pos_drop_rate", 0.1), ("proj_drop_rate", 0.1)),  # dropout 0.1
    "model.weights": "random",
    "model.pooling": "cls",
}
FPN = {
    "aux_weight": 0.0,
    "segmenter.head": "fpn",
    "segmenter.taps": "even",
    "segmenter.pyramid_channels": 256,
    "segmenter.head_channels": 128,
    "segmenter.dropout": 0.1,
    "data.images_per_batch": 16,
    "train.steps": 40_000,
    "train.lr": 6e-5,
    "train.weight_decay": 0.01,
    "train.warmup_steps": 1_500,
    "train.schedule": "linear",
    "image.image_px": 512,
    "image.resize": "short",
    "image.resize_px": 512,
    "image.interpolation": "bilinear",
    "model.backbone": "vit_small_patch16_224.dino",
    "model.weights": "hub",
    "model.drop_path": 0.1,
}
IRT_PAPER = "El-Nouby et al. 2021, arXiv 2102.05644, section 4.2"
DINO_CODE = "Caron et al. 2021, arXiv 2104.14294; facebookresearch/dino main_dino.py, defaults on 8 GPUs"
SELFPATCH_CODE = "Yun et al. 2022, arXiv 2206.07990; alinlab/SelfPatch README and main_selfpatch.py, defaults"
MOBY_CODE = "Xie et al. 2021, arXiv 2105.04553; SwinTransformer/Transformer-SSL configs/moby_swin_tiny.yaml"

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "irt/sop": (IRT_PAPER, IRT | {"data.dataset": "sop", "train.steps": 35_000}),
    "irt/cub": (IRT_PAPER, IRT | {"data.dataset": "cub", "train.steps": 2_000}),
    "irt/inshop": (IRT_PAPER, IRT | {"data.dataset": "inshop", "train.steps": 35_000, "memory": 0.2, "momentum": 0.999}),
    "irt/sfm120k-224": (IRT_PAPER, OBJECTS | {"data.dataset": "sfm120k"}),
    "irt/sfm120k-384": (
        f"{IRT_PAPER}; table 8 for the backbone",
        OBJECTS
        | {"data.dataset": "sfm120k", "model.backbone": "deit_base_distilled_patch16_384", "image.image_px": 384, "image.resize_px": 384},
    ),
    "selfpatch/dino-imagenet": (DINO_CODE, DINO),
    "selfpatch/imagenet": (SELFPATCH_CODE, SELFPATCH),
    "selfpatch/coco": (
        "Yun et al. 2022, arXiv 2206.07990, component analysis: ViT-Ti/16, 200 epochs of COCO train2017 in batches of 256",
        SELFPATCH
        | {
            "model.backbone": "vit_tiny_patch16_224",
            "data.images_per_batch": 256,
            "train.steps": 200 * (COCO // 256),
            "train.lr": 5e-4,
            "train.final_lr": 1e-6 / 5e-4,
            "train.warmup_steps": 10 * (COCO // 256),
            "freeze_last_steps": COCO // 256,
        },
    ),
    "moby/swin-imagenet": (MOBY_CODE, MOBY),
    "moby/vit-imagenet": (MOBY_CODE, MOBY | {"model.backbone": "deit_small_patch16_224", "model.pooling": "cls"}),
    "moby/selfpatch-imagenet": (
        f"{MOBY_CODE} (and moby_deit_small.yaml) for images; alinlab/SelfPatch main_selfpatch.py for patches",
        MOBY
        | {
            "patch_weight": 0.1,
            "window": 3,
            "num_neighbours": 4,
            "model.backbone": "deit_small_patch16_224",
            "model.backbone_args": WITHOUT_CLASS_TOKEN,
            "model.pooling": "class_attention",
        },
    ),
    "segment/fpn": ("Yun et al. 2022, arXiv 2206.07990: Semantic FPN on ADE20K as alinlab/SelfPatch trains it", FPN),
    "segment/upernet": (
        "Zhou et al. 2022, arXiv 2111.07832: UPerNet on ADE20K as bytedance/ibot trains it, after BEiT",
        FPN
        | {
            "aux_weight": 0.4,
            "segmenter.head": "upernet",
            "segmenter.taps": "late",
            "segmenter.head_channels": 384,
            "segmenter.slide_px": 341,
            "train.steps": 160_000,
            "train.lr": 3e-5,
            "train.weight_decay": 0.05,
            "train.layer_decay": 0.9,
        },
    ),
    "classify/imagenet-b16": ("Dosovitskiy et al. 2021, arXiv 2010.11929, table 3 and appendix B.1", VIT),
    "classify/imagenet-s16": (
        "Beyer, Zhai & Kolesnikov 2022, arXiv 2205.01580, section 2",
        VIT
        | {
            "mixup": 0.2,
            "train.accumulate": 1,  # a batch of 1,024
            "train.steps": round(90 * IMAGENET / 1_024),
            "train.lr": 1e-3,
            "train.weight_decay": 0.1,  # 1e-4 a step apart from the rate, at 1e-3
            "augment.rand_augment": 30,  # level 10 of their 10
            "augment.rand_augment_ops": 1,  # their two, each with a chance of a half: Departs of methods/classify.py
            "model.backbone": "vit_small_patch16_224",
            "model.backbone_args": (("weight_init", "jax"), ("pos_embed", "sine2d"), ("class_token", False), ("global_pool", "")),
            "model.pooling": "mean",
        },
    ),
    "classify/finetune": (
        "Dosovitskiy et al. 2021, arXiv 2010.11929, table 4 and appendix B.1.1",
        {
            "head": "linear",
            "data.images_per_batch": 512,
            "train.steps": 20_000,
            "train.optimizer": "sgd",
            "train.lr": 0.03,
            "train.weight_decay": 0.0,
            "train.warmup_steps": 500,
            "train.schedule": "cosine",
            "train.clip_norm": 1.0,
            "image.image_px": 384,
            "image.mean": "backbone",  # those its weights were trained with: -1 to 1
            "image.std": "backbone",
            "augment.augment": "random_resized",
            "augment.min_area": 0.05,
            "model.backbone": "vit_base_patch16_224.augreg_in21k",
            "model.weights": "hub",
            "model.pooling": "cls",
        },
    ),
}

SMALL_CROPS = AS_IMAGENET | {
    "crops.crop_px": (64, 32),
    "crops.num_crops": (2, 4),
    "crops.crop_min_area": (0.35, 0.1),
    "crops.crop_max_area": (1.0, 0.35),
    "num_prototypes": 1_024,
    "num_patch_prototypes": 512,
    "head_hidden": 512,
    "head_bottleneck": 128,
    "freeze_last_steps": 50,
    "teacher_momentum": 0.99,
    "model.backbone": "vit_tiny_patch8_64",
    "model.backbone_args": (("depth", 6), *WITHOUT_CLASS_TOKEN),
    "model.weights": "random",
    "model.pooling": "class_attention",
    "model.drop_path": 0.05,
    "image.image_px": 64,
    "data.images_per_batch": 64,
    "train.steps": 5_000,
    "train.lr": 2e-4,
    "train.final_lr": 0.01,
    "train.weight_decay": 0.04,
    "train.weight_decay_growth": 10.0,
    "train.clip_each_norm": 3.0,
    "train.warmup_steps": 200,
    "train.schedule": "cosine",
}
SMALL_MOBY = AS_IMAGENET | {
    "crops.crop_px": (64,),
    "crops.crop_min_area": (0.2,),
    "projector_hidden": 512,
    "projector_out": 128,
    "queue_length": 1_024,
    "model.backbone": "vit_tiny_patch8_64",
    "model.backbone_args": (("depth", 6),),
    "model.weights": "random",
    "model.pooling": "cls",
    "model.drop_path": 0.05,
    "image.image_px": 64,
    "data.images_per_batch": 64,
    "train.steps": 5_000,
    "train.lr": 1e-3,
    "train.final_lr": 0.005,
    "train.weight_decay": 0.05,
    "train.clip_norm": 5.0,
    "train.warmup_steps": 200,
    "train.schedule": "cosine",
}
SMALL_SWIN = SMALL_MOBY | {"model.backbone": "swin_tiny_patch2_window4_64", "model.backbone_args": (), "model.pooling": "mean"}
SMALL_VIT = {
    "head": "linear",
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "model.backbone": "vit_tiny_patch8_64",
    "model.backbone_args": (("depth", 6),),
    "model.weights": "random",
    "model.pooling": "mean",
    "model.drop_path": 0.1,
    "image.image_px": 64,
    "augment.augment": "random_resized",
    "augment.min_area": 0.4,
    "augment.rand_augment": 9,
    "augment.erase": 0.25,
    "data.images_per_batch": 128,
    "train.steps": 2_000,
    "train.lr": 1e-3,
    "train.weight_decay": 0.05,
    "train.warmup_steps": 100,
    "train.schedule": "cosine",
    "train.clip_norm": 1.0,
}
FINE = SMALL_VIT | {
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "model.weights": "",
    "image.image_px": 96,
    "augment.rand_augment": 0,
    "augment.erase": 0.0,
    "train.optimizer": "sgd",
    "train.steps": 500,
    "train.lr": 0.01,
    "train.weight_decay": 0.0,
    "train.warmup_steps": 50,
}
SMALL_IRT = {
    "koleo_weight": 0.0,
    "reduction": "mean_nonzero",
    "margin": 0.5,
    "memory": 0.0,
    "memory_start": 200,
    "model.backbone": "vit_tiny_patch16_224",
    "model.backbone_args": (("patch_size", 8), ("depth", 6)),
    "model.weights": "random",
    "model.pooling": "mean",
    "image.image_px": 64,
    "augment.augment": "random_resized",
    "augment.min_area": 0.4,
    "augment.jitter": 0.3,
    "augment.rotate_deg": 15.0,
    "data.classes_per_batch": 16,
    "data.images_per_class": 4,
    "train.steps": 600,
    "train.lr": 3e-4,
    "train.weight_decay": 0.05,
    "train.warmup_steps": 50,
    "train.schedule": "cosine",
    "train.clip_norm": 1.0,
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "irt/folder": (
        "docs/results.md, the sweep irt/start",
        IRT
        | {
            "koleo_weight": 0.0,
            "reduction": "mean_nonzero",
            "memory_start": 200,
            "model.frozen": ("batch_norm",),
            "data.dataset": "auto",
            "train.steps": 2_000,
            "train.warmup_steps": 100,
            "train.schedule": "cosine",
        },
    ),
    "irt/small": ("docs/results.md, From scratch: memory and reduction", SMALL_IRT),
    "irt/tuples": (
        "as irt/small; its pool: docs of methods/irt.py",
        SMALL_IRT | {"koleo_weight": 0.3, "margin": 0.85, "data.tuples_per_batch": 8, "data.query_size": 80, "data.pool_size": 100},
    ),
    "selfpatch/small": ("docs/results.md, The learning rate of DINO on few images", SMALL_CROPS),
    "selfpatch/dino-small": (
        "as selfpatch/small, without patches",
        SMALL_CROPS | {"patch_weight": 0.0, "model.backbone_args": (("depth", 6),), "model.pooling": "cls"},
    ),
    "selfpatch/tiny": (
        "as selfpatch/small, a tenth of it",
        SMALL_CROPS
        | {
            "num_prototypes": 256,
            "num_patch_prototypes": 128,
            "watch_from": 100,
            "freeze_last_steps": 20,
            "teacher_momentum": 0.98,
            "data.images_per_batch": 32,
            "train.steps": 500,
            "train.warmup_steps": 50,
        },
    ),
    "moby/small": ("docs/results.md, MoBY, and patches with and without negatives", SMALL_MOBY),
    "moby/swin-small": ("docs/results.md, MoBY, and patches with and without negatives", SMALL_SWIN),
    "moby/selfpatch-small": (
        "docs/results.md, MoBY, and patches with and without negatives",
        SMALL_MOBY | {"patch_weight": 0.1, "model.backbone_args": (("depth", 6), *WITHOUT_CLASS_TOKEN), "model.pooling": "class_attention"},
    ),
    "moby/selfpatch-swin-small": (
        "docs/results.md, MoBY, and patches with and without negatives",
        SMALL_SWIN | {"patch_weight": 0.1, "model.pooling": "class_attention"},
    ),
    "segment/small": (
        "docs/segmentation.md",
        FPN
        | {
            "segmenter.pyramid_channels": 64,
            "segmenter.head_channels": 64,
            "segmenter.head_norm": "group",
            "data.images_per_batch": 8,
            "train.steps": 400,
            "train.lr": 3e-4,
            "train.layer_decay": 0.8,
            "train.warmup_steps": 40,
            "train.clip_norm": 1.0,
            "image.image_px": 160,
            "image.resize_px": 160,
            "model.backbone": "vit_tiny_patch16_224",
            "model.weights": "auto",
            "model.drop_path": 0.0,
            "model.frozen": ("batch_norm",),
        },
    ),
    "classify/small": ("docs/results.md, from scratch on a CPU", SMALL_VIT),
    "classify/finetune-small": ("docs/classify.md, after classify/small", FINE),
}


def defaults(kind: type[Recipe]) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of what a recipe of this kind has where it sets nothing."""
    for item in dataclasses.fields(kind):
        value = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{item.name}.")
        else:
            yield item.name, value


def close(value: Any, wanted: Any) -> bool:
    return bool(value == pytest.approx(wanted, rel=1e-12)) if isinstance(wanted, float) else bool(value == wanted)


@pytest.mark.parametrize("name", [*PUBLISHED, *OURS])
def test_a_recipe_has_the_numbers_of_its_source(name: str) -> None:
    source, wanted = (PUBLISHED | OURS)[name]
    sizes = {"data.tuples_per_batch": "tuples", "data.images_per_batch": "shuffle"}
    wanted = {**wanted, "data.sampling": next((sampling for size, sampling in sizes.items() if size in wanted), "pk")}
    recipe = catalog.find("recipes", name)()
    found = dict(flatten(recipe))
    assert found["name"] == name
    assert {path: found[path] for path in wanted if not close(found[path], wanted[path])} == {}, source
    usual = dict(defaults(type(recipe)))
    untold = {path: value for path, value in found.items() if value != usual[path] and path not in wanted and path not in KEPT_BY_US}
    assert untold == {}, f"{source} does not tell these"


def test_every_recipe_is_in_the_table() -> None:
    assert {*PUBLISHED, *OURS} == set(catalog.RECIPES), "give a new recipe's numbers and their source above"


HOLD_OUT = {
    "irt/sfm120k-224": "the set has a val split of its own, by whose loss the code chooses its model",
    "irt/sfm120k-384": "as the smaller one",
    "classify/finetune": "the paper holds out 1 to 10 % of the training images (appendix B.1.1), and these are anybody's",
}


def test_papers_that_learn_from_all_training_images_hold_none_out() -> None:
    assert {name for name in PUBLISHED if catalog.find("recipes", name)().data.validation} <= set(HOLD_OUT)
