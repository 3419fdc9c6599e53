"""How sure a mean over cases is and whether paired differences are chance: bootstrap, Wilcoxon signed-rank, Holm.

The mathematics are scipy's; here is decided which method is used when, and what too few cases give.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.errors import UserError

CONFIDENCE = 0.95
"""Of every interval."""

ROUNDING_DECIMALS = 12
"""Differences that agree to so many decimals are ties: 2/3 - 1/3 and 1/3 - 0 differ in floats alone."""

EXACT_UP_TO = 50
"""Most pairs for which the exact distribution of the signed ranks is used, as in scipy's ``method="auto"``."""

PERMUTATION_UP_TO = 13
"""Most pairs for which all 2**n signs are tried where ranks are tied, as in scipy's ``method="auto"``."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval: ``method`` is "BCa", "percentile", "DeLong" or "none" (both ends are NaN)."""

    low: float
    high: float
    method: str


NO_INTERVAL = Interval(float("nan"), float("nan"), "none")


@dataclass(frozen=True)
class Difference:
    """Second model minus first, with a two-sided p, NaN where it is not known."""

    value: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class SignedRankTest:
    """A two-sided p: ``method`` is "exact", "permutation" (exact with tied ranks), "normal" or "none" (p is 1)."""

    p: float
    method: str


def check_resampling(seed: int, resamples: int) -> None:
    """UserError if `bootstrap_interval` cannot work with these."""
    if seed < 0 or resamples < 1:
        raise UserError(f"`seed` must not be negative and `resamples` positive, got {seed} and {resamples}")


def bootstrap_interval(
    sums: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray | None = None,
    *,
    seed: int,
    resamples: int = 9999,
) -> Interval:
    """95 % bootstrap interval of a mean, cases being what is resampled.

    A case may hold several things that are averaged, such as its lesions: their mean is the sum over all cases by the
    count over all cases, and a case is drawn with everything it holds (cluster bootstrap). BCa, Efron and Tibshirani,
    An Introduction to the Bootstrap, chapter 14.3, by `scipy.stats.bootstrap`; where it is not defined, the percentile
    interval of the same resamples.

    Args:
        sums: (n,) for each case the sum of what it holds, finite. For a paired difference: of the differences.
        counts: (n,) for each case how many things it holds, at least 1; default: one each, the sums are the values.
        seed: of ``np.random.default_rng``. Every interval starts from it anew, so that none depends on which others are
            asked for, and the same cases give the same resamples for every model.
        resamples: number of resamples.

    Returns:
        NaN to NaN, method "none", if there are fewer than two cases or all cases have the same mean: without spread
        a bootstrap knows nothing.
    """
    from scipy.stats import bootstrap

    sums = np.asarray(sums, dtype=float)
    counts = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=float)
    if np.unique(np.round(sums / counts, ROUNDING_DECIMALS)).size < 2:
        return NO_INTERVAL

    def mean(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of BCa without a result: then the percentile interval follows
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
    """Mean of the values (n,) that are not NaN, one for each case, and its `bootstrap_interval`; NaN of none."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if known.size else float("nan")
    return mean, bootstrap_interval(known, seed=seed, resamples=resamples)


def signed_rank_test(differences: Sequence[float] | np.ndarray) -> SignedRankTest:
    """Two-sided Wilcoxon signed-rank test of paired differences (n,), finite, by `scipy.stats.wilcoxon`.

    Differences of zero are left out before ranking (Wilcoxon's own rule, scipy's ``zero_method="wilcox"``): the test is
    then one among the cases in which the models differ, and stays exact for few cases. Exact up to 50 such cases if
    no two differences have the same size, and up to 13 in any case; otherwise the normal approximation, corrected for
    ties. With n cases p cannot fall below 2**(1 - n): fewer than 6 never reach 0.05.

    Returns:
        p = 1, method "none", if no difference is left.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    rounded = np.round(np.asarray(differences, dtype=float), ROUNDING_DECIMALS)
    unequal = rounded[rounded != 0]
    if not unequal.size:
        return SignedRankTest(1.0, "none")
    tied = np.unique(np.abs(unequal)).size < unequal.size
    if not tied and unequal.size <= EXACT_UP_TO:
        return SignedRankTest(float(wilcoxon(unequal, method="exact").pvalue), "exact")
    if tied and unequal.size <= PERMUTATION_UP_TO:
        every_sign = PermutationMethod(n_resamples=2**PERMUTATION_UP_TO)
        return SignedRankTest(float(wilcoxon(unequal, method=every_sign).pvalue), "permutation")
    return SignedRankTest(float(wilcoxon(unequal, method="asymptotic").pvalue), "normal")


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of one family, corrected for their number; Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.

    The k-th smallest of m is multiplied by m - k + 1; none is made smaller than one before it, nor larger than 1.

    Returns:
        In the order of the input; empty for none.
    """
    ordered = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[ordered] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values, dtype=float)[ordered]), 1.0)
    return corrected.tolist()
