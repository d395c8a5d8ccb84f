"""Mining: the hardest negatives are those of the plain walk down the list, and an epoch's tuples are what they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.contracts import FloatArray, IntArray
from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.nn.encoder import Encoder
from sightline.recipe import DataSpec, ImageSpec, ModelSpec
from sightline.search.mining import MinedTuples, hardest_negatives

MODEL = ModelSpec(
    backbone="vit_tiny_patch16_224", backbone_args=(("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2)), weights="random"
)


def unit(vectors: FloatArray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def walked(similarity: FloatArray, own: int, pool_labels: IntArray, num: int) -> list[int]:
    """The definition: from the most similar down, one image a class, none of the query's."""
    found: list[int] = []
    taken = {own}
    for row in np.argsort(-similarity, kind="stable"):
        if len(found) < num and pool_labels[row] not in taken:
            found.append(int(row))
            taken.add(int(pool_labels[row]))
    return found


def test_negatives_by_hand() -> None:
    queries = np.array([[1, 0], [0, 1]], np.float32)
    pool = unit(np.array([[10, 1], [9, 1], [1, 1], [1, 8], [8, 1], [1, 9]], np.float32))
    labels = np.array([0, 1, 2, 2, 1, 3], dtype=np.int64)
    # query 0, class 0: row 0 is its own class, then rows 1 (class 1), 4 (class 1 again), 2 (class 2)
    # query 1, class 7 (none of the pool's): rows 5 (class 3), 3 (class 2), then 2 (class 2 again), 4 and 1 (class 1)
    found = hardest_negatives(queries, np.array([0, 7], dtype=np.int64), pool, labels, 2)
    assert found.rows.tolist() == [[1, 2], [5, 3]]
    np.testing.assert_allclose(found.similarity[0], [9 / np.sqrt(82), np.sqrt(0.5)], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), num_classes=st.integers(4, 12), num=st.integers(1, 3), num_pool=st.integers(20, 60))
def test_the_maximum_of_each_class_is_where_the_walk_ends(seed: int, num_classes: int, num: int, num_pool: int) -> None:
    random = np.random.default_rng(seed)
    queries, pool = (unit(random.standard_normal((rows, 5)).astype(np.float32)) for rows in (7, num_pool))
    labels = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, num_pool - num_classes)]) * 3
    own = random.integers(0, num_classes + 2, 7) * 3
    found = hardest_negatives(queries, own, pool, labels, num)
    similarity = queries @ pool.T
    assert found.rows.tolist() == [walked(line, mine, labels, num) for line, mine in zip(similarity, own, strict=True)]
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, found.rows, axis=1), atol=1e-6)


def test_of_equal_rows_of_a_class_the_first_is_taken() -> None:
    pool, labels = np.tile(np.array([[0.6, 0.8]], np.float32), (90, 1)), np.random.default_rng(0).permutation(np.repeat(np.arange(3), 30))
    found = hardest_negatives(np.array([[1, 0]], np.float32), np.array([2]), pool, labels, 2)
    assert found.rows.tolist() == [[int(np.flatnonzero(labels == label)[0]) for label in (0, 1)]]


def test_a_pool_of_too_few_clusters_says_so() -> None:
    vectors = unit(np.ones((4, 2), np.float32))
    with pytest.raises(DataError, match="a pool of 4 images of 2 clusters is too small for 2 negatives of different other clusters"):
        hardest_negatives(vectors[:1], np.array([1]), vectors, np.array([0, 0, 1, 1]), 2)


# --- an epoch


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("places")
    random = np.random.default_rng(0)
    names = [f"{label}-{number}.png" for label in range(6) for number in range(3)]
    for name in names:
        Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(root / name)
    labels = np.repeat(np.arange(6), 3).astype(np.int64)
    pairs = np.array([[3 * label + first, 3 * label + second] for label in range(6) for first, second in ((0, 1), (2, 0))], dtype=np.int64)
    return Records(root, tuple(names), labels, tuple("abcdef"), positives=pairs)


