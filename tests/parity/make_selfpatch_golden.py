"""Make golden/selfpatch.json: what the authors' DINO, SelfPatch and MoBY answer, part by part and over two steps of training. Not part of the
test run.

    python tests/parity/make_selfpatch_golden.py --dino CHECKOUT --selfpatch CHECKOUT --moby CHECKOUT

It needs checkouts of facebookresearch/dino, alinlab/SelfPatch and SwinTransformer/Transformer-SSL beside what the project needs; what there is
to know of the last is told in `moby_reference.py`. `filling.fill` makes every weight and input from its name, so the file holds answers
alone: an array's `filling.fingerprint`, by the reference's own name. A test maps our names to the reference's, fills, and compares.

Names. Parameters are filled by the name they have in the training wrapper: `backbone.` (ViT), `head.` (DINO), `ca_head.`, `c_head.`,
`p_head.` (SelfPatch); the teacher's by `teacher.` before that, unlike the references, whose teacher begins as the student: so a loss tells
one from the other. A frozen `weight_g` is 1 in student and teacher. Drop path is 0; the references give the student 0.1, the teacher none.
"float32" answers show how far that alone is from "float64"; of training, only losses, and `apart`, the furthest parameter of student and
teacher: as far as the learning rate, because AdamW makes whole steps of the rounding in keys' biases, whose gradient is 0 (1e-17 in the file:
compare with an absolute tolerance). SelfPatch's other parameters end within 7e-7 of float64's; compare in float64.

Model. Width 24, 3 heads, 2 blocks, patches of 16 px, LayerNorm's eps 1e-6; position table for 224 px. Head: 24-32-32-16, L2 norm, weight-normed
64 (patches: 48) without bias. Initial values the fill replaces: truncated normal 0.02 for linear layers, tokens and tables, biases 0;
`patch_embed.proj` and `last_layer.weight_v` keep torch's own, for they are no linear layer or made after the rule was applied.

A step, in this order: rates of this iteration, of which group 0 alone takes weight decay; teacher, then student; loss, at whose end the centre
moves, so it is not yet in this loss; backward; each parameter's gradient clipped to 3 by itself; `last_layer` of every head without gradient
in epoch 0, after it was clipped, so neither AdamW's moments nor decay touch it; AdamW (0.9, 0.999, eps 1e-8); the teacher's every
parameter, `weight_g` too, to m * own + (1 - m) * the student's new one. Decayed: all but `.bias` and what has one dimension, so tokens,
position tables, and a free `weight_g` ([64, 1]) too. Rates: `cosine_scheduler` over 4 epochs of 1 iteration without warm-up (whose first
rate is 0), lr 0.001 to 1e-6, decay 0.04 to 0.4, m 0.9 to 1; teacher's temperature `linspace(0.04, 0.07, 2)`, student's 0.1, the centre's 0.9.

DINO: two crops of 224 px, then three of 96; batches are crop after crop. The teacher sees the first two, the head sees all crops of the
student at once. Mean of 2 * 4 terms, a crop with itself left out. The centre takes the mean over both teacher crops.

SelfPatch: teacher (loc=True) and student (loc=False) see all five crops, the two of a size at once. c is DINO's mean of 8 terms on
`c_head(token 0)`; p the mean over all five crops of a crop with itself, patch by patch, on `p_head(the rest)`; loss c + 0.1 p, so c is all that
lambda = 0 leaves: DINO, but for the class-attention head in place of a class token and the centre, which takes the mean over all five
crops ([1, 1, 64]). The patch centre ([1, 48]) takes the mean over all patches of all crops, each patch alike. The backbone has neither class
token nor last norm; indices of neighbours wrap around the grid; the 4 of 8 nearest by cosine of the backbone's output are attended by the
class token with itself, not by the patch, and unnormalised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from filling import fill, fill_module, fingerprint, rounded
from moby_reference import moby_answers
from references import (
    BATCH,
    CROPS_PX,
    HEADS,
    NUM_NEIGHBOURS,
    OUT,
    PATCH_OUT,
    TEMPERATURES,
    WIDTH,
    both,
    dino_head,
    gradient_norms,
    gradient_rules,
    imported,
    in_both,
    made,
    on_one_processor,
    self_distillation_steps,
    tiny_vit,
    vit_answers,
)
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "selfpatch.json"


# DINO


def head_answers(vits: ModuleType, norm_last_layer: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Return the head's output of "head.input" [5, 24], and the norms of the gradients of the sum of output * "head.cotangent"."""
    head = fill_module(dino_head(vits, norm_last_layer), "head.").to(dtype)
    output = head(made("head.input", (5, WIDTH), dtype))
    (output * made("head.cotangent", (5, OUT), dtype)).sum().backward()
    return {"output": fingerprint(output), "gradient_norms": gradient_norms(head)}


