"""Every name of the catalog and where it lives: plain tables of ``name -> "module:object"``, to read and to grep.

A plug-in adds a name through an entry point of the group ``sightline.<table>``; a built-in name wins over a plug-in's.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from sightline.errors import UsageError, nearest
from sightline.imports import load_meta_kernels

RECIPES = {
    "irt/cub": "sightline.methods.irt:cub",
    "irt/sop": "sightline.methods.irt:sop",
    "irt/inshop": "sightline.methods.irt:inshop",
    "irt/folder": "sightline.methods.irt:folder",
    "irt/small": "sightline.methods.irt:small",
    "irt/sfm120k-224": "sightline.methods.irt:sfm120k_224",
    "irt/sfm120k-384": "sightline.methods.irt:sfm120k_384",
    "irt/tuples": "sightline.methods.irt:tuples",
    "classify/imagenet-b16": "sightline.methods.classify:imagenet_b16",
    "classify/imagenet-s16": "sightline.methods.classify:imagenet_s16",
    "classify/small": "sightline.methods.classify:small",
    "classify/finetune": "sightline.methods.classify:finetune",
    "classify/finetune-small": "sightline.methods.classify:finetune_small",
    "segment/fpn": "sightline.methods.segment:fpn",
    "segment/upernet": "sightline.methods.segment:upernet",
    "segment/small": "sightline.methods.segment:small",
    "selfpatch/tiny": "sightline.methods.selfpatch:tiny",
    "selfpatch/small": "sightline.methods.selfpatch:small",
    "selfpatch/imagenet": "sightline.methods.selfpatch:imagenet",
    "selfpatch/coco": "sightline.methods.selfpatch:coco",
    "selfpatch/dino-small": "sightline.methods.selfpatch:dino_small",
    "selfpatch/dino-imagenet": "sightline.methods.selfpatch:dino_imagenet",
    "moby/small": "sightline.methods.moby:small",
    "moby/swin-small": "sightline.methods.moby:swin_small",
    "moby/selfpatch-small": "sightline.methods.moby:selfpatch_small",
    "moby/selfpatch-swin-small": "sightline.methods.moby:selfpatch_swin_small",
    "moby/swin-imagenet": "sightline.methods.moby:swin_imagenet",
    "moby/vit-imagenet": "sightline.methods.moby:vit_imagenet",
    "moby/selfpatch-imagenet": "sightline.methods.moby:selfpatch_imagenet",
}

SWEEPS = {
    "irt/ladder": "sightline.methods.irt:ladder",
    "irt/start": "sightline.methods.irt:start",
    "irt/objectives": "sightline.methods.irt:objectives",
    "irt/pooling": "sightline.methods.irt:poolings",
    "irt/margin-koleo": "sightline.methods.irt:margin_koleo",
    "irt/tuples-koleo": "sightline.methods.irt:tuples_koleo",
    "selfpatch/components": "sightline.methods.selfpatch:components",
    "selfpatch/neighbours": "sightline.methods.selfpatch:neighbours",
    "selfpatch/patch-weight": "sightline.methods.selfpatch:patch_weights",
    "selfpatch/patch-size": "sightline.methods.selfpatch:patch_sizes",
    "moby/patch-negatives": "sightline.methods.moby:patch_negatives",
}

METHODS = {
    "irt": "sightline.methods.irt:IRT",
    "classify": "sightline.methods.classify:Classify",
    "segment": "sightline.methods.segment:Segment",
    "selfpatch": "sightline.methods.selfpatch:SelfPatch",
    "moby": "sightline.methods.moby:Moby",
}

SAMPLERS = {
    "pk": "sightline.data.samplers:PK",
    "shuffle": "sightline.data.samplers:Shuffle",
    "class-balanced": "sightline.data.samplers:ClassBalanced",
    "tuples": "sightline.search.mining:Tuples",
}

VALIDATIONS = {
    "unseen-classes": "sightline.evaluation.validation:UnseenClasses",
    "held-out-images": "sightline.evaluation.validation:HeldOutImages",
    "knn": "sightline.evaluation.validation:NearestNeighbours",
}

DATASETS = {
    "first-folder": "sightline.data.sets.folders:first_folder",
    "last-folder": "sightline.data.sets.folders:last_folder",
    "cub": "sightline.data.sets.cub:read",
    "sop": "sightline.data.sets.sop:read",
    "inshop": "sightline.data.sets.inshop:read",
    "sfm120k": "sightline.data.sets.sfm:read",
}

PROTOCOLS = {
    "auto": "sightline.evaluation.retrieval:Auto",
    "leave-one-out": "sightline.evaluation.retrieval:LeaveOneOut",
    "query-gallery": "sightline.evaluation.retrieval:QueryGallery",
    "cross-camera": "sightline.evaluation.retrieval:CrossCamera",
    "accuracy": "sightline.evaluation.classified:ByAccuracy",
    "davis": "sightline.evaluation.dense.davis:DavisProtocol",
    "in-context": "sightline.evaluation.dense.incontext:InContext",
    "segment": "sightline.evaluation.dense.segment:Segment",
    "segment-linear": "sightline.evaluation.dense.segment_probe:SegmentLinear",
    "segment-knn": "sightline.evaluation.dense.segment_knn:SegmentKnn",
    "detect": "sightline.evaluation.dense.detect:Detect",
    "detect-coco": "sightline.evaluation.dense.detect:coco_schedule",
}

BENCHMARKS = {
    "revisited": "sightline.data.sets.revisited:read",
    "roxford5k": "sightline.data.sets.revisited:roxford5k",
    "rparis6k": "sightline.data.sets.revisited:rparis6k",
    "gldv2": "sightline.data.sets.gldv2:read",
    "copydays": "sightline.data.sets.copydays:read",
    "places": "sightline.data.sets.places:read",
}

INDEX_ENGINES = {
    "local": "sightline.index.local:LocalIndex",
    "patches": "sightline.index.patches:PatchIndex",
}

RERANKERS = {
    "k-reciprocal": "sightline.search.rerank.kreciprocal:KReciprocal",
    "k-reciprocal-transreid": "sightline.search.rerank.kreciprocal:transreid",
    "k-reciprocal-torchreid": "sightline.search.rerank.kreciprocal:torchreid",
    "query-expansion": "sightline.search.rerank.expansion:QueryExpansion",
    "database-augmentation": "sightline.search.rerank.expansion:DatabaseAugmentation",
    "diffusion": "sightline.search.rerank.diffusion:Diffusion",
    "superglobal": "sightline.search.rerank.superglobal:SuperGlobal",
}

TABLES = {
    "recipes": RECIPES,
    "sweeps": SWEEPS,
    "methods": METHODS,
    "samplers": SAMPLERS,
    "validations": VALIDATIONS,
    "datasets": DATASETS,
    "protocols": PROTOCOLS,
    "benchmarks": BENCHMARKS,
    "index_engines": INDEX_ENGINES,
    "rerankers": RERANKERS,
}


def names(table: str) -> list[str]:
    """Return the names in a table, plug-ins included, sorted."""
    return sorted({*TABLES[table], *(point.name for point in entry_points(group=f"sightline.{table}"))})


def find(table: str, name: str) -> Any:
    """Return the object that ``name`` stands for in ``table``, imported now.

    Raises:
        UsageError: there is no such name; the message gives the nearest one.
    """
    where = TABLES[table].get(name)
    if where is not None:
        module, _, attribute = where.partition(":")
        return getattr(importlib.import_module(module), attribute)
    for point in entry_points(group=f"sightline.{table}", name=name):
        load_meta_kernels()  # it may compile
        return point.load()
    kind = table.removesuffix("s").replace("_", " ")
    raise UsageError(f"unknown {kind} '{name}'{nearest(name, names(table))}")
