"""Statistics of means over cases and of paired differences: bootstrap, Wilcoxon signed-rank, Holm.

scipy does the computation; this module selects the method and handles too few cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.errors import UserError

CONFIDENCE = 0.95
"""Confidence level of all intervals."""

ROUNDING_DECIMALS = 12
"""Differences that agree to this many decimals are ties: 2/3 - 1/3 and 1/3 - 0 differ only by rounding."""

EXACT_UP_TO = 50
"""Maximum number of pairs for the exact distribution of the signed ranks, as in scipy's ``method="auto"``."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval: ``method`` is "BCa", "percentile", "DeLong" or "none" (both ends are NaN)."""

    low: float
    high: float
    method: str


NO_INTERVAL = Interval(float("nan"), float("nan"), "none")


@dataclass(frozen=True)
class Difference:
    """Second model minus first, with a two-sided p, NaN if unknown."""

    value: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class SignedRankTest:
    """A two-sided p: ``method`` is "exact", "normal" or "none" (p is 1)."""

    p: float
    method: str


def check_resampling(seed: int, resamples: int) -> None:
    """Raise UserError if seed or number of resamples is invalid."""
    if seed < 0 or resamples < 1:
        raise UserError(f"`seed` must not be negative and `resamples` must be positive, got {seed} and {resamples}")


def bootstrap_interval(
    sums: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray | None = None,
    *,
    seed: int,
    resamples: int = 9999,
) -> Interval:
    """95 % bootstrap interval of a mean, by resampling cases.

    A case may hold several items that are averaged, such as its lesions: their mean is the sum over all cases divided
    by the count over all cases, and a case is drawn with all its items (cluster bootstrap). The method is BCa (Efron
    and Tibshirani, An Introduction to the Bootstrap, chapter 14.3) from `scipy.stats.bootstrap`; if it is undefined,
    the percentile interval of the same resamples.

    Args:
        sums: (n,) sum of the items of each case, finite. For a paired difference: sum of the differences.
        counts: (n,) number of items of each case, at least 1; default: one each, so that sums are the values.
        seed: seed of ``np.random.default_rng``. Every interval starts from it, so that none depends on other intervals,
            and the same cases give the same resamples for every model.
        resamples: number of resamples.

    Returns:
        The interval; NaN to NaN, method "none", if there are fewer than two cases or all have the same mean, as a
        bootstrap needs spread.
    """
    from scipy.stats import bootstrap

    sums = np.asarray(sums, dtype=float)
    counts = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=float)
    if np.unique(np.round(sums / counts, ROUNDING_DECIMALS)).size < 2:
        return NO_INTERVAL

    def mean(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # BCa without a result is replaced by the percentile interval
        options = {"paired": True, "vectorized": True, "confidence_level": CONFIDENCE}
        result = bootstrap(
            (sums, counts), mean, n_resamples=resamples, method="BCa", rng=np.random.default_rng(seed), **options
        )
        method = "BCa"
        if not np.isfinite(result.confidence_interval).all():
            result = bootstrap(
                (sums, counts), mean, n_resamples=0, bootstrap_result=result, method="percentile", **options
            )
            method = "percentile"
    low, high = result.confidence_interval
    return Interval(float(low), float(high), method)


def mean_and_interval(
    values: Sequence[float] | np.ndarray, *, seed: int, resamples: int = 9999
) -> tuple[float, Interval]:
    """Mean of the values (n,), one per case, without NaN, and its `bootstrap_interval`; NaN if there are none."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if known.size else float("nan")
    return mean, bootstrap_interval(known, seed=seed, resamples=resamples)


def signed_rank_test(differences: Sequence[float] | np.ndarray) -> SignedRankTest:
    """Two-sided Wilcoxon signed-rank test of paired differences (n,), finite.

    Zero differences are left out before ranking (Wilcoxon's own rule, scipy's ``zero_method="wilcox"``): the test then
    uses only cases in which the models differ, and stays exact for few cases. It is exact up to 50 such cases, also if
    differences of equal size share their ranks; with more, it uses scipy's normal approximation, corrected for ties.
    With n cases, p is at least 2**(1 - n): fewer than 6 never reach 0.05.

    Returns:
        p = 1, method "none", if no difference is left.
    """
    from scipy.stats import rankdata, wilcoxon

    unequal = _unequal(differences)
    if not unequal.size:
        return SignedRankTest(1.0, "none")
    if unequal.size > EXACT_UP_TO:
        return SignedRankTest(float(wilcoxon(unequal, method="asymptotic").pvalue), "normal")
    doubled_ranks = (2 * rankdata(np.abs(unequal))).astype(int)  # integers, as ties share a mean rank
    ways = np.zeros(doubled_ranks.sum() + 1)  # share of all choices of signs in which positive ranks have each sum
    ways[0] = 1.0
    for rank in doubled_ranks:
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[:-rank]
        ways = (ways + shifted) / 2
    of_positive = doubled_ranks[unequal > 0].sum()
    smaller = min(of_positive, doubled_ranks.sum() - of_positive)
    return SignedRankTest(min(1.0, 2 * float(ways[: smaller + 1].sum())), "exact")


def signed_rank_direction(differences: Sequence[float] | np.ndarray) -> int:
    """Direction of `signed_rank_test`: 1 if the ranks of positive differences have the larger sum, -1 if those of
    negative ones have, 0 if both are equal.

    It is not that of the mean if many small differences have one sign and a few large ones the other.
    """
    from scipy.stats import rankdata

    unequal = _unequal(differences)
    return int(np.sign((rankdata(np.abs(unequal)) * np.sign(unequal)).sum()))


def _unequal(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    rounded = np.round(np.asarray(differences, dtype=float), ROUNDING_DECIMALS)
    return rounded[rounded != 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p values of one family for their number; Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.

    The k-th smallest of m is multiplied by m - k + 1; none becomes smaller than the previous one or larger than 1.

    Returns:
        Corrected values in the order of the input; empty if there are none.
    """
    ordered = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[ordered] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values, dtype=float)[ordered]), 1.0)
    return corrected.tolist()
