"""Check whether a synthetic lesion looks like real lesions of its size, and give the reasons if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fvae_nnunet.numbers_as_text import interval, number, percent
from fvae_nnunet.synthesis.lesions.measures import CORE_DEPTH_MM, measure_lesion
from fvae_nnunet.synthesis.lesions.real_lesions import RealLesions
from fvae_nnunet.synthesis.lesions.shapes import equivalent_diameter_mm

NEAREST_SHARE = 1 / 3
"""Share of the real lesions, nearest in size (by the ratio of equivalent diameters), with which texture and rim are
compared, because small lesions are blurred into their surroundings more than large ones. Mean and contrast of the core
are compared with all real lesions whose core is blurred or not, like its own; if these are fewer than ``FEWEST``, with
all."""

NEAREST = 12
"""Minimum number of real lesions to compare with, or all if there are fewer."""

PERCENTILES = (1.0, 99.0)
"""Percentiles of the real lesions from which the limits are computed, nearly the extremes of fewer than a hundred. The
limits are widened, because real lesions are a sample and the next real one may be outside."""

WIDENED_SHARE = 0.25
"""The limits are widened on either side by this share of the distance between the percentiles."""

WIDENED_FEW = 8.0
"""The share is at least this number divided by the number of real lesions, because the range of few values is narrow:
12 and 24 normal values span 3.3 and 3.9 standard deviations on average, so the limits are 3.8 and 3.2 standard
deviations from the middle."""

WIDENED_HU = 8.0
"""The limits are widened by at least this value: in a core of 30 voxels, with 15 independent ones because of correlated
noise, noise of 20 HU is known to 20 / sqrt(30) = 4 HU, and deviations of twice that are not rare."""

UNRESOLVED_SD = 1.5
"""Factor on the upper limit of the core's standard deviation for a lesion with no voxel ``CORE_DEPTH_MM`` deep, if
fewer than ``FEWEST`` real lesions are like that. The core of such a lesion is blurred too; its mean is not checked."""

UNRESOLVED_CONTRAST = 0.5
"""Factor on the limits of the contrast of such a lesion. (An ideal nodule of 7 mm in slices of 3 mm has 70 HU less in
its core than a large one, and a standard deviation of 30 to 50 HU instead of 17.)"""

FEWEST = 3
"""Minimum number of real lesions with a measure; with fewer it is not checked."""

_CHECKED = {
    "core_mean_hu": "core with a mean of {value} HU",
    "contrast_hu": "contrast of {value} HU to its surroundings",
    "core_sd_hu": "core with a standard deviation of {value} HU",
    "rim_hu": "rim that differs by {value} HU from its core",
    "slice_change_hu": "core that changes by {value} HU from slice to slice",
}
"""Measures that have limits. The mean of the whole lesion has none: it mixes core and rim in proportions that depend on
the size."""

_BY_SIZE = ("core_sd_hu", "rim_hu", "slice_change_hu")
_NOT_NEGATIVE = ("core_sd_hu", "slice_change_hu")
_OF_BRIGHTNESS = ("core_mean_hu", "contrast_hu", "rim_hu")
"""Measures that cannot match real lesions if another brightness is requested."""


@dataclass(frozen=True)
class SizeLimits:
    """The limits for a lesion of one size.

    Attributes:
        diameters_mm: smallest and largest diameter of the real lesions nearest in size; None if there are none.
        real_lesions: number of these lesions.
        hu: measure -> lower and upper limit; measures without an entry are not checked.
    """

    diameters_mm: tuple[float, float] | None
    real_lesions: int
    hu: dict[str, tuple[float, float]]

    def recorded(self) -> dict[str, Any]:
        """The entry in the record of a case."""
        return {
            "diameters_mm": None if self.diameters_mm is None else list(self.diameters_mm),
            "real_lesions": self.real_lesions,
            **{measure: list(limits) for measure, limits in self.hu.items()},
        }


@dataclass(frozen=True)
class QualityLimits:
    """The limits that a synthetic lesion must keep to be accepted.

    Attributes:
        real: real lesions to compare with.
        inside_fraction: minimum share in the organ.
        found_share: minimum share found by a segmenter.
        asked: requested range of a measure of brightness; it replaces that of the real lesions, and the other measures
            of brightness have no limits.
    """

    real: RealLesions
    inside_fraction: float
    found_share: float
    asked: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of_size(self, diameter_mm: float, depth_mm: float | None) -> SizeLimits:
        """The limits for a lesion of this size and measured depth, see ``NEAREST_SHARE`` and the constants after it."""
        lesions = self.real.lesions
        diameters_mm = np.array([lesion["diameter_mm"] for lesion in lesions])
        count = max(NEAREST, int(np.ceil(NEAREST_SHARE * len(lesions))))
        nearest = np.argsort(np.abs(np.log(diameters_mm / diameter_mm)), kind="stable")[:count]
        hu = {}
        resolved = _is_resolved(depth_mm)
        alike = [lesion for lesion in lesions if _is_resolved(lesion["depth_mm"]) == resolved]
        are_few = len(alike) < FEWEST
        for measure in _CHECKED:
            among = [lesions[at] for at in nearest] if measure in _BY_SIZE else lesions if are_few else alike
            values = np.array([lesion[measure] for lesion in among if lesion[measure] is not None])
            if measure in self.asked:
                hu[measure] = _widened(measure, values, self.asked[measure])
            elif values.size >= FEWEST and not (self.asked and measure in _OF_BRIGHTNESS):
                hu[measure] = _widened(measure, values)
        if are_few and not resolved:
            hu = {measure: _of_blurred(measure, *limits) for measure, limits in hu.items() if measure != "core_mean_hu"}
        sizes = diameters_mm[nearest]
        return SizeLimits((float(sizes.min()), float(sizes.max())) if sizes.size else None, len(nearest), hu)

    def recorded(self) -> dict[str, Any]:
        """The entry in the record of a case."""
        return {
            "real_lesions": len(self.real.lesions),
            "nearest": [NEAREST, round(NEAREST_SHARE, 4)],
            "percentiles": list(PERCENTILES),
            "inside_fraction": self.inside_fraction,
            "found_share": self.found_share,
        }


def _is_resolved(depth_mm: float | None) -> bool:
    return depth_mm is None or depth_mm >= CORE_DEPTH_MM


def _of_blurred(measure: str, lower: float, upper: float) -> tuple[float, float]:
    """The limits for a lesion with a blurred core."""
    if measure == "core_sd_hu":
        return lower, round(UNRESOLVED_SD * upper, 2)
    if measure == "contrast_hu":
        return (
            round(UNRESOLVED_CONTRAST * lower, 2) if lower > 0 else lower,
            round(UNRESOLVED_CONTRAST * upper, 2) if upper < 0 else upper,
        )
    return lower, upper


def _widened(measure: str, values: np.ndarray, asked: tuple[float, float] | None = None) -> tuple[float, float]:
    """The limits from real values, or the requested range, widened like these or by a share of itself."""
    by = WIDENED_HU
    if values.size:
        lower, upper = np.percentile(values, PERCENTILES)
        by = max(by, max(WIDENED_SHARE, WIDENED_FEW / values.size) * (upper - lower))
    if asked is not None:
        lower, upper = asked
        by = max(by, WIDENED_SHARE * (upper - lower))
    lower = max(0.0, lower - by) if measure in _NOT_NEGATIVE else lower - by
    return round(float(lower), 2), round(float(upper + by), 2)


def lesion_quality(
    volume_hu: np.ndarray,
    lesion: np.ndarray,
    surroundings: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    inside_fraction: float,
    found: np.ndarray | None,
    limits: QualityLimits,
) -> dict[str, Any]:
    """Measure the quality of one synthetic lesion.

    Args:
        volume_hu: the synthetic volume (z, y, x).
        lesion: bool, not empty.
        surroundings: bool, the organ without any lesion.
        spacing_mm: voxel size (z, y, x).
        inside_fraction: share of the lesion in the organ.
        found: bool, lesion voxels predicted by a segmenter; None without a segmenter.
        limits: limits for synthetic lesions.

    Returns:
        ``lesions.measures.MEASURES``, ``inside_fraction``, ``found_share`` (share of the lesion that was found, or
        None), and ``limits`` (the limits for its size).
    """
    voxels = int(np.count_nonzero(lesion))
    share = None if found is None else round(float(np.count_nonzero(found & lesion) / voxels), 4)
    measured = measure_lesion(volume_hu, lesion, surroundings, spacing_mm)
    of_size = limits.of_size(equivalent_diameter_mm(voxels, spacing_mm), measured["depth_mm"])
    return {
        **measured,
        "inside_fraction": round(inside_fraction, 4),
        "found_share": share,
        "limits": of_size.recorded(),
    }


def reasons_against(lesions: Sequence[dict[str, Any]], limits: QualityLimits) -> list[str]:
    """The reasons for rejecting a case with these lesions, one sentence each; empty if it is accepted.

    Args:
        lesions: output of ``lesion_quality`` for each lesion.
        limits: limits for synthetic lesions.
    """
    reasons = []
    for place, quality in enumerate(lesions, start=1):
        which = "the lesion" if len(lesions) == 1 else f"lesion {place}"
        allowed = quality["limits"]
        for measure, said in _CHECKED.items():
            value = quality[measure]
            if value is None or measure not in allowed:
                continue
            lower, upper = allowed[measure]
            if not lower <= value <= upper:
                reasons.append(
                    f"{which} has a {said.format(value=number(value, 'HU'))}; "
                    f"{_whose(measure, limits, allowed)} {interval(lower, upper, 'HU')}"
                )
        for key, least, said in (
            ("inside_fraction", limits.inside_fraction, "is in the organ"),
            ("found_share", limits.found_share, "is found by the segmenter"),
        ):
            share = quality[key]
            # shares are rounded to four decimals
            if share is not None and share < least - 5e-5:
                reasons.append(f"{percent(share)} of {which} {said}; at least {percent(least)} is required")
    return reasons


def _whose(measure: str, limits: QualityLimits, allowed: Mapping[str, Any]) -> str:
    if measure in limits.asked:
        return "the requested range allows"
    if measure not in _BY_SIZE:
        return "real ones allow"
    smallest, largest = allowed["diameters_mm"]
    return f"real ones of {interval(smallest, largest, 'mm')} mm allow"
