"""The encoder: images in, unit-length descriptors out. What training makes, what a model folder holds, what an index is built with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sightline.contracts import FloatArray, PatchFeatures, Tokens
from sightline.data.deep import DeepRange
from sightline.data.transforms import WholeTransform, eval_transform
from sightline.errors import ModelError, first_line, is_memory_full
from sightline.nn.backbone import SIZE_ERRORS, Backbone, build
from sightline.nn.checkpoints import read_weights, require_finite
from sightline.nn.class_attention import ClassAttention
from sightline.nn.classifier import Classifier
from sightline.nn.multiscale import power_mean, rescale
from sightline.nn.own_input import resolved
from sightline.nn.pictures import Pictures, each, opened
from sightline.nn.pooling import OF_DISTILLATION, OF_PREFIX, TWICE_AS_WIDE, pool
from sightline.nn.reduction import Reduction
from sightline.recipe import ImageSpec, ModelSpec
from sightline.runtime import Precision, autocast_dtype


class Encoder(nn.Module):
    """Backbone, pooling, optional projection, optional scales, optional reduction, unit length.

    A ``classifier``, which classification puts on, takes the vectors before reduction and scales; a ``segmenter`` takes the backbone's maps.
    Descriptors do not depend on either.
    ``fingerprint`` names the exact descriptors it makes (empty until it has been saved or loaded); an index refuses another's.
    """

    def __init__(self, model: ModelSpec, image: ImageSpec, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.model, self.image = model, resolved(image, model)
        self.fingerprint = ""
        self.deep: DeepRange | None = None  # of the collection that pictures are compared with; an index remembers its own
        self.backbone = backbone or build(model, self.image.image_px)
        pooled_width = self.backbone.width * (2 if model.pooling in TWICE_AS_WIDE else 1)
        self.projection = nn.Linear(pooled_width, model.projection) if model.projection else nn.Identity()
        self.class_attention: ClassAttention | nn.Identity = nn.Identity()
        if model.pooling == "class_attention":
            self.class_attention = _class_attention(model, self.backbone)
        self.width = model.projection or pooled_width  # of what the reduction takes
        self.reduction: Reduction | nn.Identity = nn.Identity()
        self.classifier: Classifier | nn.Identity = nn.Identity()
        self.segmenter: nn.Module = nn.Identity()  # an nn.segmenter.Segmenter, which knows this class
        if model.pooling in {"cls", "cls_gem"} and self.backbone.num_prefix == 0:
            raise ModelError(f"{model.backbone} has no class token: choose pooling=mean, max or gem")
        if model.pooling == "map" and not self.backbone.has_attention_pooling:
            raise ModelError(
                f"{model.backbone} was not trained with an attention pooling for pooling=map: take a SigLIP such as vit_base_patch16_siglip_224, "
                "or another pooling"
            )
        if model.pooling in OF_DISTILLATION and not self.backbone.has_distillation:
            raise ModelError(
                f"{model.backbone} has no distillation token for pooling={model.pooling}: take a distilled backbone such as "
                "deit_small_distilled_patch16_224, or another pooling"
            )
        if model.pooling in TWICE_AS_WIDE and self.backbone.has_norm_behind_pooling:
            raise ModelError(f"{model.backbone} keeps a norm behind its pooling, as wide as one vector: pooling={model.pooling} has two")
        if model.scale_p != 1 and self.backbone.has_norm_behind_pooling:
            raise ModelError(
                f"{model.backbone} keeps a norm behind its pooling, which leaves negative entries: only scale_p=1 is defined there"
            )

    def __repr__(self) -> str:
        """Return one line: the backbone, its input, pooling, width, device and fingerprint (``print(encoder.backbone)`` for the layers)."""
        known = f", {self.fingerprint[:12]}" if self.fingerprint else ""
        return f"Encoder({self.model.backbone}, {self.image.image_px} px, {self.model.pooling}, {self.dim}-d, {self.device}{known})"

    @property
    def dim(self) -> int:
        """The width D of the descriptors."""
        return len(self.reduction.components) if isinstance(self.reduction, Reduction) else self.width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit-length float32 descriptors ``[B, D]`` of normalised images ``[B, 3, H, W]``."""
        pooled = self.pooled(images)
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.reduction(pooled.float()), dim=1)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Return the vectors before reduction and normalisation, ``[B, D]``; of several scales, the unit-length mean of theirs."""
        model = self.model
        if model.scales == (1.0,):
            return self._pooled(images)
        resized = (rescale(images, scale, self.backbone.multiple_px) for scale in model.scales)
        of_scales = torch.stack([F.normalize(self._pooled(at_scale).float(), dim=1) for at_scale in resized])  # [S, B, D]
        return F.normalize(power_mean(of_scales, model.scale_p), dim=1)

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        of_prefix = self.model.pooling in OF_PREFIX and not (self.training or torch.is_grad_enabled())
        return self.pool_tokens(self.backbone.prefix(images) if of_prefix else self.backbone(images))

    def pool_tokens(self, tokens: Tokens) -> torch.Tensor:
        """Return the pooled (and projected) vectors ``[B, D]`` of the backbone's tokens."""
        if isinstance(self.class_attention, ClassAttention):
            pooled = self.class_attention(tokens.patches)
        elif self.model.pooling == "map":
            pooled = self.backbone.attend(tokens.patches)
        else:
            pooled = pool(tokens, self.model.pooling, self.model.gem_p)
        projected: torch.Tensor = self.projection(self.backbone.norm_pooled(pooled))
        return projected

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the classifier's logits ``[B, C]`` of normalised images ``[B, 3, H, W]``, along its ``class_names``.

        Raises:
            ModelError: there is none.
        """
        if isinstance(self.classifier, nn.Identity):
            raise ModelError("this model has no classifier: train one with sightline train classify/finetune")
        logits: torch.Tensor = self.classifier(self._pooled(images))
        return logits

    def segmentation(self, images: torch.Tensor) -> torch.Tensor:
        """Return the segmenter's logits ``[B, C, h, w]`` at its finest stride, of normalised images ``[B, 3, H, W]``, along its ``class_names``.

        Raises:
            ModelError: there is none.
        """
        if isinstance(self.segmenter, nn.Identity):
            raise ModelError("this model has no segmentation head: train one with sightline train segment/fpn")
        logits: torch.Tensor = self.segmenter(self, images)
        return logits

    def tokens(self, images: torch.Tensor) -> Tokens:
        """Return the backbone's tokens of normalised images ``[B, 3, H, W]`` of any size: learned positions follow, patch by patch.

        Raises:
            ModelError: the network does not take this size, or a side is no multiple of its patch.
        """
        with self.any_size(images):
            tokens: Tokens = self.backbone(images)
        return tokens

    @contextmanager
    def any_size(self, images: torch.Tensor) -> Iterator[None]:
        """Let the backbone be given these images within, whatever their size, and its refusal of a size be one line.

        Raises:
            ModelError: the network does not take this size, or a side is no multiple of its patch.
        """
        (height, width), own = images.shape[-2:], self.image.image_px
        if (height, width) == (own, own):
            yield
            return
        multiple = self.backbone.multiple_px
        if height % multiple or width % multiple:
            raise ModelError(
                f"{self.model.backbone} cuts patches of {multiple} px: the sides of an image must be multiples, got {width} x {height}"
            )
        self.backbone.take_any_size()
        try:
            yield
        except SIZE_ERRORS as error:
            if is_memory_full(error):
                raise
            raise ModelError(
                f"{self.model.backbone} was made for images of {own} px and does not take {width} x {height} ({first_line(error)}): keep to its "
                "size, or take a plain ViT, a Swin or a convolutional backbone"
            ) from error

    def embed(self, pictures: Pictures, *, batch_size: int = 32, precision: Precision = "auto") -> FloatArray:
        """Return unit-length descriptors float32 ``[M, D]`` of one picture (``[1, D]``) or many, in their order.

        A picture is a path, the bytes of a file, a PIL image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``.

        Raises:
            DataError: one of them cannot be decoded. (To embed a folder and skip its bad files: ``sightline.search.embed``.)
        """
        transform = eval_transform(self.image)
        batches = _batched((transform(opened(picture, transform.short_px, self.deep)[0]) for picture in each(pictures)), batch_size)
        parts = [self.embed_batch(torch.stack(batch), precision=precision) for batch in batches]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def whole(self, short_px: int = 0) -> WholeTransform:
        """Return what brings whole pictures to ``short_px`` (0: the model's own ``image_px``) and to multiples of the patch."""
        return WholeTransform(self.image, short_px or self.image.image_px, self.backbone.multiple_px)

    def patches(
        self, pictures: Pictures, *, short_px: int = 0, batch_size: int = 16, precision: Precision = "auto"
    ) -> Iterator[PatchFeatures]:
        """Yield the patch features of one picture or many, as ``embed`` takes them, in their order: whole pictures, their aspect kept.

        ``short_px`` is what the short side is brought to, 0 the model's own size; both sides go to the nearest multiples of the patch.
        Neighbours that come to the same size go through the network together, up to ``batch_size``.

        Raises:
            DataError: one of them cannot be decoded.
            ModelError: the network does not take the size that a picture comes to.
        """
        transform = self.whole(short_px)
        waiting: list[tuple[torch.Tensor, tuple[int, int]]] = []
        for picture in each(pictures):
            image, size = opened(picture, transform.short_px, self.deep)
            pixels = transform.pixels(image)
            if waiting and (len(waiting) == batch_size or waiting[0][0].shape != pixels.shape):
                yield from self._patches_of(transform, waiting, precision)
                waiting = []
            waiting.append((pixels, size))
        if waiting:
            yield from self._patches_of(transform, waiting, precision)

    def _patches_of(
        self, transform: WholeTransform, batch: Sequence[tuple[torch.Tensor, tuple[int, int]]], precision: Precision
    ) -> Iterator[PatchFeatures]:
        vectors, grid = self.patch_batch(transform.normalise(torch.stack([pixels for pixels, _ in batch])), precision=precision)
        for mine, (_, (width, height)) in zip(vectors, batch, strict=True):
            yield PatchFeatures(mine, grid, (0.0, 0.0, float(width), float(height)))

    @torch.inference_mode()
    def patch_batch(self, images: torch.Tensor, *, precision: Precision = "auto") -> tuple[FloatArray, tuple[int, int]]:
        """Return unit-length patches float32 ``[B, N, D]`` of normalised images ``[B, 3, H, W]``, and their grid, in evaluation mode."""
        with evaluating(self, precision):
            tokens = self.tokens(images.to(self.device, non_blocking=True))
        vectors: FloatArray = F.normalize(tokens.patches.float(), dim=-1).cpu().numpy()
        self.require_numbers(vectors, "patch features")
        return vectors, tokens.grid

    @torch.inference_mode()
    def embed_batch(self, images: torch.Tensor, *, precision: Precision = "auto") -> FloatArray:
        """Return unit-length descriptors float32 ``[B, D]`` of normalised images ``[B, 3, H, W]``, in evaluation mode."""
        with evaluating(self, precision):
            vectors: FloatArray = self(images.to(self.device, non_blocking=True)).cpu().numpy()
        self.require_numbers(vectors, "descriptors")
        return vectors

    def require_numbers(self, values: FloatArray, what: str) -> None:
        """Hold what the network has made of ``B`` images, ``[B, ...]``, to being numbers.

        Raises:
            ModelError: some are NaN or infinity, which no comparison notices.
        """
        num_bad = sum(not np.isfinite(of_image).all() for of_image in values)
        if num_bad:
            raise ModelError(
                f"the model ({self.model.backbone}) gives NaN or infinity as {what} of {num_bad} of {len(values)} images: its weights "
                "are damaged or of a training that diverged, take those of before"
            )


@contextmanager
def evaluating(encoder: Encoder, precision: Precision | None = None) -> Iterator[None]:
    """Context manager: evaluation mode and, with a ``precision``, its autocast.

    An encoder that is in evaluation mode already is not touched, so threads may share it.
    """
    was_training = encoder.training
    if was_training:
        encoder.eval()
    dtype = None if precision is None else autocast_dtype(precision, encoder.device)
    autocast = torch.autocast(encoder.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    try:
        with nullcontext() if precision is None else autocast:
            yield
    finally:
        if was_training:
            encoder.train()


def _class_attention(model: ModelSpec, backbone: Backbone) -> ClassAttention:
    """Return the class-attention pooling, with the weights that a model's file or folder has for it."""
    made = ClassAttention(backbone.width, backbone.num_heads)
    if model.weights not in ("hub", "auto", "random"):
        held = read_weights(Path(model.weights))
        own = {name.removeprefix("class_attention."): value for name, value in held.items() if name.startswith("class_attention.")}
        require_finite({f"class_attention.{name}": value for name, value in own.items()}, model.weights)
        if own:
            ones = {
                name: value for name, value in made.state_dict().items() if ".gamma_" in name
            }  # the SelfPatch authors' blocks do without
            try:
                made.load_state_dict(ones | own)
            except RuntimeError as error:
                raise ModelError(
                    f"'{model.weights}' holds another class attention than {model.backbone}'s: take another pooling"
                ) from error
    return made


def headless(model: ModelSpec) -> ModelSpec:
    """Return the model without what is put on after training: reduction and scales."""
    bare = ModelSpec()
    return replace(model, pca=bare.pca, whiten=bare.whiten, scales=bare.scales, scale_p=bare.scale_p)


def with_scales_of(encoder: Encoder, model: ModelSpec) -> Encoder:
    """Return an encoder with the weights of ``encoder`` and the pooling and scales of ``model``, whose reduction is still to be fitted.

    Under another pooling a classifier is left behind: it was taught by vectors of the old one.

    Raises:
        ModelError: the backbone does not take these scales or this pooling, or the pooling needs weights that ``encoder`` lacks.
    """
    changed, own = model.pooling != encoder.model.pooling, encoder.model
    if changed and (model.projection or model.pooling == "class_attention"):
        what = "its projection was trained for" if model.projection else "class attention has weights of its own, this model has"
        raise ModelError(f"{what} pooling={own.pooling}: another pooling takes another training (train ... --set pooling={model.pooling})")
    with torch.random.fork_rng(devices=[]):  # weights about to be replaced take no random numbers from anybody
        made = Encoder(replace(model, weights="random"), encoder.image)
    left_behind = ("reduction.", "class_attention.", "classifier.") if changed else ("reduction.",)
    made.segmenter = encoder.segmenter
    if not changed:
        made.classifier = encoder.classifier
    made.load_state_dict({name: value for name, value in encoder.state_dict().items() if not name.startswith(left_behind)})
    return made.to(encoder.device).train(encoder.training)


def _batched(items: Iterator[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    batch: list[torch.Tensor] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
