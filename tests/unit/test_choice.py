"""What is kept of a run is surely better than its start."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.train.choice import Validation, paired_gain


def scored(*scores: float, **more: float) -> Validation:
    return Validation({"map@r": float(np.mean(scores)), **more}, np.array(scores))


def test_the_standard_error_is_that_of_the_differences() -> None:
    gain, error = paired_gain(np.array([0.5, 0.9, 0.4, 0.4]), np.array([0.4, 0.7, 0.3, 0.4]))
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(np.std([0.1, 0.2, 0.1, 0.0], ddof=1) / 2)  # four images


def test_a_small_gain_of_all_images_beats_a_start_that_a_larger_one_of_some_does_not() -> None:
    start = scored(0.1, 0.5, 0.9, 0.3)
    assert scored(0.11, 0.52, 0.91, 0.31).objection(start) == ""
    assert scored(0.9, 0.2, 0.9, 0.3).objection(start) == "+0.1250 ± 0.2358 over the start is no sure gain"
    assert scored(0.1, 0.5, 0.9, 0.3).objection(start)  # as good is not better


def test_no_measure_may_fall() -> None:
    start = scored(0.1, 0.2, **{"recall@1": 0.8})
    assert scored(0.2, 0.31, **{"recall@1": 0.8}).objection(start) == ""
    assert scored(0.2, 0.31, **{"recall@1": 0.79}).objection(start) == "recall@1 0.7900 is below the start's 0.8000"


def test_without_scores_of_the_same_images_the_measures_alone_decide() -> None:
    assert Validation({"miou": 0.31}).objection(Validation({"miou": 0.3})) == ""
    assert scored(0.1, 0.9).objection(scored(0.2, 0.1, 0.0)) == ""  # a file became unreadable


def test_a_checkpoint_keeps_it_and_those_of_before_are_read() -> None:
    found = scored(0.25, 0.5, **{"recall@1": 0.8})
    again = Validation.of(found.state())
    assert again is not None
    assert again.metrics == found.metrics
    assert again.scores is not None
    assert again.scores.tolist() == [0.25, 0.5]
    old = Validation.of(0.5)
    assert old is not None
    assert (old.value, old.scores) == (0.5, None)
    assert Validation.of(None) is None
    assert Validation({"map@r": 0.4}).objection(old) == ""  # it kept no name to compare by
