"""Intervals, signed-rank tests and Holm's correction against scipy, enumeration and published numbers."""

from __future__ import annotations

import itertools
import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats

from fvae_nnunet.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    signed_rank_direction,
    signed_rank_test,
)

VALUES = np.array([0.12, 0.55, 0.31, 0.92, 0.77, 0.03, 0.64, 0.48, 0.81, 0.39, 0.71, 0.95])
SKEWED = VALUES**6


@pytest.fixture(autouse=True)
def no_warning_may_leak():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize("values", [VALUES, SKEWED, VALUES - VALUES[::-1] ** 2], ids=["even", "skewed", "differences"])
@pytest.mark.parametrize("seed", [0, 7])
def test_interval_of_a_mean_is_scipys_bca_with_the_same_seed(values, seed):
    found = bootstrap_interval(values, seed=seed)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=9999, confidence_level=0.95, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    assert ends(found) == pytest.approx(tuple(expected), abs=1e-12)
    assert found.method == "BCa"


def test_interval_is_that_of_efrons_formula():
    """BCa written down anew, equation 14.10 of Efron and Tibshirani, on resamples drawn from the same generator."""
    n, normal = len(SKEWED), NormalDist()
    means = SKEWED[np.random.default_rng(5).integers(0, n, (2000, n))].mean(axis=1)
    below = (np.count_nonzero(means < SKEWED.mean()) + np.count_nonzero(means <= SKEWED.mean())) / 2 / len(means)
    bias = normal.inv_cdf(below)
    left_out = np.array([np.delete(SKEWED, case).mean() for case in range(n)])
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    levels = [
        normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in map(normal.inv_cdf, (0.025, 0.975))
    ]
    assert levels[1] > 0.98, "the correction must matter in this example"
    found = bootstrap_interval(SKEWED, seed=5, resamples=2000)
    assert ends(found) == pytest.approx(tuple(np.quantile(means, levels)), abs=1e-12)


def test_interval_follows_shift_and_sign_of_the_values():
    low, high = ends(bootstrap_interval(SKEWED, seed=1))
    # resamples whose mean is the sample's own fall on either side of it by rounding, which moves the bias a little
    assert ends(bootstrap_interval(SKEWED + 5, seed=1)) == pytest.approx((low + 5, high + 5), abs=5e-4)
    assert ends(bootstrap_interval(-SKEWED, seed=1)) == pytest.approx((-high, -low), abs=1e-9)


def test_cases_are_drawn_with_all_that_they_hold():
    sums, counts = np.array([2.0, 0, 3, 1, 5]), np.array([4.0, 1, 3, 2, 5])
    expected = scipy.stats.bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis), paired=True, vectorized=True,
        method="BCa", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert ends(bootstrap_interval(sums, counts, seed=3)) == pytest.approx(tuple(expected), abs=1e-12)
    # each case twice as full of the same: nothing is learnt
    assert ends(bootstrap_interval(2 * sums, 2 * counts, seed=3)) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(
    "sums, counts",
    [([], None), ([0.7], None), ([0.0] * 9, None), ([0.1 + 0.2, 0.3], None), ([1, 2, 3], [2, 4, 6])],
    ids=["none", "one", "no difference", "no difference but rounding", "the same mean in all"],
)
def test_there_is_no_interval_without_two_cases_that_differ(sums, counts):
    found = bootstrap_interval(sums, counts, seed=0)
    assert found.method == "none" and math.isnan(found.low) and math.isnan(found.high)


def test_percentile_interval_where_bca_is_not_defined():
    """One resample: its mean is below or above the sample's, the bias infinite; its percentiles are itself."""
    values = np.array([0.0, 1, 0, 0, 2])
    resampled = values[np.random.default_rng(1).integers(0, 5, (1, 5))].mean()
    assert resampled != values.mean()
    assert bootstrap_interval(values, seed=1, resamples=1) == Interval(resampled, resampled, "percentile")


def test_signed_rank_p_of_a_published_example():
    """Hollander and Wolfe (1973), page 29, depression before and after therapy: V = 40, one-sided p = 0.01953 (R)."""
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    found = signed_rank_test(before - after)
    assert found.p == pytest.approx(0.0390625, abs=1e-12) and found.method == "exact"
    assert signed_rank_test(after - before) == found


