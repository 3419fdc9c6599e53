"""Draw the appearance of a lesion from the real lesions of the dataset, or as the user requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError

ALIKE_SHARE = 1 / 3
"""Share of the real lesions, nearest in size, from which the model for a lesion without a donor is drawn."""


@dataclass(frozen=True)
class Appearance:
    """Mean HU in the core of a lesion (``lesions.measures.lesion_core``) and standard deviation of its texture
    (``texture.core_texture``); NaN: unknown."""

    core_mean_hu: float
    texture_sd_hu: float

    def recorded(self) -> dict[str, float | None]:
        """The entry in the record of a case."""
        values = {"core_mean_hu": self.core_mean_hu, "texture_sd_hu": self.texture_sd_hu}
        return {name: None if math.isnan(value) else round(value, 2) for name, value in values.items()}


@dataclass(frozen=True)
class AskedAppearance:
    """The brightness that the user requests, at most one of the two; neither: that of the real lesions.

    Attributes:
        core_mean_hu: minimum and maximum of the mean of the core.
        contrast_hu: minimum and maximum difference between the mean of the core and the surroundings.
    """

    core_mean_hu: tuple[float, float] | None = None
    contrast_hu: tuple[float, float] | None = None

    @classmethod
    def parse(cls, lesion_hu: Sequence[float] | None, contrast_hu: Sequence[float] | None) -> AskedAppearance:
        """Create from one or two numbers for one of the two; UserError if they are invalid or given for both."""
        if lesion_hu and contrast_hu:
            raise UserError("`lesion_hu` and `contrast_hu` exclude each other; give one of them")
        ranges = []
        for name, values in (("lesion_hu", lesion_hu), ("contrast_hu", contrast_hu)):
            if values and not (len(values) <= 2 and -math.inf < values[0] <= values[-1] < math.inf):
                raise UserError(f"`{name}` takes a number, or MIN <= MAX, got {' '.join(f'{x:g}' for x in values)}")
            ranges.append((values[0], values[-1]) if values else None)
        return cls(*ranges)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """The requested measure (``lesions.measures.MEASURES``) and its range; empty if none is requested."""
        asked = {"core_mean_hu": self.core_mean_hu, "contrast_hu": self.contrast_hu}
        return {measure: limits for measure, limits in asked.items() if limits is not None}


def nearest_in_size(real: Sequence[dict[str, Any]], diameter_mm: float) -> list[dict[str, Any]]:
    """The third of the real lesions (at least one, if there is any) whose diameters are nearest, nearest first."""
    distances = [abs(math.log(lesion["diameter_mm"] / diameter_mm)) for lesion in real]
    nearest = np.argsort(distances, kind="stable")[: math.ceil(ALIKE_SHARE * len(real))]
    return [real[place] for place in nearest]


def draw_appearance(
    rng: np.random.Generator,
    asked: AskedAppearance,
    real: Sequence[dict[str, Any]],
    *,
    like: dict[str, Any] | None,
    diameter_mm: float,
    around_hu: float | None,
) -> Appearance | None:
    """Draw the appearance of one lesion.

    Texture, and brightness if none is requested, are those of one real lesion. Its brightness is either the mean of the
    core or the contrast, whichever varies less among the real lesions: nodules look alike in every lung, whereas a
    tumour of the pancreas differs from its organ, which takes up more or less contrast agent.

    Args:
        rng: source of all random draws.
        asked: brightness requested by the user.
        real: the real lesions (``real_lesions.RealLesions.lesions``).
        like: the real lesion to imitate; None: draw one of those `nearest_in_size`.
        diameter_mm: diameter of the lesion.
        around_hu: ``lesions.measures.surroundings_hu`` at its place; None if there are none.

    Returns:
        The appearance; None if nothing is requested and there is no real lesion.
    """
    if like is None and real:
        nearest = nearest_in_size(real, diameter_mm)
        like = nearest[int(rng.choice(len(nearest)))]
    sd_hu = math.nan if like is None else like["texture_sd_hu"]
    if asked.core_mean_hu is not None:
        return Appearance(float(rng.uniform(*asked.core_mean_hu)), sd_hu)
    if asked.contrast_hu is not None:
        return Appearance(
            float(rng.uniform(*asked.contrast_hu)) + (math.nan if around_hu is None else around_hu), sd_hu
        )
    if like is None:
        return None
    if around_hu is not None and like["contrast_hu"] is not None and _contrast_varies_less(real):
        return Appearance(around_hu + like["contrast_hu"], sd_hu)
    return Appearance(like["core_mean_hu"], sd_hu)


def _contrast_varies_less(real: Sequence[dict[str, Any]]) -> bool:
    """Whether the contrast varies less than the mean of the core, by the distance between the quartiles."""
    both = [(lesion["core_mean_hu"], lesion["contrast_hu"]) for lesion in real if lesion["contrast_hu"] is not None]
    lower, upper = np.percentile(both, (25, 75), axis=0)
    mean_hu, contrast_hu = upper - lower
    return bool(contrast_hu < mean_hu)
