"""The encoder for another runtime: one ONNX file, compared with the original before anybody relies on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError, UsageError, explain_os_error
from sightline.nn.encoder import Encoder
from sightline.nn.model_folder import fingerprint

OPSET = 18
"""The oldest opset that torch's exporter writes without converting; every onnxruntime since 1.14 (2023) reads it."""

MAX_ONE_FILE_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB. Larger weights would need files beside the model, easily lost from it: they are refused."""


PARITY_FLOOR = 0.999
"""The smallest cosine between the two that is still rounding (1 - 1e-6 is usual); below it no file is left."""


def export_onnx(encoder: Encoder, path: Path, *, images: torch.Tensor) -> dict[str, Any]:
    """Write the encoder as one ONNX file and return how closely it agrees with the original.

    The file takes ``images`` float32 ``[B, 3, H, W]`` (any B; resized, cropped and normalised as its metadata says) and gives
    ``descriptors`` float32 ``[B, D]``, unit length. Its metadata holds ``fingerprint``, ``image_px``, ``resize``, ``resized_px``,
    ``interpolation``, ``mean`` and ``std``. It appears at ``path`` in one step, and only after onnxruntime has run it.

    Args:
        encoder: what to export; it is left as it was, where it was.
        path: the file to write.
        images: normalised float32 ``[B, 3, H, W]`` at the encoder's image size, on which the two are compared.

    Returns:
        ``out`` (the path), ``bytes``, ``images`` (how many were compared), ``min_cosine`` (the worst agreement, 1 is perfect),
        ``max_difference`` (of a component), ``opset``.

    Raises:
        UsageError: the extra is not installed, the model is too large for one file, or the file cannot be written.
        SightlineError: the exported model gives other descriptors than the original, or takes batches of one size only.
    """
    onnx, onnxruntime = _runtimes()
    num_bytes = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    if num_bytes > MAX_ONE_FILE_BYTES:
        raise UsageError(f"an ONNX file holds 2 GiB at most and this model has {num_bytes / 2**30:.1f} GiB of weights: use a smaller one")
    was_training, device = encoder.training, encoder.device
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        encoder.cpu().eval()
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(_traced(encoder), part)
        agreement = _agreement(encoder, part, images.cpu(), onnxruntime)
        if not agreement["min_cosine"] >= PARITY_FLOOR:
            raise SightlineError(
                f"the exported model gives other descriptors than the original (cosine {agreement['min_cosine']:.4f}), so it was not kept: "
                "please report it with the backbone's name and the version of torch"
            )
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise explain_os_error(error, f"writing '{path}'") from error
    finally:
        if part.exists():
            part.unlink()
        encoder.to(device).train(was_training)
    return {"out": str(path), "bytes": path.stat().st_size, "images": len(images), **agreement, "opset": OPSET}


def _runtimes() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UsageError(f"exporting needs {error.name}, which is not installed: pip install 'sightline[onnx]'") from error
    return onnx, onnxruntime


def _traced(encoder: Encoder) -> Any:
    """Return the encoder as an ONNX model, with what one must know to feed it."""
    side = encoder.image.image_px
    program = torch.onnx.export(
        encoder,
        (torch.zeros(2, 3, side, side),),  # a batch of one would be taken for a constant
        input_names=["images"],
        output_names=["descriptors"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    image = encoder.image
    facts = {
        "fingerprint": encoder.fingerprint or fingerprint(encoder),
        "image_px": str(image.image_px),
        "resize": image.resize,
        "resized_px": str(image.resized_px),
        "interpolation": image.interpolation,
        "mean": json.dumps(image.mean),
        "std": json.dumps(image.std),
    }
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    return model


@torch.inference_mode()
def _agreement(encoder: Encoder, file: Path, images: torch.Tensor, onnxruntime: Any) -> dict[str, float]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    if not isinstance(session.get_inputs()[0].shape[0], str):  # the exporter says nothing where a network's code fixes the batch
        raise SightlineError("this backbone cannot be exported for batches of any size: please report its name and the version of torch")
    cosines, furthest = [], []
    for batch in images.split(8):
        ours = encoder(batch)
        theirs = torch.from_numpy(session.run(["descriptors"], {"images": batch.numpy()})[0])
        encoder.require_numbers(ours.numpy(), "descriptors")
        cosines.append(torch.cosine_similarity(ours.double(), theirs.double()))
        furthest.append((ours - theirs).abs().max())
    # torch's min and max are NaN where one value is; Python's min(1.0, nan) is 1.0, which would pass for agreement
    return {"min_cosine": float(torch.cat(cosines).clamp(max=1.0).min()), "max_difference": float(torch.stack(furthest).max())}
