"""Bringing an index up to date: what an item is known by, what counts as changed, moved and gone, in whole-image indexes and in those of patches."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sightline.contracts import Hits
from sightline.errors import DataError, UsageError
from sightline.index.base import Index, Item
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec
from sightline.search.engine import Searcher
from sightline.workflows import indexing

TINY = (("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2))


class World:
    """A folder of pictures, an index of them, and how many went through the network."""

    def __init__(self, folder: Path, *, patches: bool) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(
            ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=TINY, weights="random"), ImageSpec(image_px=16)
        ).eval()
        self.encoder.fingerprint = "f" * 64
        self.folder, self.store, self.patches, self.num_embedded = folder, folder / "own.index", patches, 0
        for name in ("embed_batch", "patch_batch"):
            setattr(self.encoder, name, self._counted(getattr(self.encoder, name)))

    def _counted(self, through: Callable[..., Any]) -> Callable[..., Any]:
        def counted(images: torch.Tensor, **options: Any) -> Any:
            self.num_embedded += len(images)
            return through(images, **options)

        return counted

    def put(self, *names: str, seed: int | None = None) -> Path:
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = np.random.default_rng(zlib.crc32(name.encode()) if seed is None else seed)
            Image.fromarray(drawn.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
        return path

    def bring(self, source: str | Path, **options: Any) -> dict[str, Any]:
        """Bring the index up to date with a folder or manifest; of the answer, the counts that are not 0, and ``embedded``."""
        before = self.num_embedded
        answer, text = indexing.index(
            self.store, model="tiny", images=self.folder / source, patches=self.patches and not self.store.exists(), **options
        )
        told: dict[str, Any] = answer["update"]
        assert told["images"] == self.count() + answer.get("pruned", 0)
        assert str(told["images"]) in text
        counts = {name: value for name, value in told.items() if name not in ("images", "notes") and value}
        self.notes, self.answer = told["notes"], answer
        return counts | ({"embedded": self.num_embedded - before} if self.num_embedded > before else {})

    def manifest(self, rows: str, name: str = "m.csv") -> Path:
        (self.folder / name).write_text(rows)
        return self.folder / name

    def count(self, where: str | None = None) -> int:
        with Index.open(self.store, read_only=True) as index:
            assert index.verify() == []
            return index.count(where)

    def paths(self) -> list[str]:
        with Index.open(self.store, read_only=True) as index:
            return sorted(os.path.relpath(path, self.folder) for path, _ in index.known())

    def items(self) -> dict[tuple[str, Any], Item]:
        with Index.open(self.store, read_only=True) as index:
            found = [index.get(int(id)) for id in index.ids()]
        return {(os.path.relpath(item.path, self.folder), item.box): item for item in found}


@pytest.fixture(params=[False, True], ids=["images", "patches"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(Path(os.path.realpath(tmp_path)), patches=request.param)
    monkeypatch.setattr(model_folder, "load", lambda *source, **options: made.encoder)
    return made


def search(index: Path, picture: Path, k: int = 10) -> Hits:
    with Searcher.open(index) as searcher:
        return searcher.search(picture, k).hits


# --- what an item is known by


def test_another_spelling_is_no_other_picture(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("photos/a.png", "photos/deep/b.png")
    (world.folder / "link").symlink_to("photos")
    (world.folder / "work").mkdir()
    assert world.bring("photos") == {"added": 2, "embedded": 2}
    for source in ("work/../photos", "link", "photos/", "./photos", "photos/deep/.."):
        assert world.bring(source) == {"unchanged": 2}, source
    assert world.bring("link/deep") == {"unchanged": 1}
    for name in ("photos/a.png", "./link/a.png", f"{world.folder}/photos/deep/../a.png"):
        world.manifest(f"path\n{name}\nphotos/../photos/deep/b.png\n")
        assert world.bring("m.csv") == {"unchanged": 2}
    assert world.paths() == ["photos/a.png", "photos/deep/b.png"]


def test_a_link_to_a_file_is_the_file_and_takes_the_folder_where_it_really_lies(world: World) -> None:
    world.put("photos/cup/a.png", "photos/mug/b.png")
    (world.folder / "photos" / "bowl").mkdir()
    (world.folder / "photos" / "bowl" / "z.png").symlink_to("../cup/a.png")
    (world.folder / "photos" / "vase").mkdir()
    (world.folder / "photos" / "vase" / "z.png").symlink_to("../cup/a.png")
    assert world.bring("photos") == {"added": 2, "embedded": 2}
    assert "2 rows name a picture and box that another row names too" in world.notes[0]
    assert {item.metadata["label"] for item in world.items().values()} == {"cup", "mug"}


def test_boxes_of_a_picture_are_items_of_their_own(world: World) -> None:
    world.put("a.png", "b.png")
    rows = [f"{name}.png,{label},{box}" for name in "ab" for label, box in (("l", "0 0 10 10"), ("m", "8 8 30 20"), ("n", ""))]
    world.manifest("\n".join(["path,label,box", *rows]))
    assert world.bring("m.csv") == {"added": 6, "embedded": 6}
    assert world.bring("m.csv") == {"unchanged": 6}
    items = world.items()
    assert items["a.png", (0, 0, 10, 10)].metadata == {"label": "l"}
    assert items["a.png", None].metadata == {"label": "n"}
    hits = search(world.store, world.folder / "a.png", 6)
    assert len(hits) == 6
    if not world.patches:
        assert {hit.box for hit in hits if hit.metadata["label"] == "m"} == {(8, 8, 30, 20)}
    assert indexing.index(world.store, remove='path = "a.png" and label = "m"')[0]["removed"] == 1
    assert world.bring("m.csv") == {"added": 1, "unchanged": 5, "embedded": 1}


def as_kind(world: World, kind: str, rows: list[dict[str, Any]]) -> Path:
    file = world.folder / f"m.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        lines = [",".join(" ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]))
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_changed_row_is_written_without_embedding_and_another_box_is_embedded(world: World, kind: str) -> None:
    world.put("a.png", "b.png")
    row = {"label": "cup", "camera": "front", "split": "train", "caption": "red", "price": 3, "box": [0, 0, 16, 16]}
    rows = [{"path": f"{name}.png", **row} for name in "ab"]
    assert world.bring(as_kind(world, kind, rows)) == {"added": 2, "embedded": 2}
    for name, value in (("label", "mug"), ("camera", "rear"), ("camera", "7"), ("split", "test"), ("caption", "crimson"), ("price", 4)):
        rows[0][name] = value
        assert world.bring(as_kind(world, kind, rows)) == {"changed": 1, "rewritten": 1, "unchanged": 1}, name

        assert world.count(f'{name} = "{value}"') == 1
        assert world.count(f'{name} != "{value}"') == 1
    before = world.items()["a.png", (0, 0, 16, 16)]
    rows[0]["box"] = [4, 4, 30, 20]
    assert world.bring(as_kind(world, kind, rows)) == {"changed": 1, "unchanged": 1, "embedded": 1}
    after = world.items()
    assert set(after) == {("a.png", (4, 4, 30, 20)), ("b.png", (0, 0, 16, 16))}
    assert after["a.png", (4, 4, 30, 20)].metadata == before.metadata
    del rows[0]["price"], rows[1]["price"]
    assert world.bring(as_kind(world, kind, rows)) == {"changed": 2, "rewritten": 2}
    assert all("price" not in item.metadata for item in world.items().values())


def test_a_picture_moved_to_another_class_folder_takes_its_label(world: World) -> None:
    world.put("photos/cup/a.png", "photos/cup/b.png", "photos/mug/c.png")
    world.bring("photos")
    (world.folder / "photos/cup/a.png").rename(world.folder / "photos/mug/a.png")
    assert world.bring("photos") == {"moved": 1, "unchanged": 2}
    assert world.items()["photos/mug/a.png", None].metadata == {"label": "mug"}


def test_a_file_that_is_only_touched_is_not_embedded_again(world: World) -> None:
    path = world.put("photos/a.png")
    world.bring("photos")
    os.utime(path, ns=(1, 1))
    assert world.bring("photos") == {"unchanged": 1}
    assert next(iter(world.items().values())).mtime_ns == 1
    world.put("photos/a.png", seed=77)
    assert world.bring("photos") == {"changed": 1, "embedded": 1}


# --- what moved


def test_a_renamed_folder_is_known_by_its_content(world: World) -> None:
    world.put("photos/cup/a.png", "photos/cup/b.png", "photos/mug/c.png", "other/d.png")
    world.bring("photos")
    world.bring("other")
    (world.folder / "photos").rename(world.folder / "pictures")
    (world.folder / "pictures/cup/b.png").unlink()
    world.put("pictures/mug/new.png")
    assert world.bring("pictures") == {"moved": 2, "added": 1, "embedded": 1}
    assert "2 files have moved, such as" in world.notes[0]
    assert "1 items came from" in world.notes[1]
    assert f"'{world.folder}/photos', which is not there now" in world.notes[1]
    assert world.paths() == ["other/d.png", "photos/cup/b.png", "pictures/cup/a.png", "pictures/mug/c.png", "pictures/mug/new.png"]
    answer, text = indexing.index(world.store, prune=True)  # the remedy of that line
    assert (answer["pruned"], text) == (1, "pruned 1 items that are no longer where they came from")
    assert world.bring("pictures") == {"unchanged": 3}
    assert world.notes == []


def test_what_was_said_of_the_former_path_is_not_said_of_the_new_one(world: World) -> None:
    world.put("photos/cup/a.png", "photos/cup/b.png")
    world.manifest("path,price\nphotos/cup/a.png,3\n")
    world.bring("photos")
    world.bring("m.csv")
    (world.folder / "photos/cup").rename(world.folder / "flat")
    assert world.bring("flat") == {"moved": 2}
    assert [dict(item.metadata) for item in world.items().values()] == [{}, {}]
    with Index.open(world.store, read_only=True) as index:
        assert [source.place for source in index.sources()] == [f"{world.folder}/flat"]


def test_boxes_move_with_their_picture(world: World) -> None:
    world.put("one/a.png")
    rows = "path,label,box\na.png,l,0 0 10 10\na.png,m,8 8 30 20\n"
    world.manifest(rows, "one/m.csv")
    world.bring("one/m.csv")
    (world.folder / "one").rename(world.folder / "two")
    assert world.bring("two/m.csv") == {"moved": 2}
    assert set(world.items()) == {("two/a.png", (0, 0, 10, 10)), ("two/a.png", (8, 8, 30, 20))}


def test_a_copy_is_no_move(world: World) -> None:
    world.put("photos/a.png")
    world.bring("photos")
    shutil.copytree(world.folder / "photos", world.folder / "copy")
    assert world.bring("copy") == {"added": 1, "embedded": 1}
    assert world.paths() == ["copy/a.png", "photos/a.png"]


def test_of_files_of_one_content_each_is_found_again_by_its_name(world: World) -> None:
    world.put("photos/a.png", "photos/b.png", seed=1)
    world.bring("photos")
    with Index.open(world.store, read_only=True) as index:
        ids = {os.path.basename(path): known.id for (path, _), known in index.known().items()}
    (world.folder / "photos").rename(world.folder / "pictures")
    assert world.bring("pictures") == {"moved": 2}
    with Index.open(world.store, read_only=True) as index:
        assert {os.path.basename(path): known.id for (path, _), known in index.known().items()} == ids


# --- what is gone


def test_only_what_is_gone_from_the_disk_goes(world: World) -> None:
    world.put("photos/a.png", "photos/b.png", "photos/sub/c.png", "photos/sub/d.png", "else/e.png")
    world.bring("photos")
    world.bring("else")
    (world.folder / "photos/a.png").unlink()
    (world.folder / "else/e.png").unlink()
    shutil.rmtree(world.folder / "photos/sub")
    assert world.bring("photos", keep=True) == {"unchanged": 1}
    assert world.bring("photos") == {"removed": 3, "unchanged": 1}
    assert world.paths() == ["else/e.png", "photos/b.png"]


def test_a_manifest_takes_out_nothing_that_another_one_or_a_folder_brought(world: World) -> None:
    world.put("a.png", "b.png", "c.png", "d.png")
    world.manifest("path\na.png\nb.png\n", "m1.csv")
    world.manifest("path\nb.png\nc.png\n", "m2.csv")
    world.bring("m1.csv")
    assert world.bring("m2.csv") == {"added": 1, "unchanged": 1, "embedded": 1}
    world.manifest("path\nb.png\nd.png\n", "m1.csv")
    assert world.bring("m1.csv") == {"added": 1, "unchanged": 1, "embedded": 1}
    assert world.paths() == ["a.png", "b.png", "c.png", "d.png"]
    assert "1 items are no longer to be seen from" in world.notes[0]  # a.png is there, and no manifest names it
    assert world.bring("m1.csv", prune=True) == {"unchanged": 2}
    assert world.answer["pruned"] == 1
    assert world.paths() == ["b.png", "c.png", "d.png"]


def test_a_box_that_the_manifest_no_longer_has_goes_and_another_manifests_stays(world: World) -> None:
    world.put("a.png")
    world.manifest("path,box\na.png,0 0 10 10\na.png,0 0 20 20\n", "m1.csv")
    world.manifest("path,box\na.png,0 0 10 10\n", "m2.csv")
    world.bring("m1.csv")
    world.bring("m2.csv")
    world.bring(world.put("photos/z.png").parent)
    world.manifest("path,box\na.png,1 1 9 9\n", "m1.csv")
    assert world.bring("m1.csv") == {"changed": 1, "embedded": 1}
    assert {box for path, box in world.items() if path == "a.png"} == {(0, 0, 10, 10), (1, 1, 9, 9)}


def test_what_lies_below_a_link_that_leads_nowhere_stays(world: World) -> None:
    world.put("photos/a.png", "share/b.png", "share/deep/c.png")
    (world.folder / "photos/more").symlink_to(world.folder / "share")
    assert world.bring("photos") == {"added": 3, "embedded": 3}
    (world.folder / "share").rename(world.folder / "away")
    counts = world.bring("photos")
    assert counts == {"unchanged": 1}
    assert "2 items are no longer to be seen" in world.notes[0]
    (world.folder / "away").rename(world.folder / "share")
    assert world.bring("photos") == {"unchanged": 3}
    shutil.rmtree(world.folder / "share/deep")  # and this is gone, for what is around it can be seen
    assert world.bring("photos") == {"unchanged": 2, "removed": 1}


def test_a_root_that_is_gone_is_no_root_whose_files_are_gone(world: World) -> None:
    world.put("photos/a.png", "photos/b.png")
    world.bring("photos")
    (world.folder / "photos").rename(world.folder / "away")
    with pytest.raises(DataError, match=r"is not there now, and 2 items came from it: nothing was changed; .* --prune instead of --images"):
        world.bring("photos")
    with pytest.raises(UsageError, match=r"--prune would take out 2 of 2 items, more than half"):
        indexing.index(world.store, prune=True)
    (world.folder / "photos").mkdir()
    with pytest.raises(DataError, match="no images in"):  # an empty mount point
        world.bring("photos")
    assert world.count() == 2
    assert indexing.index(world.store, prune=True, yes=True)[0]["pruned"] == 2


def test_an_empty_mount_has_lost_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.search.listing as listing
    import sightline.search.presence as presence

    world.put("photos/a.png", "photos/disk/b.png", "photos/disk/c.png")
    state = listing._state

    def on_a_disk_of_its_own(path: str) -> listing.FileState | None:
        found = state(path)
        return found if found is None or "/disk/" not in path else listing.FileState(found.size_bytes, found.mtime_ns, -1)

    monkeypatch.setattr(listing, "_state", on_a_disk_of_its_own)
    world.bring("photos")
    for name in "bc":
        (world.folder / f"photos/disk/{name}.png").unlink()
    assert world.bring("photos") == {"unchanged": 1}  # the folder is now on the root's own device: nothing is mounted there
    assert "2 items are no longer to be seen" in world.notes[0]
    world.manifest("path\na.png\ndisk/b.png\ndisk/c.png\n", "photos/m.csv")
    for _ in range(2):  # a manifest that goes on naming them forgets not that they were on another device
        assert world.bring("photos/m.csv")["unchanged"] == 1
    device = presence._device
    monkeypatch.setattr(presence, "_device", lambda path: -1 if path.endswith("/disk") else device(path))
    assert world.bring("photos") == {"unchanged": 1, "removed": 2}


def test_a_manifest_of_a_share_keeps_what_the_share_takes_along(world: World) -> None:
    world.put("share/x/a.png", "share/b.png", "here/c.png")
    root = world.folder
    world.manifest(f"path\n{root}/share/x/a.png\n{root}/share/b.png\nc.png\n", "here/m.csv")
    world.bring("here/m.csv")
    (root / "share").rename(root / "away")
    assert world.bring("here/m.csv") == {"unchanged": 1, "unreadable": 2, "bad": 2}
    (root / "away").rename(root / "share")
    (root / "share/b.png").unlink()
    (root / "here/c.png").unlink()
    assert world.bring("here/m.csv") == {"unchanged": 1, "removed": 2, "bad": 2}
    assert world.paths() == ["share/x/a.png"]


def test_a_folder_that_cannot_be_listed_keeps_its_items(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("photos/a.png", "photos/closed/b.png")
    world.bring("photos")
    listing = os.scandir

    def refuse(folder: Any) -> Any:
        if str(folder).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    (world.folder / "photos/closed/b.png").unlink()
    assert world.bring("photos") == {"unchanged": 1, "bad": 1}
    assert world.count() == 2


def test_a_root_link_that_is_switched_brings_the_new_pictures_and_tells_of_the_old(world: World) -> None:
    world.put("v1/a.png", "v1/b.png", "v2/c.png")
    (world.folder / "current").symlink_to("v1")
    world.bring("current")
    (world.folder / "current").unlink()
    (world.folder / "current").symlink_to("v2")
    assert world.bring("current") == {"added": 1, "embedded": 1}
    assert "2 items are no longer to be seen from" in world.notes[0]
    with pytest.raises(UsageError, match="more than half"):
        world.bring("current", prune=True)
    assert world.bring("current", prune=True, yes=True) == {"unchanged": 1}
    assert world.paths() == ["v2/c.png"]


# --- several sources, and Python, say something of one item


def test_a_manifest_beside_its_folder_says_more_and_is_believed(world: World) -> None:
    world.put("photos/x/a.png", "photos/x/b.png")
    world.manifest("path,label,price\nx/a.png,cup,3\n", "photos/m.csv")
    world.bring("photos")
    assert world.bring("photos/m.csv") == {"changed": 1, "rewritten": 1}
    for _ in range(2):
        assert {path[-5]: dict(item.metadata) for (path, _), item in world.items().items()} == {
            "a": {"label": "cup", "price": 3},
            "b": {"label": "x"},
        }
        assert world.bring("photos") == {"unchanged": 2}
        assert world.bring("photos/m.csv") == {"unchanged": 1}
    world.manifest("path,label\nx/b.png,mug\n", "photos/m.csv")
    assert world.bring("photos/m.csv") == {"changed": 1, "rewritten": 1}
    assert {path[-5]: dict(item.metadata) for (path, _), item in world.items().items()} == {"a": {"label": "x"}, "b": {"label": "mug"}}
    assert world.bring("photos") == {"unchanged": 2}


def test_two_manifests_add_up_and_each_takes_back_only_its_own(world: World) -> None:
    world.put("a.png")
    world.manifest("path,price,label\na.png,3,cup\n", "m1.csv")
    world.manifest("path,caption,label\na.png,red,mug\n", "m2.csv")
    world.bring("m1.csv")
    assert world.bring("m2.csv") == {"changed": 1, "rewritten": 1}
    assert next(iter(world.items().values())).metadata == {"price": 3, "caption": "red", "label": "mug"}
    world.manifest("path,label\na.png,cup\n", "m1.csv")
    assert world.bring("m1.csv") == {"changed": 1, "rewritten": 1}
    assert next(iter(world.items().values())).metadata == {"caption": "red", "label": "cup"}


def test_what_python_says_of_an_item_stays(world: World) -> None:
    world.put("photos/cup/a.png")
    world.bring("photos")
    with Index.open(world.store) as index:
        (id,) = index.ids().tolist()
        item = index.get(id)
        index.update([id], [dataclasses.replace(item, metadata={**item.metadata, "mine": 1})])
    assert world.bring("photos") == {"unchanged": 1}
    (world.folder / "photos/cup").rename(world.folder / "photos/mug")
    assert world.bring("photos") == {"moved": 1}
    assert next(iter(world.items().values())).metadata == {"label": "mug", "mine": 1}
    world.put("photos/mug/a.png", seed=5)
    assert world.bring("photos") == {"changed": 1, "embedded": 1}
    assert next(iter(world.items().values())).metadata == {"label": "mug", "mine": 1}


# --- bad files


def listed_as_bad(world: World) -> list[str]:
    file = world.store / "bad_files.jsonl"
    return [json.loads(line)["path"] for line in file.read_text().splitlines()] if file.exists() else []


def test_bad_files_are_those_that_are_bad_now_by_absolute_path(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good = world.put("photos/a.png", "photos/b.png", "other/c.png", "other/d.png").read_bytes()
    for name in ("photos/a.png", "other/c.png"):
        (world.folder / name).write_bytes(good[:60])
    monkeypatch.chdir(world.folder)
    assert indexing.index(world.store, model="tiny", images=Path("photos"), patches=world.patches)[0]["update"]["bad"] == 1
    assert listed_as_bad(world) == [f"{world.folder}/photos/a.png"]
    indexing.index(world.store, images=Path("other"))
    assert listed_as_bad(world) == [f"{world.folder}/other/c.png", f"{world.folder}/photos/a.png"]
    (world.folder / "photos/a.png").write_bytes(good)
    assert world.bring("photos") == {"added": 1, "unchanged": 1, "embedded": 1}
    assert listed_as_bad(world) == [f"{world.folder}/other/c.png"]
    (world.folder / "other/c.png").write_bytes(good)
    world.bring("photos")
    assert listed_as_bad(world) == []
    assert not (world.store / "bad_files.jsonl").exists()


def test_names_that_text_would_part_in_two_stay_one_line_of_the_bad_files(world: World) -> None:
    names = [os.fsdecode(f"photos/{name}.png".encode()) for name in ("next\u0085line", "separated\u2028here")]
    good = world.put("photos/a.png").read_bytes()
    for name in names:
        (world.folder / name).write_bytes(good[:60])
    world.bring("photos")
    world.put("other/b.png")
    world.bring("other")
    lines = (world.store / "bad_files.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [f"{world.folder}/{name}" for name in names]


def test_a_file_that_became_unreadable_is_counted_and_stays_as_it_was(world: World) -> None:
    good = world.put("photos/a.png", "photos/b.png").read_bytes()
    world.bring("photos")
    (world.folder / "photos/b.png").write_bytes(good[:60])
    _, text = indexing.index(world.store, images=world.folder / "photos")
    assert "2 images in" in text
    assert "0 added, 0 changed, 1 unchanged, 0 removed, 1 unreadable now and kept as they were" in text
    assert listed_as_bad(world) == [f"{world.folder}/photos/b.png"]
    (world.folder / "photos/b.png").write_bytes(good)
    assert world.bring("photos") == {"unchanged": 2}


def test_a_first_index_of_nothing_readable_leaves_nothing_and_names_no_file_of_its_own(world: World) -> None:
    world.put("photos/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError) as caught:
        world.bring("photos")
    assert "photos/a.png: " in str(caught.value)
    assert "bad_files" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in world.folder.iterdir()) == ["photos"]
    world.store = world.folder / "new/deep/own.index"
    with pytest.raises(DataError):
        world.bring("photos")
    assert sorted(path.name for path in world.folder.iterdir()) == ["photos"]


# --- indexes from Python and of before


def test_what_python_put_in_is_neither_doubled_nor_taken_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.patches:
        pytest.skip("vectors as Python gives them are those of whole images")
    world.put("photos/a.png", "photos/b.png", "x/c.png")
    monkeypatch.chdir(world.folder)
    vectors = np.eye(16, dtype=np.float32)
    with Index.create(world.store, dim=16, fingerprint="f" * 64) as index:
        ids = index.upsert([Item("photos/a.png", {"mine": 1}), Item("x/../x/c.png"), Item("s3://bucket/d.png")], vectors[:3])
        assert index.upsert([Item("photos/../photos/a.png", {"mine": 2})], vectors[3:4]).tolist() == ids[:1].tolist()
        assert index.upsert([Item("photos/a.png", box=(0, 0, 5, 5))], vectors[4:5]).tolist() != ids[:1].tolist()
        assert index.get(int(ids[0])).path == str(world.folder / "photos/a.png")
        assert index.remove(paths=["x/c.png"]) == 1
    assert world.bring("photos") == {"added": 1, "changed": 1, "embedded": 2}
    assert world.count() == 4
    (world.folder / "photos/a.png").unlink()
    assert world.bring("photos") == {"unchanged": 1, "removed": 1}
    assert set(world.items()) == {("photos/a.png", (0, 0, 5, 5)), ("photos/b.png", None), ("s3:/bucket/d.png", None)}


BEFORE_ITEMS = """
CREATE TABLE items(
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL,
    size_bytes INTEGER, mtime_ns INTEGER, content_sha256 TEXT);
