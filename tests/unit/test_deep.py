"""Greys of 12 bits, of thermal cameras, of floats: the same in all of a collection, and as many of them as 8 bits hold."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.cli.main import main
from sightline.data.deep import joined, to_grey
from sightline.data.images import BadFiles, decode, measured_range
from sightline.data.listing import DRAWINGS_TAG
from sightline.data.loading import open_image
from sightline.data.reading import read_data
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec


def write(folder: Path, low: int, high: int, names: Sequence[str] = "abcd") -> list[Path]:
    """Pictures of values from low to high: each picture has a part of them, some at both ends."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = np.linspace(low, high, len(names) + 1)
    for name, start, end in zip(names, steps[:-1], steps[1:], strict=True):
        values = np.linspace(start, end, 64 * 64).reshape(64, 64).round().astype(np.uint16)
        Image.fromarray(values).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in names]


def levels(image: Image.Image) -> int:
    return len(np.unique(np.asarray(image)))


def test_twelve_bits_in_a_file_of_sixteen_keep_their_greys(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 0, 4095, "a")
    grey = np.asarray(decode(path))[..., 0]
    assert levels(decode(path)) == 256
    np.testing.assert_array_equal(grey.reshape(-1)[[0, -1]], [0, 255])


@pytest.mark.parametrize(("most", "white"), [(200, 255), (256, 1023), (4095, 4095), (4096, 16383), (16384, 65535)])
def test_alone_a_picture_goes_by_the_bits_that_it_uses(most: int, white: int) -> None:
    grey = to_grey(Image.fromarray(np.array([[0, most]], np.uint16)))
    assert np.asarray(grey).tolist() == [[0, round(255 * most / white)]]


def test_a_thermal_collection_spans_its_own_range_and_a_value_is_one_grey_everywhere(tmp_path: Path) -> None:
    files = write(tmp_path / "photos", 29_000, 31_000)
    records = read_data(tmp_path / "photos", BadFiles())
    assert records.deep is not None
    assert records.deep == pytest.approx((29_000, 31_000), abs=2)
    assert records.select([1]).deep == records.deep
    ramps = [np.asarray(open_image(records, row))[..., 0] for row in range(4)]
    assert len(np.unique(np.concatenate(ramps))) == 256
    for one, other in itertools.pairwise(ramps):  # where one ends the next begins, at the same value
        assert abs(int(one.max()) - int(other.min())) <= 1
    assert levels(decode(files[0])) <= 3, "alone, by the bits it uses"


def test_a_hot_pixel_does_not_set_the_range(tmp_path: Path) -> None:
    files = write(tmp_path, 29_000, 31_000)
    values = np.asarray(Image.open(files[0])).copy()
    values[0, :2] = 0, 65_535
    Image.fromarray(values).save(files[0])
    found = measured_range(files)
    assert found is not None
    assert found == pytest.approx((29_000, 31_000), abs=5)
    grey = np.asarray(decode(files[0], deep=found))
    assert (grey.min(), grey.max()) == (0, 255)


def test_sixteen_bits_stay_what_they_were_and_plain_pictures_have_no_range(tmp_path: Path) -> None:
    assert measured_range(write(tmp_path / "wide", 500, 60_000)) == (0.0, 65535.0)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "b.tif")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "d.tif").write_bytes(b"II*\x00" + b"\xff" * 40)
    assert measured_range([*sorted(tmp_path.glob("?.*")), tmp_path / "gone.png"]) is None
    assert joined([(5.0, 5.0)]) is None
    assert joined([(0.0, float("nan"))]) is None


def test_an_index_remembers_the_range_for_what_is_added_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (("patch_size", 8), ("depth", 2), ("embed_dim", 16), ("num_heads", 2))
    spec = ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=arguments, weights="random")
    model_folder.save(Encoder(spec, ImageSpec(image_px=32)), tmp_path / "model")
    photos, index = tmp_path / "photos", tmp_path / "i"
    write(photos, 29_000, 31_000)
    assert main(["index", str(index), "--model", str(tmp_path / "model"), "--images", str(photos)]) == 0
    kept = json.loads((index / "index.json").read_text())["deep"]
    write(photos, 29_700, 30_900, "ef")
    assert main(["index", str(index), "--images", str(photos)]) == 0
    assert json.loads((index / "index.json").read_text())["deep"] == kept
    for name in "ae":
        capsys.readouterr()
        assert main(["search", str(index), str(photos / f"{name}.png"), "-k", "1", "--json"]) == 0
        (hit,) = json.loads(capsys.readouterr().out)["queries"][0]["hits"]
        assert (Path(hit["path"]).name, hit["similarity"]) == (f"{name}.png", pytest.approx(1, abs=1e-5))
    assert (
        main(["explain", str(tmp_path / "model"), *(str(photos / f"{name}.png") for name in "ab"), "--out", str(tmp_path / "m.html")]) == 0
    )


def test_an_index_of_plain_pictures_is_written_as_before(tmp_path: Path) -> None:
    from sightline.index.base import Index

    Index.create(tmp_path / "i", dim=4, fingerprint="f").close()
    assert "deep" not in json.loads((tmp_path / "i" / "index.json").read_text())


def test_greys_beyond_the_range_of_an_index_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def index(name: str, pictures: Path) -> list[str]:
        new = [] if (tmp_path / name).exists() else ["--model", "random:vit_tiny_patch8_64"]
        assert main(["index", str(tmp_path / name), *new, "--images", str(pictures), "--json"]) == 0
        notes: list[str] = json.loads(capsys.readouterr().out)["update"]["notes"]
        return notes

    write(tmp_path / "warm", 29_000, 31_000)
    write(tmp_path / "like", 29_050, 31_050)
    write(tmp_path / "cold", 20_000, 22_000)
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain/a.png")
    assert index("i", tmp_path / "warm") == []
    assert index("i", tmp_path / "like") == []
    assert index("i", tmp_path / "plain") == []
    (told,) = index("i", tmp_path / "cold")
    assert "what lies beyond is black or white; index all of them anew" in told
    assert index("plain_index", tmp_path / "plain") == []
    (told,) = index("plain_index", tmp_path / "warm")
    assert "made without greys of more than 8 bits" in told
    write(tmp_path / "both/cold", 20_000, 22_000)  # the remedy
    write(tmp_path / "both/warm", 29_000, 31_000)
    assert index("anew", tmp_path / "both") == index("anew", tmp_path / "cold") == []


def test_a_few_deep_greys_among_many_photographs_have_a_range_of_their_own(tmp_path: Path) -> None:
    for number in range(300):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{number:03}.png")
    write(tmp_path, 29_000, 31_000, ["001", "003"])  # sampled are 0, 5, 9, ...
    found = measured_range(sorted(tmp_path.iterdir()))
    assert found == pytest.approx((29_000, 31_000), abs=4)


def test_a_named_pipe_among_the_pictures_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(file: Path, *how: Any, **more: Any) -> Any:
        assert file.is_file(), f"opening {file.name} would wait for ever"
        return open_it(file, *how, **more)

    open_it = Path.open
    monkeypatch.setattr(Path, "open", opened)
    write(tmp_path, 29_000, 31_000)
    os.mkfifo(tmp_path / "e.png")
    (tmp_path / DRAWINGS_TAG).touch()
    records = read_data(tmp_path, BadFiles())
    assert len(records) == 5
    assert records.deep == pytest.approx((29_000, 31_000), abs=4)
