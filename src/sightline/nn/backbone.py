"""Any timm backbone that yields tokens, behind one type: images in, Tokens out."""

from __future__ import annotations

import logging
import socket
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import timm
import torch
from timm.layers import AttentionPoolLatent, Format, HybridEmbed
from timm.models._manipulate import group_parameters
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sightline.contracts import Tokens
from sightline.errors import ModelError, first_line, nearest
from sightline.nn import which_backbone
from sightline.nn.checkpoints import load_weights, require_finite
from sightline.nn.families import fix_positions
from sightline.nn.last_block import can_stop_at_prefix, prefix_tokens
from sightline.nn.layouts import BESIDE
from sightline.nn.multiscale import rescale
from sightline.nn.positions import resize_positions_as_dino
from sightline.recipe import ModelSpec

HUB_TIMEOUT_S = 3.0

FAMILIES = {"VisionTransformer": "vit", "SwinTransformer": "swin", "ResNet": "resnet"}

SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, IndexError)
"""How timm's networks refuse an image of another size than their own."""

log = logging.getLogger(__name__)


class NoHubError(ModelError):
    """The model hub has not given the weights; the message is for who trains."""


class Backbone(nn.Module):
    """A timm network without its classifier: images ``[B, 3, H, W]`` -> Tokens."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.width = int(net.num_features)  # type: ignore[arg-type]
        prefixes = getattr(net, "num_prefix_tokens", None)
        self.num_prefix = int(prefixes) if prefixes is not None else int(hasattr(net, "cls_token"))
        self.has_distillation = hasattr(net, "dist_token")
        self._still: frozenset[str] = frozenset()  # batch norms that do not learn: their statistics stay too

    def forward(self, images: torch.Tensor) -> Tokens:
        """Return the tokens of normalised images ``[B, 3, H, W]``, after the network's last norm.

        Raises:
            ModelError: the network has several sets of tokens, or its tokens are no grid.
        """
        features = self.net.forward_features(images)  # type: ignore[operator]
        if not isinstance(features, torch.Tensor):
            raise ModelError(f"{type(self.net).__name__} gives several sets of tokens, not one: take another backbone")
        if features.ndim == 4:
            if getattr(self.net, "output_fmt", "NCHW") != "NHWC":
                features = features.permute(0, 2, 3, 1)
            rows, columns = features.shape[1:3]
            return Tokens(features.new_zeros(features.shape[0], 0, features.shape[-1]), features.flatten(1, 2), (rows, columns))
        patches = features[:, self.num_prefix :]
        return Tokens(features[:, : self.num_prefix], patches, self._grid(patches.shape[1], images))

    def prefix(self, images: torch.Tensor) -> Tokens:
        """Return the tokens of an image of the network's own size without gradients, where it can without the patches, which nobody is to read."""
        if not can_stop_at_prefix(self.net):
            return self(images)  # type: ignore[no-any-return]
        prefix = prefix_tokens(self.net, images)
        return Tokens(prefix, prefix[:, :0], (0, 0))

    def norm_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return ``pooled`` after the norm that some backbones (BEiT, EVA) keep behind their pooling; unchanged elsewhere."""
        after = getattr(self.net, "fc_norm", None)
        return pooled if after is None else after(pooled)

    def attend(self, patches: torch.Tensor) -> torch.Tensor:
        """Return what the network's own attention pooling makes of patches ``[B, N, D]``: SigLIP's image vector, ``[B, D]``."""
        pooled: torch.Tensor = self.net.attn_pool(patches)  # type: ignore[operator]
        return pooled

    @property
    def has_attention_pooling(self) -> bool:
        """Whether the network was trained with an attention pooling, which ``attend`` gives."""
        return isinstance(getattr(self.net, "attn_pool", None), AttentionPoolLatent)

    @property
    def has_norm_behind_pooling(self) -> bool:
        """Whether ``norm_pooled`` changes anything."""
        return not isinstance(getattr(self.net, "fc_norm", None), nn.Identity | None)

    @property
    def family(self) -> str:
        """What kind of network it is: vit, hybrid (a ViT on the map of convolutions), swin, resnet, or its own class's name in small letters."""
        kinds = " ".join(kind.__name__ for kind in type(self.net).__mro__)
        found = next((family for name, family in FAMILIES.items() if name in kinds), type(self.net).__name__.lower())
        return "hybrid" if found == "vit" and isinstance(getattr(self.net, "patch_embed", None), HybridEmbed) else found

    @property
    def num_heads(self) -> int:
        """The attention heads of the last block; where there is no attention, as many as have 64 of the width each."""
        named = (getattr(part, "num_heads", None) for part in self.net.modules())
        heads = [num for num in named if isinstance(num, int)]
        return heads[-1] if heads and self.width % heads[-1] == 0 else max(1, self.width // 64)

    @property
    def multiple_px(self) -> int:
        """What the sides of an image must be multiples of: the patch's side, 1 where the network takes any size."""
        ratio = getattr(getattr(self.net, "patch_embed", None), "feat_ratio", None)
        return 1 if ratio is None else int(ratio(as_scalar=True))

    def require_sizes(self, spec: ModelSpec, image_px: int) -> None:
        """Hold the network to the scales that its input will be resized by, on one image at the smallest and at the largest.

        Raises:
            ModelError: it takes images of one size only.
        """
        for scale in sorted({min(spec.scales), max(spec.scales)} - {1.0}):
            image = rescale(torch.zeros(1, 3, image_px, image_px), scale, self.multiple_px)
            try:
                with torch.no_grad():
                    self(image)
            except SIZE_ERRORS as error:
                raise ModelError(
                    f"{spec.backbone} was made for images of {image_px} px and does not take the scale {scale:g} ({first_line(error)}): "
                    "keep scales=1, or take a plain ViT or a convolutional backbone"
                ) from error

    def take_any_size(self) -> None:
        """Let a plain ViT or a Swin take images of any size whose sides are multiples of the patch; those of its own size give what they gave.

        Other networks stay as they are: some take any size by themselves.
        """
        net: Any = self.net
        if getattr(net, "dynamic_img_size", False) or not isinstance(net, VisionTransformer | SwinTransformer):
            return
        net.dynamic_img_size, net.patch_embed.strict_img_size = True, False
        if isinstance(net, VisionTransformer):
            net.patch_embed.flatten, net.patch_embed.output_fmt = False, Format.NHWC
        for block in net.modules():
            if isinstance(block, SwinTransformerBlock):
                block.dynamic_mask = True  # its attention masks are made for each size

    def _grid(self, num_patches: int, images: torch.Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        rows = max(1, round((num_patches * height / width) ** 0.5))
        if rows * (num_patches // rows) != num_patches:
            raise ModelError(f"cannot lay {num_patches} patch tokens out as a grid for images of {width} x {height} px")
        return rows, num_patches // rows

    def layer_of(self) -> dict[str, int]:
        """Return parameter name -> depth: 0 the patch and position embeddings, then one a block, the last one the top norm."""
        if not hasattr(self.net, "group_matcher"):
            return {name: 0 for name, _ in self.net.named_parameters()}
        layers: dict[str, int] = group_parameters(self.net, self.net.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        return {name: int(layer) for name, layer in layers.items()}

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training; batch norms that are frozen go on with the statistics that they have."""
        super().train(mode)
        for name, part in self.net.named_modules():
            if name in self._still:
                part.eval()
        return self

    def freeze(self, parts: tuple[str, ...]) -> None:
        """Stop the named parts from learning: ``embed`` (depth 0), ``blocks.N`` (everything up to block N), ``backbone`` (all), ``batch_norm``.

        A frozen batch norm keeps its statistics: a network without any takes ``batch_norm`` and stays as it is.

        Raises:
            ModelError: no such part.
        """
        norms = {name: part for name, part in self.net.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
        layers = self.layer_of()
        deepest = max(layers.values())
        for part in parts:
            if part == "batch_norm":
                for norm in norms.values():
                    norm.requires_grad_(False)
                continue
            number = part.removeprefix("blocks.")
            if part == "backbone":
                limit = deepest
            elif part == "embed":
                limit = 0
            elif part.startswith("blocks.") and number.isdecimal() and int(number) < deepest:
                limit = int(number) + 1
            else:
                raise ModelError(f"cannot freeze '{part}': write embed, backbone, batch_norm, or blocks.0 to blocks.{deepest - 1}")
            for name, parameter in self.net.named_parameters():
                if layers[name] <= limit:
                    parameter.requires_grad_(False)
        self._still = frozenset(name for name, norm in norms.items() if norm.affine and not norm.weight.requires_grad)


def build(spec: ModelSpec, image_px: int) -> Backbone:
    """Return the backbone of ``spec`` for images of ``image_px`` squared, with the weights that ``spec.weights`` names.

    Position embeddings of pretrained weights are resampled to the image size.

    Raises:
        ModelError: an unknown backbone or argument, or weights that are not to be had; says what to do instead.
    """
    weights = spec.weights
    local = which_backbone.local_weights(spec.backbone) if weights in ("hub", "auto") else None
    if local is not None:
        log.warning("%s: weights from %s (SIGHTLINE_WEIGHTS)", spec.backbone, local)
        weights = str(local)
    if weights == "auto":
        weights = "hub" if hub_is_reachable() else "random"
        if weights == "random":
            log.warning("the model hub cannot be reached: %s starts from random weights", spec.backbone)
    net = _create(spec, image_px, pretrained=weights == "hub")
    if weights == "hub":
        require_finite(net.state_dict(), f"the hub's {spec.backbone}")
    backbone = Backbone(net)
    if weights not in ("hub", "random"):
        left_out = load_weights(net, Path(weights), spec.positions_resize)
        if spec.pooling == "class_attention":  # whose own weights the encoder takes from there
            left_out = [name for name in left_out if not name.startswith("class_attention.")]
        if left_out:
            log.warning("%s: left out %s", weights, ", ".join(_summed_up(left_out)))
    if spec.checkpoint_gradients:
        net.set_grad_checkpointing(True)
    backbone.freeze(spec.frozen)
    if spec.scales != (1.0,):
        backbone.eval().require_sizes(spec, image_px)
    return backbone.train()


def _summed_up(names: Sequence[str]) -> list[str]:
    """Return the names, those of a part that has many by the part's name and their number."""
    parts = Counter(name.removeprefix(BESIDE).partition(".")[0] for name in names)
    few = [name.removeprefix(BESIDE) for name in names if parts[name.removeprefix(BESIDE).partition(".")[0]] <= 4]
    return few + [f"{part} ({num} weights)" for part, num in parts.items() if num > 4]


def _create(spec: ModelSpec, image_px: int, *, pretrained: bool) -> Any:
    if not timm.is_model(spec.backbone):
        raise ModelError(f"unknown backbone '{spec.backbone}'{nearest(spec.backbone, timm.list_models())}")
    arguments: dict[str, Any] = {"drop_path_rate": spec.drop_path} if spec.drop_path else {}
    arguments |= dict(spec.backbone_args)
    fixed = arguments.get("pos_embed") == "sine2d"
    if fixed:
        arguments["pos_embed"] = "learn"  # the table's place, filled below
    optional: dict[str, Any] = {"img_size": image_px}
    if not spec.drop_path:
        optional["drop_path_rate"] = 0.0  # timm's Swin drops a tenth of its paths unless told
    if spec.scales != (1.0,):
        optional["dynamic_img_size"] = True  # a ViT then resamples its positions to each size; the pretrained grid stays as it was
    if pretrained and not hub_is_reachable():
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # answer from the hub's cache at once instead of retrying for a minute
    try:
        net = _timm_model(spec.backbone, pretrained, arguments, optional)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise ModelError(f"cannot build {spec.backbone} for {image_px} px: {first_line(error)}") from error
        raise NoHubError(
            f"the weights of {spec.backbone} could not be downloaded from the model hub ({first_line(error)}): where there is no network, train from a "
            "downloaded file with --set weights=/path/to/model.safetensors, or from scratch with --set weights=random"
        ) from error
    except (TypeError, AssertionError, ValueError) as error:
        raise ModelError(f"cannot build {spec.backbone} for {image_px} px: {first_line(error)}") from error
    if fixed:
        fix_positions(net)
    if spec.positions_at == "dino":
        _follow_sizes_as_dino(net, spec.backbone)
    return net


def _follow_sizes_as_dino(net: Any, name: str) -> None:
    if not isinstance(net, VisionTransformer) or net.pos_embed is None or net.no_embed_class:
        raise ModelError(f"positions_at=dino is for a plain ViT with learned positions, and {name} is none")
    net._pos_embed = partial(_add_positions_as_dino, net)  # timm resamples within this one function


def _add_positions_as_dino(net: Any, x: torch.Tensor) -> torch.Tensor:
    grid = (x.shape[1], x.shape[2]) if x.ndim == 4 else net.patch_embed.grid_size
    prefixes = [part.expand(len(x), -1, -1) for part in (net.cls_token, net.reg_token) if part is not None]
    tokens = torch.cat([*prefixes, x.reshape(len(x), -1, x.shape[-1])], dim=1)
    summed: torch.Tensor = net.pos_drop(tokens + resize_positions_as_dino(net.pos_embed, grid, net.num_prefix_tokens))
    return summed


def _timm_model(name: str, pretrained: bool, arguments: dict[str, Any], optional: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **{**optional, **arguments})
    except TypeError as error:
        refused = [option for option in optional if f"'{option}'" in str(error) and option not in arguments]
        if not refused:
            raise
        rest = {option: value for option, value in optional.items() if option not in refused}
        return _timm_model(name, pretrained, arguments, rest)  # a network that takes any size has no img_size


def hub_is_reachable() -> bool:
    """Return True where the model hub answers within a few seconds; asked before a download, whose own retries take a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if endpoint.scheme in urllib.request.getproxies():
        return True  # only the proxy can tell
    try:
        with socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=HUB_TIMEOUT_S):
            return True
    except OSError:
        return False
