"""Several data sets at once: aggregates of runs that a single lucky data set or seed does not carry (rliable).

Scores are one array [S_k] of runs for each data set k, higher being better and on one scale. A failed run counts as
the worst there is: ``-inf``. Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical
Precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

from kdresearch.errors import UserError
from kdresearch.evaluation.statistics import Interval

Floats = NDArray[np.float64]


def interquartile_mean(scores: Sequence[ArrayLike]) -> float:
    """The mean of the middle half of all runs of all data sets: a quarter is cut at either end.

    ``-inf`` where more than a quarter of the runs failed. Raises ValueError as ``performance_profile`` does.
    """
    return float(trim_mean(np.concatenate(_runs(scores)), proportiontocut=0.25))


def performance_profile(scores: Sequence[ArrayLike], thresholds: ArrayLike) -> Floats:
    """The share of runs, over all data sets, that score above each threshold: [T].

    Raises ValueError without data sets, with a data set that has no run, and on NaN.
    """
    pooled = np.concatenate(_runs(scores))
    shares: Floats = (pooled[:, None] > np.asarray(thresholds, dtype=np.float64)).mean(0)
    return shares


def probability_of_improvement(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> float:
    """How likely a run of ``a`` is above one of ``b``, ties counting half, as a mean over data sets.

    For each it is the Mann-Whitney statistic over the product of both counts of runs (Agarwal et al., section 4.3).

    Raises UserError if a and b do not have as many data sets; ValueError as ``performance_profile`` does.
    """
    _same_data(a, b)
    wins = [(x[:, None] > y) + 0.5 * (x[:, None] == y) for x, y in zip(_runs(a), _runs(b), strict=True)]
    return float(np.mean([win.mean() for win in wins]))


def mean_ranks(systems: Sequence[Sequence[ArrayLike]]) -> Floats:
    """Each system's rank by its mean over runs, averaged over data sets; 1 is the best, equal means share: [M].

    Raises UserError where systems do not have as many data sets; ValueError as ``performance_profile`` does.
    """
    for system in systems[1:]:
        _same_data(systems[0], system)
    means = np.array([[run.mean() for run in _runs(system)] for system in systems])  # [M, K]
    above = (means[None] > means[:, None]).sum(1)
    level = (means[None] == means[:, None]).sum(1)
    ranks: Floats = (above + (level + 1) / 2).mean(1)
    return ranks


def stratified_bootstrap(
    statistic: Callable[..., float],
    *systems: Sequence[ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic of one or two systems, resampling runs within each data set.

    Args:
        statistic: takes as many systems as are given.

    Raises ValueError on a level or a number of resamples that makes no sense.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"the bootstrap needs resamples >= 1 and 0 < level < 1, not {resamples} and {level}")
    arrays = [_runs(system) for system in systems]
    rng = np.random.default_rng(seed)
    values = [
        statistic(*([run[rng.integers(len(run), size=len(run))] for run in system] for system in arrays))
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")  # of −inf there is no half
    return Interval(statistic(*arrays), float(low), float(high))


def _runs(scores: Sequence[ArrayLike]) -> list[Floats]:
    arrays = [np.asarray(run, dtype=np.float64) for run in scores]
    if not arrays or any(array.ndim != 1 or not array.size or np.isnan(array).any() for array in arrays):
        raise ValueError("aggregates need one or more data sets, each with the scores [S] of its runs, none NaN")
    return arrays


def _same_data(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> None:
    if len(a) != len(b):
        raise UserError(f"systems must be scored on the same data sets, not on {len(a)} and {len(b)}")
