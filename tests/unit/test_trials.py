"""A protocol applied to descriptors: unreadable images, distractors, groups, settings, and a re-ranker in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.contracts import Descriptors, Ranking
from sightline.data.judged import Judged, Judgements, with_distractors
from sightline.data.records import Records
from sightline.errors import DataError
from sightline.evaluation import protocols, report
from sightline.evaluation.measured import measure
from sightline.evaluation.trials import groups_of, judged_trial, label_trial, take_rows


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def judged() -> Judged:
    """Two queries at 0 and 90 degrees, five images at 5, 10, 80, 70 and 40; the second query has nothing hard to find."""
    names = ("q0", "q1", "a", "b", "c", "d", "e")
    easy, hard, junk = (rows(1), rows(2)), (rows(4), rows()), (rows(0), rows(3))
    settings = {
        "easy": Judgements(easy, (rows(0, 4), rows(3))),
        "medium": Judgements((rows(1, 4), rows(2)), junk),
        "hard": Judgements(hard, (rows(0, 1), rows(2, 3))),
    }
    return Judged(
        "made up", Records(Path("p"), tuple(f"{n}.jpg" for n in names)), rows(0, 1), rows(2, 3, 4, 5, 6), settings, ("map", "mp@1")
    )


DEGREES = (0, 90, 5, 10, 80, 70, 40)


def test_the_settings_are_measured_beside_each_other():
    found = measure(judged_trial(Descriptors(on_circle(*DEGREES), np.arange(7)), judged()), num_resamples=20)
    assert list(found.metrics) == [f"{name}/{setting}" for setting in ("easy", "medium", "hard") for name in ("map", "mp@1")]
    assert {name: ranks.ranks.tolist() for name, ranks in found.ranks.items()} == {"easy": [1, 1], "medium": [1, 2, 1], "hard": [1]}
    assert found.metrics["map/medium"] == 1.0
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["num_skipped"] == {"easy": 0, "medium": 0, "hard": 1}
    assert told["num_groups"] == 2
    assert "num_classes" not in told
    assert told["average_precision"].startswith("trapezoid")


def test_an_unreadable_image_is_neither_asked_nor_found():
    # Rows 0 (a query) and 3 (a positive of it) have no descriptor; the others come in another order.
    kept = rows(6, 1, 5, 2, 4)
    trial = judged_trial(Descriptors(on_circle(*(DEGREES[row] for row in kept)), kept), judged())
    assert trial.query_rows.tolist() == [1]
    assert trial.gallery_rows.tolist() == [2, 4, 5, 6]
    assert [trial.truths[name].positives[0].tolist() for name in ("easy", "medium", "hard")] == [[1], [1], []]
    assert [trial.truths[name].junk[0].tolist() for name in ("easy", "medium", "hard")] == [[2], [2], [1, 2]]


def test_distractors_are_searched_and_never_right(tmp_path):
    more = with_distractors(judged(), Records(tmp_path, ("x.jpg", "y.jpg")))
    vectors = on_circle(*DEGREES, 8, 9)
    found = measure(judged_trial(Descriptors(vectors, np.arange(9)), more), num_resamples=10)
    assert found.protocol == "made up +2 distractors"
    assert found.num_gallery == 7
    assert found.ranks["medium"].ranks.tolist() == [3, 4, 1]


def test_distractors_of_labelled_records_belong_to_no_query(tmp_path):
    records = Records(Path("p"), ("a.jpg", "b.jpg", "c.jpg"), rows(0, 0, 1), ("one", "two"))
    more, protocol = protocols.add_distractors(records, protocols.leave_one_out(records), Records(tmp_path, ("x.jpg",)))
    assert protocol.name == "leave-one-out +1 distractors"
    assert more.class_names[-1] == "(distractor)"
    found = measure(label_trial(Descriptors(on_circle(0, 10, 50, 4), np.arange(4)), more, protocol), num_resamples=10)
    assert (found.num_queries, found.num_gallery) == (3, 3)
    assert found.ranks[""].ranks.tolist() == [2, 2]


def test_queries_that_share_a_positive_are_one_group():
    positives = [(rows(0, 1), rows(1, 2), rows(5), rows(), rows(6)), (rows(), rows(), rows(6), rows(), rows())]
    groups = groups_of(positives, 5)
    assert groups[0] == groups[1]
    assert groups[2] == groups[4]
    assert len({groups[0], groups[2], groups[3]}) == 3


def test_neighbouring_vectors_are_taken_without_a_copy():
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert np.shares_memory(take_rows(vectors, rows(2, 3, 4)), vectors)
    assert take_rows(vectors, rows(4, 2)).tolist() == [[8, 9], [4, 5]]
    assert take_rows(vectors, rows()).shape == (0, 2)


class Backwards:
    """Puts each query's candidates into the opposite order, and notes what it was given."""

    def __call__(self, ranking: Ranking, queries: np.ndarray, gallery: np.ndarray, self_rows: np.ndarray | None) -> Ranking:
        self.given = (ranking.rows.shape, queries.shape, gallery.shape, None if self_rows is None else self_rows.tolist())
        return Ranking(ranking.rows[:, ::-1].copy(), -ranking.similarity[:, ::-1].copy())


