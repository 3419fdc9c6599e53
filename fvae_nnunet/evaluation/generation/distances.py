"""Distances between two sets of features: Fréchet distance and kernel distance, with intervals and a chance level.

Fréchet distance (FID and FVD, Heusel et al. 2017, arXiv:1706.08500) between Gaussians with the sets' means and unbiased
covariances::

    |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

The last trace is the sum of the singular values of F1 F2', where F' F = C. MONAI and torchmetrics take the roots of the
product C1 C2 instead, which loses half the digits if a covariance is singular, as it is with fewer rows than features.
Otherwise all three agree (tested).

Kernel distance (KID, Bińkowski et al. 2018, arXiv:1801.01401): the unbiased squared maximum mean discrepancy with
torchmetrics' polynomial kernel ``(x'y / width + 1)³``, over all pairs instead of random subsets. If cases have several
rows, the kernel of two cases is the mean over their pairs of rows, and a case is not paired with itself: slices of one
patient are alike, and including their pairs would bias the estimate for new patients. With one row per case this is
the usual estimate. It can be below 0.

Resampling draws cases with all their rows. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.features import CaseFeatures
from fvae_nnunet.evaluation.statistics import CONFIDENCE

COMPONENTS = 256
"""Maximum number of principal components of both sets in which the Fréchet distance of resamples is computed; the full
width would take hours. The distance itself uses all features."""

_NO_INTERVAL = (float("nan"), float("nan"))

_KERNEL_ROWS = 4096
"""Rows per block of the kernel matrices: 128 MB."""


@dataclass(frozen=True)
class Distance:
    """A distance with interval, chance level and p value.

    Attributes:
        value: distance in all features.
        low, high: 95 % bootstrap interval over cases; NaN with fewer than 3 cases. For the Fréchet distance it covers
            other samples of the same size, not the distance of an infinite sample: resamples repeat cases and are
            always too far apart, so the interval is that of the resamples, shifted by the difference of their mean
            from the value.
        by_chance: mean distance between random divisions of both sets together into the same sizes: about the score of
            a perfect generator with as many cases. What the components leave out of the distance counts as chance, too.
        p: fraction of these that are at least as large as the distance, (1 + n) / (1 + resamples).
        resampled_variance: fraction of the variance in the components in which resamples were computed.
    """

    value: float
    low: float
    high: float
    by_chance: float
    p: float
    resampled_variance: float


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """The squared Fréchet distance (see module), at least 0; means (width,), covariances (width, width)."""
    singular = np.linalg.svd(_factor(covariance_1) @ _factor(covariance_2).T, compute_uv=False)
    offset = mean_1 - mean_2
    return max(0.0, float(offset @ offset + np.trace(covariance_1) + np.trace(covariance_2) - 2 * singular.sum()))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (rank, width) with F' F equal to a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(float).eps
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def covariance_rank(rows: np.ndarray) -> int:
    """Rank of the covariance of (rows, width)."""
    return int(np.linalg.matrix_rank(rows - rows.mean(axis=0)))


def frechet(
    real: CaseFeatures, fake: CaseFeatures, *, seed: int, resamples: int, on_resample: Callable[[], object]
) -> Distance:
    """Fréchet distance between two sets.

    Args:
        real, fake: features of equal width, at least two rows each.
        seed: seed of `numpy.random.default_rng`.
        resamples: number of resamples for the interval, and again for the chance level.
        on_resample: called after each resample.

    Raises:
        UserError: fewer than two rows.
    """
    if min(len(real.rows), len(fake.rows)) < 2:
        raise UserError(
            f"a Fréchet distance needs at least two rows of features, got {len(real.rows)} and {len(fake.rows)}"
        )
    moments = [(rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False))) for rows in (real.rows, fake.rows)]
    value = frechet_distance(*moments[0], *moments[1])
    reduced = _Moments(real, fake)
    resampled = _resample(
        lambda weights_1, weights_2: frechet_distance(*reduced.of(weights_1), *reduced.of(weights_2)),
        len(real.names), len(fake.names), seed=seed, resamples=resamples, on_resample=on_resample,
    )  # fmt: skip
    low, high = _ends(resampled.bootstrap - resampled.bootstrap.mean()) if len(resampled.bootstrap) else _NO_INTERVAL
    return Distance(
        value=value,
        low=max(0.0, value + low) if np.isfinite(low) else low,
        high=value + high,
        by_chance=value + float(resampled.permuted.mean() - resampled.value),
        p=_p(resampled),
        resampled_variance=reduced.variance,
    )


def kernel(
    real: CaseFeatures, fake: CaseFeatures, *, seed: int, resamples: int, on_resample: Callable[[], object]
) -> Distance:
    """Kernel distance between two sets; arguments as `frechet`.

    Raises:
        UserError: fewer than two cases.
    """
    if min(len(real.names), len(fake.names)) < 2:
        raise UserError(f"a kernel distance needs at least two cases, got {len(real.names)} and {len(fake.names)}")
    kernels = _centred(_case_kernels(real, fake))

    def distance(weights_1: np.ndarray, weights_2: np.ndarray) -> float:
        between = weights_1 @ kernels @ weights_2 / (weights_1.sum() * weights_2.sum())
        return float(_within(kernels, weights_1) + _within(kernels, weights_2) - 2 * between)

    resampled = _resample(
        distance, len(real.names), len(fake.names), seed=seed, resamples=resamples, on_resample=on_resample
    )
    low, high = _ends(resampled.bootstrap) if len(resampled.bootstrap) else _NO_INTERVAL
    return Distance(resampled.value, low, high, float(resampled.permuted.mean()), _p(resampled), 1.0)


def _within(kernels: np.ndarray, weights: np.ndarray) -> float:
    """Mean kernel over pairs of different cases of a set; NaN if it holds only one case."""
    pairs = weights.sum() ** 2 - (weights**2).sum()
    total = weights @ kernels @ weights - weights**2 @ np.diag(kernels)
    return float(total / pairs) if pairs > 0 else float("nan")


def _centred(kernels: np.ndarray) -> np.ndarray:
    """The kernel of features minus their mean over all cases.

    This does not change the distance of the sets, where a constant per case cancels. In resamples it would not cancel,
    because the pairs of a case drawn twice are left out, and without centring their spread would be far too large.
    """
    means = kernels.mean(axis=0)
    return kernels - means[:, None] - means[None, :] + means.mean()


def _case_kernels(real: CaseFeatures, fake: CaseFeatures) -> np.ndarray:
    """Mean kernel over all pairs of rows for each pair of cases, real ones first, (cases, cases)."""
    import torch
    from torchmetrics.image.kid import poly_kernel

    rows = torch.from_numpy(np.concatenate([real.rows, fake.rows]))
    case_of_row = np.concatenate([real.case_of_row, len(real.names) + fake.case_of_row])
    cases = len(real.names) + len(fake.names)
    index = torch.from_numpy(case_of_row)
    sums = torch.zeros(cases, cases, dtype=torch.float64)
    for first in range(0, len(rows), _KERNEL_ROWS):
        for second in range(0, len(rows), _KERNEL_ROWS):
            here, there = slice(first, first + _KERNEL_ROWS), slice(second, second + _KERNEL_ROWS)
            block = poly_kernel(rows[here], rows[there])
            by_case = torch.zeros(cases, block.shape[1], dtype=torch.float64).index_add_(0, index[here], block)
            sums.index_add_(1, index[there], by_case)
    counts = np.bincount(case_of_row)
    return sums.numpy() / np.outer(counts, counts)


class _Moments:
    """Mean and unbiased covariance of weighted cases of two sets, real ones first.

    They are computed in the leading principal components of both sets, at most `COMPONENTS`; without loss if there are
    no more.

    Attributes:
        variance: fraction of the variance in these components.
    """

    def __init__(self, real: CaseFeatures, fake: CaseFeatures) -> None:
        rows = np.concatenate([real.rows, fake.rows])
        rows = rows - rows.mean(axis=0)
        values, vectors = np.linalg.eigh(rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T)
        kept = max(1, min(COMPONENTS, int((values > values[-1] * len(values) * np.finfo(float).eps).sum())))
        total = values.sum()
        self.variance = float(values[-kept:].sum() / total) if total > 0 else 1.0
        if rows.shape[1] <= len(rows):
            self._rows = rows @ vectors[:, -kept:]
        else:
            self._rows = vectors[:, -kept:] * np.sqrt(np.maximum(values[-kept:], 0))
        case_of_row = np.concatenate([real.case_of_row, len(real.names) + fake.case_of_row])
        self._counts = np.bincount(case_of_row).astype(float)
        self._sums = np.zeros((len(self._counts), kept))
        np.add.at(self._sums, case_of_row, self._rows)
        self._second = None
        if len(rows) > len(self._counts):
            borders = np.searchsorted(case_of_row, np.arange(len(self._counts) + 1))
            of_cases = [self._rows[first:last] for first, last in pairwise(borders)]
            self._second = np.stack([of_case.T @ of_case for of_case in of_cases])

    def of(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance for whole-number weights of the cases (cases,)."""
        n = weights @ self._counts
        mean = weights @ self._sums / n
        if self._second is None:
            second = (self._rows * weights[:, None]).T @ self._rows
        else:
            second = np.tensordot(weights, self._second, axes=1)
        return mean, (second - n * np.outer(mean, mean)) / (n - 1)


