"""Every name of the house and where it lives: plain tables of ``name -> "module:object"``, to read and to grep.

A plug-in adds a name through an entry point of the group ``sightline.<table>``; a built-in name wins over a plug-in's.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from sightline.errors import UsageError, nearest

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
}

SWEEPS = {
    "irt/ladder": "sightline.methods.irt:ladder",
    "irt/objectives": "sightline.methods.irt:objectives",
    "irt/pooling": "sightline.methods.irt:poolings",
    "irt/margin-koleo": "sightline.methods.irt:margin_koleo",
    "irt/tuples-koleo": "sightline.methods.irt:tuples_koleo",
}

METHODS = {
    "irt": "sightline.methods.irt:IRT",
    "classify": "sightline.methods.classify:Classify",
}

DATASETS = {
    "cub": "sightline.data.sets.cub:read",
    "sop": "sightline.data.sets.sop:read",
    "inshop": "sightline.data.sets.inshop:read",
    "sfm120k": "sightline.data.sets.sfm:read",
}

PROTOCOLS = {
    "leave-one-out": "sightline.evaluate.protocols:leave_one_out",
    "query-gallery": "sightline.evaluate.protocols:query_gallery",
}

BENCHMARKS = {
    "revisited": "sightline.data.sets.revisited:read",
    "roxford5k": "sightline.data.sets.revisited:roxford5k",
    "rparis6k": "sightline.data.sets.revisited:rparis6k",
    "gldv2": "sightline.data.sets.gldv2:read",
    "copydays": "sightline.data.sets.copydays:read",
    "places": "sightline.data.sets.places:read",
}

DENSE_PROTOCOLS: dict[str, str] = {}

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
    "datasets": DATASETS,
    "protocols": PROTOCOLS,
    "benchmarks": BENCHMARKS,
    "dense_protocols": DENSE_PROTOCOLS,
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
        return point.load()
    kind = table.removesuffix("s").replace("_", " ")
    raise UsageError(f"unknown {kind} '{name}'{nearest(name, names(table))}")
