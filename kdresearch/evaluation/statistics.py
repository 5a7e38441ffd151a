"""Is the difference real? Tests and intervals over items and seeds.

Correctness arrays are boolean (or 0 and 1), [S, N] for S seeds and N items, or [N] for one run; the items of two
methods are the same ones in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from kdresearch.errors import UserError

_CHUNK = 16  # resamples held at once: 16 by 25,000 items in float64 are 3 MB, which a cache still holds


class Interval(NamedTuple):
    """A difference of two means, and where it lies."""

    difference: float
    low: float
    high: float


def mean_sd(values: Sequence[float] | NDArray[np.floating]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof=1), which a single value does not have.

    Raises ValueError if there are no values or one is not finite.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"mean and sd need one or more finite numbers, not {values!r}")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def two_way_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    paired: bool = False,
) -> Interval:
    """The percentile interval of mean(a) - mean(b), resampling the items and, crossed with them, the seeds.

    Both methods see the same items in each resample; seeds are drawn for each method by itself, or, if ``paired``
    (run i of both shares its seed), for both together. With one run each this is the paired bootstrap over items,
    and the variance between seeds stays unseen. With few runs it is seen too small, by (S-1)/S, while the interaction
    of items and seeds counts more than once (Owen 2007, "The pigeonhole bootstrap").

    Raises UserError if a and b do not speak of the same items, or are paired with unequal runs; ValueError on other
    values than 0 and 1, and on a level or a number of resamples that makes no sense.
    """
    a, b = _same_items(a, b)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"the bootstrap needs resamples >= 1 and 0 < level < 1, not {resamples} and {level}")
    if paired and len(a) != len(b):
        raise UserError(f"paired runs need as many of both methods, not {len(a)} and {len(b)}")
    rng = np.random.default_rng(seed)
    seeds_a = _shares(rng, len(a), resamples)
    seeds_b = seeds_a if paired else _shares(rng, len(b), resamples)
    seeds = np.hstack([seeds_a, -seeds_b])
    items = a.shape[1]
    correct = np.vstack([a, b]).T.astype(float)
    drawn = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        part = slice(start, min(start + _CHUNK, resamples))
        # Counting uniform draws is the multinomial, and several times as fast as asking for it.
        times = [np.bincount(rng.integers(items, size=items), minlength=items) for _ in range(part.start, part.stop)]
        # Whole numbers are summed, which no order of summation changes.
        drawn[part] = (np.stack(times) @ correct / items * seeds[part]).sum(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() - b.mean()), float(low), float(high))


def paired_permutation(a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of the mean difference, by flipping its sign item by item (Fisher 1935).

    An item's difference is that of its mean correctness over each method's runs; the trained runs are taken as
    given. All flips are tried where they are no more than ``resamples``; else that many are drawn and p is
    (k+1)/(resamples+1), never 0 (Phipson & Smyth 2010).

    Raises UserError if a and b do not speak of the same items; ValueError on other values than 0 and 1, or without
    resamples.
    """
    a, b = _same_items(a, b)
    if resamples < 1:
        raise ValueError(f"the permutation test needs resamples >= 1, not {resamples}")
    # In whole numbers, scaled by both counts of runs: ties with what was observed are then exact.
    difference = a.sum(0) * len(b) - b.sum(0) * len(a)
    observed = abs(difference.sum())
    size = np.abs(difference[difference != 0])
    if 1 << len(size) <= resamples:
        flips = np.arange(2 ** len(size))[:, None] >> np.arange(len(size)) & 1
        return float(np.mean(np.abs((2 * flips - 1) @ size) >= observed))
    # Items that differ by as much are interchangeable: how many keep their sign is binomial.
    sizes, counts = np.unique(size, return_counts=True)
    kept = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    extreme = np.count_nonzero(np.abs((2 * kept - counts) @ sizes) >= observed)
    return (extreme + 1) / (resamples + 1)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """The exact two-sided p-value of McNemar's test (1947) for one run each, [N] or [1, N]: binomial on the items
    that only one of them gets right; 1 if there are none.

    Raises UserError if a and b do not speak of the same items, or hold several runs; ValueError on other values than
    0 and 1.
    """
    a, b = _same_items(a, b)
    if len(a) != 1 or len(b) != 1:
        raise UserError(f"McNemar's test compares single runs, not {len(a)} with {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979): reject what is at most a level, and the family-wise error keeps to it.

    The order of the names is kept. Raises ValueError, by name, on what is no p-value.
    """
    for name, p in pvalues.items():
        if not 0 <= p <= 1:
            raise ValueError(f"the p-value of {name!r} must lie from 0 to 1, not {p}")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(pvalues, key=pvalues.__getitem__)):
        largest = max(largest, min(1.0, (len(pvalues) - rank) * pvalues[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in pvalues}


def gap_closed(student: float, distilled: float, teacher: float) -> float | None:
    """The share of the way from student to teacher that distilling went: (distilled - student)/(teacher - student).

    Below 0 if distilling hurt, above 1 if it passed the teacher; None where the teacher is no better than the
    student, as there is no gap to close.
    """
    return (distilled - student) / (teacher - student) if teacher > student else None


def _shares(rng: np.random.Generator, runs: int, resamples: int) -> NDArray[np.float64]:
    """How much each run weighs in each resample, [resamples, runs]; rows sum to 1."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs


def _same_items(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = _runs(a, "a"), _runs(b, "b")
    if first.shape[1] != second.shape[1]:
        raise UserError(f"a and b must hold the same items, not {first.shape[1]} and {second.shape[1]}")
    return first, second


def _runs(correct: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.atleast_2d(correct)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be [seeds, items] with at least one of each, not {list(array.shape)}")
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{name} must say per item if it is right, True or False, not {array.dtype} values")
    return array.astype(bool)
