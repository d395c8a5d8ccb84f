"""The local engine on bad days: lost and damaged files, a full disk, killed creations, a reader during merges."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from sightline.errors import DiskFullError, IndexStoreError
from sightline.index import ann, segments, writer
from sightline.index.base import Index, Item
from sightline.index.calibrate import recalls
from sightline.index.local import LocalIndex
from sightline.index.writer import Limits

DIM = 16
LIMITS = Limits(log_rows=400, ann_rows=500, exact_rows=20, tidy_rows=1_200)


def pictures(num: int, seed: int = 0) -> tuple[list[Item], np.ndarray]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return [Item(f"{seed}/{row}.jpg", {"camera": row % 7}) for row in range(num)], unit


def open_index(path: Path, **options: bool) -> LocalIndex:
    index = Index.open(path, limits=LIMITS, **options)
    assert isinstance(index, LocalIndex)
    return index


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with Index.create(tmp_path / "index", dim=DIM, fingerprint="f", limits=LIMITS) as index:
        index.upsert(*pictures(1_000))
        index.seal()
        index.upsert(*pictures(50, seed=1))
    return tmp_path / "index"


def only(path: Path, pattern: str) -> Path:
    [file] = (path / segments.FOLDER).glob(pattern)
    return file


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x40
    file.write_bytes(content)


def test_info_says_how_it_searches_and_how_well(path: Path) -> None:
    with open_index(path, read_only=True) as index:
        about = index.info()
    [segment] = about.segments
    assert (about.rows, about.log_rows, segment.rows, segment.kind) == (1_050, 50, 1_000, "hnsw-int8")
    assert segment.parameter is not None
    assert 0.95 <= segment.recall_at_10 <= about.recall_at_10 <= 1
    assert about.bytes_on_disk == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("harm", ["missing", "flipped", "truncated", "other"])
def test_a_lost_search_structure_costs_time_only(path: Path, harm: str) -> None:
    file = only(path, "*.faiss")
    match harm:
        case "missing":
            file.unlink()
        case "flipped":
            flip(file, 200)
        case "truncated":
            os.truncate(file, file.stat().st_size // 2)
        case "other":
            file.write_bytes(b"\x80\x04 a pickle, say")
    _, queries = pictures(20, seed=5)
    with open_index(path) as index:
        assert np.array_equal(index.search(queries, 5).rows, index.search(queries, 5, exact=True).rows)
        assert "searched exactly" in index.info().notes[0]
        assert "faiss" in index.verify()[0]
        index.seal()
        assert index.verify() == []
        assert "hnsw-int8" in {segment.kind for segment in index.info().segments}
        assert index.info().notes == ()


def test_a_graph_of_before_answers_and_is_calibrated_for_filters_when_sealed(path: Path) -> None:
    _, queries = pictures(20, seed=5)
    with open_index(path) as index:
        truth = index.search(queries, 5, exact=True).rows
        [row] = index._readers.own().store.segments()
        vectors = np.load(only(path, "*.vectors.npy"))
        graph = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, 32)
        graph.train(vectors)
        graph.add(vectors)
        sha256 = ann.write(ann.Ann(ann.HNSW_BEFORE, len(vectors), ann.Effort(64, 0.0, 0), graph), only(path, "*.faiss"))
        before = {"ann_kind": "hnsw-sq8", "ann_sha256": sha256, "parameter": 64, "growth": None, "depth": None, "recall_filtered": None}
        with index._writable().writing("a test"):
            index._writable().publish(replace(row, **before))
        about = index.info()
        assert about.recall_filtered is None
        assert "with a filter was not measured" in about.notes[0]
        asked = Index.open(path, limits=Limits(ann_rows=500, exact_rows=20, walk_cost=0), read_only=True)
        found = asked.search(queries, 5)
        assert "approximate" in found.how[0]
        assert recalls(found.rows, truth).mean() >= 0.97
        asked.close()
        index.seal()
        assert index.info().recall_filtered is not None
        assert index.info().notes == ()
        assert index._readers.own().store.segments()[0].ann_sha256 == sha256, "calibrated again, not built again"


def test_what_calibration_found_is_what_a_search_is_given(path: Path) -> None:
    with open_index(path) as index:
        [row] = index._readers.own().store.segments()
        for doubt, given in ((0.25, 0.25), (None, ann.NO_DOUBT)):
            with index._writable().writing("a test"):
                index._writable().publish(replace(row, parameter=48, growth=0.5, depth=100, doubt=doubt))
            [kept] = index._readers.own().store.segments()
            found = writer.load_ann(path, kept)
            assert found is not None
            assert found.effort == ann.Effort(48, 0.5, 100, given)


@pytest.mark.parametrize("harm", ["missing", "truncated", "zeros", "flipped", "ids"])
def test_damaged_vectors_are_named_and_can_be_forgotten(path: Path, harm: str) -> None:
    file = only(path, "*.vectors.npy")
    match harm:
        case "missing":
            file.unlink()
        case "truncated":
            os.truncate(file, file.stat().st_size - 5)
        case "zeros":
            file.write_bytes(file.read_bytes()[:128] + bytes(file.stat().st_size - 128))
        case "flipped":
            flip(file, 128 + 4 * DIM * 3 + 3)  # an exponent: the vector is longer now
        case "ids":
            file = only(path, "*.ids.npy")
            flip(file, 200)
    _, queries = pictures(20, seed=5)
    with open_index(path) as index:
        if harm in ("missing", "truncated", "zeros"):
            with pytest.raises(IndexStoreError, match=r"000001\.vectors\.npy' is damaged"):
                index.search(queries, 5)
        assert any(file.name in line for line in index.verify())
        assert index.repair() == 1_000
        assert index.verify() == []
        assert (index.count(), len(index.known())) == (50, 50)
        index.upsert(*pictures(1_000))
        assert index.count() == 1_050


def test_a_damaged_database_is_named(path: Path) -> None:
    os.truncate(path / "index.db", 5_000)
    with pytest.raises(IndexStoreError, match=r"index\.db"), open_index(path) as index:
        index.verify()
    (path / "index.db").unlink()
    with pytest.raises(IndexStoreError, match="is missing"):
        open_index(path)


def test_a_full_disk_inside_sqlite_loses_nothing_acknowledged(path: Path) -> None:
    with open_index(path) as index:
        assert index._store is not None
        pages = index._store.connection.execute("PRAGMA page_count").fetchone()[0]
        index._store.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFullError, match="free some space"):
            index.upsert(*pictures(390, seed=2))
        assert index.count() == 1_050
        assert index.verify() == []
        index._store.connection.execute("PRAGMA max_page_count = 1000000")
        index.upsert(*pictures(300, seed=2))
        assert index.count() == 1_350


def test_a_full_disk_while_sealing_loses_nothing_acknowledged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_index(path) as index:
        monkeypatch.setattr(segments.os, "fsync", full)
        with pytest.raises(DiskFullError, match="free some space"):
            index.seal()
        monkeypatch.undo()
        assert index.count() == 1_050
        assert index.verify() == []
        index.seal()
    assert not list((path / segments.FOLDER).glob("*.tmp"))


def test_litter_of_a_killed_writer_is_swept(path: Path) -> None:
    for name in ("000009.vectors.npy", "000009.faiss", "000001.faiss.tmp"):
        (path / segments.FOLDER / name).write_bytes(b"half")
    with open_index(path, read_only=True):
        assert len(list((path / segments.FOLDER).iterdir())) == 6
    with open_index(path) as index:
        assert len(list((path / segments.FOLDER).iterdir())) == 3
        assert index.verify() == []


def test_space_is_given_back(path: Path) -> None:
    with open_index(path) as index:
        index.seal()
        before_bytes = index.info().bytes_on_disk
        index.remove(where="camera != 3")  # more than a quarter: written anew by itself
        about = index.info()
        assert (about.rows, about.dead_rows) == (index.count("camera = 3"), 0)
        assert about.bytes_on_disk < 0.45 * before_bytes


def test_small_updates_do_not_pile_up_segments(path: Path) -> None:
    with open_index(path) as index:
        for seed in range(2, 8):
            index.upsert(*pictures(30, seed=seed))
            index.seal()
        assert [segment.rows for segment in index.info().segments] == [1_000, 230]
        for seed in range(8, 11):
            index.upsert(*pictures(390, seed=seed))
            index.seal()
        assert [segment.rows for segment in index.info().segments] == [1_000 + 230 + 3 * 390]


def test_a_reader_survives_a_merge_between_name_and_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(path) as index, open_index(path, read_only=True) as reader:
        opened = segments.open_segment

        def merged_meanwhile(*arguments: object) -> segments.Segment:
            monkeypatch.undo()
            index.compact()
            return opened(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("sightline.index.snapshot.open_segment", merged_meanwhile)
        _, queries = pictures(1)
        assert reader.search(queries, 1).rows.tolist() == [[1]]
        assert [len(info.segments) for info in (reader.info(),)] == [1]


def test_a_second_process_cannot_write_and_can_read(path: Path) -> None:
    code = (
        "import sys; from sightline.index.base import Index; from sightline.errors import UsageError\n"
        "print(Index.open(sys.argv[1], read_only=True).count())\n"
        "try: Index.open(sys.argv[1])\n"
        "except UsageError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'faiss' not in sys.modules"
    )
    with open_index(path) as index:
        index.upsert(*pictures(3, seed=3))
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "1053"
    assert "another program is writing" in done.stdout.splitlines()[1]


def test_every_acknowledged_batch_reaches_the_disk(path: Path) -> None:
    with open_index(path) as index:
        assert index._store is not None
        assert index._store.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert index._store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_filters_use_the_index_of_facts(path: Path) -> None:
    database = sqlite3.connect(path / "index.db")
    plan = str(
        database.execute("EXPLAIN QUERY PLAN SELECT item FROM facts WHERE key = ? AND value < ? AND value < ''", ["camera", 3]).fetchall()
    )
    database.close()
    assert "SEARCH facts USING PRIMARY KEY" in plan


def test_limits_of_the_planner_agree(path: Path) -> None:
    """However the rows are found, the answer is the same."""
    _, queries = pictures(15, seed=5)
    with open_index(path) as index:
        truth = index.search(queries, 10, where="camera in [1, 2, 3]", exact=True)
    with Index.open(path, limits=Limits(exact_rows=1_000), read_only=True) as index:
        scanned = index.search(queries, 10, where="camera in [1, 2, 3]")
    assert np.array_equal(truth.rows, scanned.rows)
    assert np.array_equal(truth.similarity, scanned.similarity)


def test_merging_rules() -> None:
    limits = Limits(ann_rows=100)
    assert writer.to_merge([], limits) == []
