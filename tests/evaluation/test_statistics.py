from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdresearch.errors import UserError
from kdresearch.evaluation.statistics import (
    gap_closed,
    holm,
    mcnemar,
    mean_sd,
    paired_permutation,
    seeds_to_resolve,
    split_difference,
    two_way_bootstrap,
    two_way_test,
)


def runs(seeds: int, items: int, accuracy: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((seeds, items)) < accuracy


def single(both: int, only_a: int, only_b: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    table = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0)
    return table[:, 0].astype(bool), table[:, 1].astype(bool)


def test_mean_sd() -> None:
    mean, sd = mean_sd([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert mean == 5 and sd == pytest.approx(math.sqrt(32 / 7))
    assert mean_sd([0.9]) == (0.9, None)
    assert mean_sd(np.array([3.0, 3.0])) == (3, 0)
    for wrong in ([], [1.0, math.nan], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="finite numbers"):
            mean_sd(wrong)  # type: ignore[arg-type]


def test_bootstrap_of_single_runs_agrees_with_scipy_and_with_the_formula() -> None:
    a, b = single(700, 80, 40, 180)
    ours = two_way_bootstrap(a, b, resamples=4000)
    assert ours.difference == pytest.approx(0.04)
    theirs = stats.bootstrap(
        (a - b.astype(float),), np.mean, method="percentile", n_resamples=4000, batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    half = 1.96 * math.sqrt((0.12 - 0.04**2) / 1000)
    for low, high in ((theirs.low, theirs.high), (0.04 - half, 0.04 + half)):
        assert ours.low == pytest.approx(low, abs=0.002)
        assert ours.high == pytest.approx(high, abs=0.002)


def test_bootstrap_over_items_is_the_quantile_of_every_draw() -> None:
    # Small enough to list all draws of items, by loops over indices; one run each, so that there is no other part.
    a, b = np.array([[1, 1, 0, 1]], dtype=bool), np.array([[0, 1, 0, 1]], dtype=bool)
    every = [a[0, list(of)].mean() - b[0, list(of)].mean() for of in itertools.product(range(4), repeat=4)]
    for level in (0.5, 0.8):
        tail = (1 - level) / 2
        interval = two_way_bootstrap(a, b, resamples=40_000, level=level)
        stretch = stats.t.isf(tail, 3) / stats.norm.isf(tail)
        assert interval.difference == 0.25
        for side, end in ((tail, interval.low), (1 - tail, interval.high)):
            quantile = np.quantile(every, side, method="inverted_cdf")
            assert end == pytest.approx(0.25 + (quantile - 0.25) * stretch)


def test_variances_by_the_mean_squares_of_a_two_way_table() -> None:
    # 3 runs of 4 items, by hand: rows and columns of an analysis of variance, without replication.
    a = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=float)
    b = np.zeros((1, 4))
    rows, columns, grand = a.mean(1), a.mean(0), a.mean()
    rest = sum((a[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(3) for i in range(4)) / 6
    over_items, over_seeds, freedom = split_difference(a, b).variances()
    assert over_items == pytest.approx(columns.var(ddof=1) / 4)
    between = rows.var(ddof=1) / 3
    assert over_seeds == pytest.approx(between - rest / 12) and over_seeds > 0
    alone = over_items - rest / 12
    assert freedom == pytest.approx((alone + between) ** 2 / (alone**2 / 3 + between**2 / 2))


def test_without_items_in_common_the_test_is_welchs() -> None:
    # Items all alike within a run: what is left is a comparison of run means, Welch (1947).
    a, b = np.repeat([[0.81], [0.84], [0.80]], 50, axis=1), np.repeat([[0.78], [0.79], [0.83], [0.77]], 50, axis=1)
    theirs = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    assert two_way_test(a, b) == pytest.approx(theirs.pvalue, rel=1e-12)
    paired = stats.ttest_rel(a[:, 0], b[:3, 0])
    assert two_way_test(a, b[:3], paired=True) == pytest.approx(paired.pvalue, rel=1e-12)


def test_of_single_runs_the_test_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, size=80), rng.normal(0, 1, size=80)
    assert two_way_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)


def test_more_seeds_resolve_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(1.5, 1, size=4000)
    a, b = (hard + rng.normal(0, 0.05, size=(3, 1)) + rng.normal(0, 0.3, size=(3, 4000)) > 0 for _ in range(2))
    interval = two_way_bootstrap(a, b)
    half = (interval.high - interval.low) / 2
    assert seeds_to_resolve(a, b, half * 1.1) == 0
    some, many = seeds_to_resolve(a, b, half * 0.7), seeds_to_resolve(a, b, half * 0.5)
    assert some is not None and many is not None and 0 < some < many
    assert seeds_to_resolve(a, b, 1e-5) is None  # the items alone leave more than that
    with pytest.raises(UserError, match="two runs or more"):
        seeds_to_resolve(a[:1], b, 0.01)
    with pytest.raises(ValueError, match="must be > 0"):
        seeds_to_resolve(a, b, 0)


def test_bootstrap_sees_the_variance_between_seeds() -> None:
    # Runs that are all right or all wrong: only the seeds vary.
    a, b = np.repeat([[1], [1], [0], [0]], 50, axis=1), np.zeros((4, 50))
    interval = two_way_bootstrap(a, b, resamples=20_000)
    half = stats.t.isf(0.025, 3) * math.sqrt(1 / 3 / 4)  # of four values 1, 1, 0, 0
    assert interval.difference == 0.5
    # Five values of a mean of four draws cannot meet a continuous quantile to more than half their distance.
    assert interval.high - 0.5 == pytest.approx(half, abs=0.2) == 0.5 - interval.low
    together = two_way_bootstrap(a, a, paired=True)
    assert together == (0, 0, 0)
    apart = two_way_bootstrap(a, a)
    assert apart.difference == 0 and apart.low < -0.5 and apart.high > 0.5


def test_swapping_the_methods_flips_the_interval() -> None:
    a, b = runs(4, 300, 0.8, 0), runs(4, 300, 0.75, 1)
    forth, back = two_way_bootstrap(a, b, paired=True), two_way_bootstrap(b, a, paired=True)
    assert back == pytest.approx((-forth.difference, -forth.high, -forth.low), abs=0.01)
    forth, back = two_way_bootstrap(a, b[:2]), two_way_bootstrap(b[:2], a)
    assert back == pytest.approx((-forth.difference, -forth.high, -forth.low), abs=0.01)


def test_bootstrap_is_repeatable_and_wider_at_a_higher_level() -> None:
    a, b = runs(3, 200, 0.8, 0), runs(5, 200, 0.75, 1)
    interval = two_way_bootstrap(a, b)
    assert interval == two_way_bootstrap(a, b, seed=0) != two_way_bootstrap(a, b, seed=1)
    wide = two_way_bootstrap(a, b, level=0.99)
    assert wide.low < interval.low < interval.difference < interval.high < wide.high
    assert interval.difference == pytest.approx(a.mean() - b.mean())


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.1), (5, 0.1)])
def test_intervals_and_tests_keep_their_word(seeds: int, spread: float) -> None:
    # Two methods equal in truth, with hard and easy items, lucky seeds (of one run they cannot be seen) and chance.
    rng = np.random.default_rng(0)
    covered = rejected = 0
    trials = 400
    for trial in range(trials):
        hard = rng.normal(1.3, 1, size=500)
        a, b = (
            hard
            + rng.normal(0, 0.4, size=500)
            + rng.normal(0, spread, size=(seeds, 1))
            + rng.normal(0, 0.5, size=(seeds, 500))
            > 0
            for _ in range(2)
        )
        interval = two_way_bootstrap(a, b, resamples=400, seed=trial)
        covered += interval.low <= 0 <= interval.high
        rejected += two_way_test(a, b) < 0.05
    assert 0.93 <= covered / trials <= 0.985
    assert rejected / trials <= 0.07


