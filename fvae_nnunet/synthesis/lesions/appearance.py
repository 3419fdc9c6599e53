"""What a lesion shall look like: drawn from the real lesions of the dataset, or as the user asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError

ALIKE_SHARE = 1 / 3
"""Of the real lesions, those nearest in size to a lesion that has not borrowed its shape from one."""


@dataclass(frozen=True)
class Appearance:
    """Mean of HU in a lesion's core (``lesions.measures.lesion_core``) and standard deviation of its texture
    (``texture.core_texture``); NaN: not known."""

    core_mean_hu: float
    texture_sd_hu: float

    def recorded(self) -> dict[str, float | None]:
        """As the record of a case states it."""
        values = {"core_mean_hu": self.core_mean_hu, "texture_sd_hu": self.texture_sd_hu}
        return {name: None if math.isnan(value) else round(value, 2) for name, value in values.items()}


@dataclass(frozen=True)
class AskedAppearance:
    """Which brightness the user asks for, one of the two at most; neither: as of the real lesions.

    Attributes:
        core_mean_hu: least and greatest.
        contrast_hu: least and greatest difference of the core's mean to the surroundings.
    """

    core_mean_hu: tuple[float, float] | None = None
    contrast_hu: tuple[float, float] | None = None

    @classmethod
    def parse(cls, lesion_hu: Sequence[float] | None, contrast_hu: Sequence[float] | None) -> AskedAppearance:
        """From a number or two for one of the two; UserError where they are none or for both."""
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
        """The measure (``lesions.measures.MEASURES``) that is asked for, and its range; empty: none is."""
        asked = {"core_mean_hu": self.core_mean_hu, "contrast_hu": self.contrast_hu}
        return {measure: limits for measure, limits in asked.items() if limits is not None}


def draw_appearance(
    rng: np.random.Generator,
    asked: AskedAppearance,
    real: Sequence[dict[str, Any]],
    *,
    like: dict[str, Any] | None,
    diameter_mm: float,
    around_hu: float | None,
) -> Appearance | None:
    """What one lesion shall look like.

    Texture, and brightness where none is asked for, are those of one real lesion. Of its brightness either the core's
    mean or the contrast is taken, whichever varies less among the real lesions: nodules are alike in every lung, a
    tumour of the pancreas differs from its organ, which takes up more or less contrast agent.

    Args:
        rng: decides everything random.
        asked: of the user.
        real: the real lesions (``real_lesions.RealLesions.lesions``).
        like: the one of them to look like; None: one of the third that is nearest in size.
        diameter_mm: of the lesion.
        around_hu: ``lesions.measures.surroundings_hu`` where it lies; None: there are none.

    Returns:
        None where nothing is asked for and there is no real lesion.
    """
    if like is None and real:
        distances = [abs(math.log(lesion["diameter_mm"] / diameter_mm)) for lesion in real]
        nearest = np.argsort(distances, kind="stable")[: math.ceil(ALIKE_SHARE * len(real))]
        like = real[int(rng.choice(nearest))]
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
    """Whether it does than the core's mean, by the distance between the quartiles."""
    both = [(lesion["core_mean_hu"], lesion["contrast_hu"]) for lesion in real if lesion["contrast_hu"] is not None]
    lower, upper = np.percentile(both, (25, 75), axis=0)
    mean_hu, contrast_hu = upper - lower
    return bool(contrast_hu < mean_hu)
