"""Areas under the ROC curve of several models on the same cases, with covariance by DeLong, also for clustered cases.

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845, by midranks as in Sun and Xu, IEEE Signal Processing
Letters 21 (2014) 1389-1393: O(n log n) for n cases. Cases of one patient are not independent; the method of Obuchowski,
Biometrics 53 (1997) 567-578, sums the structural components of each cluster, and equals DeLong's if every cluster is
one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.evaluation.statistics import CONFIDENCE, NO_INTERVAL, ROUNDING_DECIMALS, Difference, Interval


@dataclass(frozen=True)
class AUCs:
    """Areas under the ROC curve of K models for one finding.

    Attributes:
        values: (K,) in [0, 1]; NaN if there are no positive or no negative cases.
        covariance: (K, K); NaN if fewer than two clusters hold positive, or negative, cases.
    """

    values: np.ndarray
    covariance: np.ndarray


def aucs(scores: np.ndarray, positive: np.ndarray, clusters: Sequence[str] | np.ndarray | None = None) -> AUCs:
    """AUC of each model and their covariance.

    The AUC is the probability that a positive case has a higher score than a negative one; ties count half.

    Args:
        scores: (K, n) finite; only their order matters.
        positive: (n,) bool.
        clusters: (n,) names; cases with equal names, such as the scans of one patient, are not independent. Default:
            each case is its own cluster.
    """
    scores, positive = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    models, m, n = len(scores), int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return AUCs(np.full(models, np.nan), np.full((models, models), np.nan))
    components = np.empty(scores.shape)
    for model, row in enumerate(scores):
        components[model] = structural_components(row, positive)
    values = components[:, positive].mean(axis=1)
    names = np.arange(m + n) if clusters is None else np.asarray(clusters)
    _, place = np.unique(names, return_inverse=True)
    above = _cluster_sums(components - values[:, None], positive, place)
    below = _cluster_sums(components - values[:, None], ~positive, place)
    with_positive, with_negative = (np.unique(place[cases]).size for cases in (positive, ~positive))
    if with_positive < 2 or with_negative < 2:
        return AUCs(values, np.full((models, models), np.nan))
    clusters_in_all = place.max() + 1
    mixed = above @ below.T * clusters_in_all / (clusters_in_all - 1)
    covariance = (
        above @ above.T * with_positive / (with_positive - 1) / m**2
        + below @ below.T * with_negative / (with_negative - 1) / n**2
        + (mixed + mixed.T) / (m * n)
    )
    return AUCs(values, covariance)


def structural_components(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(n,) for a positive case the fraction of negative ones that score lower, for a negative case the fraction of
    positive ones that score higher; ties count half. ``scores`` (n,), ``positive`` (n,) bool with both values."""
    from scipy.stats import rankdata

    m, n = positive.sum(), (~positive).sum()
    among_all = rankdata(scores)
    components = np.empty(len(scores))
    components[positive] = (among_all[positive] - rankdata(scores[positive])) / n
    components[~positive] = 1 - (among_all[~positive] - rankdata(scores[~positive])) / m
    return components


def auc_interval(found: AUCs, model: int) -> Interval:
    """95 % interval of one model's AUC from the normal approximation, clipped to [0, 1].

    Method "none" and NaN if the variance is unknown or zero (a perfect AUC gives no estimate of its spread).
    """
    variance = found.covariance[model, model]
    low, high = _normal_ends(found.values[model], variance)
    return Interval(max(low, 0.0), min(high, 1.0), "DeLong") if _is_known(variance) else NO_INTERVAL


def auc_difference(found: AUCs, first: int, second: int) -> Difference:
    """AUC of model ``second`` minus that of ``first``, on the same cases, with normal-theory interval and test.

    The interval is "none" if the covariance is unknown (p is NaN), or if the models agree in every case (p is 1).
    """
    from scipy.stats import norm

    value = float(found.values[second] - found.values[first])
    covariance = found.covariance
    variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    if not np.isfinite(variance):
        return Difference(value, NO_INTERVAL, float("nan"))
    if not _is_known(variance):
        # no spread: the models rank all cases alike, or differ equally in each
        return Difference(value, NO_INTERVAL, 1.0 if abs(value) < 10.0**-ROUNDING_DECIMALS else float("nan"))
    low, high = _normal_ends(value, variance)
    p = 2 * float(norm.sf(abs(value) / np.sqrt(variance)))
    return Difference(value, Interval(max(low, -1.0), min(high, 1.0), "DeLong"), p)


def _cluster_sums(deviations: np.ndarray, cases: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Sums (K, clusters) of the deviations (K, n) of these cases in each cluster."""
    size = place.max() + 1
    return np.stack([np.bincount(place[cases], weights=row[cases], minlength=size) for row in deviations])


def _is_known(variance: float) -> bool:
    return bool(np.isfinite(variance)) and variance > 10.0 ** (-2 * ROUNDING_DECIMALS)


def _normal_ends(value: float, variance: float) -> tuple[float, float]:
    from scipy.stats import norm

    reach = norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(max(variance, 0.0)) if np.isfinite(variance) else np.nan
    return float(value - reach), float(value + reach)
