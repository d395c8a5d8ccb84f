"""Sightline: visual retrieval with Vision Transformers.

    import sightline
    encoder = sightline.load("runs/mine")            # or "timm:vit_small_patch16_224", "random:..."
    vectors = encoder.embed(["a.jpg", "b.jpg"])      # float32 [2, D], unit length

What is heavy is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.index.base import Index, Item
    from sightline.nn.model_folder import load

__version__ = "0.1.0"
__all__ = ["Index", "Item", "__version__", "load"]

_LAZY = {"load": "sightline.nn.model_folder", "Index": "sightline.index.base", "Item": "sightline.index.base"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    import importlib

    from sightline.imports import without_collecting

    with without_collecting():
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