def test_a_reranker_has_its_say_over_the_closest():
    trial, rerank = judged_trial(Descriptors(on_circle(*DEGREES), np.arange(7)), judged()), Backwards()
    found = measure(trial, rerank=rerank, rerank_top=2, num_resamples=10)
    assert rerank.given == ((2, 2), (2, 2), (5, 2), None)
    # Query 0: candidates b (right), a (junk); backwards they are b, a. Query 1: c (right), d (junk).
    assert found.ranks["medium"].ranks.tolist() == [1, 2, 1]
    assert found.to_json()["rerank_top"] == 2
    whole = measure(trial, rerank=rerank, num_resamples=10)
    assert whole.rerank_top == 5
    assert whole.ranks["medium"].ranks.tolist() == [3, 4, 4]  # c d e b (a is junk), and a b e c (d is junk)
    assert whole.reranked is not None
    assert whole.reranked.rows[0].tolist() == [2, 3, 4, 1, 0]


def test_leave_one_out_tells_the_reranker_which_row_a_query_is():
    records = Records(Path("p"), ("a.jpg", "b.jpg", "c.jpg"), rows(0, 0, 1), ("one", "two"))
    trial, rerank = label_trial(Descriptors(on_circle(0, 10, 50), np.arange(3)), records, protocols.leave_one_out(records)), Backwards()
    found = measure(trial, rerank=rerank, num_resamples=10)
    assert rerank.given == ((3, 2), (3, 2), (3, 2), [0, 1, 2])
    assert found.ranks[""].ranks.tolist() == [2, 2]


def test_nothing_to_find_is_an_error():
    with pytest.raises(DataError, match="nothing can be measured"):
        measure(judged_trial(Descriptors(on_circle(0, 70), rows(0, 5)), judged()))


@pytest.mark.parametrize("rerank", [None, Backwards()])
def test_the_report_of_a_judged_collection(tmp_path, rerank):
    trial = judged_trial(Descriptors(on_circle(*DEGREES), np.arange(7)), judged())
    found = measure(trial, rerank=rerank, num_resamples=10)
    page = report.report_page(found, trial, title="T", command="sightline evaluate M", thumbnail=lambda *_: Image.new("RGB", (9, 9)))
    path = page.write(tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    for expected in ("made up", "map/medium", "does not count", "In the setting medium", "groups of queries", "hard and were left out"):
        assert expected in text
    assert "Confusions" not in text
    assert ("were re-ranked" in text) == (rerank is not None)
    assert min(text.count("class=wrong"), text.count("class=right")) > 0