"""


def made_before(world: World, *, last_id: int) -> None:
    """Turn the index into one as it was before items had boxes and sources."""
    with contextlib.closing(sqlite3.connect(world.store / "index.db", isolation_level=None)) as database:
        rows = database.execute("SELECT id, path, metadata, size_bytes, mtime_ns FROM items").fetchall()
        for table in ("items", "sources", "brought"):
            database.execute(f"DROP TABLE {table}")
        for column in ("growth", "depth", "recall_filtered", "doubt"):
            database.execute(f"ALTER TABLE segments DROP COLUMN {column}")
        database.executescript(BEFORE_ITEMS)
        database.executemany("INSERT INTO items(id, path, metadata, size_bytes, mtime_ns) VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'items'", [last_id])
        database.execute("PRAGMA user_version = 0")
    header = json.loads((world.store / "index.json").read_text())
    (world.store / "index.json").write_text(json.dumps(header | {"format": 1}))


def test_an_index_of_before_is_read_as_it_is_and_brought_up_to_date_by_the_first_write(world: World) -> None:
    world.put("photos/cup/a.png", "photos/cup/b.png", "photos/mug/c.png")
    world.bring("photos")
    made_before(world, last_id=40)
    content = (world.store / "index.db").read_bytes()
    with Index.open(world.store, read_only=True) as reader:
        assert reader.count('label = "cup"') == 2
        assert reader.count(f'path below "{world.folder}/photos/mug"') == 1
        assert (len(reader.known()), reader.sources(), reader.verify()) == (3, [], [])
        assert len(search(world.store, world.folder / "photos/cup/a.png")) == 3
        assert (world.store / "index.db").read_bytes() == content
        assert json.loads((world.store / "index.json").read_text())["format"] == 1
        assert world.bring("photos") == {"unchanged": 3}
        assert reader.count('path = "cup/a.png"') == 1  # a reader that was open meanwhile sees it
        assert [source.place for source in reader.sources()] == [f"{world.folder}/photos"]
    assert json.loads((world.store / "index.json").read_text())["format"] == 2
    (world.folder / "photos/cup/a.png").unlink()
    world.put("photos/mug/d.png")
    assert world.bring("photos") == {"added": 1, "removed": 1, "unchanged": 2, "embedded": 1}
    with Index.open(world.store, read_only=True) as reader:
        assert max(known.id for known in reader.known().values()) == 41  # the id of what was removed before is not given again


def test_an_index_from_before_a_second_look_is_read_and_written(world: World) -> None:
    if world.patches:
        pytest.skip("vectors as Python gives them are those of whole images")
    world.put("photos/cup/a.png", "photos/mug/c.png")
    world.bring("photos")
    with Index.open(world.store) as index:
        index.upsert([Item(f"{world.folder}/photos/cup/a.png", box=(0, 0, 5, 5))], np.eye(index.header.dim, dtype=np.float32)[:1])
        known = index.known()
    with contextlib.closing(sqlite3.connect(world.store / "index.db", isolation_level=None)) as database:
        database.execute("ALTER TABLE segments DROP COLUMN doubt")
        database.execute("PRAGMA user_version = 2")
    with Index.open(world.store, read_only=True) as reader:
        assert reader.known() == known  # boxes too
        assert (reader.count('label = "cup"'), len(reader.sources())) == (1, 1)
    world.put("photos/mug/d.png")
    assert world.bring("photos") == {"added": 1, "unchanged": 2, "embedded": 1}
    with Index.open(world.store) as index:
        index.seal()
    with contextlib.closing(sqlite3.connect(world.store / "index.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


def test_an_index_of_before_follows_a_renamed_folder_and_loses_its_doubles(world: World) -> None:
    world.put("photos/a.png", "photos/b.png")
    world.bring("photos")
    (world.folder / "copy").mkdir()
    shutil.copytree(world.folder / "photos", world.folder / "copy/photos")
    world.bring("copy/photos")
    shutil.rmtree(world.folder / "copy")
    made_before(world, last_id=4)
    (world.folder / "link").symlink_to("photos")
    with contextlib.closing(sqlite3.connect(world.store / "index.db", isolation_level=None)) as database:
        database.execute("UPDATE items SET path = replace(path, '/copy/photos/', '/link/')")
    assert world.bring("photos") == {"unchanged": 2, "removed": 2}
    assert "2 items were pictures that the index had under another path too" in world.notes[0]
    made_before(world, last_id=4)
    (world.folder / "photos").rename(world.folder / "pictures")
    assert world.bring("pictures") == {"moved": 2}
    assert world.paths() == ["pictures/a.png", "pictures/b.png"]


def test_an_index_of_before_guesses_nothing_where_files_have_one_name_size_and_time(world: World) -> None:
    for name in ("photos/x/a.bmp", "photos/y/a.bmp", "photos/y/b.bmp"):
        os.utime(world.put(name), ns=(7, 7))
    world.bring("photos")
    made_before(world, last_id=3)
    (world.folder / "photos").rename(world.folder / "pictures")
    assert world.bring("pictures") == {"added": 2, "moved": 1, "embedded": 2}
    assert "pictures/y/b.bmp" in world.paths()


def test_an_index_of_before_that_held_the_last_box_gets_them_all(world: World) -> None:
    world.put("a.png", "b.png")
    world.manifest("path,box\na.png,0 0 10 10\nb.png,0 0 9 9\n")
    world.bring("m.csv")
    made_before(world, last_id=2)
    world.manifest("path,box\na.png,0 0 10 10\na.png,0 0 20 20\nb.png,0 0 9 9\n")
    assert world.bring("m.csv") == {"added": 1, "changed": 2, "embedded": 3}
    assert set(world.items()) == {("a.png", (0, 0, 10, 10)), ("a.png", (0, 0, 20, 20)), ("b.png", (0, 0, 9, 9))}


def test_paths_in_filters_may_be_relative_to_where_they_came_from_or_to_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("photos/cup/a.png", "photos/cup/more/b.png", "photos/mug/a.png", "photos/mug2/a.png", "a.png")
    world.bring("photos")
    world.manifest("path\n./a.png\n")
    world.bring("m.csv")
    for where, num in (
        ('path = "cup/a.png"', 1),
        ('path = "./cup/a.png"', 1),
        ('path = "a.png"', 1),
        ('path in ["cup/a.png", "mug/a.png", "x"]', 2),
        ('path != "cup/a.png"', 4),
        ('path below "mug"', 1),
        ('path below "cup/"', 2),
        (f'path below "{world.folder}/photos"', 4),
        (f'path = "{world.folder}/photos/mug/../cup/a.png"', 1),
        ('path = "more/b.png"', 0),
    ):
        assert world.count(where) == num, where
    monkeypatch.chdir(world.folder)
    assert world.count('path = "photos/cup/a.png"') == 1
    assert world.count('path below "photos/cup"') == 2
    assert indexing.index(world.store, remove='path = "cup/a.png"')[0]["removed"] == 1


def test_columns_that_an_index_cannot_keep_are_named(world: World) -> None:
    world.put("a.png")
    (world.folder / "m.jsonl").write_text(json.dumps({"path": "a.png", "id": 7, "price": 3, "size": [1, 2]}))
    world.bring("m.jsonl")
    assert next(iter(world.items().values())).metadata == {"price": 3}
    assert [note.split(":")[0] for note in world.notes] == ["the column 'size' is left out", "the column 'id' is left out"]


def test_an_ordinary_folder_is_told_what_an_index_needs(world: World) -> None:
    world.put("photos/a.png")
    with pytest.raises(
        UsageError, match=r"is a folder of other files, not an index: .* as in sightline index photos.index --model MODEL --images"
    ):
        indexing.index(world.folder / "photos", model="tiny", images=world.folder / "photos")
    assert sorted(path.name for path in (world.folder / "photos").iterdir()) == ["a.png"]


def test_a_model_that_python_loaded_is_noted_and_one_that_is_not_known_is_asked_for(world: World) -> None:
    world.put("photos/a.png")
    vector = np.eye(16, dtype=np.float32)[:1]
    with Index.create(world.store, dim=16, fingerprint="f" * 64) as index:
        index.upsert([Item("a")], vector)
    with pytest.raises(UsageError, match=r"does not say where its model is: add --model"):
        search(world.store, world.folder / "photos/a.png")
    indexing.index(world.store, model="timm:tiny", images=world.folder / "photos")
    assert len(search(world.store, world.folder / "photos/a.png")) == 2
