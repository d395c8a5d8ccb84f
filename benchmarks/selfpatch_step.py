"""What does a step of DINO cost beside lightly's building blocks, and what do SelfPatch's patches add?

    python benchmarks/selfpatch_step.py [--repeats 5] [--batch 64] [--crops 2 6] [--image-px 224 96] [--backbone vit_tiny_patch16_224]
        [--device cpu] [--give-back] [--json]

Both DINO steps: the same ViT without drop path, the head of 65,536 prototypes, the same crops in float32, one forward for all crops of a size,
clipping, AdamW, the teacher's average. lightly's is put together of its DINOProjectionHead, DINOLoss and update_momentum; it is left out
where lightly is not installed. Ours is the training loop's own step. The three take turns, and each is told with the page faults of its last step;
--give-back leaves glibc as it is, which hands every large tensor back to the kernel (see runtime.keep_freed_memory). What SelfPatch needs beyond DINO is counted on
both graphs, so the last ratio is of time to arithmetic.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from _common import head, interleaved, machine, median_ratio, table
from torch import nn

from sightline import runtime
from sightline.contracts import Batch
from sightline.methods.selfpatch import SelfPatch, SelfPatchRecipe, coco
from sightline.nn.encoder import Encoder
from sightline.progress import Meter
from sightline.recipe import CropSpec
from sightline.training.loop import Loop


def recipes(backbone: str, batch: int, num_crops: list[int], crop_px: list[int]) -> dict[str, SelfPatchRecipe]:
    base = coco()
    crops = CropSpec(crop_px=tuple(crop_px), num_crops=tuple(num_crops))
    base = replace(
        base,
        crops=crops,
        freeze_last_steps=0,
        model=replace(base.model, backbone=backbone, drop_path=0.0),
        image=replace(base.image, image_px=crop_px[0]),
        data=replace(base.data, images_per_batch=batch),
        train=replace(base.train, precision="fp32"),
    )
    dino = replace(base, patch_weight=0.0, model=replace(base.model, backbone_args=(), pooling="cls"))
    return {"DINO": dino, "SelfPatch": base}


class Lightly:
    """DINO of lightly's parts on timm's network."""

    def __init__(self, recipe: SelfPatchRecipe, batch: Batch) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules.heads import DINOProjectionHead
        from lightly.models.utils import update_momentum

        torch.manual_seed(0)
        self.crops, self.update, device = batch.crops, update_momentum, batch.images.device
        self.net = timm.create_model(recipe.model.backbone, num_classes=0, dynamic_img_size=True, img_size=recipe.image.image_px).to(device)
        self.head = DINOProjectionHead(self.net.num_features, 2048, 256, recipe.num_prototypes, norm_last_layer=True).to(device)
        self.teacher, self.teacher_head = (
            copy.deepcopy(self.net),
            DINOProjectionHead(self.net.num_features, 2048, 256, recipe.num_prototypes),
        )
        self.teacher_head.to(device).load_state_dict(self.head.state_dict())
        for part in (self.teacher, self.teacher_head):
            part.requires_grad_(False)
        self.loss = DINOLoss(output_dim=recipe.num_prototypes, teacher_temp=0.04, warmup_teacher_temp_epochs=0).to(device)
        learning = [*self.net.parameters(), *self.head.parameters()]
        self.learning = [parameter for parameter in learning if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=recipe.train.lr, weight_decay=recipe.train.weight_decay, fused=True)

    def step(self) -> None:
        own: Any = (self.net, self.teacher), (self.head, self.teacher_head)
        for student, teacher in own:
            self.update(student, teacher, 0.996)
        first = self.crops[0]
        with torch.no_grad():
            taught = self.teacher_head(self.teacher(first.flatten(0, 1))).chunk(len(first))
        said = self.head(torch.cat([self.net(group.flatten(0, 1)) for group in self.crops])).chunk(sum(map(len, self.crops)))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(list(taught), list(said), epoch=1).backward()
        for parameter in self.learning:
            nn.utils.clip_grad_norm_(parameter, 3.0)
        self.optimizer.step()


def ours(recipe: SelfPatchRecipe, batch: Batch, folder: Path, device: torch.device) -> tuple[Loop, Callable[[], object]]:
    torch.manual_seed(0)
    loop = Loop(
        SelfPatch(recipe, Encoder(recipe.model, recipe.image)), lambda first: itertools.repeat(batch), recipe.train, folder, device=device
    )
    stream, meter = itertools.repeat(batch), Meter()
    return loop, lambda: loop._step(stream, meter)


def waiting(step: Callable[[], object], device: torch.device, faults: dict[str, int], name: str) -> Callable[[], None]:
    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device, generator = torch.device(options.device), torch.Generator().manual_seed(0)
    sizes = zip(options.crops, options.image_px, strict=True)
    crops = tuple(torch.randn(num, options.batch, 3, px, px, generator=generator) for num, px in sizes)
    batch = Batch.of_crops(crops, torch.zeros(options.batch, dtype=torch.int64), torch.arange(options.batch)).to(device)
    made = recipes(options.backbone, options.batch, options.crops, options.image_px)
    steps: dict[str, Callable[[], None]] = {}
    loops: dict[str, Loop] = {}
    faults: dict[str, int] = {}
    if options.give_back:
        runtime.keep_freed_memory = lambda where: None
    try:
        steps["lightly"] = waiting(Lightly(made["DINO"], batch).step, device, faults, "lightly")
    except ImportError:
        print("lightly is not installed: measured without it (pip install lightly)")
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in made.items():
            loops[name], step = ours(recipe, batch, Path(folder), device)
            steps[name] = waiting(step, device, faults, name)
        interleaved(steps, 1)  # warm; the loop counts its FLOPs on this one
        times = interleaved(steps, options.repeats)
    flops = {name: loop.progress.compute.flops_per_step for name, loop in loops.items()}
    walls = {name: [run.wall_s for run in runs] for name, runs in times.items()}
    cpus = {name: [run.cpu_s for run in runs] for name, runs in times.items()}
    answer: dict[str, Any] = {
        "median_ms": {name: 1000 * statistics.median(values) for name, values in walls.items()},
        "page_faults": faults,
        "tflops": {name: value / 1e12 for name, value in flops.items()},
        "selfpatch_over_dino": {
            "flops": flops["SelfPatch"] / flops["DINO"],
            "wall": median_ratio(walls["SelfPatch"], walls["DINO"]),
            "cpu": median_ratio(cpus["SelfPatch"], cpus["DINO"]),
        },
    }
    if "lightly" in walls:
        answer["dino_over_lightly"] = {
            "wall": median_ratio(walls["DINO"], walls["lightly"]),
            "cpu": median_ratio(cpus["DINO"], cpus["lightly"]),
        }
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crops", type=int, nargs=2, default=[2, 6])
    parser.add_argument("--image-px", type=int, nargs=2, default=[224, 96])
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="a ViT of timm's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--give-back", action="store_true", help="let freed memory go back to the kernel")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    facts, found = machine(), measure(options)
    if options.json:
        print(json.dumps({"machine": facts, "backbone": options.backbone, "batch": options.batch, **found}, indent=2))
        return
    print(head(__doc__.splitlines()[0], facts))
    rows = [
        (name, f"{ms:.0f}", f"{found['tflops'][name]:.3f}" if name in found["tflops"] else "", f"{found['page_faults'][name]:,}")
        for name, ms in found["median_ms"].items()
    ]
    print(table((f"a step of {options.batch} images, {options.backbone}", "ms", "TFLOP", "page faults"), rows))
    for name in ("dino_over_lightly", "selfpatch_over_dino"):
        if name in found:
            print(f"{name.replace('_', ' ')}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in found[name].items()))


if __name__ == "__main__":
    main()
