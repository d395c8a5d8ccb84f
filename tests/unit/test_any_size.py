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


def test_a_swin_takes_any_size_and_a_network_of_one_size_says_so():
    swin = encoder(backbone=SWIN, backbone_args=(("embed_dim", 12), ("depths", (1, 1, 1, 1)), ("num_heads", (1, 1, 2, 2))), pooling="mean")
    assert swin.tokens(torch.randn(1, 3, 96, 128)).grid == (3, 4)
    relative = encoder(backbone="vit_relpos_tiny_patch8_64")
    with pytest.raises(ModelError, match="images of one size only"):
        relative.tokens(torch.randn(1, 3, 96, 96))


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
