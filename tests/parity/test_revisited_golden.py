"""Our measures of judged benchmarks against the evaluators of their authors, from recorded numbers: equal to 1e-9."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sightline.contracts import Ranking
from sightline.data.judged import Judgements
from sightline.evaluation import metrics
from sightline.evaluation.ranks import exact_ranks, ranks_in
from sightline.search.neighbours import nearest

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "revisited.json").read_text(encoding="utf-8"))
SPEC = importlib.util.spec_from_file_location("make_revisited_golden", HERE / "make_revisited_golden.py")
MAKE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKE)


def ranks_by(way: str, seed: int):
    given = MAKE.inputs(seed)
    truth = {"": Judgements(tuple(given["positives"]), tuple(given["junk"]))}
    if way == "vectors":
        return exact_ranks(given["queries"], given["gallery"], truth, block_rows=5)[""]
    if way == "list":  # the very lists that the reference got, in their order
        rows = MAKE.order(given)[:, : MAKE.LISTED]
        return ranks_in(Ranking(rows, np.tile(-np.arange(rows.shape[1], dtype=np.float32), (len(rows), 1))), truth, MAKE.NUM_GALLERY)[""]
    return ranks_in(nearest(given["queries"], given["gallery"], MAKE.NUM_GALLERY), truth, MAKE.NUM_GALLERY)[""]


@pytest.mark.parametrize("seed", MAKE.SEEDS)
@pytest.mark.parametrize("way", ["vectors", "neighbours", "list"])
def test_same_numbers_as_revisitop(way, seed):
    expected = GOLDEN["cases"][f"{'cut off' if way == 'list' else 'whole'}/{seed}"]
    ranks = ranks_by(way, seed)
    ap = metrics.trapezoid_average_precision(ranks)
    precision = np.stack([metrics.precision_at(ranks, k) for k in MAKE.KAPPAS], axis=1)
    # The reference cannot say anything of a query whose list holds none of its positives; here it is an answer all wrong.
    assert ap.tolist() == pytest.approx([to_number(value) for value in expected["ap"]], abs=1e-9, nan_ok=True)
    for ours, theirs in zip(precision, expected["precision"], strict=True):
        assert ours.tolist() == pytest.approx(theirs if isinstance(theirs, list) else [to_number(theirs)] * 3, abs=1e-9, nan_ok=True)
    if "map" in expected:
        assert np.nanmean(ap) == pytest.approx(expected["map"], abs=1e-9)
        assert np.nanmean(precision, axis=0).tolist() == pytest.approx(expected["mp"], abs=1e-9)
    assert ranks.num_skipped == 2


def to_number(value) -> float:
    return {"none listed": 0.0, None: float("nan")}.get(value, value)


def test_the_golden_cases_hold_what_is_easily_got_wrong():
    cut_off = [GOLDEN["cases"][f"cut off/{seed}"]["ap"] for seed in MAKE.SEEDS]
    assert any("none listed" in case for case in cut_off)
    given = MAKE.inputs(0)
    assert any(len(junk) for junk in given["junk"])
    assert any(len(positives) > 100 for positives in given["positives"])
    similarity = given["queries"] @ given["gallery"].T
    assert min(len(np.unique(row)) for row in similarity) < MAKE.NUM_GALLERY / 3


@pytest.mark.parametrize("seed", MAKE.SEEDS)
def test_same_map_at_100_as_delf(seed):
    given = MAKE.inputs(seed)
    nothing = tuple(np.empty(0, np.int64) for _ in given["junk"])
    ranks = exact_ranks(given["queries"], given["gallery"], {"": Judgements(tuple(given["positives"]), nothing)})[""]
    ours = metrics.by_name(ranks, ["map@100"])["map@100"]
    assert np.nanmean(ours) == pytest.approx(GOLDEN["cases"][f"map@100/{seed}"], abs=1e-9)
