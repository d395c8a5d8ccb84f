"""What every test runs under: one thread each (xdist brings the cores), no model hub, nothing cached outside its own folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch, NumPy and FAISS load; a test that starts a process of its own hands them on.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", NO_COLOR="1", COLUMNS="160")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the derived-file cache at a folder of this test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(folder))
    return folder
