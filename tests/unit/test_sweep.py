"""Sweeps as plain data: grids, labels, folders; and what a table makes of the runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import catalog
from sightline.cli.main import repeat_options
from sightline.errors import RecipeError, UsageError
from sightline.evaluation import sweep_report
from sightline.evaluation.sweep_report import Result, Spread
from sightline.recipe import TrainSpec
from sightline.settings import override
from sightline.sweep import Sweep, Variant, axes, grid, parse_grid, run_name
from sightline.workflows import sweeping

GRID = grid(parse_grid(["margin=0.1,0.3", "koleo_weight=0,0.7"]))


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    assert [variant.label for variant in GRID] == [
        "margin=0.1 koleo_weight=0",
        "margin=0.1 koleo_weight=0.7",
        "margin=0.3 koleo_weight=0",
        "margin=0.3 koleo_weight=0.7",
    ]
    assert GRID[1].settings == ("margin=0.1", "koleo_weight=0.7")
    assert axes(GRID) == {"margin": ["0.1", "0.3"], "koleo_weight": ["0", "0.7"]}
    assert axes(GRID[:3]) == {}
    assert axes((Variant("O", ("steps=0",)), Variant("R"))) == {}


def test_what_does_not_vary_is_set_and_not_named() -> None:
    (one, two) = grid({"koleo_weight": [0], "pooling": ["cls", "max"]})
    assert (one.label, two.settings) == ("pooling=cls", ("koleo_weight=0", "pooling=max"))
    assert axes((one, two)) == {"pooling": ["cls", "max"]}


@pytest.mark.parametrize("words", [["margin"], ["=1,2"], ["margin=1,,2"], ["margin=1,1"], ["margin=1", "margin=2"]])
def test_a_grid_that_cannot_be_meant_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="grid"):
        parse_grid(words)


@given(
    st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), min_size=1, max_size=3)
)
def test_a_grids_axes_are_the_keys_that_vary(values: dict[str, list[int]]) -> None:
    variants = grid(values)
    assert len(variants) == math.prod(len(choices) for choices in values.values()) == len(set(variants))
    assert axes(variants) == {key: [str(choice) for choice in choices] for key, choices in values.items() if len(choices) > 1}


def test_run_folders_have_names_that_any_file_system_takes() -> None:
    assert run_name(GRID[0], 2) == "margin=0.1_koleo_weight=0_seed=2"
    assert run_name(Variant("weights=/data/a b.safetensors"), 0) == "weights=_data_a_b.safetensors_seed=0"
    assert len(run_name(Variant("x" * 500), 0)) < 140


def test_words_after_an_option_belong_to_it() -> None:
    typed = ["sweep", "irt/cub", "--grid", "margin=0.1,0.3", "lr=1,2", "--seeds", "3", "--set", "a=1", "b=2", "--data=x"]
    written = "sweep irt/cub --grid margin=0.1,0.3 --grid lr=1,2 --seeds 3 --set a=1 --set b=2 --data=x"
    assert repeat_options(typed) == repeat_options(written.split()) == written.split()
    mixed = repeat_options(["train", "irt/cub", "a=1", "--set", "b=2", "irt/x", "c=3"])
    assert mixed == ["train", "irt/cub", "a=1", "--set", "b=2", "irt/x", "--set", "c=3"]


@pytest.mark.parametrize("name", catalog.names("sweeps"))
def test_every_named_sweep_can_be_run_on_recipes_of_its_method(name: str) -> None:
    plan = catalog.find("sweeps", name)()
    others = {
        "irt": ["irt/small", "irt/inshop"],
        "selfpatch": ["selfpatch/small", "selfpatch/tiny"],
        "moby": ["moby/selfpatch-small", "moby/selfpatch-swin-small"],
    }
    for recipe in [plan.recipe, *others[plan.recipe.partition("/")[0]]]:
        found = {
            override(catalog.find("recipes", recipe)(), variant.settings) for variant in sweeping.named_sweep(name, recipe=recipe).variants
        }
        assert len(found) == len(plan.variants)


def test_the_papers_tables() -> None:
    assert [variant.label for variant in sweeping.named_sweep("irt/ladder").variants] == ["IRT_O", "IRT_L", "IRT_R"]
    last = sweeping.named_sweep("irt/start").variants[-1]
    assert override(catalog.find("recipes", "irt/folder")(), last.settings) == catalog.find("recipes", "irt/folder")()
    assert len(sweeping.named_sweep("irt/margin-koleo").variants) == 25
    assert len(sweeping.named_sweep("irt/tuples-koleo").variants) == 6
    assert list(axes(sweeping.named_sweep("irt/objectives").variants)) == ["objective"]


def test_patch_sizes_are_compared_with_and_without_patches_that_learn() -> None:
    plan = sweeping.named_sweep("selfpatch/patch-size")
    assert [variant.label for variant in plan.variants] == ["DINO/16", "SelfPatch/16", "DINO/8", "SelfPatch/8"]
    made = [override(catalog.find("recipes", plan.recipe)(), variant.settings) for variant in plan.variants]
    assert [(dict(one.model.backbone_args)["patch_size"], one.patch_weight) for one in made] == [(16, 0), (16, 0.1), (8, 0), (8, 0.1)]


def test_a_sweep_that_cannot_be_meant_is_one_line() -> None:
    with pytest.raises(UsageError, match="what of irt/cub is to vary"):
        sweeping.named_sweep("irt/cub")
    with pytest.raises(UsageError, match="did you mean 'irt/ladder'"):
        sweeping.named_sweep("irt/laddr")
    with pytest.raises(UsageError, match="a grid goes over a recipe"):
        sweeping.named_sweep("irt/ladder", ["margin=1,2"])


def test_mistakes_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    for words, what in ((["margni=1,2"], "margin"), (["margin=1,x"], "margin"), (["seed=1,2"], "--seeds")):
        with pytest.raises(UsageError, match=what):
            sweeping.sweep(Sweep("irt/small", grid(parse_grid(words))), tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_steps_is_a_run_and_fewer_are_not() -> None:
    assert TrainSpec(steps=0).steps == 0
    with pytest.raises(RecipeError, match="steps"):
        TrainSpec(steps=-1)


RESULTS = [
    Result(GRID[0], 0, {"recall@1": 0.70, "map@r": 0.30}),
    Result(GRID[1], 0, {"recall@1": 0.80, "map@r": 0.40}),
    Result(GRID[2], 0, diverged="training diverged at step 4"),
    Result(GRID[0], 1, {"recall@1": 0.74, "map@r": 0.36}),
    Result(GRID[2], 1, {"recall@1": 0.10, "map@r": 0.02}),
]


def test_mean_and_sample_deviation_by_hand() -> None:
    first, second, third, fourth = sweep_report.summarise(GRID, RESULTS)
    assert first.spreads["recall@1"] == Spread(pytest.approx(0.72), pytest.approx(0.02 * math.sqrt(2)), 2)  # type: ignore[arg-type]
    assert (first.cell("recall@1"), first.cell("map@r")) == ("72.0 ± 2.8", "33.0 ± 4.2")
    assert (second.cell("recall@1"), second.num_measured) == ("80.0", 1)
    assert (third.cell("recall@1"), third.num_measured, third.num_diverged) == ("10.0", 1, 1)
    assert (fourth.cell("recall@1"), fourth.num_measured) == ("–", 0)
    (lost,) = sweep_report.summarise([GRID[2]], RESULTS[:3])
    assert lost.cell("recall@1") == "diverged"


def test_the_tables() -> None:
    rows = sweep_report.summarise(GRID, RESULTS)
    assert sweep_report.markdown(rows).splitlines() == [
        "| % | recall@1 | map@r | runs |",
        "|---|--:|--:|--:|",
        "| margin=0.1 koleo_weight=0 | 72.0 ± 2.8 | 33.0 ± 4.2 | 2 |",
        "| margin=0.1 koleo_weight=0.7 | 80.0 | 40.0 | 1 |",
        "| margin=0.3 koleo_weight=0 | 10.0 | 2.0 | 1, 1 diverged |",
        "| margin=0.3 koleo_weight=0.7 | – | – | 0 |",
    ]
    lines = sweep_report.comma_separated(RESULTS).splitlines()
    assert lines[0] == "variant,seed,margin,koleo_weight,recall@1,map@r,diverged"
    assert lines[1] == "margin=0.1 koleo_weight=0,0,0.1,0,0.7,0.3,"
    assert lines[3] == "margin=0.3 koleo_weight=0,0,0.3,0,,,training diverged at step 4"
    plain = sweep_report.plain(rows)
    assert plain[1]["metrics"]["recall@1"] == {"mean": 0.8, "deviation": None, "runs": 1}


def test_each_kind_of_sweep_has_its_figure() -> None:
    def texts(results: list[Result]) -> list[str]:
        variants = list(dict.fromkeys(result.variant for result in results))
        drawn = sweep_report.figure(sweep_report.summarise(variants, results), "recall@1")
        return [text.get_text() for text in drawn.axes[0].texts] + [label.get_text() for label in drawn.axes[0].get_yticklabels()]

    two = texts([*RESULTS, Result(GRID[3], 0, diverged="x")])
    assert two == ["72.0\n± 2.8", "80.0", "10.0", "diverged", "0.1", "0.3"]
    numbers = [Result(variant, 0, {"recall@1": 0.5}) for variant in grid({"margin": [0.3, 0.1]})]
    drawn = sweep_report.figure(sweep_report.summarise([result.variant for result in numbers], numbers), "recall@1")
    assert list(drawn.axes[0].lines[0].get_xdata()) == [0.1, 0.3]
    assert texts([Result(variant, 0, {"recall@1": 0.5}) for variant in grid({"pooling": ["max", "cls"]})]) == ["pooling=max", "pooling=cls"]
    assert texts([Result(Variant("O", ("steps=0",)), 0, {"recall@1": 0.5}), Result(Variant("R"), 0, {"recall@1": 0.5})]) == ["O", "R"]
