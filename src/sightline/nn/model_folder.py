"""A model on disk: a folder of ``config.json``, ``model.safetensors`` and ``README.md``. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sightline import runtime
from sightline.errors import ModelError, explain_os_error
from sightline.nn import sources
from sightline.nn.backbone import NoHubError, hub_is_reachable
from sightline.nn.checkpoints import ENDINGS, require_finite
from sightline.nn.classifier import Classifier
from sightline.nn.encoder import Encoder
from sightline.nn.own_input import resolved
from sightline.nn.reduction import Reduction
from sightline.nn.segmenter import Segmenter, SegmenterSpec
from sightline.recipe import ImageSpec, ModelSpec
from sightline.settings import from_plain, to_plain

log = logging.getLogger(__name__)

FORMAT, VERSION = "sightline-model", 1

SINCE_VERSION_1 = ("whiten", "scales", "scale_p", "positions_resize", "positions_at")
"""Settings of ``ModelSpec`` that format 1 did not begin with. At its default one is left out of the folder, so that older models keep their fingerprint:
the default of a setting in this list can never change."""


def fingerprint(encoder: Encoder) -> str:
    """Return 16 hexadecimal digits over everything that shapes a descriptor: the image and model settings and every weight."""
    digest = hashlib.sha256(json.dumps(_config(encoder), sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _config(encoder: Encoder) -> dict[str, Any]:
    # How the weights came about does not shape a descriptor: a reloaded encoder must have the fingerprint of the saved one.
    origin = {"weights": "random", "positions_resize": "timm", "drop_path": 0.0, "checkpoint_gradients": False, "frozen": []}
    model = to_plain(encoder.model) | origin
    defaults = to_plain(ModelSpec())
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {name: value for name, value in model.items() if name not in SINCE_VERSION_1 or value != defaults[name]},
        "image": to_plain(encoder.image),
        "reduced_to": encoder.dim if isinstance(encoder.reduction, Reduction) else 0,
        **_classifier_config(encoder.classifier),
        **_segmenter_config(encoder.segmenter),
    }


def _classifier_config(classifier: torch.nn.Module) -> dict[str, Any]:
    if not isinstance(classifier, Classifier):
        return {}  # as in the folders that were written before there were classifiers
    return {"classifier": {"hidden": classifier.pre_logits is not None, "class_names": list(classifier.class_names)}}


def _segmenter_config(segmenter: torch.nn.Module) -> dict[str, Any]:
    if not isinstance(segmenter, Segmenter):
        return {}
    return {"segmenter": {**to_plain(segmenter.spec), "class_names": list(segmenter.class_names)}}


def save(encoder: Encoder, folder: Path, *, card: str = "") -> str:
    """Write the model folder and return the fingerprint; each file replaces its older self in one step.

    Raises:
        DiskFullError, UsageError: the folder cannot be written.
    """
    encoder.fingerprint = fingerprint(encoder)
    config = _config(encoder) | {"fingerprint": encoder.fingerprint, "descriptor_dim": encoder.dim}
    state = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "model.safetensors.part"
        try:
            save_file(state, weights, metadata={"format": "pt", "fingerprint": encoder.fingerprint})
        except SafetensorError as error:  # safetensors wraps the system's "No space left on device"
            weights.unlink(missing_ok=True)
            number = 28 if "os error 28" in str(error).lower() or "no space" in str(error).lower() else 5
            raise OSError(number, str(error), str(folder)) from error
        write_json(folder / "config.json", config)
        weights.chmod((folder / "config.json").stat().st_mode)  # safetensors writes for the owner alone
        _sync(weights)
        os.replace(weights, folder / "model.safetensors")
        write_text(folder / "README.md", card or "# A Sightline model\n\nLoad it with `sightline.load(folder)`.\n")
    except OSError as error:
        raise explain_os_error(error, f"saving the model to '{folder}'") from error
    return encoder.fingerprint


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part of it.

    A file name that is not UTF-8 holds lone surrogates: they are written as ``\\udcXX``, which JSON reads as the same name again.
    """
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    _sync(part)
    os.replace(part, path)


def write_json(path: Path, plain: Any) -> None:
    """Write plain data as JSON, as ``write_text`` does."""
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def load(source: str | Path, *, backbone: str = "", device: torch.device | str = "auto") -> Encoder:
    """Return the encoder of a model: a model or run folder, a weights file, ``timm:NAME``, ``random:NAME`` (untrained, seed 0) or a hub id.

    Settings may follow all but a folder, as in ``net.safetensors,backbone=vit_small_patch14_dinov2,image_px=224,pooling=cls``;
    ``sightline.nn.sources`` has the syntax.

    Args:
        source: the model.
        backbone: the timm network of a weights file that does not tell it by its name or a ``config.json`` beside it.
        device: where to put it; ``auto`` is a GPU where there is one.

    Raises:
        ModelError: there is no such model, or its folder is of another version or damaged.
    """
    parts = sources.parse(source, backbone)
    lasting = sources.lasting(str(parts))
    if parts.kind == "folder":
        folder = find(parts.name)
        parts = sources.parse(folder)
        encoder = _from_folder(folder) if parts.kind == "folder" else _from_weights(parts)
    else:
        encoder = _from_weights(parts)
    encoder.fingerprint = encoder.fingerprint or fingerprint(encoder)
    runtime.note_model(encoder.fingerprint, lasting)
    return encoder.to(runtime.device(device) if isinstance(device, str) else device).eval()


