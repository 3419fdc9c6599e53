"""Whether generated images are copies of training cases: each one's nearest training case in feature space.

How near is near is answered by n real images that were not trained on: of the cosines with their nearest training cases
the limit is the m-th largest, m = (n + 1) / 20 rounded down. An image that is one more draw of the same distribution
lies above it with probability m / (n + 1), whatever the distribution, for it is as likely as each of them to be among
the m nearest of all n + 1. That is at most 5 %; the empirical 95 % quantile would let more than that through, a quarter
with three images. With fewer than 19 there is no limit. Where real images were trained on themselves, their own file is
left out, and the limit is that of the training cases among each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.generation.similarity import unit

ONE_ABOVE_IN = 20
"""At most one in so many images lies above the limit if nothing is copied."""

LEAST_REAL = ONE_ABOVE_IN - 1
"""With fewer real images there is no limit."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training case of an image.

    Attributes:
        case: of the image.
        training_case: the nearest one.
        cosine: of their features.
        identical: their files are equal, byte for byte.
    """

    case: str
    training_case: str
    cosine: float
    identical: bool


@dataclass(frozen=True)
class CaseVectors:
    """Images by one vector each.

    Attributes:
        cases: names (n,).
        vectors: features (n, width).
        digests: of the images' files (n,).
    """

    cases: Sequence[str]
    vectors: np.ndarray
    digests: Sequence[str]


def nearest_training_cases(images: CaseVectors, training: CaseVectors, *, leave_out_identical: bool) -> list[Nearest]:
    """The nearest training case of each image; with ``leave_out_identical`` equal files are no neighbours.

    Returns:
        In the order of the images; without those that have no training case but themselves.
    """
    cosines = unit(images.vectors) @ unit(training.vectors).T
    equal = np.array(images.digests)[:, None] == np.array(training.digests)[None, :]
    if leave_out_identical:
        cosines = np.where(equal, -np.inf, cosines)
    best = cosines.argmax(axis=1)
    return [
        Nearest(case, training.cases[index], float(row[index]), bool(same[index]))
        for case, index, row, same in zip(images.cases, best, cosines, equal, strict=True)
        if np.isfinite(row[index])
    ]


def summarise_memorisation(
    fake: Sequence[Nearest], real: Sequence[Nearest], sources: Mapping[str, str | None]
) -> dict[str, Any]:
    """The limit, and which generated images lie above it, nearest first.

    Args:
        fake, real: from `nearest_training_cases`.
        sources: generated case -> the case it was generated from.

    Returns:
        ``limit``, ``above`` (share) and ``expected_above`` (share if nothing is copied) are NaN with fewer than
        `LEAST_REAL` real images. ``cases``: of those above, or identical to a training case, ``above`` is true.
    """
    of_real = sorted((one.cosine for one in real), reverse=True)
    allowed = (len(real) + 1) // ONE_ABOVE_IN
    limit = of_real[allowed - 1] if allowed else float("nan")
    above = [one for one in fake if one.cosine > limit or one.identical]
    ranked = sorted(fake, key=lambda one: (-one.cosine, one.case))
    return {
        "limit": limit,
        "above": len(above) / len(fake) if allowed and fake else float("nan"),
        "expected_above": allowed / (len(real) + 1) if allowed else float("nan"),
        "n": len(fake),
        "n_real": len(real),
        "median_fake": float(np.median([one.cosine for one in fake])) if fake else float("nan"),
        "median_real": float(np.median([one.cosine for one in real])) if real else float("nan"),
        "identical": sorted(one.case for one in fake if one.identical),
        "nearest_is_source": sum(one.training_case == sources.get(one.case) for one in fake),
        "cases": [vars(one) | {"above": one in above} for one in ranked],
    }
