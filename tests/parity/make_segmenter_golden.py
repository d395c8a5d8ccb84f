"""Make golden/segmenter.json: what mmsegmentation's heads and loss do with given maps and weights. Not part of the test run.

    python tests/parity/make_segmenter_golden.py

Needs mmsegmentation 1.2.2 (with mmcv-lite 2.1.0 and mmengine) beside torch, in an environment of its own; nothing of it is copied. Weights,
buffers of the norms and maps are filled by ``filling``, from the names below, so that nothing drawn is stored.

What is recorded: logits, of which the test compares a fingerprint, in training (batch statistics) and in evaluation (running ones); the
loss of a batch with void pixels and the gradient that it has for the finest map; the feature pyramid under Semantic FPN.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from filling import fill, fingerprint

GOLDEN = Path(__file__).parent / "golden" / "segmenter.json"
WIDTHS, CHANNELS, PYRAMID, NUM_CLASSES, SIDE = (12, 12, 12, 12), 8, 10, 5, 64
VOID = 255


class _Absent(types.ModuleType):
    """Stands in for mmcv's compiled operators, which none of these heads uses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def maps(kind: str, widths: tuple[int, ...], sides: tuple[int, ...] = (16, 8, 4, 2)) -> list[torch.Tensor]:
    """Return float32 maps [2, D, h, w] of one kind of head."""
    return [
        torch.from_numpy(fill(f"{kind}.map{level}", (2, width, side, side)))
        for level, (width, side) in enumerate(zip(widths, sides, strict=True))
    ]


def masks() -> torch.Tensor:
    """Return classes int64 [2, 64, 64] in blocks, a quarter of them void."""
    numbers = torch.from_numpy(fill("masks", (2, 8, 8)))
    coarse = ((numbers + 1) / 2 * NUM_CLASSES).long().clamp(0, NUM_CLASSES - 1)
    coarse[torch.from_numpy(fill("void", (2, 8, 8))) > 0.5] = VOID
    return coarse.repeat_interleave(SIDE // 8, dim=1).repeat_interleave(SIDE // 8, dim=2)


def filled(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    """Fill parameters and running statistics by their names, in the order and under the names that they have there."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.from_numpy(fill(f"{prefix}.{name}", value.shape))
        value.data.copy_(1 + drawn.abs() if name.endswith("running_var") else drawn)
    return module


def main() -> None:
    sys.modules["mmcv.ops"] = _Absent("mmcv.ops")
    import mmseg
    from mmengine.structures import PixelData
    from mmseg.models.decode_heads import FCNHead, FPNHead, UPerHead
    from mmseg.models.necks import FPN
    from mmseg.structures import SegDataSample

    common = {"num_classes": NUM_CLASSES, "norm_cfg": {"type": "BN"}, "align_corners": False, "dropout_ratio": 0.0}
    heads = {
        "fpn": (FPNHead(feature_strides=(4, 8, 16, 32), in_channels=[PYRAMID] * 4, in_index=[0, 1, 2, 3], channels=CHANNELS, **common), PYRAMID),
        "upernet": (UPerHead(pool_scales=(1, 2, 3, 6), in_channels=list(WIDTHS), in_index=[0, 1, 2, 3], channels=CHANNELS, **common), WIDTHS[0]),
        "fcn": (FCNHead(in_channels=WIDTHS[0], in_index=2, channels=CHANNELS, num_convs=1, concat_input=False, **common), WIDTHS[0]),
    }  # fmt: skip
    samples = [SegDataSample(gt_sem_seg=PixelData(data=mask[None])) for mask in masks()]
    found: dict[str, Any] = {}
    for kind, (head, width) in heads.items():
        filled(head, kind)
        given = [one.requires_grad_() for one in maps(kind, (width,) * 4)]
        evaluated = head.eval()(given)
        loss = head.train().loss_by_feat(head(given), samples)["loss_ce"]
        (gradient,) = torch.autograd.grad(loss, [given[2 if kind == "fcn" else 0]])
        found[kind] = {"eval": fingerprint(evaluated), "loss": float(loss), "gradient": fingerprint(gradient)}
    neck = filled(FPN(in_channels=list(WIDTHS), out_channels=PYRAMID, num_outs=4), "neck").eval()
    found["neck"] = [fingerprint(one) for one in neck(maps("neck", WIDTHS, (16, 8, 4, 2)))]
    golden = {"origin": f"open-mmlab/mmsegmentation {mmseg.__version__}", "torch": torch.__version__.partition("+")[0], **found}
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
