"""The noise level of a CT volume: standard deviation of what is left in flat soft tissue when the anatomy is removed.

The region is chosen on the raw volume alone and used for raw volume and view alike, so that a view cannot choose where
it is judged. Noise is taken per slice and in the plane: the slice distance of CT varies and its slices are correlated.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from fvae_nnunet.errors import UserError

SOFT_TISSUE_HU = (0.0, 150.0)
"""Smoothed HU of soft tissue for the noise region: muscle, organs and tumours, with contrast agent or without."""

FLATNESS_SMOOTHING_PIXELS = 3.0
"""Standard deviation of the in-plane Gaussian in whose derivative flatness is judged: an edge of 150 HU, as between
muscle and fat, shows up to 8 pixels away, and white noise of 20 HU as 0.4 HU per pixel."""

NEIGHBOURHOOD_PIXELS = 5
"""Edge of the square in which the steepest gradient counts: on the ridge of a vessel the gradient itself is zero."""

FLATTEST_PART = 0.1
"""Part of the soft tissue that counts as homogeneous: the tenth whose neighbourhood is flattest. A part and not a
gradient, because a noisy image has larger gradients everywhere; a small part, because the texture of muscle and bowel
would count as noise (on phantoms with noise of 10 HU a half gives 50 % too much, a tenth 10 %)."""

HIGH_PASS_PIXELS = 2.0
"""Standard deviation of the in-plane Gaussian that is subtracted from the volume."""

SETTINGS = {
    "soft_tissue_hu": list(SOFT_TISSUE_HU),
    "flatness_smoothing_pixels": FLATNESS_SMOOTHING_PIXELS,
    "neighbourhood_pixels": NEIGHBOURHOOD_PIXELS,
    "flattest_part": FLATTEST_PART,
    "high_pass_pixels": HIGH_PASS_PIXELS,
}
"""For the record of an evaluation."""

TRIMMED_SDS = 3.0
"""Deviations beyond so many standard deviations are anatomy."""

SD_OF_TRIMMED = 0.98658
"""Standard deviation of a standard normal distribution without what lies beyond 3 on either side:
sqrt(1 - 6 norm.pdf(3) / (1 - 2 norm.sf(3)))."""

MAD_TO_SD = 1.482602218505602
"""Standard deviation of a normal distribution by its median absolute deviation: 1 / norm.ppf(0.75)."""


MEASURED_SLICES = 32
"""Slices of a volume that are measured when it is reconstructed; 0.2 s for 320 x 320 pixels."""


def evenly_spread(count: int, at_most: int) -> list[int]:
    """The middles of ``at_most`` equal parts of ``range(count)``; all of it where it has no more than that."""
    parts = min(count, at_most)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def measured_slices(axial_hu: np.ndarray) -> np.ndarray:
    """At most ``MEASURED_SLICES`` evenly spread slices of a volume (z, y, x)."""
    return axial_hu[evenly_spread(len(axial_hu), MEASURED_SLICES)]


def homogeneous_region(
    raw_hu: np.ndarray,
    *,
    soft_tissue_hu: tuple[float, float] = SOFT_TISSUE_HU,
    flattest_part: float = FLATTEST_PART,
) -> np.ndarray:
    """Where a raw volume is flat soft tissue.

    Smoothed in the plane with a Gaussian of ``FLATNESS_SMOOTHING_PIXELS``, these voxels lie in the range of soft tissue
    and belong to the part of it where the steepest in-plane gradient of the neighbourhood is smallest. They keep off
    edges, vessels and the table.

    Args:
        raw_hu: (z, y, x) in HU, any real dtype; y and x are the plane.
        soft_tissue_hu: lower and upper end, both included.
        flattest_part: above 0, at most 1.

    Returns:
        bool (z, y, x); all False where nothing is soft tissue.

    Raises:
        UserError: not three axes.
    """
    _check(raw_hu)
    lower, upper = soft_tissue_hu
    region = np.zeros(raw_hu.shape, dtype=bool)
    gradients = []
    for plane, inside in zip(raw_hu, region, strict=True):
        smooth = ndimage.gaussian_filter(plane.astype(np.float32), FLATNESS_SMOOTHING_PIXELS, mode="nearest")
        np.logical_and(smooth >= lower, smooth <= upper, out=inside)
        # central differences; the outermost pixels take their neighbours'
        along_y, along_x = (np.gradient(smooth, axis=axis) if smooth.shape[axis] > 1 else 0.0 for axis in (0, 1))
        gradient = np.broadcast_to(np.hypot(along_y, along_x), smooth.shape)
        gradients.append(ndimage.maximum_filter(gradient, NEIGHBOURHOOD_PIXELS, mode="nearest")[inside])
    values = np.concatenate([np.empty(0, np.float32), *gradients])
    if values.size:
        region[region] = values <= np.quantile(values, flattest_part)
    return region


def noise_sd_hu(volume_hu: np.ndarray, region: np.ndarray) -> float:
    """Standard deviation of the noise in a region, in HU.

    The in-plane high-pass (the volume minus its in-plane Gaussian of ``HIGH_PASS_PIXELS``) of the region, without what
    lies more than ``TRIMMED_SDS`` standard deviations (1.4826 times the median of the absolute values) from zero, so
    that a few vessels do not count; its root mean square, divided by that of a normal distribution trimmed alike
    (0.987) and by the part that the high-pass leaves of white noise (root of the sum of its squared coefficients,
    0.97). White noise of s HU gives s. Noise that is correlated over more than a few pixels is seen in part only.

    Args:
        volume_hu: (z, y, x) in HU, any real dtype; y and x are the plane.
        region: bool, same shape, from ``homogeneous_region`` of the raw volume.

    Returns:
        HU; NaN with an empty region, 0 where more than half of the region is exactly flat.

    Raises:
        UserError: not three axes, or another shape than the region.
    """
    _check(volume_hu)
    if region.shape != volume_hu.shape:
        raise UserError(f"the volume has shape {volume_hu.shape}, the region {region.shape}")
    deviations = [
        np.abs(_high_pass(plane.astype(np.float32))[inside])
        for plane, inside in zip(volume_hu, region, strict=True)
        if inside.any()
    ]
    if not deviations:
        return float("nan")
    absolute = np.concatenate(deviations).astype(np.float64)
    kept = absolute[absolute <= TRIMMED_SDS * MAD_TO_SD * np.median(absolute)]
    impulse = np.zeros((65, 65))
    impulse[32, 32] = 1
    white_noise_gain = np.sqrt(np.square(_high_pass(impulse)).sum())
    return float(np.sqrt(np.square(kept).mean()) / (SD_OF_TRIMMED * white_noise_gain))


def _high_pass(plane: np.ndarray) -> np.ndarray:
    return plane - ndimage.gaussian_filter(plane, HIGH_PASS_PIXELS, mode="nearest")


def _check(volume_hu: np.ndarray) -> None:
    if volume_hu.ndim != 3:
        raise UserError(f"a CT volume has three axes (z, y, x), got shape {volume_hu.shape}")
