"""The mean AUC over findings, with bootstrap resampling of patients.

An AUC in which each case counts w times is a weighted sum over the cases in the order of their scores, so that all
resamples of a finding need only one sort and cumulative weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.evaluation.statistics import CONFIDENCE, NO_INTERVAL, ROUNDING_DECIMALS, Difference, Interval

_CHUNK_VALUES = 2_000_000
"""Maximum number of weights in memory."""


@dataclass(frozen=True)
class MeanAUCs:
    """Mean AUC of K models over the findings that have one.

    Attributes:
        values: mean AUCs (K,); NaN if no finding has an AUC.
        resampled: mean AUCs (resamples, K) of resampled patients. A finding without positive or without negative cases
            in a resample is left out of its mean, for all models alike.
        incomplete: fraction of the resamples in which a finding was left out.
        patients: number of patients.
    """

    values: np.ndarray
    resampled: np.ndarray
    incomplete: float
    patients: int

    def interval(self, model: int) -> Interval:
        """95 % percentile interval of one model; "none" with fewer than two patients or no spread."""
        return _percentile(self.resampled[:, model])

    def difference(self, first: int, second: int) -> Difference:
        """Paired difference of model ``second`` minus ``first``, on the same resamples.

        The p value is the smallest 1 - confidence at which the percentile interval excludes 0 (Efron and Tibshirani,
        An Introduction to the Bootstrap, chapter 15.4), never below 2 / (resamples + 1).
        """
        value = float(self.values[second] - self.values[first])
        differences = self.resampled[:, second] - self.resampled[:, first]
        differences = np.round(differences[np.isfinite(differences)], ROUNDING_DECIMALS)
        interval = _percentile(differences)
        if interval.method == "none":
            same = differences.size and not differences.any()
            return Difference(value, interval, 1.0 if same else float("nan"))
        tail = min((differences <= 0).sum(), (differences >= 0).sum())
        return Difference(value, interval, min(1.0, 2 * float(tail + 1) / (differences.size + 1)))


def mean_aucs(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: Sequence[str],
    *,
    seed: int,
    resamples: int = 9999,
) -> MeanAUCs:
    """Mean AUC of each model, for all patients and for patients drawn with replacement.

    Args:
        scores: (K, n, F) scores of each model, case and finding; finite.
        labels: (n, F) 0 or 1, NaN if unknown.
        patients: (n,) patient of each case; a patient is drawn with all their cases.
        seed: seed of ``np.random.default_rng``.
        resamples: number of resamples.
    """
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    findings = [finding for finding in range(labels.shape[1]) if _has_both(labels[:, finding])]
    values = np.full(len(scores), np.nan)
    if not findings:
        return MeanAUCs(values, np.full((resamples, len(scores)), np.nan), 0.0, len(names))
    once = np.ones((1, labels.shape[0]))
    values = np.mean(
        [[weighted_aucs(row[:, finding], labels[:, finding], once)[0] for row in scores] for finding in findings],
        axis=0,
    )
    rng, resampled, incomplete = np.random.default_rng(seed), [], 0
    step = max(1, _CHUNK_VALUES // labels.shape[0])
    for start in range(0, resamples, step):
        drawn = rng.integers(0, len(names), (min(step, resamples - start), len(names)))
        times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])[:, place].astype(float)
        of_findings = np.stack(
            [
                np.stack([weighted_aucs(row[:, finding], labels[:, finding], times) for row in scores], axis=1)
                for finding in findings
            ]
        )
        left_out = np.isnan(of_findings[:, :, 0])
        incomplete += int(left_out.any(axis=0).sum())
        there = np.maximum((~left_out).sum(axis=0), 1)[:, None]
        means = np.nansum(of_findings, axis=0) / there
        means[left_out.all(axis=0)] = np.nan
        resampled.append(means)
    return MeanAUCs(values, np.concatenate(resampled), incomplete / resamples, len(names))


def weighted_aucs(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """AUC of one model and finding with weighted cases, for R sets of weights.

    Args:
        scores: (n,).
        labels: (n,) 0 or 1, NaN if unknown; such cases are ignored.
        times: (R, n) non-negative counts of each case.

    Returns:
        AUCs (R,); NaN if no positive or no negative case counts.
    """
    known = np.flatnonzero(~np.isnan(labels))
    order = known[np.argsort(scores[known], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # of each run of equal scores
    positive = np.add.reduceat(times[:, order] * (labels[order] == 1), starts, axis=1)
    negative = np.add.reduceat(times[:, order] * (labels[order] == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide((positive * below).sum(axis=1), pairs, out=np.full(len(times), np.nan), where=pairs > 0)


def _has_both(labels: np.ndarray) -> bool:
    return bool((labels == 1).any() and (labels == 0).any())


def _percentile(values: np.ndarray) -> Interval:
    known = np.round(values[np.isfinite(values)], ROUNDING_DECIMALS)
    if np.unique(known).size < 2:
        return NO_INTERVAL
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high), "percentile")
