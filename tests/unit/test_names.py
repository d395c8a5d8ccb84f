"""File names of any bytes: what is written of them can be read again, a line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightline.evaluation.parts import classes_of_run
from sightline.nn.model_folder import write_text
from sightline.workflows.embedding import embed

NAMES = (b"plain.png", b"caf\xe9.png", b"line\nbreak.png", b"next\xc2\x85line.png", b'"quoted".png', b"back\\slash.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        with open(os.path.join(os.fsencode(folder), name), "wb") as stream:
            Image.fromarray(pixels).save(stream, "PNG")
    return folder


def name_of(text: str) -> bytes:
    return os.fsencode(json.loads(text) if text.startswith('"') else text)


def test_every_vector_has_one_line_that_gives_its_name_back(photos: Path, tmp_path: Path) -> None:
    done = embed("random:vit_tiny_patch8_64", photos, tmp_path / "v.npy", device="cpu")
    lines = (tmp_path / "v.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(np.load(tmp_path / "v.npy")) == done.num_images == len(NAMES)
    assert sorted(name_of(line) for line in lines) == sorted(NAMES)
    assert "plain.png" in lines  # ordinary names are written as they are
    assert "back\\slash.png" in lines


def test_parquet_holds_every_name(photos: Path, tmp_path: Path) -> None:
    embed("random:vit_tiny_patch8_64", photos, tmp_path / "v.parquet", device="cpu")
    paths = pq.read_table(tmp_path / "v.parquet").column("path").to_pylist()
    assert sorted(name_of(path) for path in paths) == sorted(NAMES)
    assert "line\nbreak.png" in paths


def test_a_runs_facts_keep_class_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n")
    facts = {"training_classes": [name], "validation_classes": []}
    write_text(tmp_path / "run.json", json.dumps(facts, ensure_ascii=False))
    assert classes_of_run(tmp_path)[0] == {name}
