"""Label propagation on small grids worked by hand: the window, the closest few, the first frame kept, ties."""

from __future__ import annotations

import math

import pytest
import torch

from sightline.evaluation.dense.propagation import Propagation

EYE = torch.eye(4)


def one_hot(*rows: tuple[int, ...], num: int = 2) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(rows), num).permute(2, 0, 1).float()


def test_a_patch_takes_the_label_of_the_one_like_it() -> None:
    memory = Propagation((2, 2), topk=1)
    memory.see(EYE, one_hot((0, 1), (1, 0)))
    moved = EYE[[1, 0, 3, 2]]  # each row of patches has changed places
    assert memory.labels_of(moved).tolist() == one_hot((1, 0), (0, 1)).tolist()


def test_the_closest_few_are_weighted_by_their_similarity() -> None:
    memory = Propagation((1, 3), topk=2, temperature=0.5)
    sources = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    memory.see(sources, one_hot((0, 1, 2), num=3))
    asking = torch.tensor([[0.8, 0.6]]).expand(3, 2) * 5  # of any length
    first, second = math.exp(0.8 / 0.5), math.exp(0.6 / 0.5)
    expected = torch.tensor([first, second, 0.0]) / (first + second)  # the third is never among the two
    found = memory.labels_of(asking)
    torch.testing.assert_close(found[:, 0], expected[:, None].expand(3, 3))


def test_the_window_reaches_no_further_than_its_radius() -> None:
    labels = one_hot((0, 1, 2), (3, 4, 5), (6, 7, 8), num=9)
    features = torch.zeros(9, 2)
    features[:, 0] = 1.0
    features[8] = torch.tensor([0.0, 1.0])
    asking = torch.tensor([[0.0, 1.0]]).expand(9, 2)  # everybody looks for the patch in the last corner
    near, far = (Propagation((3, 3), topk=1, radius=radius) for radius in (1, 2))
    for memory in (near, far):
        memory.see(features, labels)
    assert far.labels_of(asking)[8].tolist() == torch.ones(3, 3).tolist()
    # With a radius of 1 only the four patches around reach it; in the others, all that they reach are as good and share.
    found = near.labels_of(asking)
    assert found[8].tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0]))


def test_a_radius_of_zero_is_the_whole_frame() -> None:
    memory = Propagation((1, 40), topk=1, radius=0)
    features = torch.eye(40)
    memory.see(features, one_hot(tuple(int(place == 39) for place in range(40))))
    asking = features[39:].expand(40, 40)
    assert memory.labels_of(asking)[1].tolist() == [[1.0] * 40]


def test_the_first_frame_and_the_latest_are_remembered() -> None:
    memory = Propagation((1, 1), context=2, topk=1)
    for number in range(5):
        memory.see(torch.eye(5)[number : number + 1], one_hot((number,), num=5))
    frames = [memory.labels_of(torch.eye(5)[number : number + 1])[:, 0, 0] for number in range(5)]
    assert [frames[number].argmax().item() for number in (0, 3, 4)] == [0, 3, 4]
    for forgotten in (1, 2):  # like none of those that are left: they tie
        torch.testing.assert_close(frames[forgotten], torch.tensor([1 / 3, 0, 0, 1 / 3, 1 / 3]))


def test_without_context_only_the_first_frame_counts() -> None:
    memory = Propagation((1, 1), context=0)
    memory.see(torch.ones(1, 2), one_hot((1,)))
    memory.see(torch.ones(1, 2), one_hot((0,)))
    assert memory.labels_of(torch.ones(1, 2))[:, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("grid", "radius"), [((5, 61), 3), ((17, 9), 4), ((3, 90), 12)])
def test_it_equals_a_dense_search(grid: tuple[int, int], radius: int) -> None:
    torch.manual_seed(0)
    num = grid[0] * grid[1]
    frames, asking, labels = torch.randn(3, num, 8), torch.randn(num, 8), torch.rand(3, 2, *grid)
    memory = Propagation(grid, context=2, radius=radius)
    for features, of_frame in zip(frames, labels, strict=True):
        memory.see(features, of_frame)
    units = torch.nn.functional.normalize(frames, dim=2)
    similarity = torch.nn.functional.normalize(asking, dim=1) @ units.transpose(1, 2)  # [3, N, N]
    place = torch.stack([torch.arange(num) // grid[1], torch.arange(num) % grid[1]])
    far = (place[:, :, None] - place[:, None]).abs().amax(dim=0) > radius
    all_of = similarity.masked_fill(far, -torch.inf).permute(1, 0, 2).flatten(1)
    best = all_of.topk(5, dim=1)
    taken = labels.flatten(2).transpose(1, 2).flatten(0, 1)[best.indices]  # [N, 5, 2]
    expected = (torch.softmax(best.values / 0.1, dim=1)[:, :, None] * taken).sum(dim=1).T.view(2, *grid)
    torch.testing.assert_close(memory.labels_of(asking), expected, atol=1e-5, rtol=0)
