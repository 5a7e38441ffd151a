"""Is the difference real? Tests and intervals over items and seeds.

Scores are [S, N] for S seeds and N items, or [N] for one run: right or wrong (booleans, or 0 and 1), or any finite
numbers. The items of two methods are the same ones in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t

from kdresearch.errors import UserError

Floats = NDArray[np.float64]

_CHUNK = 1 << 22  # numbers held at once while resampling
_MOST_SEEDS = 1000  # beyond which more seeds are no advice


class Interval(NamedTuple):
    """A difference of two means, and where it lies."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Sides:
    """A difference of two means with what it varies by: items, and the seeds of each method.

    A score is taken as mean + item + seed + rest, the rest being items crossed with seeds. Variances are estimated by
    mean squares (Searle 1971), so that the rest, which is in both others, counts once.
    """

    difference: float
    items: Floats  # [N], each item's difference of means
    seeds: tuple[Floats, ...]  # for each independent group of runs, their means [S]
    rest: tuple[float, ...]  # for each group, the variance of the rest

    def variances(self, seeds: int | None = None) -> tuple[float, float, float]:
        """The difference's variance over items, over seeds, and the degrees of freedom of their sum.

        Degrees of freedom are Satterthwaite's (1946), with each group's seeds at the weight they have before the rest
        is taken out: two or three seeds that happen to agree do not pass for many.

        Args:
            seeds: what it would be with so many runs of each method.
        """
        count = len(self.items)
        items = float(self.items.var(ddof=1)) / count if count > 1 else 0.0
        between, rest, freedom = [], 0.0, []
        for means, interaction in zip(self.seeds, self.rest, strict=True):
            runs = seeds or len(means)
            between.append(float(means.var(ddof=1)) / runs if len(means) > 1 else 0.0)
            rest += interaction / count / runs
            items -= interaction / count * (1 / len(means) - 1 / runs)
            freedom.append(max(1, runs - 1))
        alone = max(0.0, items - rest)
        squares = alone**2 / max(1, count - 1) + sum(b**2 / f for b, f in zip(between, freedom, strict=True))
        total = alone + sum(between)
        return max(0.0, items), max(0.0, sum(between) - rest), total**2 / squares if squares else math.inf


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
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    paired: bool = False,
) -> Interval:
    """The percentile interval of mean(a) - mean(b), resampling the items and, crossed with them, the seeds.

    Both methods see the same items in each resample; seeds are drawn for each method by itself, or, if ``paired``
    (run i of both shares its seed), for both together. With one run each this is the paired bootstrap over items,
    and the variance between seeds stays unseen.

    Resampling both at once counts the interaction of items and seeds more than once and the variance of few seeds
    too small, by (S-1)/S (Owen 2007, "The pigeonhole bootstrap"), so that a nominal 95 % was 80 to 99.5 % in
    simulations of 2 to 5 seeds, and is 94 to 98 % so: items are resampled under all seeds and seeds over all items,
    the seeds' part is scaled to its unbiased variance (see ``Sides``), and the quantiles are stretched from the
    normal distribution's to Student's t with Satterthwaite's degrees of freedom, as Hesterberg (2015, section 5.3)
    does for one sample. Items with the same difference are interchangeable: one category of a multinomial.

    Raises UserError if a and b do not speak of the same items, or are paired with unequal runs; ValueError on values
    that are not finite, and on a level or a number of resamples that makes no sense.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"the bootstrap needs resamples >= 1 and 0 < level < 1, not {resamples} and {level}")
    sides = split_difference(a, b, paired=paired)
    _, over_seeds, freedom = sides.variances()
    rng = np.random.default_rng(seed)
    deviations = _resampled_means(sides.items, resamples, rng) - sides.items.mean()
    groups = [means for means in sides.seeds if len(means) > 1]
    unbiased = sum(float(means.var(ddof=1)) / len(means) for means in groups)
    for means, sign in zip(groups, (1, -1), strict=False):
        if over_seeds:
            scale = math.sqrt(over_seeds / unbiased * len(means) / (len(means) - 1))
            deviations += sign * scale * (_resampled_means(means, resamples, rng) - means.mean())
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail]) * (t.isf(tail, freedom) / norm.isf(tail))
    return Interval(sides.difference, sides.difference + float(low), sides.difference + float(high))


def two_way_test(a: ArrayLike, b: ArrayLike, *, paired: bool = False) -> float:
    """The two-sided p-value of no difference between two methods, over items and seeds.

    The difference over its standard error of both (see ``Sides``), against Student's t with Satterthwaite's degrees
    of freedom: a Welch test with crossed items. With one run each it speaks of these runs alone.

    Raises UserError and ValueError as ``two_way_bootstrap`` does.
    """
    sides = split_difference(a, b, paired=paired)
    over_items, over_seeds, freedom = sides.variances()
    total = over_items + over_seeds
    if total == 0:
        return 1.0 if sides.difference == 0 else 0.0
    return float(2 * t.sf(abs(sides.difference) / math.sqrt(total), freedom))


def seeds_to_resolve(a: ArrayLike, b: ArrayLike, difference: float, *, level: float = 0.95) -> int | None:
    """How many more seeds of each method would make the interval no wider than ± ``difference``; 0 if it is not now.

    Returns:
        None where no number of seeds does, as the items alone leave it wider (or more than 1,000 are needed).

    Raises UserError where a method has one run only, as its variance between seeds is not known; ValueError on a
    difference that is not positive.
    """
    if not difference > 0:
        raise ValueError(f"a difference to resolve must be > 0, not {difference}")
    sides = split_difference(a, b)
    runs = [len(means) for means in sides.seeds]
    if min(runs) < 2:
        raise UserError("the variance between seeds needs two runs or more of each method")
    for seeds in range(max(runs), _MOST_SEEDS):
        over_items, over_seeds, freedom = sides.variances(seeds)
        if t.isf((1 - level) / 2, freedom) * math.sqrt(over_items + over_seeds) <= difference:
            return seeds - max(runs)
    return None


def paired_permutation(a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of the mean difference, by flipping its sign item by item (Fisher 1935).

    An item's difference is that of its mean score over each method's runs; the trained runs are taken as given. All
    flips are tried where they are no more than ``resamples``; else that many are drawn and p is
    (k+1)/(resamples+1), never 0 (Phipson & Smyth 2010).

    Raises UserError if a and b do not speak of the same items; ValueError on values that are not finite, or without
    resamples.
    """
    a, b = _same_items(a, b)
    if resamples < 1:
        raise ValueError(f"the permutation test needs resamples >= 1, not {resamples}")
    # Right and wrong in whole numbers, scaled by both counts of runs: ties with what was observed are then exact.
    difference = a.sum(0) * len(b) - b.sum(0) * len(a)
    observed = abs(difference.sum()) * (1 - 1e-12)  # sums of other numbers tie to rounding
    size = np.abs(difference[difference != 0])
    if 1 << len(size) <= resamples:
        flips = np.arange(2 ** len(size))[:, None] >> np.arange(len(size)) & 1
        return float(np.mean(np.abs((2 * flips - 1) @ size) >= observed))
    # Items that differ by as much are interchangeable: how many keep their sign is binomial.
    sizes, counts = np.unique(size, return_counts=True)
    rng, extreme, step = np.random.default_rng(seed), 0, max(1, _CHUNK // len(sizes))
    for start in range(0, resamples, step):
        signs = rng.binomial(counts, 0.5, size=(min(step, resamples - start), len(counts)))
        extreme += int(np.count_nonzero(np.abs((2 * signs - counts) @ sizes) >= observed))
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
    for name, scores in (("a", a), ("b", b)):
        if not ((scores == 0) | (scores == 1)).all():
            raise ValueError(f"{name} must say per item if it is right, True or False, for McNemar's test")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
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


def split_difference(a: ArrayLike, b: ArrayLike, *, paired: bool = False) -> Sides:
    """mean(a) - mean(b) with its parts. Raises UserError and ValueError as ``two_way_bootstrap`` does."""
    a, b = _same_items(a, b)
    if paired and len(a) != len(b):
        raise UserError(f"paired runs need as many of both methods, not {len(a)} and {len(b)}")
    # Whole numbers as long as they can be: items that differ by as much are then equal to the bit.
    items = (a.sum(0) * len(b) - b.sum(0) * len(a)) / (len(a) * len(b))
    groups = (a - b,) if paired else (a, b)
    return Sides(
        difference=float(a.mean() - b.mean()),
        items=items,
        seeds=tuple(group.mean(1) for group in groups),
        rest=tuple(map(_interaction, groups)),
    )


def _interaction(scores: Floats) -> float:
    """The mean square of items crossed with seeds: the variance of what neither an item nor a seed says by itself."""
    seeds, items = scores.shape
    if seeds == 1 or items == 1:
        return 0.0
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    return float((rest**2).sum() / ((seeds - 1) * (items - 1)))


def _resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Means of ``resamples`` draws of as many values, with replacement; equal values are one category."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) * 16 <= len(values) or len(values) < 64:
        return rng.multinomial(len(values), counts / len(values), size=resamples) @ distinct / len(values)
    means, step = np.empty(resamples), max(1, _CHUNK // len(values))
    for start in range(0, resamples, step):
        block = means[start : start + step]
        block[:] = values[rng.integers(len(values), size=(len(block), len(values)))].mean(1)
    return means


def _same_items(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _runs(a, "a"), _runs(b, "b")
    if first.shape[1] != second.shape[1]:
        raise UserError(f"a and b must hold the same items, not {first.shape[1]} and {second.shape[1]}")
    return first, second


def _runs(scores: ArrayLike, name: str) -> Floats:
    array = np.atleast_2d(np.asarray(scores))
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be [seeds, items] with at least one of each, not {list(array.shape)}")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite scores, or right and wrong, not {array.dtype} values")
    return array.astype(np.float64)
