"""Sightline: visual retrieval with Vision Transformers.

    import sightline
    encoder = sightline.load("runs/mine")            # or "timm:vit_small_patch16_224", "random:..."
    vectors = encoder.embed(["a.jpg", "b.jpg"])      # float32 [2, D], unit length
    searcher = sightline.open("photos.index")        # the index with its model
    hits = searcher.search("query.jpg", k=10).hits

Heavy modules are imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.index.base import Index, Item
    from sightline.nn.model_folder import load
    from sightline.search.engine import Answer, Query, Searcher
    from sightline.workflows.evaluating import evaluate
    from sightline.workflows.training import train

    open = Searcher.open

__version__ = "0.1.0"
__all__ = ["Answer", "Index", "Item", "Query", "Searcher", "__version__", "evaluate", "load", "open", "train"]

_LAZY = {
    "load": "sightline.nn.model_folder:load",
    "open": "sightline.search.engine:Searcher.open",
    "train": "sightline.workflows.training:train",
    "evaluate": "sightline.workflows.evaluating:evaluate",
    "Index": "sightline.index.base:Index",
    "Item": "sightline.index.base:Item",
    "Searcher": "sightline.search.engine:Searcher",
    "Query": "sightline.search.engine:Query",
    "Answer": "sightline.search.engine:Answer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    import importlib
    import operator

    from sightline.imports import without_collecting

    module, _, attribute = _LAZY[name].partition(":")
    with without_collecting():
        return operator.attrgetter(attribute)(importlib.import_module(module))


def __dir__() -> list[str]:
    return __all__
