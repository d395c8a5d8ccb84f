"""What `sightline search` prints: answers whose paths stay whole, a sentence where nothing matches, and pictures that come from standard input."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.cli.main import main
from sightline.cli.options import parse_box
from sightline.cli.searching import answer_lines
from sightline.contracts import Hit, Hits
from sightline.errors import UsageError
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

TINY = (("patch_size", 8), ("depth", 1), ("embed_dim", 16), ("num_heads", 2))
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        drawn = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos/m.csv").write_text("path,label,price\n0.png,cup,3\n1.png,cup,4\n2.png,mug,8\n3.png,mug,12\n")
    return tmp_path / "photos"


@pytest.fixture
def shell(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    torch.manual_seed(0)
    encoder = Encoder(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=TINY, weights="random"), ImageSpec(image_px=16)).eval()
    encoder.fingerprint = "f" * 64
    loads: list[object] = []
    monkeypatch.setattr(model_folder, "load", lambda *source, **options: loads.append(source) or encoder)

    def run(*arguments: object, given: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        loads.clear()
        code = main([str(argument) for argument in arguments])
        assert len(loads) <= 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    assert run("index", photos.parent / "p.index", "--model", "tiny", "--images", photos / "m.csv")[0] == 0
    return run


HITS = Hits(
    (
        Hit(1, "/a/long/folder/of/photographs/with a name/0001.jpg", 0.98765, {"label": "cup", "price": 3}),
        Hit(2, "/short.jpg", 0.5, {"label": "猫"}, (1.4, 2, 30, 40)),
    )
)


def test_a_table_is_as_wide_as_it_has_to_be_and_a_narrow_one_keeps_paths_whole() -> None:
    wide = answer_lines(Path("q.jpg"), HITS, None)
    assert wide == [
        "q.jpg",
        "#  similarity  id  label  price  box        path",
        "1  0.9877      1   cup    3                 /a/long/folder/of/photographs/with a name/0001.jpg",
        "2  0.5000      2   猫            1,2,30,40  /short.jpg",
    ]
    assert answer_lines(Path("q.jpg"), HITS, len(wide[2])) == wide
    assert answer_lines(Path("q.jpg"), HITS, len(wide[2]) - 1) == [
        "q.jpg",
        "1  0.9877  id 1, label cup, price 3",
        "   /a/long/folder/of/photographs/with a name/0001.jpg",
        "2  0.5000  id 2, label 猫, box 1,2,30,40",
        "   /short.jpg",
    ]
    assert answer_lines(Path("a\nb.jpg"), Hits((Hit(1, "/c\nd\x1b.jpg", 0.5),)), None) == [
        r"a\nb.jpg",
        "#  similarity  id  path",
        r"1  0.5000      1   /c\nd\x1b.jpg",
    ]


def test_nothing_that_matches_is_a_sentence_with_what_is_near(shell: Shell, photos: Path) -> None:
    asked = ("search", photos.parent / "p.index", photos / "0.png", "--where")
    code, out, err = shell(*asked, 'label = "cupp"')
    assert (code, out, err) == (0, f"{photos}/0.png: no answers\n", "nothing matches: no item has label = \"cupp\"; did you mean 'cup'?\n")
    code, out, err = shell(*asked, "price > 20", "--json")
    assert json.loads(out)["queries"][0]["hits"] == []
    assert json.loads(out)["note"] == "nothing matches: no item has price > 20: it goes from 3 to 12"
    code, out, err = shell(*asked, 'label != "cupp"')
    assert len(out.splitlines()) == 2 + 4
    assert "leaves nothing out" in err
    code, out, err = shell(*asked, 'label = "cup"', "--json")
    assert "note" not in json.loads(out)
    assert err == ""
    code, _, err = shell(*asked, "label = 3")
    assert (code, err.count("\n")) == (2, 1)
    assert "no label in the index is a number, so none can be compared with 3; choose one of: cup, mug" in err


def test_pictures_of_standard_input_are_answered_one_after_another_by_one_process(shell: Shell, photos: Path) -> None:
    given = f"{photos}/2.png\n\n{photos}/missing.png\r\n{photos}/3.png"
    code, out, err = shell("search", photos.parent / "p.index", "-", "-k", 1, "--json", given=given)
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [lines[place]["queries"][0]["hits"][0]["path"] for place in (0, 2)] == [f"{photos}/2.png", f"{photos}/3.png"]
    assert lines[1]["image"] == f"{photos}/missing.png"
    assert "no such file" in lines[1]["error"]
    assert err.count("\n") == 1
    code, out, err = shell("search", photos.parent / "p.index", "--image", "-", "-k", 1, given=f"{photos}/2.png\n{photos}/3.png\n")
    assert (code, err) == (0, "searched: exact\n" * 2)
    first = [line.split() for line in out.splitlines() if line.startswith("1")]
    assert first == [["1", "1.0000", "3", "mug", "8", f"{photos}/2.png"], ["1", "1.0000", "4", "mug", "12", f"{photos}/3.png"]]


@pytest.mark.parametrize("option", [("--html", "page.html"), ("--box", "1,1,9,9")])
def test_what_does_not_go_with_standard_input_is_refused(shell: Shell, photos: Path, option: tuple[str, str]) -> None:
    code, _, err = shell("search", photos.parent / "p.index", "-", *option)
    assert code == 2
    assert f"{option[0]} goes with pictures that are named" in err


def test_an_ordinary_folder_is_no_place_for_an_index(shell: Shell, photos: Path) -> None:
    for command in (("search", photos, photos / "0.png"), ("index", photos, "--info")):
        code, _, err = shell(*command)
        assert code == 2
        assert (
            f"no index at '{photos}', a folder of other things: make one with sightline index {photos}.index --model MODEL --images {photos}"
            in err
        )
    code, _, err = shell("index", photos, "--model", "tiny", "--images", photos)
    assert code == 2
    remedy = err[err.index("sightline index ") + len("sightline index ") :].split()
    assert shell("index", photos.parent / remedy[0], "--model", "tiny", *remedy[3:])[0] == 0


@pytest.mark.parametrize("text", ["0.1,0.1,0.5,0.5", "0,0,1,1"])
def test_a_box_of_shares_is_not_taken_for_pixels(text: str) -> None:
    with pytest.raises(UsageError, match=r"is a share of the picture or a pixel at most: write pixels \(x times"):
        parse_box(text)
    assert parse_box("0,0,1,2") == (0, 0, 1, 2)


def test_an_item_and_examples_are_queries(shell: Shell, photos: Path) -> None:
    index = photos.parent / "p.index"
    by_picture = json.loads(shell("search", index, photos / "0.png", "-k", "4", "--json")[1])["queries"][0]
    first, *rest = [hit["id"] for hit in by_picture["hits"]]
    code, out, err = shell("search", index, "--id", first, "-k", "3", "--json")
    (found,) = json.loads(out)["queries"]
    assert (code, err, found["id"], found["image"]) == (0, "", first, by_picture["hits"][0]["path"])
    assert [hit["id"] for hit in found["hits"]] == rest
    assert {*found["timings_ms"]} == {"embed", "search", "read"}
    (moved,) = json.loads(shell("search", index, "--id", first, "--like", rest[0], "--unlike", rest[1], "-k", "3", "--json")[1])["queries"]
    assert (moved["like"], moved["unlike"]) == ([rest[0]], [rest[1]])
    assert not {first, rest[0], rest[1]} & {hit["id"] for hit in moved["hits"]}
    assert len(json.loads(shell("search", index, "--id", first, "--id", rest[0], "--json")[1])["queries"]) == 2
    assert shell("search", index, "--like", first, "--html", photos.parent / "page.html")[0] == 0
    assert "0.png" in (photos.parent / "page.html").read_text(encoding="utf-8")
    for arguments, message in (
        (("--id", 999), "the index has no item 999"),
        (("--unlike", 1), "which picture? for example"),
        (("-", "--id", 1), "--id goes with pictures that are named"),
    ):
        code, _, err = shell("search", index, *arguments)
        assert code == 2
        assert message in err
