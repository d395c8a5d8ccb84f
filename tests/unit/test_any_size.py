"""Tokens at any resolution, and positions that follow as the DINO code has it."""

import copy

import pytest
import torch

from sightline.errors import ModelError
from sightline.nn.encoder import Encoder
from sightline.nn.positions import resize_positions_as_dino
from sightline.recipe import ImageSpec, ModelSpec

VIT = (("embed_dim", 24), ("depth", 2), ("num_heads", 2))
SWIN = "swin_tiny_patch4_window7_224"


def encoder(**changes):
    torch.manual_seed(0)
    given = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "weights": "random"} | changes
    return Encoder(ModelSpec(**given), ImageSpec(image_px=64)).eval()


def test_tokens_of_another_size_have_its_grid_and_those_of_its_own_stay():
    made, image = encoder(), torch.randn(2, 3, 64, 64)
    before = made.tokens(image).patches
    found = made.tokens(torch.randn(2, 3, 96, 160))
    assert found.grid == (6, 10)
    assert found.patches.shape == (2, 60, 24)
    assert torch.equal(made.tokens(image).patches, before)


def test_a_side_that_is_no_multiple_of_the_patch_is_told():
    with pytest.raises(ModelError, match="patches of 16 px: the sides of an image must be multiples, got 100 x 96"):
        encoder().tokens(torch.randn(1, 3, 96, 100))


def test_a_swin_takes_any_size():
    swin = encoder(backbone=SWIN, backbone_args=(("embed_dim", 12), ("depths", (1, 1, 1, 1)), ("num_heads", (1, 1, 2, 2))), pooling="mean")
    assert swin.tokens(torch.randn(1, 3, 96, 128)).grid == (3, 4)


ONE_SIZE = {
    "vit_relpos_tiny_patch8_64": VIT,
    "mixer_s16_224": (),
    "tnt_s_legacy_patch16_224": (),
    "levit_128s": (),
    "maxvit_rmlp_pico_rw_256": (),
}


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_network_of_one_size_says_so_at_another(name):
    made = encoder(backbone=name, backbone_args=ONE_SIZE[name], pooling="mean")
    assert len(made.tokens(torch.zeros(1, 3, 64, 64)).patches) == 1
    with pytest.raises(ModelError, match=f"^{name} was made for images of 64 px and does not take 96 x 96 .*plain ViT") as caught:
        made.tokens(torch.zeros(1, 3, 96, 96))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "arguments", "grid"), [("pvt_v2_b0", (), (3, 4)), ("xcit_nano_12_p16_224", VIT, (6, 8))])
def test_networks_that_take_any_size_by_themselves_are_let(name, arguments, grid):
    made = encoder(backbone=name, backbone_args=arguments, pooling="mean")
    own = made.tokens(torch.ones(1, 3, 64, 64)).patches
    found = made.tokens(torch.randn(1, 3, 96, 128))
    assert found.grid == grid
    assert found.patches.isfinite().all()
    assert torch.equal(made.tokens(torch.ones(1, 3, 64, 64)).patches, own)


def test_a_network_with_several_sets_of_tokens_is_refused():
    with pytest.raises(ModelError, match="CoaT gives several sets of tokens"):
        encoder(backbone="coat_tiny", backbone_args=(), pooling="mean").tokens(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("you tried to allocate 9 bytes: not enough memory"), KeyError("a slip")])
def test_want_of_memory_and_slips_are_not_taken_for_a_refusal(error, monkeypatch):
    made = encoder()

    def fail(images):
        raise error

    monkeypatch.setattr(made.backbone, "forward", fail)
    with pytest.raises(type(error)):
        made.tokens(torch.zeros(1, 3, 96, 96))


def test_at_its_own_size_no_error_is_taken_for_a_refusal():
    made = encoder()
    made.backbone.net.pos_embed = torch.nn.Parameter(torch.zeros(1, 3, 24))
    with pytest.raises(RuntimeError, match="size of tensor"):
        made.tokens(torch.zeros(1, 3, 64, 64))


def test_positions_follow_as_in_the_dino_code_and_survive_a_copy():
    made = encoder(positions_at="dino")
    twin = copy.deepcopy(made)
    with torch.no_grad():
        twin.backbone.net.pos_embed += 1.0
    image = torch.randn(1, 3, 96, 96)
    assert not torch.equal(made.tokens(image).patches, twin.tokens(image).patches)
    of_timm = encoder()
    assert torch.equal(made.tokens(torch.ones(1, 3, 64, 64)).patches, of_timm.tokens(torch.ones(1, 3, 64, 64)).patches)
    assert not torch.allclose(made.tokens(image).patches, of_timm.tokens(image).patches, atol=1e-4)


def test_dino_positions_keep_the_prefix_and_a_flat_table():
    table = torch.cat([torch.full((1, 1, 3), 7.0), torch.ones(1, 16, 3)], dim=1)
    moved = resize_positions_as_dino(table, (3, 5), 1)
    assert moved.shape == (1, 16, 3)
    assert torch.equal(moved[:, :1], table[:, :1])
    assert torch.allclose(moved[:, 1:], torch.ones(1, 15, 3), atol=1e-5)
