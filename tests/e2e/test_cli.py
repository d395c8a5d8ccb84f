"""The shell as a person uses it: the whole way on small real files, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sightline.cli.main import main

SETTINGS = [
    "backbone_args=patch_size=8,depth=2,embed_dim=16,num_heads=2", "image_px=24", "classes_per_batch=3", "images_per_class=2", "steps=4", "memory_start=1",
    "validation=0.34", "validate_every=2", "log_every=1", "workers=0",
]  # fmt: skip
NUM_CLASSES, PER_CLASS = 6, 4

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def paint(path: Path, label: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 90, (40, 48, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    x, y = random.integers(4, 16, 2)
    colour = [(255, 60, 60), (60, 255, 60), (60, 60, 255), (255, 255, 60), (255, 60, 255), (60, 255, 255)][label]
    (pen.ellipse if label % 2 else pen.rectangle)((x, y, x + 22, y + 18), fill=colour)
    image.save(path, quality=90)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    for label in range(NUM_CLASSES):
        folder = root / f"Klasse {label} ä"
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            paint(folder / f"{number}.jpg", label, label * 100 + number)
    (root / "Klasse 0 ä" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (root / "Klasse 1 ä" / "empty.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    assert main(["train", "irt/small", *SETTINGS, "--data", str(photos), "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_a_run_leaves_everything_that_it_needs_to_be_replayed(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"recipe.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoint.pt", "model"} <= names
    facts = json.loads((run / "run.json").read_text())
    assert len(facts["training_classes"]) == 4
    assert len(facts["validation_classes"]) == 2
    card = (run / "model" / "README.md").read_text()
    assert "MAP@R **" in card
    assert "sightline train irt/small" in card or "command: `" in card
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["step"], lines[0].keys()) == (0, {"step", "validation/map@r", "validation/recall@1"})  # the start is measured too
    assert {"loss", "contrastive", "lr", "grad_norm", "images_per_s", "data_wait", "memory_mib"} <= lines[1].keys()


def test_a_batch_of_more_classes_than_validation_leaves_takes_these(
    shell: Shell, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["train", "irt/small", *SETTINGS, "classes_per_batch=6", "--data", photos, "--out", tmp_path / "run", "--device", "cpu"]
    code, _, told = shell(*command)
    assert code == 0, told
    assert "2 of 6 classes are held out to choose the model: a batch takes the 4 left, not classes_per_batch=6" in caplog.text
    assert json.loads((tmp_path / "run/recipe.json").read_text())["data"]["classes_per_batch"] == 4
    assert shell(*command, "--resume")[0] == 0


def test_a_training_that_helps_nothing_delivers_its_start_and_says_so(shell: Shell, photos: Path, tmp_path: Path) -> None:
    def train(out: Path, *settings: str) -> tuple[dict[str, object], str]:
        code, said, told = shell(
            "train", "irt/small", *SETTINGS, "lr=1e-30", *settings, "--data", photos, "--out", out, "--device", "cpu", "--json"
        )
        assert code == 0
        return json.loads(said), told

    answer, told = train(tmp_path / "trained")
    assert "no step beat the start (MAP@R " in told
    assert answer["start"] == answer["validation"]["map@r"]  # type: ignore[index]
    assert answer["validation"]["step"] == 0  # type: ignore[index]
    assert "none of 4 steps beat it" in (tmp_path / "trained/model/README.md").read_text()
    assert "no step" not in train(tmp_path / "start", "steps=0")[1]
    kept, start = (json.loads((tmp_path / name / "model/config.json").read_text()) for name in ("trained", "start"))
    assert kept["fingerprint"] == start["fingerprint"]
    assert "validation" in told  # the remedy that it names: without validation the last step is kept
    _, told = train(tmp_path / "last", "validation=0")
    assert "the start" not in told


def test_evaluate_measures_unseen_classes_and_writes_the_report(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    code, out, _ = shell("evaluate", run, "--data", photos, "--report", tmp_path / "report", "--json", "--device", "cpu")
    assert code == 0
    answer = json.loads(out)
    assert answer["part"] == "classes held out of training (they chose the model: slightly optimistic)"
    assert answer["num_classes"] == 2
    assert 0 <= answer["metrics"]["recall@1"] <= 1
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == answer
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<img" in page
    assert "Near-duplicates" in page  # between the classes learnt from and those held out
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    code, out, _ = shell("evaluate", run, "--data", photos, "--split", "all")
    assert code == 0
    assert "all images" in out
    assert "recall@1" in out


def test_index_search_update_remove(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "photos.index"
    own = tmp_path / "own"
    for label in range(3):
        (own / f"c{label}").mkdir(parents=True)
        for number in range(3):
            paint(own / f"c{label}" / f"{number}.jpg", label, label * 100 + number)
    (own / "c0" / "bad.jpg").write_bytes(b"junk")
    code, out, _ = shell("index", store, "--model", run, "--images", own)
    assert code == 0
    assert "9 images" in out
    assert "9 added" in out
    code, out, err = shell("search", store, "--image", own / "c1" / "0.jpg", "-k", "3", "--json")
    assert code == 0, err
    hits = json.loads(out)["queries"][0]["hits"]
    assert hits[0]["path"].endswith("c1/0.jpg")
    assert hits[0]["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert hits[0]["metadata"]["label"] == "c1"
    code, out, _ = shell("search", store, "--image", own / "c1" / "0.jpg", "-k", "9", "--where", 'label != "c1"', "--json")
    assert {hit["metadata"]["label"] for hit in json.loads(out)["queries"][0]["hits"]} == {"c0", "c2"}
    assert len(json.loads(out)["queries"][0]["hits"]) == 6
    code, out, _ = shell("search", store, "--image", own / "c1" / "0.jpg", "--html", tmp_path / "found.html")
    assert code == 0
    assert "c1/0.jpg" in out.replace("\n", "")
    assert "<img" in (tmp_path / "found.html").read_text()

    (own / "c0" / "0.jpg").unlink()
    paint(own / "c2" / "0.jpg", 5, 999)
    paint(own / "c2" / "new.jpg", 2, 998)
    code, out, _ = shell("index", store, "--images", own)
    assert code == 0
    assert "9 images" in out
    assert "1 added, 1 changed, 7 unchanged, 1 removed" in out
    code, out, _ = shell("index", store, "--remove", 'label = "c2"', "--info", "--verify", "--compact", "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["removed"], answer["problems"], answer["info"]["rows"]) == (4, [], 5)


def test_a_damaged_index_is_found_repaired_and_filled_again(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "photos.index"
    assert shell("index", store, "--model", run, "--images", photos)[0] == 0
    (vectors,) = (store / "segments").glob("*.vectors.npy")
    content = bytearray(vectors.read_bytes())
    content[-3] ^= 0xFF
    vectors.write_bytes(content)
    code, out, _ = shell("index", store, "--verify")
    assert code == 1
    assert "problem: " in out
    code, out, _ = shell("index", store, "--repair", "--images", photos, "--verify", "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["forgotten"], answer["update"]["added"], answer["problems"]) == (24, 24, [])


def test_a_name_that_is_not_text_is_a_bad_file_and_stops_nothing(shell: Shell, run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    paint(own / "a.jpg", 0, 1)
    try:
        os.link(own / "a.jpg", os.fsdecode(bytes(own) + b"/b\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    code, out, _ = shell("index", tmp_path / "x.index", "--model", run, "--images", own)
    assert code == 0
    assert "1 added" in out
    assert "1 name not UTF-8" in out


def test_embed_writes_vectors_with_their_paths(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    code, out, _ = shell("embed", run, "--images", photos, "--out", tmp_path / "v.parquet", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["images"], told["dim"], told["bad_files"]) == (NUM_CLASSES * PER_CLASS, 16, 2)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "vector"]
    np.testing.assert_allclose(np.linalg.norm(np.stack(table["vector"].to_numpy()), axis=1), 1.0, atol=1e-5)
    assert len((tmp_path / "bad_files.jsonl").read_text().splitlines()) == 2
    assert shell("embed", run, "--images", photos, "--out", tmp_path / "v.npy")[0] == 0
    assert np.load(tmp_path / "v.npy").shape == (NUM_CLASSES * PER_CLASS, 16)
    assert len((tmp_path / "v.txt").read_text().splitlines()) == NUM_CLASSES * PER_CLASS


def test_inspect_writes_one_page(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    code, out, _ = shell("inspect", run, "--data", photos, "--out", tmp_path / "look", "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)
    assert (tmp_path / "look" / "index.html").stat().st_size > 10_000


def test_inspect_draws_models_side_by_side(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    other = "random:vit_tiny_patch16_224@32"
    code, out, _ = shell("inspect", run, "--beside", other, "--data", photos, "--out", tmp_path / "look", "--json")
    assert code == 0
    told = json.loads(out)
    assert told == json.loads((tmp_path / "look" / "numbers.json").read_text(encoding="utf-8"))
    assert [told["model"]["name"], told["beside"][0]["model"]["name"]] == [str(run), other]
    assert [len(told["energy"]), len(told["beside"][0]["energy"])] == [16, 192]
    assert [one["gradients"]["batch"] for one in (told, told["beside"][0])] == [f"{NUM_CLASSES} x 4"] * 2
    assert told["bad_files"] == 2
    with Image.open(tmp_path / "look" / "hard_negatives.png") as sheet:
        assert sheet.width > 320
    code, _, err = shell("inspect", run, "--beside", run, "--data", photos, "--out", tmp_path / "twice")
    assert code == 2
    assert f"'{run}' is named twice" in err
    assert not (tmp_path / "twice").exists()


def test_replay_and_resume(shell: Shell, run: Path, photos: Path, tmp_path: Path) -> None:
    assert shell("train", "--from", run, "--data", photos, "--out", tmp_path / "again", "--json")[0] == 0
    first, again = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, tmp_path / "again"))
    assert [json.loads(line).get("loss") for line in first] == [json.loads(line).get("loss") for line in again]
    assert shell("train", "--data", photos, "--out", tmp_path / "again", "--resume")[0] == 0  # nothing left to do
    code, _, err = shell("train", "irt/small", *SETTINGS, "--data", photos, "--out", run)
    assert code == 2
    assert "already holds a run: go on with --resume" in err


def test_a_model_with_pca(shell: Shell, photos: Path, tmp_path: Path) -> None:
    assert shell("train", "irt/small", *SETTINGS, "pca=4", "projection=12", "--data", photos, "--out", tmp_path / "run")[0] == 0
    _, out, _ = shell("embed", tmp_path / "run", "--images", photos, "--out", tmp_path / "v.npy", "--json")
    assert json.loads(out)["dim"] == 4


def test_recipes_doctor_version_help(shell: Shell) -> None:
    code, out, _ = shell("recipes", "--json")
    assert code == 0
    assert "irt/folder" in json.loads(out)
    assert "margin = 0.5" in shell("recipes", "irt/cub")[1]
    assert shell("doctor", "--json")[0] == 0
    assert shell("--version")[1].startswith("sightline ")
    assert shell("train", "--help")[0] == 0


def _one_class(folder: Path) -> Path:
    (folder / "only").mkdir(parents=True)
    for number in range(4):
        paint(folder / "only" / f"{number}.jpg", 0, number)
    return folder


def _few(folder: Path) -> Path:
    for label in range(4):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(4 if label else 1):
            paint(folder / f"c{label}" / f"{number}.jpg", label, number)
    return folder


def _unreadable(folder: Path) -> Path:
    for label in range(2):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(3):
            (folder / f"c{label}" / f"{number}.jpg").write_bytes(b"junk")
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


TRAIN = ["train", "irt/small", *SETTINGS, "--out", "OUT", "--data"]
MISTAKES: list[tuple[Sequence[str], str]] = [
    (["train", "irt/smal", "--data", "PHOTOS", "--out", "OUT"], "unknown recipe 'irt/smal'; did you mean 'irt/small'?"),
    (["train", "irt/small", "margn=0.3", "--data", "PHOTOS", "--out", "OUT"], "unknown recipe key 'margn'; did you mean 'margin'?"),
    (["train", "irt/small", "margin=abc", "--data", "PHOTOS", "--out", "OUT"], "margin must be"),
    (["train", "--data", "PHOTOS", "--out", "OUT"], "which recipe?"),
    (["train", "irt/small", "--out", "OUT"], "--data"),
    ([*TRAIN, "EMPTY"], "no images in"),
    ([*TRAIN, "MISSING"], "does not exist"),
    ([*TRAIN, "ONE"], "has 1 class ('only'), 2 are needed"),
    ([*TRAIN, "FEW", "validation=0"], "fewer than 2 images"),
    ([*TRAIN, "PHOTOS", "classes_per_batch=16"], "lower it with --set classes_per_batch=6"),
    ([*TRAIN, "UNREADABLE", "validation=0", "classes_per_batch=2"], "can be read"),
    ([*TRAIN, "PHOTOS", "--device", "cuda"], "no CUDA GPU is usable here: use --device cpu"),
    ([*TRAIN, "PHOTOS", "--device", "cudda"], "unknown device 'cudda'"),
    ([*TRAIN, "PHOTOS", "backbone=vit_tinny_patch16_224"], "unknown backbone 'vit_tinny_patch16_224'; did you mean"),
    ([*TRAIN, "PHOTOS", "weights=hub"], "--set weights=/path/to/model.safetensors"),
    (["evaluate", "RUN", "--data", "PHOTOS", "--split", "tset"], "no 'tset'"),
    (["evaluate", "RUN", "--data", "PHOTOS", "--protocol", "loo"], "unknown protocol 'loo'"),
    (["evaluate", "RUN", "--data", "PHOTOS", "--dataset", "cup"], "unknown dataset 'cup'; did you mean 'cub'?"),
    (["evaluate", "RUN", "--data", "PHOTOS", "--dataset", "cub"], "CUB"),
    (["evaluate", "MISSING", "--data", "PHOTOS"], "no model at"),
    (["evaluate", "PHOTOS", "--data", "PHOTOS"], "is not a model folder: it has no config.json"),
    (["index", "OUT", "--images", "PHOTOS"], "say which model embeds with --model"),
    (["index", "OUT", "--model", "RUN"], "nothing to do:"),
    (["index", "PHOTOS", "--info"], "no index at"),
    (["search", "MISSING", "--image", "PICTURE"], "no index at"),
    (["search", "INDEX", "--image", "MISSING"], "MISSING' cannot be read as an image: "),
    (["search", "INDEX", "--image", "PICTURE", "--where", "label == "], "label"),
    (["search", "INDEX", "--image", "PICTURE", "--model", "random:vit_tiny_patch16_224"], "holds vectors of model"),
    (["search", "INDEX", "--image", "PICTURE", "-k", "0"], "-k"),
    (["embed", "RUN", "--images", "PHOTOS", "--out", "OUT.txt"], "must end in .parquet or .npy"),
    (["export", "random:vit_tiny_patch16_224"], "say where with --out"),
    (["sarch"], "sarch"),
    (["train", "--form", "x"], "--form"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    store = root / "p.index"
    assert main(["index", str(store), "--model", str(run), "--images", str(photos)]) == 0
    made = {
        "EMPTY": _empty(root / "empty"),
        "ONE": _one_class(root / "one"),
        "FEW": _few(root / "few"),
        "UNREADABLE": _unreadable(root / "unreadable"),
    }
    made |= {"PHOTOS": photos, "RUN": run, "INDEX": store, "PICTURE": photos / "Klasse 2 ä" / "0.jpg", "MISSING": root / "MISSING"}
    return {name: str(path) for name, path in made.items()}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_every_mistake_gets_one_line_and_exit_code_2(
    shell: Shell, places: dict[str, str], tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    filled = [str(tmp_path / argument.lower()) if argument.startswith("OUT") else places.get(argument, argument) for argument in arguments]
    code, out, err = shell(*filled)
    complaints = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 1, err
    assert message in complaints[0]
    assert code == 2
    assert out == ""


def test_nothing_readable_to_index_fails_clearly(shell: Shell, run: Path, places: dict[str, str], tmp_path: Path) -> None:
    code, _, err = shell("index", tmp_path / "x.index", "--model", run, "--images", places["UNREADABLE"])
    assert code == 2
    assert "none of the 6" in err
