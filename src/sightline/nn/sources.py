"""How a model is named: a folder, a weights file, ``timm:NAME`` or ``random:NAME``, each but the first with settings behind commas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sightline.errors import ModelError, UsageError
from sightline.nn import which_backbone
from sightline.nn.checkpoints import ENDINGS, read_weights, weights_in
from sightline.nn.layouts import unread
from sightline.nn.own_input import of_untrained
from sightline.recipe import ImageSpec, ModelSpec
from sightline.settings import override

Kind = Literal["folder", "file", "timm", "random"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What settings behind commas may say of a network and of its input."""

    model: ModelSpec = field(default_factory=ModelSpec)
    image: ImageSpec = field(default_factory=ImageSpec.of_backbone)


@dataclass(frozen=True)
class Source:
    """A model's name in its parts: ``name`` is a path or a timm network, ``settings`` are ``key=value``."""

    kind: Kind
    name: str
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the text that ``parse`` makes this of."""
        return ",".join([self.name if self.kind in ("folder", "file") else f"{self.kind}:{self.name}", *self.settings])

    @property
    def states_pooling(self) -> bool:
        """Whether a pooling is asked for."""
        return any(setting.partition("=")[0].strip() in ("pooling", "model.pooling") for setting in self.settings)


def parse(source: str | Path, backbone: str = "") -> Source:
    """Return the parts of a model's name: ``runs/mine``, ``net.safetensors,backbone=NAME,pooling=gem``, ``timm:NAME@96``, ``random:NAME,...``.

    ``backbone`` is one more way to say ``backbone=``; ``@PX`` behind a name, a backbone or a file says ``image_px=PX``.

    Raises:
        UsageError: settings for a model folder, which has its own.
    """
    name, settings = _split(str(source))
    kind: Kind = "folder"
    before, colon, rest = name.partition(":")
    if colon and before in ("timm", "random"):
        kind, name = ("timm", rest) if before == "timm" else ("random", rest)
    name, size = _sized(name)
    settings = [*size, *settings]
    if kind == "folder" and (_is_weights(Path(name))):
        kind = "file"
    if backbone:
        settings = [*settings, f"backbone={backbone}"]
    settings = [part for setting in settings for part in _apart(setting)]
    if settings and kind == "folder":
        missing = "" if Path(name).exists() else f": there is no file '{name}'"
        raise UsageError(
            f"settings such as {settings[0]} go with a weights file, timm:NAME or random:NAME, and '{name}' is none of these{missing} "
            "(a model folder has its own; sightline reduce gives it another head)"
        )
    return Source(kind, name, tuple(settings))


def _apart(setting: str) -> list[str]:
    """Return ``backbone=NAME@96`` as two settings, others as they are."""
    key, _, value = setting.partition("=")
    name, size = _sized(value) if key.strip() in ("backbone", "model.backbone") else (value, [])
    return [f"{key}={name}", *size] if size else [setting]


def _sized(name: str) -> tuple[str, list[str]]:
    base, at, size = name.rpartition("@")
    return (base, [f"image_px={size}"]) if at and size.isdecimal() and not Path(name).exists() else (name, [])


def _split(text: str) -> tuple[str, list[str]]:
    """Return the name and its settings; a comma within a value, or within the path of a file that is there, does not divide."""
    pieces = text.split(",")
    start = next((num for num in range(len(pieces), 0, -1) if Path(",".join(pieces[:num])).exists()), 1)
    settings: list[str] = []
    for piece in pieces[start:]:
        if "=" in piece:
            settings.append(piece)
        elif settings:
            settings[-1] += f",{piece}"
        else:
            return text, []
    return ",".join(pieces[:start]), settings


def _is_weights(path: Path) -> bool:
    if path.is_dir():
        config = which_backbone.facts_beside(path, "config.json")
        return bool(config) and config.get("format") is None and weights_in(path).is_file()
    return path.name.endswith(ENDINGS) and path.is_file()


def lasting(source: str) -> str:
    """Return the name with its path made absolute, for an index to remember."""
    parts = parse(source)
    return str(replace(parts, name=str(Path(parts.name).absolute()))) if Path(parts.name).exists() else source


def specified(source: Source) -> tuple[ModelSpec, ImageSpec]:
    """Return what a weights file, ``timm:NAME`` or ``random:NAME`` is: its network and, left to the backbone where not set, its input.

    Raises:
        ModelError: a file that does not tell its network, or a setting that there is not.
    """
    if source.kind == "file":
        begun = ModelSpec(backbone="", weights=source.name)
    else:
        begun = ModelSpec(backbone=source.name, weights="hub" if source.kind == "timm" else "random")
    image = ImageSpec.of_backbone()
    if source.kind == "random":
        own = of_untrained(source.name)
        image = ImageSpec(image_px=own.image_px, mean=own.mean, std=own.std)
    said = override(Settings(model=begun, image=image), source.settings)
    if source.kind != "file" or said.model.backbone:
        return said.model, said.image
    return replace(said.model, backbone=_told(Path(source.name))), said.image


def _told(file: Path) -> str:
    told = which_backbone.told(file)
    if told:
        return told
    weights = read_weights(file)
    told = which_backbone.told_by_transformers(file, weights)
    if told:
        return told
    fits = which_backbone.fitting(weights)
    advice = f"its weights fit --backbone {' or '.join(fits)}" if fits else "name its timm network with --backbone NAME"
    whose = unread(weights)
    if whose:
        raise ModelError(f"'{file}' has names of {whose}: take timm's own file of this network")
    raise ModelError(f"'{file}' does not tell of which network its weights are: {advice} (in Python backbone=)")
