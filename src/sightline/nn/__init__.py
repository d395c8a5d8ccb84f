"""Networks: backbones, pooling, the encoder, and how a model stands on disk."""

from sightline.imports import compiler_later

with compiler_later():  # first, and once for every module below
    import timm  # noqa: F401
