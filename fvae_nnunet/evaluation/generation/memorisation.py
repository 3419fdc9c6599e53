"""Detect copies of training cases among generated images, by the nearest training case in feature space.

The limit comes from n real images that were not used for training: it is the m-th largest cosine with their nearest
training cases, m = (n + 1) / 20 rounded down. One more image from the same distribution is above the limit with
probability m / (n + 1), for any distribution, because each of the n + 1 images is equally likely to be among the m
nearest. That is at most 5 %; the empirical 95 % quantile would let more pass, a quarter with three images. With fewer
than 19 images there is no limit. If real images were used for training, their own file is left out, and the limit is
that of the training cases among themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.generation.similarity import unit

ONE_ABOVE_IN = 20
"""At most one in this many images is above the limit if nothing is copied."""

LEAST_REAL = ONE_ABOVE_IN - 1
"""With fewer real images there is no limit."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training case of an image.

    Attributes:
        case: case of the image.
        training_case: nearest training case.
        cosine: cosine of their features.
        identical: whether their files are equal, byte for byte.
    """

    case: str
    training_case: str
    cosine: float
    identical: bool


@dataclass(frozen=True)
class CaseVectors:
    """One feature vector per image.

    Attributes:
        cases: names (n,).
        vectors: features (n, width).
        digests: digests of the image files (n,).
    """

    cases: Sequence[str]
    vectors: np.ndarray
    digests: Sequence[str]


def nearest_training_cases(images: CaseVectors, training: CaseVectors, *, leave_out_identical: bool) -> list[Nearest]:
    """The nearest training case of each image; ``leave_out_identical`` ignores training cases with the same file.

    Returns:
        Nearest cases in the order of the images, without images whose only training case is themselves.
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
    """The limit, and the generated images with their nearest training case, largest cosine first.

    Args:
        fake, real: from `nearest_training_cases`.
        sources: generated case -> case from which it was generated.

    Returns:
        ``limit``, ``above`` (fraction) and ``expected_above`` (fraction if nothing is copied) are NaN with fewer than
        `LEAST_REAL` real images. In ``cases``, ``above`` is true if above the limit or identical to a training case.
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
