"""Batch norms over several processes are those of one with the whole batch: here two processes with the same rows, of which one is run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.nn import projection
from sightline.nn.class_attention import ClassAttention
from sightline.nn.projection import GlobalBatchNorm, GlobalMapNorm, PrototypeHead


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "world_size", lambda: 2)
    monkeypatch.setattr(projection, "sum_over_ranks", lambda own: 2 * own)  # the other process has the same


def rows(*shape: int) -> torch.Tensor:
    return 2.0 + 3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def paired(ours: nn.BatchNorm1d | GlobalMapNorm, plain: nn.Module) -> None:
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(0.5, 2, 6))
        ours.bias.copy_(torch.linspace(-1, 1, 6))
    plain.load_state_dict(ours.state_dict())


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("shape", [(5, 6), (2, 4, 6)])
def test_rows_are_normalised_by_the_moments_of_all_processes(shape: tuple[int, ...]) -> None:
    ours, plain, given = GlobalBatchNorm(6), nn.BatchNorm1d(6), rows(*shape)
    paired(ours, plain)
    for _ in range(3):
        found = ours(given)
        wanted = plain(given.flatten(0, -2).repeat(2, 1))[: given.flatten(0, -2).shape[0]].view(shape)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(given), plain.eval()(given.flatten(0, -2)).view(shape), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("two_ranks")
def test_maps_are_normalised_over_the_places_of_all_processes() -> None:
    ours, plain, given = GlobalMapNorm(6), nn.BatchNorm2d(6), rows(3, 6, 4, 5)
    paired(ours, plain)
    for _ in range(2):
        torch.testing.assert_close(ours(given), plain(given.repeat(2, 1, 1, 1))[:3], rtol=1e-5, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(given), plain.eval()(given), rtol=1e-5, atol=1e-5)


def test_what_learns_begins_near_nothing_and_prototypes_keep_their_length() -> None:
    torch.manual_seed(0)
    for module in (PrototypeHead(200, 300, hidden=250, bottleneck=100), ClassAttention(192, 3)):
        for name, value in module.named_parameters():
            if name.endswith("bias"):
                assert not value.any(), name
            elif value.ndim == 2 and value.numel() > 10_000 and "last_layer" not in name:
                assert 0.018 < value.std().item() < 0.022, name
    head = PrototypeHead(20, 30, hidden=25, bottleneck=10)
    gains = head.last_layer.parametrizations.weight.original0
    assert not gains.requires_grad
    assert PrototypeHead(20, 30, hidden=25, bottleneck=10, learn_gains=True).last_layer.parametrizations.weight.original0.requires_grad
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(30))
    x = rows(4, 20)
    torch.testing.assert_close(head(x, 0.5), head(x) / 0.5)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head.mlp)


def test_one_process_is_torchs_own() -> None:
    for ours, plain, given in (
        (GlobalBatchNorm(6), nn.BatchNorm1d(6), rows(5, 6)),
        (GlobalMapNorm(6), nn.BatchNorm2d(6), rows(3, 6, 4, 5)),
    ):
        assert torch.equal(ours(given), plain(given))
        assert torch.equal(ours.running_var, plain.running_var)
        assert torch.equal(ours.eval()(given), plain.eval()(given))


def test_a_norm_of_maps_refuses_what_is_no_map() -> None:
    with pytest.raises(ValueError, match=r"maps are \[B, C, H, W\], got \(2, 6, 3\)"):
        GlobalMapNorm(6)(rows(2, 6, 3))
