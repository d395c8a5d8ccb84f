"""Fine-tuned segmentation: crops and their masks, the loss by hand, what learns and what does not, and a head that is kept with its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sightline import catalog, runtime
from sightline.contracts import SegmentationBatch
from sightline.data.images import BadFiles
from sightline.data.records import of_labels
from sightline.data.segments import Cutting, resized_short, training_crops
from sightline.data.sets.segmentation import VOID, SegmentationSet, read
from sightline.errors import DataError, ModelError, RecipeError, UsageError
from sightline.evaluation.dense.segment import Segment as Protocol
from sightline.evaluation.dense.segment import labeller
from sightline.methods.segment import Segment, SegmentRecipe, pixel_cross_entropy
from sightline.nn import model_folder, projection
from sightline.nn.encoder import Encoder, with_scales_of
from sightline.nn.projection import GlobalMapNorm
from sightline.nn.pyramid import Levels
from sightline.nn.segmenter import Segmenter, SegmenterSpec
from sightline.recipe import ImageSpec, ModelSpec, TrainSpec
from sightline.settings import override
from sightline.training.optim import rate_at
from sightline.workflows import training
from sightline.workflows.segmenting import read_lesson

VIT = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))
COLOURS = np.array([[200, 60, 60], [60, 60, 200]])


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red left of blue, a void column between them; the last training mask is damaged."""
    root = tmp_path_factory.mktemp("garden")
    random = np.random.default_rng(0)
    for part, num in (("train", 9), ("val", 3)):
        for number in range(num):
            mask = np.zeros((40, 52), np.uint8)
            edge = int(random.integers(14, 38))
            mask[:, edge:] = 1
            pixels = COLOURS[mask] + random.normal(0, 15, (40, 52, 3))
            mask[:, edge] = 255
            for kind, values in (("images", pixels), ("masks", mask)):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(root / kind / part / f"{number}.png")
    (root / "masks" / "train" / "8.png").write_bytes(b"not a mask")
    (root / "classes.txt").write_text("rose\nsky\n")
    return root


def recipe(*settings: str) -> SegmentRecipe:
    small = catalog.find("recipes", "segment/small")()
    tiny = ["backbone=vit_tiny_patch16_224", "weights=random", "image_px=32", "resize_px=32", "pyramid_channels=16", "head_channels=16"]
    changed: SegmentRecipe = override(
        replace(small, model=replace(small.model, backbone_args=VIT)), [*tiny, "images_per_batch=4", *settings]
    )
    return changed


def method(*settings: str, num_classes: int = 2) -> Segment:
    torch.manual_seed(0)
    chosen = recipe(*settings)
    return Segment(chosen, Encoder(chosen.model, chosen.image), of_labels(np.arange(num_classes)))


def crops(
    data: SegmentationSet, bad_files: BadFiles, *, steps: int = 3, rank: int = 0, world_size: int = 1, distort: bool = True
) -> list[SegmentationBatch]:
    cutting, spec = Cutting(crop_px=32, short_px=32, distort=distort), ImageSpec(image_px=32, resize_px=32)
    how = {"start_step": 1, "num_steps": steps, "seed": 3, "num_threads": 2, "rank": rank, "world_size": world_size}
    return list(training_crops(data, data.train, cutting, spec, batch=4, bad_files=bad_files, **how))  # type: ignore[arg-type]


# --- crops --------------------------------------------------------------------------------------------------------------------------


def test_crops_show_what_their_masks_say_and_end_in_void_of_the_mean_colour(garden: Path) -> None:
    bad_files = BadFiles()
    batches = crops(read(garden), bad_files, steps=6, distort=False)
    assert [len(batch) for batch in batches] == [4] * 6
    images, masks = torch.cat([batch.images for batch in batches]), torch.cat([batch.masks for batch in batches])
    red = images[:, 0] > images[:, 2]
    counted = masks != VOID
    assert ((red == (masks == 0))[counted]).float().mean() > 0.95  # but at the blurred edge
    beyond = (images.abs() < 0.02).all(dim=1)  # half a level of 255
    assert beyond.any()
    assert (masks[beyond] == VOID).all()
    assert [Path(path).name for path, _ in bad_files.items()] == ["8.png"]


