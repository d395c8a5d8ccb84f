"""What "acknowledged" promises: on the disk before it is said, whole after a refusal, gone for good once removed, never read where damaged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sightline.contracts import FloatArray
from sightline.errors import IndexStoreError, UsageError
from sightline.index import ann, segments, snapshot
from sightline.index.base import Index, Item
from sightline.index.local import LocalIndex
from sightline.index.store import Store
from sightline.index.writer import Limits

DIM = 16
LIMITS = Limits(log_rows=400, ann_rows=500, exact_rows=20, tidy_rows=1_200)


def pictures(num: int, seed: int = 0) -> tuple[list[Item], FloatArray]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return [Item(f"{seed}/{row}.jpg", {"camera": row % 7}) for row in range(num)], unit


def open_index(path: Path, **options: bool) -> LocalIndex:
    index = Index.open(path, limits=LIMITS, **options)
    assert isinstance(index, LocalIndex)
    return index


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed") / "index"
    with Index.create(folder, dim=DIM, fingerprint="f", limits=LIMITS) as index:
        index.upsert(*pictures(600))
        index.seal()
    return folder


@pytest.fixture
def path(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "index"))


# --- durable -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python asks of the file system, and what the index publishes, in their order."""
    calls: list[str] = []
    sync, move, publish = os.fsync, Path.replace, Store.publish

    def synced(number: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        sync(number)

    def moved(old: Path, new: Path) -> Path:
        calls.append(f"rename to {Path(new).name}")
        return move(old, new)

    def published(store: Store, row: object) -> None:
        calls.append("publish")
        publish(store, row)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    monkeypatch.setattr(Store, "publish", published)
    return calls


def test_vectors_ids_and_folder_are_on_the_disk_before_a_segment_is_published(tmp_path: Path, done: list[str]) -> None:
    with Index.create(tmp_path / "index", dim=DIM, fingerprint="f", limits=Limits()) as index:
        index.upsert(*pictures(40))
        done.clear()
        index.seal()
    for name in ("000001.vectors.npy", "000001.ids.npy"):
        assert done.index(f"sync {name}.tmp") < done.index(f"rename to {name}") < done.index("sync segments"), name
    assert done.index("sync segments") < done.index("publish")
    assert done.count("publish") == 1


def test_a_merge_and_a_search_structure_are_as_durable(tmp_path: Path, done: list[str]) -> None:
    with Index.create(tmp_path / "index", dim=DIM, fingerprint="f", limits=LIMITS) as index:
        index.upsert(*pictures(300))
        index.seal()
        index.upsert(*pictures(300, seed=1))
        done.clear()
        index.seal()
    published = [place for place, call in enumerate(done) if call == "publish"]
    assert len(published) == 3  # the second log, both segments in one, and its structure
    merged = done[published[0] : published[1]]
    for name in ("000003.vectors.npy", "000003.ids.npy"):
        assert merged.index(f"sync {name}.tmp") < merged.index(f"rename to {name}") < merged.index("sync segments"), name
    structure = done[published[1] : published[2]]
    assert structure.index("sync 000003.faiss.tmp") < structure.index("rename to 000003.faiss") < structure.index("sync segments")


def test_an_index_appears_only_once_its_name_is_durable(tmp_path: Path, done: list[str]) -> None:
    with Index.create(tmp_path / "index", dim=DIM, fingerprint="f"):
        pass
    assert done.index("sync index.json.tmp") < done.index("rename to index.json")
    assert done[-1] == f"sync {tmp_path.name}"


STRACE = shutil.which("strace")
TRACED = """
import sys
import numpy as np
from sightline.index.base import Index, Item

with Index.create(sys.argv[1], dim=8, fingerprint="f") as index:
    for batch in range(3):
        vectors = np.eye(8, dtype=np.float32)[batch : batch + 2]
        index.upsert([Item(f"{batch}/{row}.jpg") for row in range(2)], vectors)
        print(f"acknowledged {batch}", flush=True)
    index.seal()
    print("sealed", flush=True)
"""


@pytest.mark.skipif(STRACE is None, reason="strace, which counts the calls to the system, is not installed (apt install strace)")
def test_the_system_is_asked_to_sync_before_anything_is_acknowledged(tmp_path: Path) -> None:
    assert STRACE is not None
    log, where = tmp_path / "calls.txt", tmp_path / "index"
    command = [STRACE, "-f", "-y", "-o", log, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write", "-e", "signal=none"]
    ran = subprocess.run([*command, sys.executable, "-c", TRACED, where], capture_output=True, text=True, check=False)
    if "ptrace" in ran.stderr or "Operation not permitted" in ran.stderr:
        pytest.skip(f"this machine does not let processes be traced: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    calls = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if told := re.search(r'write\(1<[^>]*>, "(acknowledged \d|sealed)', line):
            calls.append(told[1])
        elif synced := re.search(r"(?:fsync|fdatasync)\(\d+<([^>]*)>", line):
            calls.append(f"sync {Path(synced[1]).name}")
    at = {call: place for place, call in enumerate(calls) if not call.startswith("sync")}
    before = -1
    for told in ("acknowledged 0", "acknowledged 1", "acknowledged 2"):
        assert "sync index.db-wal" in calls[before + 1 : at[told]], told  # the batch is in the write-ahead log
        before = at[told]
    sealing = calls[before + 1 : at["sealed"]]
    written = [sealing.index(f"sync 000001.{kind}.npy.tmp") for kind in ("vectors", "ids")]
    folder = sealing.index("sync segments")
    assert max(written) < folder
    assert "sync index.db-wal" in sealing[folder:]


# --- a refused write ------------------------------------------------------------------------------------------------------------------


def test_after_a_refused_write_the_next_one_works_and_nothing_of_it_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(path) as index:
        with pytest.raises(UsageError, match="no item has the metadata 'colour'"):
            index.remove(where='colour = "red"')

        def refused(*_: object) -> None:
            raise IndexStoreError("refused halfway: try again")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "put_vectors", refused)
            with pytest.raises(IndexStoreError, match="refused halfway"):
                index.upsert(*pictures(5, seed=1))
        assert index.count() == 600
        assert index.verify() == []
        index.upsert(*pictures(5, seed=1))
        assert index.remove(where="camera = 3") > 80
        index.seal()
        assert index.verify() == []


# --- removed ----------------------------------------------------------------------------------------------------------------------------


def test_removed_and_replaced_items_stay_gone_when_the_index_opens_again(path: Path) -> None:
    items, vectors = pictures(600)
    with open_index(path) as index:
        index.remove(paths=[items[3].path, items[8].path])
        index.upsert([items[5]], vectors[100:101])
    for read_only in (True, False, False):
        with open_index(path, read_only=read_only) as index:
            assert index.count() == 598
            paths = [[hit.path for hit in hits.hits] for hits in index.hits(index.search(vectors[[3, 8, 5, 100]], 3, exact=True))]
            assert not {items[3].path, items[8].path} & {name for names in paths for name in names}
            assert items[5].path not in paths[2]  # its old vector finds it no longer
            assert {items[5].path, items[100].path} == set(paths[3][:2])
            near = index.search(vectors[[3, 8]], 3)
            assert not {items[3].path, items[8].path} & {hit.path for hits in index.hits(near) for hit in hits.hits}
            if not read_only:
                index.seal()
                assert index.verify() == []


def test_a_snapshot_stays_as_it_was_whatever_comes_after(path: Path) -> None:
    store = Store(path, read_only=True)
    before = snapshot.current(store, path, DIM, None, with_log=True)
    [segment] = before.segments
    with open_index(path) as index:
        index.remove(ids=segment.ids[:50])
        index.upsert(*pictures(20, seed=1))
        after = snapshot.current(store, path, DIM, before, with_log=True)
    store.close()
    assert before.log is not None
    assert after.log is not None
    assert segment.live.all()
    assert (segment.num_live, len(before.log.ids)) == (600, 0)
    assert (int(after.segments[0].live.sum()), after.segments[0].num_live, len(after.log.ids)) == (550, 550, 20)
    assert after.segments[0].vectors is segment.vectors  # what does not change is shared


# --- damaged ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("harm", "exact"), [("longer", True), ("longer", False), ("turned", True), ("nan", True), ("nan", False)])
def test_a_damaged_vector_is_noticed_by_the_search_that_meets_it(path: Path, harm: str, exact: bool, k: int) -> None:
    _, vectors = pictures(600)
    row = 3  # not among those that opening a segment looks at
    assert row % (600 // segments.SPOT_CHECKS) != 0
    [file] = (path / segments.FOLDER).glob("*.vectors.npy")
    stored = np.load(file, mmap_mode="r+")
    stored[row] *= {"longer": 3.0, "turned": -3.0, "nan": np.nan}[harm]
    stored.flush()
    query = -vectors[row : row + 1] if harm == "turned" else vectors[row : row + 1]
    with open_index(path, read_only=True) as index, pytest.raises(IndexStoreError, match=r"000001\.vectors\.npy' is damaged: restore it"):
        index.search(query, k, exact=exact)


def test_a_sound_structure_of_other_vectors_is_not_taken(path: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "other", dim=DIM, fingerprint="f", limits=LIMITS) as index:
        index.upsert(*pictures(600, seed=4))
        index.seal()
    [own], [other] = ((folder / segments.FOLDER).glob("*.faiss") for folder in (path, tmp_path / "other"))
    assert ann.load(other, segments.sha256_of(other), ann.HNSW, 600, 32) is not None  # FAISS itself has nothing against it
    shutil.copy(other, own)
    _, queries = pictures(20, seed=5)
    with open_index(path, read_only=True) as index:
        assert np.array_equal(index.search(queries, 5).rows, index.search(queries, 5, exact=True).rows)
        assert "have no sound search structure" in index.info().notes[0]
        assert ann.load(own, str(index._readers.own().store.segments()[0].ann_sha256), ann.HNSW, 600, 32) is None
