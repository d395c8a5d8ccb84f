"""Our metrics against pytorch-metric-learning's and open-metric-learning's calculators, from recorded numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from sightline.evaluation import metrics

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "metrics_pml_oml.json").read_text(encoding="utf-8"))


def inputs(seed: int):
    spec = importlib.util.spec_from_file_location("make_metrics_golden", HERE / "make_metrics_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.inputs(seed)


@pytest.mark.parametrize("reference", ["pml", "oml"])
@pytest.mark.parametrize("case", sorted(GOLDEN["cases"]))
def test_same_numbers_as_the_reference(case, reference):
    protocol, _, seed = case.partition("/")
    given = inputs(int(seed))
    vectors, labels, is_query = given["vectors"], given["labels"], given["is_query"]
    if protocol == "leave-one-out":
        ranks = metrics.positive_ranks(vectors, labels)
    else:
        ranks = metrics.positive_ranks(vectors[is_query], labels[is_query], vectors[~is_query], labels[~is_query])
    ours = metrics.means(metrics.per_query(ranks, ks=(1, 2, 5, 10)))
    expected = GOLDEN["cases"][case][reference]
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert protocol != "leave-one-out" or ranks.num_skipped == 2