def mined(records: Records, bad_files: BadFiles | None = None, **data: int) -> MinedTuples:
    spec = DataSpec(sampling="tuples", **({"tuples_per_batch": 2, "negatives": 3, "query_size": 10, "pool_size": 15} | data))  # type: ignore[arg-type]
    return MinedTuples(
        records, spec, seed=1, batches_per_step=1, precision="fp32", bad_files=BadFiles() if bad_files is None else bad_files
    )


def encoder() -> Encoder:
    import torch

    torch.manual_seed(0)
    return Encoder(MODEL, ImageSpec(image_px=16))


def test_an_epoch_is_of_given_pairs_and_negatives_of_other_clusters(places: Records) -> None:
    epochs, net = mined(places), encoder().train()
    told = epochs.refresh(0, net)
    assert net.training
    assert epochs.tuples.shape == (10, 5)
    assert epochs.steps == 5
    assert places.labels is not None
    assert places.positives is not None
    assert {tuple(pair) for pair in epochs.tuples[:, :2].tolist()} <= {tuple(pair) for pair in places.positives.tolist()}
    labels = places.labels[epochs.tuples]
    assert (labels[:, 0] == labels[:, 1]).all()
    assert all(len({line[0], *line[2:]}) == 4 for line in labels.tolist())
    assert 0 < told["negative_distance"] < 2
    first = epochs.tuples
    epochs.refresh(1, net)
    assert not np.array_equal(first, epochs.tuples)
    epochs.refresh(0, net)
    np.testing.assert_array_equal(first, epochs.tuples)


def test_the_negatives_are_the_hardest_of_the_epochs_pool(places: Records) -> None:
    epochs, net = mined(places, pool_size=99), encoder()
    epochs.refresh(0, net)
    vectors = net.embed([places.file(row) for row in range(len(places))])
    assert places.labels is not None
    for anchor, _, *negatives in epochs.tuples.tolist():
        assert negatives == walked(vectors @ vectors[anchor], int(places.labels[anchor]), places.labels, 3)


def test_the_pool_is_another_one_in_each_epoch(places: Records) -> None:
    epochs, net = mined(places, pool_size=9, negatives=2), encoder()
    chosen = []
    for epoch in range(4):
        epochs.refresh(epoch, net)
        chosen.append(set(epochs.tuples[:, 2:].ravel().tolist()))
        assert len(chosen[-1]) <= 9
    assert len(set().union(*chosen)) > 12  # of 18 images, where one pool has nine


def test_what_a_checkpoint_keeps_is_the_table(places: Records) -> None:
    epochs, other = mined(places), mined(places)
    epochs.refresh(3, encoder())
    other.restore(epochs.state())
    np.testing.assert_array_equal(other.sampler().batch(2), epochs.sampler().batch(2))


def test_files_that_cannot_be_read_are_neither_anchors_nor_negatives(places: Records, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    damaged = replace(places, paths=(str(tmp_path / "bad.png"), *places.paths[1:]))  # row 0 anchors one pair, and is another's positive
    bad_files = BadFiles()
    epochs = mined(damaged, bad_files, query_size=12, pool_size=99)
    epochs.refresh(0, encoder())
    assert len(bad_files) == 1
    assert 0 not in epochs.tuples[:, [0, 2, 3, 4]]
    assert epochs.tuples.shape == (12, 5)  # the tuple of the bad anchor is replaced by the epoch's first
    np.testing.assert_array_equal(epochs.tuples[-1], epochs.tuples[0])


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"tuples_per_batch": 13, "query_size": 99}, "a step takes 13 positive pairs, but there are 12 to train on"),
        ({"query_size": 1}, "an epoch draws at most 1: lower tuples_per_batch, raise query_size, or give more pairs"),
        ({"negatives": 6}, "6 negatives of different clusters need 7 clusters, but 6 are left for training: lower negatives"),
    ],
)
def test_what_cannot_be_trained_on_is_told_before(places: Records, data: dict[str, int], wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        mined(places, **data)


def test_without_pairs_every_image_of_a_cluster_of_two_may_be_an_anchor(places: Records) -> None:
    epochs = mined(replace(places, positives=None), query_size=99)
    assert epochs.num_tuples == 18
    epochs.refresh(0, encoder())
    assert sorted(epochs.tuples[:, 0]) == list(range(18))
