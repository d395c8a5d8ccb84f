"""The rules of the house that no linter knows: what imports what, how long a file is, and that what is written down is true."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from sightline import catalog
from sightline.cli.main import app, main
from sightline.settings import flatten

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "src").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

INSTANT = ["sightline", "sightline.cli.main", "sightline.catalog", "sightline.errors"]
WITHOUT_TORCH = [
    *INSTANT,
    "sightline.contracts",
    "sightline.runtime",
    "sightline.recipe",
    "sightline.settings",
    "sightline.progress",
    "sightline.html",
    "sightline.sweep",
    "sightline.data.records",
    "sightline.data.images",
    "sightline.data.samplers",
    "sightline.data.sets.cub",
    "sightline.data.sets.sop",
    "sightline.data.sets.inshop",
    "sightline.data.sets.sfm",
    "sightline.data.judged",
    "sightline.data.unpickle",
    "sightline.data.sets.revisited",
    "sightline.data.sets.gldv2",
    "sightline.data.sets.copydays",
    "sightline.data.sets.places",
    "sightline.data.sets.davis",
    "sightline.data.sets.segmentation",
    "sightline.data.sets.coco",
    "sightline.evaluation.compare_report",
    "sightline.evaluation.metrics",
    "sightline.evaluation.measured",
    "sightline.evaluation.probes",
    "sightline.evaluation.protocols",
    "sightline.evaluation.report",
    "sightline.evaluation.sweep_report",
    "sightline.index",
    "sightline.index.local",
    "sightline.search.rerank",
    "sightline.search.rerank.kreciprocal",
    "sightline.index.patches",
    "sightline.lens.cka",
    "sightline.lens.correspondences",
    "sightline.lens.draw",
    "sightline.lens.embedding",
    "sightline.lens.gradients",
    "sightline.lens.pair",
    "sightline.lens.principal",
    "sightline.lens.sheet",
    "sightline.lens.tokens",
]


def loaded_by(modules: list[str]) -> set[str]:
    """The top-level packages that a fresh interpreter has after importing ``modules``."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_shell_starts_without_anything_heavy() -> None:
    assert not loaded_by(INSTANT) & {"torch", "torchvision", "timm", "numpy", "faiss", "pyarrow", "matplotlib", "PIL"}


def test_what_is_not_about_torch_does_without_it() -> None:
    assert not loaded_by(WITHOUT_TORCH) & {"torch", "torchvision", "timm", "matplotlib"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_readable_thing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno > 70] == []
    swallowing = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and isinstance(node.body[0], ast.Pass)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert swallowing == []
    assert re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b|pickle\.loads?|weights_only=False", text) == []


def test_the_environment_is_read_in_one_place() -> None:
    assert [path.name for path in MODULES if re.search(r"os\.environ|getenv", path.read_text(encoding="utf-8"))] == ["runtime.py"]


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-uv.lock"])
def test_a_lock_names_versions_and_hashes_and_no_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"\w+://|^-.*|file:", text, flags=re.MULTILINE) == []
    pinned = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[a-z0-9._-]+==\S+[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", entry) for entry in pinned)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Example: sightline {name}" in " ".join(capsys.readouterr().out.split())


def written_commands() -> Iterator[tuple[str, str]]:
    """Every ``sightline ...`` line that a help text or a page's shell fence shows, and where it stands."""
    for name, command in COMMANDS.items():
        for line in re.findall(r"Example: (sightline .+)", command.help or ""):
            yield f"{name} --help", line
    for page in PAGES:
        for fence in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
            for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(sightline .+)", fence.replace("\\\n", " "), flags=re.MULTILINE):
                yield page.name, line


@pytest.mark.parametrize(("where", "line"), list(written_commands()))
def test_a_command_that_is_written_down_can_be_typed(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("-"):
        assert words[0] in {"--help", "--version"}, where
        return
    assert words[0] in COMMANDS, where
    options = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts} | {"-h", "--help"}
    assert [word for word in words[1:] if re.match(r"--?[a-z]", word) and word not in options] == [], where


def test_every_command_recipe_and_setting_is_documented() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    everything = "\n".join(pages.values())
    assert [name for name in COMMANDS if f"sightline {name}" not in everything] == []
    recipes = [name for name in catalog.RECIPES if f"`{name}`" not in pages["recipes.md"]]
    sweeps = [name for name in catalog.SWEEPS if f"`{name}`" not in pages["sweeps.md"]]
    settings = {path for name in catalog.RECIPES for path, _ in flatten(catalog.find("recipes", name)())}
    assert recipes + sweeps + sorted(path for path in settings if f"`{path}`" not in pages["recipes.md"]) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
