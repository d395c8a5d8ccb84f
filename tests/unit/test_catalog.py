from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from sightline import catalog
from sightline.errors import UsageError
from sightline.recipe import Recipe


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a plug-in that brings a recipe of its own and one that has a built-in name."""
    points = EntryPoints(EntryPoint(name, "sightline.recipe:Recipe", "sightline.recipes") for name in ("theirs/one", "irt/cub"))
    monkeypatch.setattr(catalog, "entry_points", points.select)


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, names in catalog.TABLES.items() for name in names])
def test_every_name_stands_for_something_callable(table: str, name: str) -> None:
    assert callable(catalog.find(table, name))


@pytest.mark.parametrize("name", catalog.RECIPES)
def test_every_recipe_builds_under_its_own_name_and_its_method_exists(name: str) -> None:
    recipe = catalog.find("recipes", name)()
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    assert name.partition("/")[0] in catalog.METHODS


@pytest.mark.parametrize("table", catalog.TABLES)
def test_an_unknown_name_is_one_line_with_the_choices(table: str) -> None:
    with pytest.raises(UsageError, match=r"^unknown [a-z ]+ 'qqqq'; choose one of: ") as caught:
        catalog.find(table, "qqqq")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^unknown recipe 'irt/cubs'; did you mean 'irt/cub'\?$"):
        catalog.find("recipes", "irt/cubs")
    with pytest.raises(UsageError, match=r"^unknown index engine 'locl'; did you mean 'local'\?$"):
        catalog.find("index_engines", "locl")


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_adds_a_name_but_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.names("recipes") == sorted([*catalog.RECIPES, "theirs/one"])
    loaded: list[str] = []
    monkeypatch.setattr(catalog, "load_meta_kernels", lambda: loaded.append("meta kernels"))
    assert catalog.find("recipes", "theirs/one") is Recipe
    assert loaded == ["meta kernels"]  # a cold start may have put them off, and a plug-in may compile
    assert catalog.find("recipes", "irt/cub").__module__ == "sightline.methods.irt"
