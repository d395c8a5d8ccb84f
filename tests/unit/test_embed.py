"""Embedding many files: the order, the bad ones, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.data.images import BadFiles
from sightline.data.records import Records
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.search.embed import CPU_BATCH_SIZE, embed_records, embed_stream

NUM_FILES = 3 * CPU_BATCH_SIZE + 5
BAD_ROWS = (0, 7, CPU_BATCH_SIZE, NUM_FILES - 1)
TINY = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=TINY, weights="random", drop_path=0.5), ImageSpec(image_px=16))


@pytest.fixture
def photos(tmp_path: Path) -> Records:
    names = [f"{row:03}.png" for row in range(NUM_FILES)]
    for row, name in enumerate(names):
        pixels = np.random.default_rng(row).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        if row in BAD_ROWS:
            (tmp_path / name).write_bytes(b"")
    return Records(tmp_path, tuple(names))


def test_descriptors_come_in_order_without_the_bad_files(encoder: Encoder, photos: Records) -> None:
    bad_files = BadFiles()
    found = embed_records(encoder, photos, bad_files, precision="fp32", show=False)
    readable = [row for row in range(NUM_FILES) if row not in BAD_ROWS]
    assert found.rows.tolist() == readable
    assert [Path(path).name for path, _ in bad_files.items()] == [photos.paths[row] for row in BAD_ROWS]
    one_by_one = encoder.embed([photos.file(row) for row in readable], batch_size=1, precision="fp32")
    np.testing.assert_allclose(found.vectors, one_by_one, atol=1e-6)


@pytest.mark.parametrize("num_threads", [1, 2, 11])
def test_mode_and_threads_are_left_as_they_were(encoder: Encoder, photos: Records, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        encoder.train()
        stream = embed_stream(encoder, photos, BadFiles(), batch_size=4, show=False)
        assert len(next(stream)[0]) == 4
        stream.close()  # as when a caller stops early
        assert (encoder.training, torch.get_num_threads()) == (True, num_threads)
    finally:
        torch.set_num_threads(before)
