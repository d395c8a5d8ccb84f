"""Killed at twenty random moments, the index keeps everything it acknowledged, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

from sightline.contracts import PatchFeatures
from sightline.index.base import Index, Item
from sightline.index.patches import PatchIndex

DIM = 24
KILLS = 20

# Vectors and removals follow from the batch's number alone, so the parent can say what must be there from the lines it read.
WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from sightline.index.base import Index, Item
    from sightline.index.writer import Limits

    def batch(number, dim):
        random = np.random.default_rng(number)
        vectors = random.normal(size=(50, dim))
        paths = [f"{value:05d}" for value in random.choice(4_000, 50, replace=False)]
        gone = [f"{value:05d}" for value in random.choice(4_000, 20, replace=False)]
        return paths, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), gone

    def write(path, number, dim):
        with Index.open(path, limits=Limits(log_rows=150, ann_rows=600, tidy_rows=600)) as index:
            print("open", number, flush=True)
            while True:
                paths, vectors, gone = batch(number, dim)
                index.upsert([Item(name, {"batch": number}, number) for name in paths], vectors)
                print("put", number, flush=True)
                index.remove(paths=gone)
                print("removed", number, flush=True)
                if number % 7 == 0:
                    index.seal()
                if number % 31 == 0:
                    index.compact()
                number += 1

    if __name__ == "__main__":
        write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
""")


PATCH_WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from sightline.contracts import PatchFeatures
    from sightline.index.base import Index, Item
    from sightline.index.writer import Limits

    def batch(number, dim):
        random = np.random.default_rng(number)
        grids = []
        for rows, columns in random.integers(1, 7, (5, 2)).tolist():
            vectors = random.normal(size=(rows * columns, dim))
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
            grids.append(PatchFeatures(vectors, (rows, columns), (0.0, 0.0, float(number + 1), 1.0)))
        return [str(value) for value in random.choice(40, 5, replace=False)], grids

    def write(path, number, dim):
        with Index.open(path, limits=Limits(log_rows=150, ann_rows=600, ivf_rows=600, tidy_rows=600)) as index:
            print("open", number, flush=True)
            while True:
                paths, grids = batch(number, dim)
                index.upsert_patches([Item(name) for name in paths], grids)
                print("put", number, flush=True)
                number += 1

    if __name__ == "__main__":
        write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
""")
PATCH_KILLS = 4


def run_and_kill(script: Path, index: Path, number: int, delay_s: float) -> list[list[str]]:
    child = subprocess.Popen([sys.executable, script, index, str(number), str(DIM)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("open")
    time.sleep(delay_s)
    child.kill()
    lines = [line.split() for line in child.stdout if line.endswith("\n")]
    child.stdout.close()
    child.wait()
    return lines


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    script, path = tmp_path / "writer.py", tmp_path / "index"
    script.write_text(WRITER)
    names: dict[str, object] = {"__name__": "writer"}
    exec(WRITER, names)
    batch = names["batch"]
    Index.create(path, dim=DIM, fingerprint="f").close()
    delays, number = random.Random(0), 1
    sure: dict[str, bytes] = {}
    for _ in range(KILLS):
        lines = run_and_kill(script, path, number, delays.uniform(0.0, 0.35))
        for verb, text in lines:
            number = int(text)
            paths, vectors, gone = batch(number, DIM)  # type: ignore[operator]
            if verb == "put":
                sure |= {name: vector.tobytes() for name, vector in zip(paths, vectors, strict=True)}
            else:
                sure = {name: value for name, value in sure.items() if name not in set(gone)}
        # What was under way when the kill came may have happened or not, as a whole: the acknowledgement was on its way.
        under_way = number + 1 if lines and lines[-1][0] == "removed" else number
        paths, vectors, gone = batch(under_way, DIM)  # type: ignore[operator]
        after_put = sure | {name: vector.tobytes() for name, vector in zip(paths, vectors, strict=True)}
        after_both = {name: value for name, value in after_put.items() if name not in set(gone)}
        with Index.open(path) as index:
            assert index.verify() == []
            ids = {index.get(int(id)).path: int(id) for id in index.ids()}
            there = {name: index.vector(id).tobytes() for name, id in ids.items()}
            assert there in (sure, after_put, after_both)
            some = sorted(there)[::97]
            queries = np.stack([np.frombuffer(there[name], np.float32) for name in some]) if some else np.empty((0, DIM), np.float32)
            assert index.search(queries, 1, exact=True).rows[:, 0].tolist() == [ids[name] for name in some]
        sure, number = there, under_way + 1
    assert number > KILLS


def test_the_patches_of_a_picture_are_all_there_or_none(tmp_path: Path) -> None:
    script, path = tmp_path / "writer.py", tmp_path / "index"
    script.write_text(PATCH_WRITER)
    names: dict[str, object] = {"__name__": "writer"}
    exec(PATCH_WRITER, names)
    batch = names["batch"]
    Index.create(path, dim=DIM, fingerprint="f", engine="patches", short_px=64).close()
    delays, number = random.Random(0), 1
    sure: dict[str, tuple[object, ...]] = {}

    def told(one: PatchFeatures) -> tuple[object, ...]:
        return one.grid, one.frame, one.vectors.tobytes()

    for _ in range(PATCH_KILLS):
        for _, text in run_and_kill(script, path, number, delays.uniform(0.1, 0.35)):
            paths, grids = batch(int(text), DIM)  # type: ignore[operator]
            sure |= {name: told(grid) for name, grid in zip(paths, grids, strict=True)}
            number = int(text) + 1
        paths, grids = batch(number, DIM)  # type: ignore[operator]
        with Index.open(path) as index:
            assert isinstance(index, PatchIndex)
            assert index.verify() == []
            there = {index.get(id).path: told(one) for id, one in index.patches(index.ids())}
        assert there in (sure, sure | {name: told(grid) for name, grid in zip(paths, grids, strict=True)})
        sure, number = there, number + 1
    assert number > PATCH_KILLS


def test_a_creation_killed_halfway_leaves_nothing_that_looks_like_an_index(tmp_path: Path) -> None:
    (tmp_path / ".index.0123abcd").mkdir()  # what a kill before the rename leaves
    with Index.create(tmp_path / "index", dim=2, fingerprint="f") as index:
        index.upsert([Item("a")], np.array([[1, 0]], dtype=np.float32))
        assert index.count() == 1
