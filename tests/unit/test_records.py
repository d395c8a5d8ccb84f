"""Reading class folders and manifests, and every way in which they can be wrong."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.data.listing import find_images
from sightline.data.records import (
    Records,
    index_labels,
    read_records,
)
from sightline.errors import DataError


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def message(*arguments: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_records(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labelled(*labels: int) -> Records:
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    return Records(Path("there"), tuple(f"{row}.jpg" for row in range(len(labels))), np.array(labels, dtype=np.int64), names)


# --- folders


def test_the_first_folder_is_the_class(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "b/2.JPG", "a/1.jpg", "a/deep/3.png", "a/notes.txt", ".git/x.jpg", "a/.hidden.jpg"))
    assert records.paths == ("a/1.jpg", "a/deep/3.png", "b/2.JPG")
    assert records.class_names == ("a", "b")
    assert records.labels is not None
    assert records.labels.tolist() == [0, 0, 1]
    assert records.splits is None
    assert records.file(2) == tmp_path / "b" / "2.JPG"


def test_split_folders_come_before_classes(tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, "train/a/1.jpg", "Validation/a/2.jpg", "test/b/3.jpg"))
    assert records.class_names == ("a", "b")
    assert records.split("val").paths == ("Validation/a/2.jpg",)
    test = records.split("test")
    assert test.class_names == ("a", "b")  # a part keeps the whole table: labels mean the same in every part
    assert test.num_classes == 1
    with pytest.raises(DataError, match=r"no split 'tset'; did you mean 'test'"):
        records.split("tset")


def test_a_class_may_be_called_test_beside_others(tmp_path: Path) -> None:
    assert read_records(tree(tmp_path, "test/1.jpg", "other/2.jpg")).class_names == ("other", "test")


def test_images_outside_class_folders_leave_all_unlabelled(tmp_path: Path) -> None:
    assert read_records(tree(tmp_path, "a/1.jpg", "cover.jpg")).labels is None
    assert "1 of 2 images in no class folder (such as cover.jpg)" in message(tmp_path, require_labels=True)


@pytest.mark.parametrize(
    ("paths", "labelled"),
    [
        (("a.jpg", "b.PNG", "c.webp"), False),
        (("2019/05/trip/1.jpg", "2020/x/y/z/2.jpg"), True),  # by year, which means nothing to whoever needs no classes
        (("1.jpg", "a/2.jpg", "a/b/c/3.jpg"), False),
        (("train/1.jpg", "train/more/2.jpg", "val/3.jpg"), False),
        (("train/1.jpg",), False),
    ],
)
def test_images_of_any_layout_are_all_found_where_no_labels_are_needed(paths: tuple[str, ...], labelled: bool, tmp_path: Path) -> None:
    records = read_records(tree(tmp_path, *paths, "notes.txt", "Thumbs.db", ".hidden.jpg", "__MACOSX/._1.jpg"))
    assert sorted(records.paths) == sorted(paths)
    assert (records.labels is not None) == labelled
    bare = records.without_labels()
    assert (bare.paths, bare.splits, bare.labels, bare.class_names) == (records.paths, records.splits, None, ())
    if paths[0].startswith("train/"):
        assert set(records.split("train").paths) == {path for path in paths if path.startswith("train/")}


def test_links_copies_and_odd_files_are_listed_once_each(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "folder.jpg/in.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    (tmp_path / "hard.jpg").hardlink_to(tmp_path / "a" / "1.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")  # told as a bad file when it is decoded, not passed over
    assert read_records(tmp_path).paths == ("a/1.jpg", "b.jpg", "dead.jpg", "folder.jpg/in.jpg", "hard.jpg")


@pytest.mark.parametrize("text", ["path\na.jpg\nsub/b.jpg\n", "path,split\na.jpg,train\nsub/b.jpg,train\n"])
def test_a_manifest_of_paths_alone_is_a_collection_without_labels(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    records = read_records(tmp_path / "m.csv")
    assert records.paths == ("a.jpg", "sub/b.jpg")
    assert records.labels is None


def test_a_missing_or_empty_folder_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "nowhere")
    assert "no images in" in message(tree(tmp_path, "a/readme.md"))
    assert "neither a folder nor a manifest" in message(tmp_path / "a" / "readme.md")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    tree(tmp_path / "set", "a/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    assert find_images(tmp_path / "set") == ("a/1.jpg", "b/2.jpg")


def test_a_folder_that_cannot_be_listed_is_noted_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.data.listing as module

    tree(tmp_path, "a/1.jpg", "closed/2.jpg")
    listing = module.os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(module.os, "scandir", refuse)
    assert "closed cannot be listed (Permission denied)" in message(tmp_path)
    noted: list[tuple[Path, str]] = []
    assert read_records(tmp_path, on_bad=lambda path, reason: noted.append((path, reason))).paths == ("a/1.jpg",)
    assert noted == [(tmp_path / "closed", "folder not listed: Permission denied")]


def test_names_that_are_not_ascii_are_kept(tmp_path: Path) -> None:
    assert read_records(tree(tmp_path, "été/été 1.jpg", "猫/b.jpg")).class_names == ("été", "猫")


# --- manifests

ROWS = [
    {"path": "a.jpg", "label": "cat", "camera": "1", "split": "train", "caption": "a cat, asleep", "box": "1 2 30 40"},
    {"path": "b.jpg", "label": "dog", "camera": "2", "split": "valid", "caption": "", "box": ""},
]


def as_csv(file: Path, rows: list[dict[str, str]]) -> Path:
    quoted = [",".join(f'"{cell}"' for cell in row.values()) for row in rows]
    file.write_text("\n".join([",".join(rows[0]), *quoted]) + "\n", encoding="utf-8-sig")
    return file


def as_jsonl(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def as_parquet(file: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_three_kinds_of_manifest_agree(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"manifest.{kind}"
    {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}[kind](file, ROWS)  # type: ignore[operator]
    records = read_records(file)
    assert records.root == tmp_path
    assert records.paths == ("a.jpg", "b.jpg")
    assert records.class_names == ("cat", "dog")
    assert records.splits == ("train", "val")
    assert records.captions == ("a cat, asleep", "")
    assert records.cameras is not None
    assert records.cameras.tolist() == [0, 1]
    assert records.camera_names == ("1", "2")
    assert records.boxes is not None
    assert records.boxes[0].tolist() == [1, 2, 30, 40]
    assert np.isnan(records.boxes[1]).all()


def test_labels_may_be_numbers_and_boxes_lists(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "label": 10, "box": [0, 0, 5, 5]}, {"path": "b.jpg", "label": 9, "box": [0.5, 0, 5, 5]}]
    for records in (read_records(as_jsonl(tmp_path / "m.jsonl", rows)), read_records(as_parquet(tmp_path / "m.parquet", rows))):
        assert records.class_names == ("9", "10")
        assert records.boxes is not None
        assert records.boxes[1, 0] == 0.5


def test_only_the_path_is_needed(tmp_path: Path) -> None:
    file = as_csv(tmp_path / "m.csv", [{"path": "/elsewhere/a.jpg"}])
    assert read_records(file).file(0) == Path("/elsewhere/a.jpg")
    assert "no label column" in message(file, require_labels=True)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("m.csv", "path,lable\na.jpg,cat\n", "unknown column 'lable' in {file}; did you mean 'label'?"),
        ("m.csv", "label\ncat\n", "has no column 'path' (columns: label)"),
        ("m.csv", "", "has no column 'path' (columns: none)"),
        ("m.csv", "path,label\n", "has no rows"),
        ("m.csv", "path,label\na.jpg,cat\nb.jpg\n", "line 3 has 1 cells, the header 2"),
        ("m.csv", "path,label\na.jpg,\n", "row 1: label is empty"),
        ("m.csv", "path,box\na.jpg,1 2 3\n", "row 1: box is '1 2 3'"),
        ("m.csv", "path,box\na.jpg,5 5 1 9\n", "the box of a.jpg is '5 5 1 9'"),
        ("m.csv", "path,path\na.jpg,b.jpg\n", "has a column twice"),
        ("m.csv", b"path\ncaf\xe9.jpg\n", "is not UTF-8"),
        ("m.jsonl", '{"path": "a.jpg"}\n{"path": \n', "line 2 is not JSON"),
        ("m.jsonl", '["a.jpg"]\n', "line 1 is not an object"),
        ("m.jsonl", '{"path": "a.jpg", "label": {"x": 1}}\n', "row 1: label is {{'x': 1}}"),
        ("m.jsonl", "", "has no rows"),
        ("m.parquet", "PAR1", "is not a Parquet file"),
    ],
)
def test_a_wrong_manifest_is_told_in_one_line(name: str, text: str | bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected.format(file=file) in message(file)


def test_the_names_of_cameras_are_kept(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,camera\na.jpg,front\nb.jpg,7\nc.jpg,front\nd.jpg,007\n")
    records = read_records(tmp_path / "m.csv")
    assert records.cameras is not None
    assert [records.camera_names[camera] for camera in records.cameras] == ["front", "7", "front", "007"]
    assert records.select([3]).camera_names == records.camera_names


def test_other_columns_are_kept_with_the_kind_of_their_cells(tmp_path: Path) -> None:
    rows = 'path,price,sold,code,note,stock,mixed\na.jpg,3,true,007,"x, y",1.5,1\nb.jpg,-12,FALSE,12,,2,one\nc.jpg,,,3,z,1e3,\n'
    (tmp_path / "m.csv").write_text(rows)
    records = read_records(tmp_path / "m.csv")
    assert records.extras == {
        "price": (3, -12, None),
        "sold": (True, False, None),
        "code": ("007", "12", "3"),
        "note": ("x, y", None, "z"),
        "stock": (1.5, 2.0, 1000.0),
        "mixed": ("1", "one", None),
    }
    assert [type(value) for value in records.extras["price"][:2]] == [int, int]
    assert records.select([2, 0]).extras["price"] == (None, 3)


def test_numbers_between_semicolons_have_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path;price;note;code\na.jpg;3,50;1,5;007,5\nb.jpg;-12;one, two;\nc.jpg;;2;1\n")
    assert read_records(tmp_path / "m.csv").extras == {
        "price": (3.5, -12.0, None),
        "note": ("1,5", "one, two", "2"),
        "code": ("007,5", None, "1"),
    }
    (tmp_path / "m.csv").write_text('path,price\na.jpg,"3,50"\n')  # here a comma may as well part thousands
    assert read_records(tmp_path / "m.csv").extras == {"price": ("3,50",)}


def test_other_columns_of_jsonl_and_parquet_keep_their_kinds_and_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    day = datetime.date(2026, 5, 4)
    row = {"path": "a.jpg", "price": 3, "rate": 0.5, "ok": True, "code": "12", "gap": None}
    parquet = as_parquet(tmp_path / "m.parquet", [row | {"day": day, "size": [1, 2], "huge": float("inf"), "lost": float("nan")}])
    for file, more in (
        (as_jsonl(tmp_path / "m.jsonl", [row | {"size": [1, 2]}]), {}),
        (parquet, {"day": ("2026-05-04",), "lost": (None,)}),
    ):
        records = read_records(file)
        assert records.extras == {"price": (3,), "rate": (0.5,), "ok": (True,), "code": ("12",), "gap": (None,)} | more
        assert "size" in records.unused
        assert "[1, 2]" in records.unused["size"]
    assert "finite" in records.unused["huge"]


def test_a_name_too_like_a_known_one_is_told_only_where_that_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,labels\na.jpg,cat,many\n")
    assert read_records(tmp_path / "m.csv").extras == {"labels": ("many",)}
    (tmp_path / "m.csv").write_text("path,Lable\na.jpg,cat\n")
    assert "did you mean 'label'" in message(tmp_path / "m.csv")


SPREADSHEETS = {
    "commas.csv": "path,label,box\na.jpg,x,1 2 3.5 4\nb.jpg,y,\n",
    "semicolons.csv": "path;label;box\na.jpg;x;1 2 3,5 4\nb.jpg;y;\n",  # with the decimal comma that goes with them
    "tabs.csv": "path\tlabel\tbox\na.jpg\tx\t1,2,3.5,4\nb.jpg\ty\t\n",
    "tabs.tsv": "path\tlabel\tbox\na.jpg\tx\t1,2,3.5,4\nb.jpg\ty\t\n",
    "bars.csv": "path|label|box\na.jpg|x|1, 2, 3.5, 4\nb.jpg|y|\n",
    "sep.csv": "sep=;\r\npath;label;box\r\na.jpg;x;1 2 3.5 4\r\nb.jpg;y;\r\n",
    "pandas.csv": ",path,label,box\n7,a.jpg,x,1 2 3.5 4\n3,b.jpg,y,\n",
    "read_again.csv": "Unnamed: 0,path,label,box\n0,a.jpg,x,1 2 3.5 4\n1,b.jpg,y,\n",
    "two_levels.csv": ",,path,label,box\n0,0,a.jpg,x,1 2 3.5 4\n0,1,b.jpg,y,\n",
    "empty_column.csv": "path,label,box,\na.jpg,x,1 2 3.5 4,\nb.jpg,y,,\n",
    "more_commas.csv": "\npath,label,box\na.jpg,x,1 2 3.5 4,,\nb.jpg,y,,,\n,,\n",
    "capitals.csv": "Path,LABEL, Box\na.jpg,x,1 2 3.5 4\nb.jpg,y,\n",
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_csv_is_read_as_spreadsheets_and_table_tools_write_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SPREADSHEETS[name].encode())
    records = read_records(tmp_path / name)
    assert (records.paths, records.class_names) == (("a.jpg", "b.jpg"), ("x", "y"))
    assert records.boxes is not None
    assert records.boxes[0].tolist() == [1, 2, 3.5, 4]


def test_parquet_without_the_index_that_pandas_writes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "__index_level_0__": [4, 2]}), tmp_path / "m.parquet")
    assert read_records(tmp_path / "m.parquet").paths == ("a.jpg", "b.jpg")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "im/0.png,a\nim/1.png,b\n",
            "m.csv has no header: its first line is 'im/0.png,a'; put the columns' names above it, such as path,label",
        ),
        ("0.png;a\n1.png;b\n", "has no header: its first line is '0.png;a'"),
        ("0.png\n1.png\n", "has no header: its first line is '0.png'"),
        (",path\nkitchen,a.jpg\n", "has a column with no name (it holds 'kitchen'): name it in the first line, or leave it out"),
        ("path;label\na.jpg;x;y\n", "line 2 has 3 cells, the header 2: put quotes round a cell that holds the separator (semicolons)"),
        ("path,Label,label\na.jpg,x,y\n", "has a column twice: path, Label, label"),
    ],
)
def test_csv_that_cannot_be_read_is_named_for_what_it_is(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    assert expected in message(tmp_path / "m.csv")


def test_a_file_without_a_header_is_read_once_the_named_line_is_put_above_it(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("0.png;a\n1.png;b\n")
    remedy = message(tmp_path / "m.csv").rpartition("such as ")[2]
    (tmp_path / "m.csv").write_text(f"{remedy}\n0.png;a\n1.png;b\n")
    assert read_records(tmp_path / "m.csv").class_names == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("path\na.jpg\nb.jpg\na.jpg\n", "names a.jpg twice, in rows 1 and 3: it would answer itself"),
        ("path,label\na.jpg,x\nsub/../a.jpg,x\n", "names a.jpg twice, in rows 1 and 2 (as sub/../a.jpg the second time)"),
        ("path,label\na.jpg,x\na.jpg,y\n", "in rows 1 and 2, as 'x' and as 'y'"),
        ("path,box\na.jpg,1 2 3 4\na.jpg,1 2 3 4.0\n", "names a.jpg twice"),
        ("path,split\na.jpg,train\na.jpg,Training\n", "names a.jpg twice"),
        ("path,cluster,positive\na.jpg,1,b.jpg\nb.jpg,1,\na.jpg,1,c.jpg\nc.jpg,1,\n", "several positives of one picture go into one row"),
        ("path,box\na.jpg,0.1 0.2 0.5 0.9\n", "is a share of the picture"),
    ],
)
def test_a_picture_listed_twice_and_boxes_in_shares_are_refused(rows: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(rows)
    (tmp_path / "sub").mkdir()
    assert expected in message(tmp_path / "m.csv")


def test_other_boxes_and_other_splits_are_no_second_listing(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,split,box\na.jpg,train,1 2 3 4\na.jpg,train,1 2 3 9\na.jpg,test,1 2 3 4\na.jpg,train,\n")
    records = read_records(tmp_path / "m.csv")
    assert len(records) == 4
    assert records.notes == (f"{tmp_path / 'm.csv'} names 1 pictures in more than one split (such as a.jpg, again in test)",)


# --- records


def test_records_are_checked_at_birth() -> None:
    with pytest.raises(ValueError, match="2 paths, 1 labels"):
        Records(Path(), ("a", "b"), np.zeros(1, dtype=np.int64), ("x",))
    with pytest.raises(ValueError, match="positions in class_names"):
        Records(Path(), ("a",), np.ones(1, dtype=np.int64), ("x",))
    with pytest.raises(ValueError, match="cameras that are positions in camera_names"):
        Records(Path(), ("a",), cameras=np.ones(1, dtype=np.int64), camera_names=("x",))
    with pytest.raises(ValueError, match="1 paths, 2 price"):
        Records(Path(), ("a",), extras={"price": (1, 2)})
    with pytest.raises(ValueError, match="labels of type int64"):
        Records(Path(), ("a",), np.zeros(1, dtype=np.int32), ("x",))  # type: ignore[arg-type]


def test_select_takes_rows_in_order_or_a_mask() -> None:
    records = labelled(0, 1, 2, 1)
    assert records.select([3, 0]).paths == ("3.jpg", "0.jpg")
    assert records.select(np.array([True, False, False, True])).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    assert len(records.select([])) == 0


def test_class_counts_follow_the_table() -> None:
    records = labelled(0, 2, 2)
    assert records.class_counts().tolist() == [1, 0, 2]
    assert records.num_classes == 2


def test_whole_numbers_sort_by_value() -> None:
    assert index_labels(["10", "9", "10"])[1] == ("9", "10")
    assert index_labels(["10", "9", "x"])[1] == ("10", "9", "x")


# --- clusters and positive pairs


def test_a_manifest_may_call_its_labels_clusters_and_name_positives(tmp_path: Path) -> None:
    manifest = tmp_path / "places.csv"
    manifest.write_text("path,cluster,positive\na.jpg,7,b.jpg\nb.jpg,7,\nc.jpg,12,d.jpg\nd.jpg,12,c.jpg\n")
    records = read_records(manifest, require_labels=True)
    assert records.class_names == ("7", "12")
    assert records.labels is not None
    assert records.labels.tolist() == [0, 0, 1, 1]
    assert records.positives is not None
    assert records.positives.tolist() == [[0, 1], [2, 3], [3, 2]]


def test_a_row_may_have_several_positives_where_cells_may_be_lists(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "positive": ["c.jpg", "b.jpg"]}, {"path": "b.jpg"}, {"path": "c.jpg", "positive": "a.jpg"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = {"path": ["a.jpg", "b.jpg", "c.jpg"], "positive": [["c.jpg", "b.jpg"], None, ["a.jpg"]]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        positives = read_records(tmp_path / name).positives
        assert positives is not None
        assert positives.tolist() == [[0, 2], [0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("path,positive\na.jpg,x.jpg\n", "row 1: positive 'x.jpg' is no row's path: list that image too"),
        ("path,positive\na.jpg,a.jpg\n", "the positive of a.jpg is a.jpg: give another image of the same cluster"),
        ("path,cluster,positive\na.jpg,1,b.jpg\nb.jpg,2,\n", "the positive of a.jpg is b.jpg: give another image of the same cluster"),
        ("path,cluster,label\na.jpg,1,1\n", "has both 'label' and 'cluster', which are two names of one column: leave one out"),
    ],
)
def test_wrong_pairs_are_one_line(tmp_path: Path, rows: str, wanted: str) -> None:
    (tmp_path / "m.csv").write_text(rows)
    assert wanted in message(tmp_path / "m.csv")


def test_a_selection_keeps_the_pairs_that_it_holds_whole() -> None:
    records = replace(labelled(0, 0, 0, 1, 1), positives=np.array([[0, 1], [0, 2], [4, 3], [2, 1]], dtype=np.int64))
    chosen = records.select([4, 2, 3, 1]).positives
    assert chosen is not None
    assert chosen.tolist() == [[0, 2], [1, 3]]  # rows 4, 3 and rows 2, 1
    twice = records.select([0, 1, 1]).positives
    assert twice is not None
    assert twice.tolist() == [[0, 1]]


@pytest.mark.parametrize("pairs", [np.zeros((2, 3), np.int64), np.zeros((1, 2), np.int32), np.array([[0, 9]]), np.array([[-1, 0]])])
def test_pairs_that_are_no_rows_are_refused(pairs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Records need positives"):
        replace(labelled(0, 0), positives=pairs)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("left,top,right,bottom", "left, top, right, bottom look like a box and are"),
        ("xmin,ymin,XMAX,ymax", "xmin, ymin, XMAX, ymax look like a box and are"),
        ("x,y,width,height", "x, y, width, height look like a box and are"),
        ("width,height,x,price", ""),
        ("box,left,top,right", ""),
    ],
)
def test_a_box_that_is_not_read_as_one_is_told(tmp_path: Path, names: str, told: str) -> None:
    box = '"1 2 3 4",1,2,3' if names.startswith("box") else "1,2,3,4"
    (tmp_path / "m.csv").write_text(f"path,label,{names}\na.png,a,{box}\nb.png,b,{box}\n")
    notes = " ".join(read_records(tmp_path / "m.csv").notes)
    assert (told in notes and "pictures are taken whole" in notes) if told else "box" not in notes


def test_a_box_as_coco_writes_it_is_not_renamed_blindly(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,bbox\na.png,a,1 2 3 4\n")
    with pytest.raises(DataError, match=r"did you mean 'box' \(of x0 y0 x1 y1 in pixels; COCO's is x y width height\)\?"):
        read_records(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("twin", "shown"), [("cup\u200b", "cup\\u200b"), ("\ufeffcup", "\\ufeffcup"), ("CUP", "CUP"), ("cup\u00a0", "cup\\xa0")]
)
def test_class_names_that_look_alike_are_told_apart_in_words(tmp_path: Path, twin: str, shown: str) -> None:
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps({"path": f"{n}.png", "label": name}) + "\n" for n, name in enumerate(["cup", twin, "tea"]))
    )
    (told,) = read_records(tmp_path / "m.jsonl").notes
    assert f"'{shown}'" in told
    assert "count as several classes" in told