@dataclass(frozen=True)
class _Resampled:
    value: float
    bootstrap: np.ndarray
    permuted: np.ndarray


def _resample(
    distance: Callable[[np.ndarray, np.ndarray], float],
    n_1: int,
    n_2: int,
    *,
    seed: int,
    resamples: int,
    on_resample: Callable[[], object],
) -> _Resampled:
    """Distances of the sets, of bootstrap resamples of each, and of random divisions of both together.

    Args:
        distance: function of two weights (n_1 + n_2,), the counts of each case in the two sets.
        n_1, n_2: numbers of cases in the sets.
        seed, resamples, on_resample: see `frechet`. Resamples without a distance (a single case) are left out.
    """
    first = np.r_[np.ones(n_1), np.zeros(n_2)]
    value = distance(first, 1 - first)
    rng = np.random.default_rng(seed)
    bootstrap = []
    if min(n_1, n_2) >= 3:
        for _ in range(resamples):
            drawn = [rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in (n_1, n_2)]
            bootstrap.append(distance(np.r_[drawn[0], np.zeros(n_2)], np.r_[np.zeros(n_1), drawn[1]]))
            on_resample()
    permuted = []
    for _ in range(resamples):
        chosen = rng.permutation(first)
        permuted.append(distance(chosen, 1 - chosen))
        on_resample()
    found = np.array(bootstrap)
    return _Resampled(value, found[np.isfinite(found)], np.array(permuted))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _p(resampled: _Resampled) -> float:
    # identical divisions differ by rounding
    tolerance = 1e-9 * np.abs(resampled.permuted).max()
    return float((1 + (resampled.permuted >= resampled.value - tolerance).sum()) / (1 + len(resampled.permuted)))