def _from_weights(source: sources.Source) -> Encoder:
    model, image = sources.specified(source)
    if source.kind == "file":
        log.warning("%s: %s, images enter at %s", source.name, model.backbone, resolved(image, model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return Encoder(model, image).eval()
        except NoHubError as error:
            raise ModelError(
                f"{str(error).partition(': where there is no network')[0]}: where there is no network, give a downloaded file in its place "
                f"(FILE.safetensors with --backbone {model.backbone}), or put {model.backbone}.safetensors into a folder and set SIGHTLINE_WEIGHTS to it; "
                f"random:{model.backbone} is untrained"
            ) from error
        except ModelError as error:
            if "class token" not in str(error) or source.states_pooling:
                raise
            return _without_class_token(model, image)


def _without_class_token(model: ModelSpec, image: ImageSpec) -> Encoder:
    """Return the encoder with the pooling that its network was trained with: an attention pooling where it has one, else the mean."""
    encoder = Encoder(replace(model, pooling="mean"), image).eval()
    if encoder.backbone.has_attention_pooling:
        encoder.model = replace(encoder.model, pooling="map")
    return encoder


def find(source: str) -> Path:
    """Return the model folder that a model folder, a run folder or a hub id means.

    Raises:
        ModelError: there is none.
    """
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if folder.is_file():
        raise ModelError(f"'{source}' is no weights file: one ends in {', '.join(ENDINGS)}")
    if folder.exists():
        inside = " (training has not saved a model there yet)" if (folder / "recipe.json").exists() else ""
        raise ModelError(f"'{source}' is not a model folder: it has no config.json{inside}")
    if source.count("/") == 1 and not source.startswith((".", "~", "/")) and hub_is_reachable():
        try:
            return Path(
                snapshot_download(source, allow_patterns=["config.json", "preprocessor_config.json", "model.safetensors", "README.md"])
            )
        except (OSError, HFValidationError) as error:
            raise ModelError(f"'{source}' is neither a folder here nor a model on the hub ({str(error).splitlines()[0][:120]})") from error
    raise ModelError(
        f"no model at '{source}': give a model or run folder, a weights file, timm:NAME, random:NAME, or a hub id where the hub can be reached"
    )


def specs(source: str) -> tuple[ModelSpec, ImageSpec]:
    """Return what network the model of a folder or weights file is, and how it is given images.

    Raises:
        ModelError: there is no such model, or its folder is of another version or damaged.
    """
    parts = sources.parse(source)
    if parts.kind != "folder":
        model, image = sources.specified(parts)
        return model, resolved(image, model)
    config = _read_config(find(source))
    return from_plain(ModelSpec, config["model"]), from_plain(ImageSpec, config["image"])


def has_segmenter(source: str | Path) -> bool:
    """Return whether ``source`` is a model or run folder here whose model has a segmentation head."""
    for folder in (Path(source), Path(source) / "model"):
        if (folder / "config.json").is_file():
            return "segmenter" in _read_config(folder)
    return False


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"'{folder / 'config.json'}' cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"'{folder}' is not a Sightline model folder (its config.json does not say format={FORMAT})")
    if config.get("version") != VERSION:
        raise ModelError(
            f"'{folder}' was written in model format {config.get('version')}, this is format {VERSION}: use the Sightline that wrote it, or train again"
        )
    missing = [key for key in ("model", "image", "fingerprint", "reduced_to") if key not in config]
    if missing:
        raise ModelError(f"'{folder / 'config.json'}' lacks {', '.join(missing)}")
    return config


def _from_folder(folder: Path) -> Encoder:
    config = _read_config(folder)
    encoder = Encoder(from_plain(ModelSpec, config["model"]), from_plain(ImageSpec, config["image"]))
    if config["reduced_to"]:
        encoder.reduction = Reduction(encoder.dim, int(config["reduced_to"]), encoder.model.whiten)
    if "classifier" in config:
        encoder.classifier = Classifier(encoder.width, config["classifier"]["class_names"], hidden=config["classifier"]["hidden"])
    if "segmenter" in config:
        kept = dict(config["segmenter"])
        names = kept.pop("class_names")
        encoder.segmenter = Segmenter(encoder, from_plain(SegmenterSpec, kept), names)
    try:
        encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"the weights in '{folder}' cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    require_finite(encoder.state_dict(), folder)
    encoder.fingerprint = fingerprint(encoder)
    if encoder.fingerprint != config["fingerprint"]:
        raise ModelError(
            f"'{folder}' has changed since it was saved (fingerprint {encoder.fingerprint}, expected {config['fingerprint']}): restore it or train again"
        )
    return encoder