def enumerated_p(differences) -> float:
    """Two-sided p over all signs, ranks of equal sizes shared."""
    unequal = [difference for difference in differences if difference != 0]
    ranks = scipy.stats.rankdata(np.abs(unequal))
    observed = sum(rank for rank, difference in zip(ranks, unequal) if difference > 0)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    at_most, at_least = (sum(s <= observed for s in sums), sum(s >= observed for s in sums))
    return min(1.0, 2 * min(at_most, at_least) / len(sums))


@pytest.mark.parametrize(
    "differences",
    [
        [0.3, -0.1, 0.25, 0.7, 0.05, -0.4, 0.9, 0.6],
        [0.3, -0.1, 0.25, 0.7, 0, 0, 0, 0, 0.9, 0.6],
        [1, 1, -1, 1, 2, 2, 0, 0, 1],
        [1 / 3, 2 / 3 - 1 / 3, 1 - 2 / 3, -1 / 2, 1 / 3 - 0, 1 / 2],
        [0.5, 0.25],
    ],
    ids=["different", "zeros", "ties and zeros", "ties but for rounding", "two"],
)
def test_signed_rank_p_is_exact_for_few_cases(differences):
    found = signed_rank_test(differences)
    assert found.p == pytest.approx(enumerated_p(np.round(differences, 12)), abs=1e-12)
    assert found.method == "exact"


def test_signed_rank_p_is_exact_for_up_to_fifty_cases_with_and_without_ties():
    rng = np.random.default_rng(0)
    for size in (14, 30, 50):
        differences = rng.normal(0.3, 1, size)
        expected = scipy.stats.wilcoxon(differences, method="exact").pvalue
        assert signed_rank_test(differences).p == pytest.approx(expected, rel=1e-9)
    tied = [1.0, 1.0, *range(2, 16)]  # all of 16 cases are better: only 2 of 2**16 choices of signs are as extreme
    assert signed_rank_test(tied).p == pytest.approx(2 / 2**16, rel=1e-9)


def test_signed_rank_p_of_many_tied_cases_is_the_normal_approximation_corrected_for_ties():
    differences = np.array([1, 2, 3, -1, -2, 1, 1, 2] * 7 + [0] * 5)
    unequal = differences[differences != 0]
    n, sizes = len(unequal), np.unique(np.abs(unequal), return_counts=True)[1]
    ranks = scipy.stats.rankdata(np.abs(unequal))
    variance = n * (n + 1) * (2 * n + 1) / 24 - (sizes**3 - sizes).sum() / 48
    z = (ranks[unequal > 0].sum() - n * (n + 1) / 4) / math.sqrt(variance)
    found = signed_rank_test(differences)
    assert found.method == "normal" and found.p == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), abs=1e-12)


def test_more_than_fifty_cases_are_approximated_and_fifty_are_not():
    differences = np.linspace(-1, 2, 51)
    assert signed_rank_test(differences).method == "normal"
    assert signed_rank_test(differences[1:]).method == "exact"
    assert signed_rank_test(differences).p == scipy.stats.wilcoxon(differences, method="asymptotic").pvalue


@pytest.mark.parametrize("differences", [[], [0.0], [0.0] * 20, [1e-15, -1e-16]])
def test_without_any_difference_p_is_one(differences):
    found = signed_rank_test(differences)
    assert found.p == 1 and found.method == "none"


@pytest.mark.parametrize("seed", range(5))
def test_the_direction_is_that_in_which_a_one_sided_test_has_the_smaller_p(seed):
    differences = np.random.default_rng(seed).normal(0.1, 1, 15)
    less, greater = (scipy.stats.wilcoxon(differences, alternative=side).pvalue for side in ("less", "greater"))
    assert signed_rank_direction(differences) == (1 if greater < less else -1)


def test_many_small_losses_and_few_large_gains_have_a_positive_mean_and_a_negative_direction():
    differences = [*np.linspace(-0.02, -0.005, 40), *np.linspace(0.3, 0.5, 5)]
    assert np.mean(differences) > 0 and signed_rank_test(differences).p < 0.001
    assert signed_rank_direction(differences) == -1
    assert signed_rank_direction([-0.1, 0.1]) == signed_rank_direction([0.0]) == signed_rank_direction([]) == 0


def test_a_single_difference_shows_nothing():
    assert signed_rank_test([3.0]).p == 1


@pytest.mark.parametrize(
    "p_values, expected",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.5, 1.0], [1, 1, 1]),
        ([0.2], [0.2]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
    ids=["of four", "as R's p.adjust", "at most one", "one", "equal", "none"],
)
def test_holm(p_values, expected):
    assert holm(p_values) == pytest.approx(expected, abs=1e-12)