def test_a_table_of_twenty_equal_systems_alarms_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(1)
    alarms, trials = 0, 100
    for _ in range(trials):
        hard = rng.normal(1.3, 1, size=500)
        systems = [
            hard + rng.normal(0, 0.4, size=500) + rng.normal(0, 0.1, size=(3, 1)) + rng.normal(0, 0.5, size=(3, 500))
            > 0
            for _ in range(20)
        ]
        corrected = holm({str(k): two_way_test(system, systems[0]) for k, system in enumerate(systems[1:])})
        alarms += min(corrected.values()) < 0.05
    assert alarms / trials <= 0.09  # 5 % and two standard errors


def test_permutation_enumerates_by_hand() -> None:
    # Five items, all for a: only the two flips that agree are as extreme.
    assert paired_permutation(np.ones(5), np.zeros(5)) == 2 / 32
    # 3 for a, 1 for b: |sum| >= 2 unless two flips face two, 6 ways of 16.
    assert paired_permutation(*single(10, 3, 1, 4)) == 10 / 16
    assert paired_permutation(*single(10, 0, 0, 4)) == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 5)])
def test_exact_permutation_agrees_with_scipy(shape: tuple[int, int]) -> None:
    a, b = runs(shape[0], 10, 0.8, 2), runs(shape[1], 10, 0.4, 3)
    theirs = stats.permutation_test(
        (a.mean(0), b.mean(0)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert theirs < 1
    assert paired_permutation(a, b) == pytest.approx(theirs)


def test_drawn_permutations_agree_with_the_exact_ones() -> None:
    a, b = runs(3, 16, 0.8, 4), runs(2, 16, 0.5, 5)
    exact = paired_permutation(a, b, resamples=2**16)
    assert 0.02 < exact < 0.9
    drawn = paired_permutation(a, b, resamples=2**10)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 2**10))


