"""What the shell says before any work is done: help, mistakes, the several names of an option."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from sightline import catalog
from sightline.cli.main import COMMANDS, main
from sightline.contracts import Hits
from sightline.index.base import Index
from sightline.nn.pictures import Picture
from sightline.search import engine
from sightline.search.engine import Answer, Query, Searcher
from sightline.settings import as_setting, flatten
from sightline.workflows import indexing
from sightline.workflows.training import named_recipe


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_bare_command_and_help_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    bare = told(capsys)
    assert bare == told(capsys, "--help") == told(capsys, "help")
    assert bare[0] == 0
    assert len(bare[1].splitlines()) > 15
    assert bare[2] == ""
    assert told(capsys, "help", "search") == told(capsys, "search", "-h")


def test_no_line_of_the_help_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys)[1].splitlines()
    shown = lines[lines.index("Commands:") + 1 :]
    assert len(shown) == len(COMMANDS)
    assert not [line for line in shown if line.endswith("...") or len(line) > 80]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serch"], "No such command 'serch'. Did you mean 'search'? (see sightline --help)"),
        (["train", "irt/folder"], "Missing option '--data' / '--images'. (see sightline train --help)"),
        (["search", "i", "--top", "3"], "No such option: --top. Here it is -k, such as -k 20 (see sightline search --help)"),
        (["train", "irt/folder", "--epochs", "3"], "Here it is steps, and a setting: --set steps=500 (see sightline train --help)"),
        (["doctor", "--top", "3"], "No such option: --top (see sightline doctor --help)"),
        (["search", "photos.index"], "which picture? for example: sightline search photos.index query.jpg"),
    ],
)
def test_a_mistake_points_at_the_help_of_its_command(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    code, out, err = told(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "probe", "embed", "index", "inspect", "reduce"])
def test_data_and_images_are_one_option(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = told(capsys, command, "--help")[1]
    assert "--data, --images" in text or "--images, --data" in text


def test_pictures_stand_behind_the_index_or_behind_image(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Opened(Searcher):
        def search_many(self, queries: Sequence[Query | Picture], *arguments: object, **named: object) -> list[Answer]:
            asked.append([str(query.picture) for query in queries if isinstance(query, Query)])
            return [Answer(Hits(())) for _ in queries]

        def note(self, where: str | None = None) -> str:
            return ""

    monkeypatch.setattr(Index, "open", lambda *given, **named: SimpleNamespace(header=None))
    monkeypatch.setattr(Opened, "close", lambda self: None)
    monkeypatch.setattr(engine, "Searcher", Opened)
    for arguments in (["a.jpg", "b.jpg"], ["--image", "a.jpg", "b.jpg"], ["--image", "a.jpg", "--image", "b.jpg"]):
        assert told(capsys, "search", "i", *arguments, "--json")[0] == 0
    assert asked == [["a.jpg", "b.jpg"]] * 3


def test_stopping_an_index_says_that_the_same_command_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "index", stopped)
    code, _, err = told(capsys, "index", "i", "--images", "photos")
    assert (code, err) == (130, "stopped; what was embedded is kept: the same command goes on where it was\n")


def test_every_recipe_is_printed_as_set_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name in catalog.names("recipes"):
        recipe = catalog.find("recipes", name)()
        settings = [f"{path}={as_setting(path, value)}" for path, value in flatten(recipe) if path != "name"]
        assert named_recipe(name, settings) == recipe, name
    lines = told(capsys, "recipes", "selfpatch/tiny")[1]
    arguments = next(line for line in lines.splitlines() if line.startswith("model.backbone_args = "))
    assert json.loads(arguments.partition(" = ")[2])["depth"] == 6
