from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdresearch.errors import UserError
from kdresearch.evaluation.aggregates import (
    interquartile_mean,
    mean_ranks,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

INF = float("inf")


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([[0, 1, 2, 3], [4, 5, 6, 100]]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([[-INF, 1, 2, 3]]) == 1.5  # one failure of four is cut as the worst run is
    assert interquartile_mean([[-INF, -INF, 2, 3]]) == -INF


def test_profile_is_one_minus_the_distribution() -> None:
    scores, thresholds = [[0.2, 0.4], [0.6, 0.8]], [0.1, 0.2, 0.5, 0.8, 0.9]
    assert performance_profile(scores, thresholds) == pytest.approx([1, 0.75, 0.5, 0, 0])
    ecdf = stats.ecdf([0.2, 0.4, 0.6, 0.8])
    assert performance_profile(scores, thresholds) == pytest.approx(ecdf.sf.evaluate(thresholds))
    assert performance_profile([[-INF, 0.5]], [0.0]) == pytest.approx([0.5])


def test_probability_of_improvement_is_mann_whitneys() -> None:
    rng = np.random.default_rng(0)
    a, b = [rng.integers(0, 9, size=5) for _ in range(3)], [rng.integers(0, 9, size=4) for _ in range(3)]
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 20 for x, y in zip(a, b, strict=True)])
    assert probability_of_improvement(a, b) == pytest.approx(expected, rel=1e-12)
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)
    assert probability_of_improvement([[-INF]], [[0.1]]) == 0
    with pytest.raises(UserError, match="same data sets, not on 3 and 1"):
        probability_of_improvement(a, b[:1])


def test_ranks_share_ties_and_put_failures_last() -> None:
    systems = [[[1.0, 0.75], [0.5]], [[0.875], [0.7]], [[0.99, -INF], [0.6]]]
    assert mean_ranks(systems) == pytest.approx([(1.5 + 3) / 2, (1.5 + 1) / 2, (3 + 2) / 2])


def test_stratified_bootstrap_resamples_runs_of_each_data_set() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal(0.5, 0.1, size=20), rng.normal(0.9, 0.02, size=20)]

    def mean(runs: list[np.ndarray]) -> float:
        return float(np.mean([run.mean() for run in runs]))

    interval = stratified_bootstrap(mean, scores, resamples=4000)
    error = np.sqrt(sum(run.var() / 20 for run in scores)) / 2  # means of data sets are independent
    assert interval.difference == pytest.approx(mean(scores))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    wins = stratified_bootstrap(probability_of_improvement, scores, scores[::-1], resamples=200)
    assert wins.difference == pytest.approx(0.5, abs=0.01)
    assert stratified_bootstrap(mean, [[0.1], [0.3]], resamples=10) == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("scores", [[], [[]], [[np.nan]], [[[1.0]]]])
def test_no_scores_are_refused(scores: list) -> None:
    with pytest.raises(ValueError, match="one or more data sets"):
        interquartile_mean(scores)