def test_permutation_of_scores_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, size=12), rng.normal(0, 1, size=12)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert paired_permutation(a, b, resamples=2**12) == pytest.approx(theirs, rel=1e-12)
    assert paired_permutation(a, b, resamples=2**11) == pytest.approx(theirs, abs=0.05)


def test_mcnemar_and_holm_agree_with_statsmodels() -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    theirs = contingency.mcnemar([[500, 41], [63, 200]], exact=True).pvalue
    assert mcnemar(*single(500, 41, 63, 200)) == pytest.approx(theirs, rel=1e-12)
    pvalues = {str(k): p for k, p in enumerate([0.2, 0.003, 0.04, 0.003, 0.9, 0.012])}
    _, adjusted, *_ = multitest.multipletests(list(pvalues.values()), method="holm")
    assert list(holm(pvalues).values()) == pytest.approx(list(adjusted), rel=1e-12)


def test_permutation_of_single_runs_is_mcnemar() -> None:
    few = single(50, 9, 3, 20)
    assert paired_permutation(*few) == pytest.approx(mcnemar(*few))
    many = single(500, 90, 65, 200)
    assert paired_permutation(*many, resamples=40_000) == pytest.approx(mcnemar(*many), abs=0.005)


def test_permutation_is_never_0_and_does_not_care_for_order_or_sign() -> None:
    assert paired_permutation(np.ones(2000), np.zeros(2000), resamples=999) == 1 / 1000
    a, b = runs(3, 400, 0.8, 0), runs(2, 400, 0.76, 1)
    p = paired_permutation(a, b)
    assert 0 < p < 1
    assert paired_permutation(b, a) == p
    order = np.random.default_rng(0).permutation(400)
    assert paired_permutation(a[::-1, order], b[:, order]) == p
    assert paired_permutation(np.vstack([a, a]), b) == pytest.approx(p, abs=0.03)


def test_permutation_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    rejected = sum(paired_permutation(*(rng.random((2, 2, 150)) < 0.8), resamples=199) <= 0.1 for _ in range(200))
    assert 5 <= rejected <= 36  # 20 expected


def test_mcnemar() -> None:
    a, b = single(40, 8, 2, 10)
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(a, b) == mcnemar(b, a) == mcnemar(a[None], b.astype(int))
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(8, 10).pvalue)
    assert mcnemar(a, a) == 1


def test_holm_textbook() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1; the last is lifted to the one before.
    adjusted = holm({"b": 0.01, "d": 0.04, "c": 0.03, "a": 0.005})
    assert list(adjusted) == ["b", "d", "c", "a"]
    assert adjusted == pytest.approx({"a": 0.02, "b": 0.03, "c": 0.06, "d": 0.06})
    assert holm({"x": 0.6, "y": 0.7}) == {"x": 1, "y": 1}
    assert holm({"x": 0.03}) == {"x": 0.03}
    assert holm({}) == {}


def test_holm_rejects_what_the_step_down_rule_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 3
        rejected = set()
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - rank):
                break
            rejected.add(str(index))
        adjusted = holm({str(index): float(value) for index, value in enumerate(p)})
        assert {name for name, value in adjusted.items() if value <= 0.05} == rejected


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_names_what_is_no_p_value(wrong: float) -> None:
    with pytest.raises(ValueError, match="'kd'"):
        holm({"label": 0.5, "kd": wrong})


def test_gap_closed() -> None:
    assert gap_closed(0.80, 0.85, 0.90) == pytest.approx(0.5)
    assert gap_closed(0.80, 0.78, 0.90) == pytest.approx(-0.2)
    assert gap_closed(0.80, 0.92, 0.90) == pytest.approx(1.2)
    assert gap_closed(0.9, 0.91, 0.9) is None
    assert gap_closed(0.9, 0.91, 0.8) is None


def test_what_makes_no_sense_is_refused() -> None:
    a, b = runs(2, 10, 0.5, 0), runs(3, 10, 0.5, 1)
    for test in (two_way_bootstrap, paired_permutation, mcnemar):
        with pytest.raises(UserError, match="same items, not 10 and 9"):
            test(a, b[:, :9])
        with pytest.raises(ValueError, match="b must hold finite scores"):
            test(a, np.where(b, np.nan, 0))
        with pytest.raises(ValueError, match=r"a must be \[seeds, items\].*\[0, 10\]"):
            test(a[:0], b)
        with pytest.raises(ValueError, match=r"b must be \[seeds, items\].*\[1, 3, 10\]"):
            test(a, b[None])
    with pytest.raises(UserError, match="not 2 and 3"):
        two_way_bootstrap(a, b, paired=True)
    with pytest.raises(ValueError, match="level"):
        two_way_bootstrap(a, b, level=95)
    for test in (two_way_bootstrap, paired_permutation):
        with pytest.raises(ValueError, match="resamples >= 1"):
            test(a, b, resamples=0)
    with pytest.raises(UserError, match="single runs, not 2 with 3"):
        mcnemar(a, b)
    with pytest.raises(ValueError, match="a must say per item"):
        mcnemar(a[:1] * 0.5, b[:1])
