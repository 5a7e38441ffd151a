from __future__ import annotations

import numpy as np
import pytest

from kdresearch.bench.search import Dimension, best, dimensions, points
from kdresearch.errors import UserError

SHARED = {"student": {"training": {"learning_rate": {"low": 1e-4, "high": 1e-1, "scale": "log"}}}}
METHOD = {"strategy": {"temperature": {"low": 1, "high": 5}}}


def test_dimensions_are_found_where_their_settings_stand() -> None:
    space = [*dimensions(SHARED), *dimensions(METHOD)]
    assert [each.key for each in space] == ["student.training.learning_rate", "strategy.temperature"]


def test_points_fill_the_space_evenly() -> None:
    space = [Dimension("lr", 1e-4, 1e-1, "log"), Dimension("n", 2, 5, integer=True), Dimension("c", choices=("a", "b"))]
    drawn = points(space, 240, seed=1)
    rates = np.log10([point["lr"] for point in drawn])
    assert np.histogram(rates, bins=3, range=(-4, -1))[0].tolist() == pytest.approx([80, 80, 80], abs=4)
    assert sorted({point["n"] for point in drawn}) == [2, 3, 4, 5]
    assert np.bincount([point["n"] for point in drawn])[2:].tolist() == pytest.approx([60] * 4, abs=4)
    assert abs([point["c"] for point in drawn].count("a") - 120) <= 4


def test_a_seed_gives_the_same_points_and_a_longer_search_begins_like_a_shorter_one() -> None:
    space = [*dimensions(SHARED), *dimensions(METHOD)]
    assert points(space, 8, 3)[:5] == points(space, 5, 3) != points(space, 5, 4)


def test_the_first_best_wins_and_diverged_trials_never_do() -> None:
    assert best([None, 0.4, 0.7, 0.7], "max") == 2
    assert best([None, 0.4, 0.7, 0.4], "min") == 1
    with pytest.raises(UserError, match="every one diverged"):
        best([None, None], "max")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"a": 3}, "tune: a: a dimension is"),
        ({"a": {"low": 2, "high": 1}}, "low must be below high"),
        ({"a": {"low": 0, "high": 1, "scale": "log"}}, "a low above 0"),
        ({"a": {"low": 1, "high": 2, "scal": "log"}}, "did you mean 'scale'"),
        ({"a": {"low": 1, "high": 2, "scale": "lgo"}}, "did you mean 'log'"),
        ({"a": {"choices": []}}, "a list of values"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(dimensions(space))
