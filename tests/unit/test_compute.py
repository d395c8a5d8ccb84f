"""What a run has cost: FLOPs against a count by hand, cumulative over resumes, and a counter that changes nothing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.contracts import Batch
from sightline.data.records import of_labels
from sightline.methods.irt import IRT, IRTRecipe
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec, TrainSpec
from sightline.training.compute import Compute
from sightline.training.loop import Loop, Progress

B, PX, PATCH, DEPTH, D, HIDDEN = 4, 16, 8, 2, 16, 64
NUM_PATCHES = (PX // PATCH) ** 2
T = NUM_PATCHES + 1


def model(backbone: str = "vit_tiny_patch16_224", *arguments: tuple[str, int]) -> ModelSpec:
    tiny = (("patch_size", PATCH), ("depth", DEPTH), ("embed_dim", D), ("num_heads", 2))
    return ModelSpec(backbone=backbone, backbone_args=arguments or tiny, weights="random", pooling="mean")


def loop(folder: Path, steps: int, accumulate: int = 1, *, resume: bool = False) -> Loop:
    recipe = IRTRecipe(
        model=model(),
        image=ImageSpec(image_px=PX),
        data=DataSpec(classes_per_batch=2, images_per_class=2),
        memory=0.0,
        koleo_weight=0.0,
        train=TrainSpec(steps=steps, accumulate=accumulate, log_every=1, precision="fp32"),
    )
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    method = IRT(recipe, Encoder(recipe.model, recipe.image), of_labels(np.arange(10) // 2))

    def batches(first: int):
        for number in range(first, 100):
            generator = torch.Generator().manual_seed(number)
            yield Batch(torch.randn(B, 3, PX, PX, generator=generator), torch.tensor([0, 0, 1, 1]), torch.arange(B))

    return Loop(method, batches, recipe.train, folder, device=torch.device("cpu"), resume=resume)


def forward_by_hand() -> tuple[int, int, int]:
    """FLOPs of the patch embedding, of all other matrix products and of attention, forward."""
    embedding = 2 * B * NUM_PATCHES * D * 3 * PATCH**2
    linear = DEPTH * 2 * B * T * (D * 3 * D + D * D + D * HIDDEN + HIDDEN * D)
    attention = DEPTH * 2 * (2 * B * T * T * D)  # scores, then the weighted sum
    return embedding, linear, attention


def test_the_flops_of_a_tiny_vit_are_those_counted_by_hand(tmp_path: Path) -> None:
    embedding, linear, attention = forward_by_hand()
    # Backward: the embedding has a gradient for its weight alone, a product for both factors; attention first takes its scores again.
    network = 2 * embedding + 3 * linear + attention + attention * 5 // 2
    # IRT's similarities, B x B of width D: forward, backward to each factor, and that once more for the noise of the gradients.
    by_hand = network + 5 * 2 * B * B * D
    run = loop(tmp_path / "a", 3).run()
    assert (run.compute.flops_per_step, run.compute.flops, run.compute.images) == (by_hand, 3 * by_hand, 3 * B)
    run = loop(tmp_path / "b", 3, accumulate=2).run()
    assert (run.compute.flops, run.compute.images) == (6 * by_hand, 6 * B)


def test_a_resumed_run_adds_to_what_it_had_cost(tmp_path: Path) -> None:
    first = loop(tmp_path / "run", 2).run()
    second = loop(tmp_path / "run", 5, resume=True).run()
    whole = loop(tmp_path / "whole", 5).run()
    assert (second.compute.flops, second.compute.images) == (whole.compute.flops, whole.compute.images)
    assert second.compute.device_s > first.compute.device_s > 0
    assert Progress.of({"step": 3, "best": 0.5, "best_step": 2, "epoch": -1}).compute == Compute()  # a checkpoint from before it was kept


def test_counting_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = loop(tmp_path / "counted", 2)
    counted.run()
    monkeypatch.setattr(Compute, "counting", lambda self, num_devices: nullcontext())
    plain = loop(tmp_path / "plain", 2)
    assert plain.run().compute.flops == 0
    for name, value in plain.method.state_dict().items():
        assert torch.equal(value, counted.method.state_dict()[name]), name


def test_several_devices_count_for_all_of_them() -> None:
    found = Compute()
    with found.counting(3):
        torch.ones(2, 5) @ torch.ones(5, 7)
    assert found.flops_per_step == 3 * 2 * 2 * 5 * 7


@pytest.mark.parametrize(
    ("backbone", "family"),
    [
        ("vit_tiny_patch16_224", "vit"),
        ("deit_tiny_distilled_patch16_224", "vit"),
        ("vit_tiny_r_s16_p8_224", "hybrid"),
        ("resnet10t", "resnet"),
        ("resnetv2_50", "resnet"),
        ("swin_tiny_patch4_window7_224", "swin"),
        ("convnext_atto", "convnext"),
    ],
)
def test_a_network_tells_its_family(backbone: str, family: str) -> None:
    import timm

    from sightline.nn.backbone import Backbone

    with torch.device("meta"):
        assert Backbone(timm.create_model(backbone, num_classes=0)).family == family


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_the_gradients_of_a_convolution_take_twice_its_forward_pass_whatever_its_groups(kind: type[torch.nn.Module], groups: int) -> None:
    layer, images = kind(6, 6, 3, padding=1, groups=groups, bias=False), torch.randn(2, 6, 8, 8, requires_grad=True)
    compute = Compute()
    with compute.counting(1):
        layer(images).sum().backward()
    assert compute.flops_per_step == 3 * 2 * (2 * 8 * 8) * 6 * (6 // groups) * 9