def test_two_processes_share_the_batches_that_one_would_see(garden: Path) -> None:
    data = read(garden)
    whole, halves = crops(data, BadFiles()), [crops(data, BadFiles(), rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.masks, torch.cat([part.masks for part in parts]))


def test_a_strip_is_resized_by_its_long_side() -> None:
    assert tuple(resized_short(Image.new("RGB", (400, 100)), 50).shape) == (3, 50, 200)
    assert tuple(resized_short(Image.new("RGB", (2_000, 100)), 50).shape) == (3, 10, 200)
    assert tuple(resized_short(Image.new("RGB", (1, 5_000)), 50).shape) == (3, 200, 1)


def test_a_batch_has_a_class_for_every_pixel() -> None:
    rows = torch.arange(2)
    with pytest.raises(ValueError, match="masks \\[B, H, W\\]"):
        SegmentationBatch(torch.zeros(2, 3, 8, 8), rows, rows, masks=torch.zeros(2, 4, 4).long())
    assert isinstance(
        SegmentationBatch(torch.zeros(2, 3, 8, 8), rows, rows, masks=torch.zeros(2, 8, 8).long()).to(torch.device("cpu")), SegmentationBatch
    )


# --- the method -----------------------------------------------------------------------------------------------------------------------


def test_void_costs_nothing_and_counts_in_the_mean() -> None:
    logits = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    masks = torch.tensor([[[0, 1], [VOID, 1]]])
    right, wrong = (float(torch.log1p(torch.tensor(sign).exp())) for sign in (-1.0, 1.0))
    assert float(pixel_cross_entropy(logits, masks)) == pytest.approx((wrong + 2 * right) / 4)


@pytest.mark.parametrize(
    "settings", [["head=fpn"], ["head=upernet", "taps=late", "aux_weight=0.4", "head_norm=batch"], ["taps=last"]], ids=str
)
def test_it_learns_to_tell_red_from_blue(settings: list[str], garden: Path) -> None:
    learner = method(*settings, "lr=0.003", "dropout=0")
    learner.learner.segmenter.class_names = ("rose", "sky")  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(learner.parameter_groups(replace(learner.recipe.train, lr=0.003)))
    untrained = Protocol().run(learner.encoder(), garden, BadFiles(), precision="fp32").metrics["miou"]
    for step, batch in enumerate(crops(read(garden), BadFiles(), steps=40)):
        terms = learner.train().loss(batch, step)
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert Protocol().run(learner.encoder(), garden, BadFiles(), precision="fp32").metrics["miou"] > max(0.9, untrained)
    if "aux_weight=0.4" in settings:
        assert float(terms.total.detach()) == pytest.approx(float(terms.terms["cross_entropy"] + 0.4 * terms.terms["side"]))


def test_what_no_logit_depends_on_does_not_learn() -> None:
    names = lambda learner: {name for name, value in learner.learner.named_parameters() if not value.requires_grad}  # noqa: E731
    assert names(method()) == {"backbone.net.norm.weight", "backbone.net.norm.bias"}
    assert names(method("taps=last")) == set()  # which begins behind the norm
    assert all(parameter.grad is None for parameter in method().parameters())


def test_a_small_batch_leaves_the_statistics_of_a_backbone_alone() -> None:
    for settings, moved in (([], False), (["frozen=[]"], True)):
        torch.manual_seed(0)
        chosen = override(recipe(*settings), ["backbone=resnet10t", "backbone_args={}", "pooling=mean"])
        learner = Segment(chosen, Encoder(chosen.model, chosen.image), of_labels(np.arange(2))).train()
        before = learner.learner.backbone.net.bn1.running_mean.clone()
        rows = torch.arange(2)
        learner.loss(SegmentationBatch(torch.randn(2, 3, 32, 32), rows, rows, masks=torch.zeros(2, 32, 32).long()), 0)
        assert torch.equal(before, learner.learner.backbone.net.bn1.running_mean) != moved


def test_settings_that_nothing_would_heed_are_refused() -> None:
    for settings, words in (
        (["images_per_batch=1"], "images_per_batch to 2 or more"),
        (["sampling=pk"], "set sampling=shuffle"),
        (["jitter=0.3"], "of augment only flip"),
        (["pca=8"], "sightline reduce"),
        (["min_scale=3"], "at most max_scale"),
        (["slide_px=-2"], "slide_px is 0 or more"),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe(*settings)
    with pytest.raises(ModelError, match="set a larger image_px"):
        method("image_px=24", "resize_px=24", "backbone_args=patch_size=4,depth=2,embed_dim=16,num_heads=2")


def test_blocks_are_those_of_the_published_backbones() -> None:
    encoder = Encoder(
        ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=(("embed_dim", 12), ("num_heads", 2)), weights="random"), ImageSpec()
    )
    assert Levels(encoder, "even", 8, GlobalMapNorm).blocks == [2, 5, 8, 11]  # SelfPatch, XCiT
    assert Levels(encoder, "late", 8, GlobalMapNorm).blocks == [3, 5, 7, 11]  # BEiT, iBOT
    levels = Levels(encoder, "even", 8, GlobalMapNorm)
    assert [type(scale).__name__ for scale in levels.scales] == ["Sequential", "Sequential", "Identity", "MaxPool2d"]
    assert [type(layer) for layer in levels.scales[0]] == [nn.ConvTranspose2d, GlobalMapNorm, nn.GELU, nn.ConvTranspose2d]


PUBLISHED = {
    "segment/fpn": {  # alinlab/SelfPatch segmentation/configs/semfpn_vit-s16_512x512_40k_ade20k.py, XCiT's batch
        "train.steps": 40_000, "train.lr": 6e-5, "train.weight_decay": 0.01, "train.warmup_steps": 1_500, "train.schedule": "linear",
        "data.images_per_batch": 16, "model.drop_path": 0.1, "segmenter.head_channels": 128, "segmenter.pyramid_channels": 256,
        "segmenter.dropout": 0.1, "segmenter.slide_px": 0, "image.image_px": 512, "min_scale": 0.5, "max_scale": 2.0, "most_of_one": 0.75,
    },
    "segment/upernet": {  # bytedance/ibot evaluation/semantic_segmentation/configs/upernet/vit_small_512_ade20k_160k_ms.py
        "train.steps": 160_000, "train.lr": 3e-5, "train.weight_decay": 0.05, "train.layer_decay": 0.9, "train.warmup_steps": 1_500,
        "train.schedule": "linear", "data.images_per_batch": 16, "model.drop_path": 0.1, "segmenter.head_channels": 384, "segmenter.taps": "late",
        "segmenter.slide_px": 341, "aux_weight": 0.4, "image.image_px": 512,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_settings(name: str) -> None:
    from sightline.settings import flatten

    found = dict(flatten(catalog.find("recipes", name)()))
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_a_linear_rate_falls_from_the_first_step_under_its_warm_up() -> None:
    spec = TrainSpec(steps=100, warmup_steps=10, schedule="linear")
    assert [rate_at(step, spec) for step in (0, 4, 9, 50, 99)] == pytest.approx([0.1, 0.5 * 0.96, 0.91, 0.5, 0.01])
    assert rate_at(50, replace(spec, final_lr=0.2)) == pytest.approx(0.6)


def test_norms_of_maps_are_torchs_and_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, others = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    mine, theirs = GlobalMapNorm(4).train(), nn.BatchNorm2d(4).train()
    assert torch.equal(mine(maps), theirs(maps))
    assert torch.equal(mine.eval()(maps), theirs.eval()(maps))
    whole = torch.cat([maps, others])
    moments = iter([others.sum(dim=(0, 2, 3)), (others - whole.mean(dim=(0, 2, 3), keepdim=True)).square().sum(dim=(0, 2, 3))])
    monkeypatch.setattr(projection, "world_size", lambda: 2)
    monkeypatch.setattr(projection, "sum_over_ranks", lambda own: own + next(moments))  # what the process with the others adds
    torch.testing.assert_close(GlobalMapNorm(4).train()(maps), nn.BatchNorm2d(4).train()(whole)[:3])


# --- a head that is kept --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Encoder:
    encoder = method(num_classes=2).encoder().eval()
    encoder.segmenter.class_names = ("sky", "rose")  # type: ignore[assignment]
    return encoder


def labelled(encoder: Encoder, data: SegmentationSet, image: Image.Image, *, slide_px: int = 0, short_px: int = 32) -> np.ndarray:
    return labeller(encoder, data, short_px=short_px, slide_px=slide_px, batch=2, precision="fp32")([image])[0]


def test_a_model_keeps_its_head_and_says_the_same_again(trained: Encoder, garden: Path, tmp_path: Path) -> None:
    model_folder.save(trained, tmp_path)
    again, data, image = model_folder.load(tmp_path), read(garden), Image.open(garden / "images" / "val" / "0.png")
    assert isinstance(again.segmenter, Segmenter)
    assert (again.segmenter.class_names, again.fingerprint) == (("sky", "rose"), trained.fingerprint)
    assert (labelled(again, data, image) == labelled(trained, data, image)).all()
    assert (model_folder.has_segmenter(tmp_path), model_folder.has_segmenter("timm:resnet18")) == (True, False)
    scaled = with_scales_of(again, replace(again.model, scales=(1.0, 0.5)))
    assert (labelled(scaled, data, image) == labelled(trained, data, image)).all()
    with pytest.raises(ModelError, match="no segmentation head: train one"):
        Encoder(trained.model, trained.image).segmentation(torch.zeros(1, 3, 32, 32))


def test_classes_are_matched_by_name(trained: Encoder, garden: Path) -> None:
    data, image = read(garden), Image.open(garden / "images" / "val" / "0.png")
    turned = replace(data, class_names=("sky", "rose"))
    assert (labelled(trained, data, image) == 1 - labelled(trained, turned, image)).all()
    with pytest.raises(DataError, match="1 classes that the model's head does not know, such as 'moss'"):
        labelled(trained, replace(data, class_names=("rose", "moss")), image)
    only = replace(data, class_names=("rose",), class_of=np.minimum(data.class_of, 0))
    assert (labelled(trained, only, image) == 0).all()  # what the head alone knows is guessed nowhere


def test_padding_and_windows_change_nothing_where_they_need_not(trained: Encoder, garden: Path) -> None:
    data, image = read(garden), Image.open(garden / "images" / "val" / "0.png").convert("RGB")
    square = image.resize((32, 32))
    assert labelled(trained, data, image, short_px=37).shape == (40, 52)  # no multiple of the patch
    assert (labelled(trained, data, square) == labelled(trained, data, square, slide_px=20)).all()  # one window is the image
    whole, windows = labelled(trained, data, image), labelled(trained, data, image, slide_px=7)
    assert (whole == windows).mean() > 0.5
    assert (whole != windows).any()


def test_the_protocol_takes_test_images_where_there_are_some_and_needs_a_head(trained: Encoder, garden: Path) -> None:
    found = Protocol().run(trained, garden, BadFiles(), precision="fp32")
    assert found.settings["part"] == "val"
    assert found.counts == {"images": 3}
    assert set(found.metrics) == {"miou", "pixel_accuracy"}
    with pytest.raises(ModelError, match="or measure in-context"):
        Protocol().run(Encoder(trained.model, trained.image), garden, BadFiles())
    with pytest.raises(UsageError, match="slide_px is -1 or more"):
        Protocol(slide_px=-2)


# --- what is learnt from --------------------------------------------------------------------------------------------------------------


def test_val_chooses_where_there_is_a_test_part_and_training_images_where_there_is_none(garden: Path, tmp_path: Path) -> None:
    held = read_lesson(garden, recipe("validation=0.3"), BadFiles())
    assert (len(held.learning), len(held.validation)) == (6, 3)
    assert {pair.image.parent.name for pair in held.validation} == {"train"}
    assert not set(held.learning) & set(held.validation)
    assert not read_lesson(garden, recipe("validation=0"), BadFiles()).validation
    less, more = (set(read_lesson(garden, recipe("validation=0", f"share={share}"), BadFiles()).learning) for share in (0.3, 0.6))
    assert less < more
    assert len(less) == 3
    for part in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (tmp_path / kind / part).mkdir(parents=True)
            (tmp_path / kind / part / "0.png").write_bytes((garden / kind / "val" / "0.png").read_bytes())
    (tmp_path / "classes.txt").write_text("rose\nsky\n")
    assert {pair.image.parent.name for pair in read_lesson(tmp_path, recipe(), BadFiles()).validation} == {"val"}
    assert Protocol().run(method().encoder().eval(), _renamed(tmp_path), BadFiles()).settings["part"] == "test"
    with pytest.raises(UsageError, match="dataset=cub holds no masks: take one of auto, ade20k"):
        read_lesson(garden, recipe("dataset=cub"), BadFiles())


def _renamed(root: Path) -> Path:
    """Return the set with its classes called as an untrained method calls them."""
    (root / "classes.txt").write_text("0\n1\n")
    return root


def test_the_measure_of_training_is_the_protocols(trained: Encoder, garden: Path) -> None:
    chosen = cast(SegmentRecipe, training.resolved(recipe("validation=0.3", "precision=fp32")))
    lesson = read_lesson(garden, chosen, BadFiles())
    validate = replace(lesson, validation=lesson.data.val).validate(chosen, BadFiles())
    assert validate is not None
    assert validate(trained).metrics == Protocol().run(trained, garden, BadFiles(), precision="fp32").metrics
    assert next(iter(lesson.batches(chosen, 0, runtime.ranks(), BadFiles()))).images.shape == (4, 3, 32, 32)
    assert SegmenterSpec() == catalog.find("recipes", "segment/fpn")().segmenter
