"""Whether a synthetic lesion looks like the real ones, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.synthesis.lesion_measures import MEASURES, measure_lesion
from fvae_nnunet.synthesis.real_lesions import RealLesions

PERCENTILES = (1.0, 99.0)
"""Of the real lesions: of fewer than a hundred these are nearly the extremes. The limits are wider, because real
lesions are a sample and the next real one may lie outside:"""

WIDENED_SHARE = 0.25
"""by this share of the distance between the percentiles on either side,"""

WIDENED_FEW = 3.0
"""or this divided by the number of real lesions, whichever is more: the range of few is narrow. Of normal values 3, 6
and 12 span 1.7, 2.5 and 3.3 standard deviations on average, so that the limits are 5.1, 5.1 and 4.9 apart."""

WIDENED_HU = 5.0
"""and at least by this."""

_SAID = {
    "mean_hu": "mean of {value:.0f} HU",
    "core_mean_hu": "core with a mean of {value:.0f} HU",
    "core_sd_hu": "core with a standard deviation of {value:.0f} HU",
    "contrast_hu": "contrast of {value:.0f} HU to its surroundings",
    "rim_hu": "rim that differs by {value:.0f} HU from its core",
    "slice_change_hu": "core that changes by {value:.0f} HU from slice to slice",
}


_OF_BRIGHTNESS = ("mean_hu", "core_mean_hu", "contrast_hu", "rim_hu")
"""What cannot be as in real lesions where another brightness is asked for."""


@dataclass(frozen=True)
class QualityLimits:
    """What a synthetic lesion must keep to be accepted.

    Attributes:
        real: for each measure of ``lesion_measures.MEASURES`` the lower and upper limit in HU; none: not checked.
        real_lesions: how many they come from.
        inside_fraction: least share in the organ.
        found_share: least share that a segmenter finds.
        asked: which of the measures has its limits from what was asked for.
    """

    real: dict[str, tuple[float, float]]
    real_lesions: int
    inside_fraction: float
    found_share: float
    asked: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        real: RealLesions,
        *,
        inside_fraction: float,
        found_share: float,
        asked: Mapping[str, tuple[float, float]] | None = None,
    ) -> QualityLimits:
        """From the real lesions of a dataset, see ``PERCENTILES``.

        Args:
            real: the lesions.
            inside_fraction, found_share: see the class.
            asked: the range of a measure of brightness that the user asks for. Its limits are this range, widened as
                that of the real lesions is or by a quarter of itself, whichever is more; the other measures of
                brightness have none.
        """
        asked = asked or {}
        limits = {}
        for measure in MEASURES:
            values = real.values(measure)
            by, lower, upper = WIDENED_HU, 0.0, 0.0
            if values.size:
                lower, upper = np.percentile(values, PERCENTILES)
                share = max(WIDENED_SHARE, WIDENED_FEW / values.size)
                by = max(WIDENED_HU, share * (upper - lower))
            if measure in asked:
                lower, upper = asked[measure]
                by = max(by, WIDENED_SHARE * (upper - lower))
            elif not values.size or (asked and measure in _OF_BRIGHTNESS):
                continue
            least = max(0.0, lower - by) if measure in ("core_sd_hu", "slice_change_hu") else lower - by
            limits[measure] = (round(float(least), 2), round(float(upper + by), 2))
        return cls(limits, len(real.lesions), inside_fraction, found_share, tuple(asked))

    def recorded(self) -> dict[str, Any]:
        """As the record of a case states it."""
        return {
            "real_lesions": self.real_lesions,
            "percentiles": list(PERCENTILES),
            **{measure: list(limits) for measure, limits in self.real.items()},
            "inside_fraction": self.inside_fraction,
            "found_share": self.found_share,
        }


def lesion_quality(
    volume_hu: np.ndarray,
    lesion: np.ndarray,
    surroundings: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    inside_fraction: float,
    found: np.ndarray | None,
) -> dict[str, float | None]:
    """The figures of one synthetic lesion.

    Args:
        volume_hu: the synthetic volume (z, y, x).
        lesion: bool, not empty.
        surroundings: bool, the organ without any lesion.
        spacing_mm: (z, y, x).
        inside_fraction: share of the lesion in the organ.
        found: bool, what a segmenter calls lesion; None: there is none.

    Returns:
        ``MEASURES``, ``inside_fraction``, and ``found_share``: share of the lesion that was found, or None.
    """
    share = None if found is None else round(float(np.count_nonzero(found & lesion) / np.count_nonzero(lesion)), 4)
    return {
        **measure_lesion(volume_hu, lesion, surroundings, spacing_mm),
        "inside_fraction": round(inside_fraction, 4),
        "found_share": share,
    }


def reasons_against(lesions: Sequence[dict[str, float | None]], limits: QualityLimits) -> list[str]:
    """Why a case with such lesions is not accepted, a sentence each; empty: it is.

    Args:
        lesions: from ``lesion_quality``.
        limits: what they are held against.
    """
    reasons = []
    for number, quality in enumerate(lesions, start=1):
        which = "the lesion" if len(lesions) == 1 else f"lesion {number}"
        for measure, (lower, upper) in limits.real.items():
            value = quality[measure]
            if value is not None and not lower <= value <= upper:
                allowed = "what was asked for allows" if measure in limits.asked else "real ones allow"
                reasons.append(
                    f"{which} has a {_SAID[measure].format(value=value)}; {allowed} {lower:.0f} to {upper:.0f}"
                )
        for key, least, said in (
            ("inside_fraction", limits.inside_fraction, "lies in the organ"),
            ("found_share", limits.found_share, "is found by the segmenter"),
        ):
            share = quality[key]
            # shares are rounded to four places
            if share is not None and share < least - 5e-5:
                reasons.append(f"{share:.0%} of {which} {said}; at least {least:.0%} are needed")
    return reasons