def dino_loss_answers(main: ModuleType, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return losses of epochs 0, 1 and 3 in this order, each after the centre took the former teacher's logits in."""
    loss = main.DINOLoss(OUT, 5, 0.04, 0.07, 3, 5).to(dtype)
    answers = []
    for epoch in (0, 1, 3):
        student = made(f"student {epoch}", (5 * BATCH, OUT), dtype).requires_grad_()
        value = loss(student, made(f"teacher {epoch}", (2 * BATCH, OUT), dtype), epoch)
        value.backward()
        temperature = loss.teacher_temp_schedule[epoch]
        answers.append(
            {
                "epoch": epoch,
                "teacher_temperature": rounded(temperature),
                "loss": rounded(value.item()),
                "gradient": fingerprint(student.grad),
                "center_after": fingerprint(loss.center),
            }
        )
    return answers


def schedule_answers(utils: ModuleType) -> dict[str, Any]:
    """Return cosine_scheduler's values by its arguments: (base, final, epochs, iterations per epoch, warm-up epochs)."""
    runs = {"lr": (0.0005, 1e-6, 5, 4, 2), "weight_decay": (0.04, 0.4, 5, 4, 0), "momentum": (0.996, 1, 5, 4, 0)}
    return {
        name: {"arguments": arguments, "values": [rounded(value) for value in utils.cosine_scheduler(*arguments)]}
        for name, arguments in runs.items()
    }


def dino_steps(main: ModuleType, utils: ModuleType, norm_last_layer: bool, dtype: torch.dtype) -> Any:
    student = fill_module(utils.MultiCropWrapper(tiny_vit(main.vits), dino_head(main.vits, norm_last_layer)))
    teacher = fill_module(utils.MultiCropWrapper(tiny_vit(main.vits), dino_head(main.vits)), "teacher.")
    return self_distillation_steps(main, student, teacher, main.DINOLoss(OUT, len(CROPS_PX), *TEMPERATURES), dtype)


def knn_answers(knn: ModuleType) -> dict[str, Any]:
    """Return top-1 and top-5 in per cent of 120 queries among 200, of 20 classes, the class of row i being i % 20.

    Features are the L2-normed sum of "knn centres" [20, 16], of the row's class, and 2.5 times "knn train" [200, 16] or "knn test" [120, 16].
    No query whose class has no vote has fewer than five classes that have: its top 5 would be a matter of how zeros are sorted.
    """
    centres, labels = fill("knn centres", (20, 16)), {"train": torch.arange(200) % 20, "test": torch.arange(120) % 20}
    features = {}
    for part, own in labels.items():
        features[part] = nn.functional.normalize(torch.from_numpy(centres[own] + 2.5 * fill(f"knn {part}", (len(own), 16))), dim=1)
    answers: dict[str, Any] = {"temperature": 0.07}
    for k in (10, 20):
        near = labels["train"][(features["test"] @ features["train"].T).topk(k).indices]
        for voted, label in zip(near.tolist(), labels["test"].tolist(), strict=True):
            assert label in voted or len(set(voted)) >= 5
        top1, top5 = knn.knn_classifier(features["train"], labels["train"], features["test"], labels["test"], k, 0.07, num_classes=20)
        answers[f"k={k}"] = {"top1": rounded(top1), "top5": rounded(top5)}
    return answers


def dino_answers(checkout: Path) -> dict[str, Any]:
    main, utils, vits, knn = imported(checkout, "main_dino", "utils", "vision_transformer", "eval_knn")
    return {
        "head": {f"norm_last_layer={flag}": both(partial(head_answers, vits, flag)) for flag in (True, False)},
        "vit": both(partial(vit_answers, vits)),
        "loss": both(partial(dino_loss_answers, main)),
        "schedules": schedule_answers(utils),
        "rules": gradient_rules(utils, lambda flag: utils.MultiCropWrapper(tiny_vit(vits), dino_head(vits, flag))),
        "training": {f"norm_last_layer={flag}": in_both(partial(dino_steps, main, utils, flag)) for flag in (True, False)},
        "knn": knn_answers(knn),
    }


# SelfPatch


def selfpatch_head_answers(vits: ModuleType, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the head makes of "tokens N" [2, N, 24] of both grids, as teacher (loc=True) and as student, whose gradients are of the
    sum of output * "tokens N cotangent" [2, 1 + N, 24]; and the first block's attention of class token 0 over "tokens 37" [2, 37, 24]."""
    answers: dict[str, Any] = {}
    for num_tokens in (196, 36):
        head = fill_module(vits.SelfPatchHead(WIDTH, HEADS, NUM_NEIGHBOURS), "ca_head.").to(dtype)
        tokens = made(f"tokens {num_tokens}", (BATCH, num_tokens, WIDTH), dtype).requires_grad_()
        output = head(tokens, loc=False)
        (output * made(f"tokens {num_tokens} cotangent", tuple(output.shape), dtype)).sum().backward()
        answers[str(num_tokens)] = {
            "loc=True": fingerprint(head(tokens, loc=True)),
            "loc=False": fingerprint(output),
            "gradient_norms": gradient_norms(head),
            "gradient": fingerprint(tokens.grad),
        }
    output, weights = head.cls_blocks[0].attn(made("tokens 37", (BATCH, 37, WIDTH), dtype), attention=True)
    answers["class_attention"] = {"output": fingerprint(output), "attention": fingerprint(weights)}
    return answers


def selfpatch_loss_answers(main: ModuleType, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return losses of epochs 0, 1 and 3 in this order, each after the centres took the former teacher's logits in.

    Logits are "student E cls G" [2 or 3 times 2, 1, 64] and "student E patch G" [.., N, 48] of global (G = 0) and local crops (G = 1), and
    so the teacher's.
    """
    loss = main.DINOLoss(OUT, PATCH_OUT, 5, 0.04, 0.07, 3, 5).to(dtype)
    answers = []
    for epoch in (0, 1, 3):
        student, teacher = (
            [
                [
                    made(f"{who} {epoch} cls {group}", (rows, 1, OUT), dtype),
                    made(f"{who} {epoch} patch {group}", (rows, num_patches, PATCH_OUT), dtype),
                ]
                for group, (rows, num_patches) in enumerate(((2 * BATCH, 196), (3 * BATCH, 36)))
            ]
            for who in ("student", "teacher")
        )
        leaves = {
            f"{part} {group}": pair[i].requires_grad_() for group, pair in enumerate(student) for i, part in enumerate(("cls", "patch"))
        }
        value, c, p = loss(None, None, student, teacher, epoch, 0)
        value.backward()
        answers.append(
            {
                "epoch": epoch,
                "teacher_temperature": rounded(loss.teacher_temp_schedule[epoch]),
                "loss": rounded(value.item()),
                "c": rounded(c),
                "p": rounded(p),
                "gradients": {name: fingerprint(leaf.grad) for name, leaf in leaves.items()},
                "center_after": fingerprint(loss.center),
                "patch_center_after": fingerprint(loss.patch_center),
            }
        )
    return answers


def selfpatch_model(main: ModuleType, norm_last_layer: bool = True) -> nn.Module:
    return main.MultiCropWrapper(
        tiny_vit(main.vits),
        main.SelfPatchHead(WIDTH, HEADS, NUM_NEIGHBOURS),
        dino_head(main.vits, norm_last_layer),
        dino_head(main.vits, norm_last_layer, PATCH_OUT),
    )


def selfpatch_steps(main: ModuleType, dtype: torch.dtype) -> Any:
    student, teacher = fill_module(selfpatch_model(main)), fill_module(selfpatch_model(main), "teacher.")
    loss = main.DINOLoss(OUT, PATCH_OUT, len(CROPS_PX), *TEMPERATURES)
    return self_distillation_steps(main, student, teacher, loss, dtype)


def selfpatch_answers(checkout: Path) -> dict[str, Any]:
    main, utils, vits = imported(checkout, "main_selfpatch", "utils", "selfpatch_vision_transformer")
    indices = {size: vits.SelfPatchHead.get_local_index(size, 3) for size in (196, 36)}
    return {
        "local_index": {"36": indices[36].tolist(), "196": {str(i): indices[196][i].tolist() for i in (0, 13, 97, 182, 195)}},
        "vit": both(partial(vit_answers, vits)),
        "head": both(partial(selfpatch_head_answers, vits)),
        "loss": both(partial(selfpatch_loss_answers, main)),
        "rules": gradient_rules(utils, partial(selfpatch_model, main)),
        "training": {"norm_last_layer=True": in_both(partial(selfpatch_steps, main))},
    }


def commit(checkout: Path) -> str:
    return subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dino", type=Path, required=True, help="checkout of facebookresearch/dino")
    parser.add_argument("--selfpatch", type=Path, required=True, help="checkout of alinlab/SelfPatch")
    parser.add_argument("--moby", type=Path, required=True, help="checkout of SwinTransformer/Transformer-SSL")
    arguments = parser.parse_args()
    on_one_processor()
    golden = {
        "made": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "timm": version("timm"),
        "dino": {"origin": f"github facebookresearch/dino {commit(arguments.dino)}", **dino_answers(arguments.dino)},
        "selfpatch": {"origin": f"github alinlab/SelfPatch {commit(arguments.selfpatch)}", **selfpatch_answers(arguments.selfpatch)},
        "moby": {
            "origin": f"github SwinTransformer/Transformer-SSL {commit(arguments.moby)}",
            **moby_answers(arguments.moby, *imported(arguments.dino, "vision_transformer")),
        },
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")
    print(GOLDEN, GOLDEN.stat().st_size)


if __name__ == "__main__":
    main()
