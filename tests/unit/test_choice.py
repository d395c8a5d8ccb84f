"""What is kept of a run is surely better than its start."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.training.choice import Validation, paired_gain


def scored(*scores: float, recall: tuple[float, ...] = ()) -> Validation:
    found = {"map@r": np.array(scores)} | ({"recall@1": np.array(recall)} if recall else {})
    return Validation({name: float(values.mean()) for name, values in found.items()}, found)


def test_the_standard_error_is_that_of_the_differences() -> None:
    gain, error = paired_gain(np.array([0.5, 0.9, 0.4, 0.4]), np.array([0.4, 0.7, 0.3, 0.4]))
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(np.std([0.1, 0.2, 0.1, 0.0], ddof=1) / 2)  # four images


def test_a_small_gain_of_all_images_beats_a_start_that_a_larger_one_of_some_does_not() -> None:
    start = scored(0.1, 0.5, 0.9, 0.3)
    assert scored(0.11, 0.52, 0.91, 0.31).objection(start) == ""
    assert scored(0.9, 0.2, 0.9, 0.3).objection(start) == "not surely above the start: +0.1250 ± 0.2358"
    assert scored(0.1, 0.5, 0.9, 0.3).objection(start)  # as good is not better


def test_no_measure_may_surely_fall() -> None:
    start, better = scored(0.1, 0.2, 0.3, 0.4, recall=(1, 1, 1, 1)), (0.2, 0.3, 0.41, 0.5)
    assert scored(*better, recall=(1, 1, 1, 0)).objection(start) == ""  # one image of four is chance
    assert scored(*better, recall=(0, 0, 0, 1)).objection(start) == "recall@1 surely below the start: -0.7500 ± 0.2500"
    assert scored(*better, recall=(0, 0, 0, 0)).objection(start) == "recall@1 surely below the start: -1.0000 ± 0.0000"


def test_without_scores_of_the_same_images_the_measures_alone_decide() -> None:
    assert Validation({"miou": 0.31}).objection(Validation({"miou": 0.3})) == ""
    assert scored(0.1, 0.9).objection(scored(0.2, 0.1, 0.0)) == ""  # a file became unreadable


def test_a_checkpoint_keeps_it_and_those_of_before_are_read() -> None:
    found = scored(0.25, 0.5, recall=(1, 0))
    again = Validation.of(found.state())
    assert again is not None
    assert again.metrics == found.metrics
    assert {name: scores.tolist() for name, scores in again.scores.items()} == {"map@r": [0.25, 0.5], "recall@1": [1, 0]}
    old = Validation.of(0.5)
    assert old is not None
    assert (old.value, old.scores) == (0.5, {})
    assert Validation.of(None) is None
    assert Validation({"map@r": 0.4}).objection(old) == ""  # it kept no name to compare by
