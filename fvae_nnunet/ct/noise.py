"""The noise level of a CT volume: standard deviation of what is left in flat soft tissue when the anatomy is removed.

The region is chosen on the raw volume alone and used for raw volume and view alike, so that a view cannot choose where
it is judged. Noise is taken per slice and in the plane: the slice distance of CT varies and its slices are correlated.

Soft kernels and denoisers leave coarse noise, of which a narrow high-pass sees little. So there are two high-passes;
the share that the narrow one has of the wide one tells how coarse the noise is, and with it what the wide one misses.
Two noises can be compared by their totals, and by their fine and coarse parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.errors import UserError

SOFT_TISSUE_HU = (0.0, 150.0)
"""Smoothed HU of soft tissue for the noise region: muscle, organs and tumours, with contrast agent or without."""

FLATNESS_SMOOTHING_PIXELS = 3.0
"""Standard deviation of the in-plane Gaussian in whose derivative flatness is judged: an edge of 150 HU, as between
muscle and fat, shows up to 8 pixels away, and white noise of 20 HU as 0.4 HU per pixel."""

MARGIN_PIXELS = 4
"""Within so many rows and columns the smoothed slice is soft tissue too: fat, lung and bone are farther away."""

FLATTEST_PART = 0.2
"""Part of that soft tissue that counts as homogeneous: the fifth where the gradient is smallest. A part and not a
gradient, because a noisy image has larger gradients everywhere; a small part, because the texture of muscle and bowel
would count as noise."""

FINE_PIXELS = 2.0
"""Standard deviation of the in-plane Gaussian that is subtracted for the fine noise."""

WIDE_PIXELS = 4.0
"""Standard deviation of the in-plane Gaussian that is subtracted for all noise. Of seven real CTs (10
to 29 HU) 8 pixels find at most 2 % more."""

NEAR_PIXELS = 5
"""The wide Gaussian averages over what is at most so far (rows and columns) from the region, so that edges farther away
do not count."""

COARSEST_KERNEL_PIXELS = 3.0
"""Noise coarser than white noise after a Gaussian of this standard deviation is not told from anatomy: what the wide
high-pass misses is never taken to be more than it would miss of that, 45 %."""

SETTINGS = {
    "soft_tissue_hu": list(SOFT_TISSUE_HU),
    "flatness_smoothing_pixels": FLATNESS_SMOOTHING_PIXELS,
    "margin_pixels": MARGIN_PIXELS,
    "flattest_part": FLATTEST_PART,
    "fine_pixels": FINE_PIXELS,
    "wide_pixels": WIDE_PIXELS,
    "near_pixels": NEAR_PIXELS,
    "coarsest_kernel_pixels": COARSEST_KERNEL_PIXELS,
}
"""For the record of an evaluation."""

TRIMMED_SDS = 3.0
"""Deviations beyond so many standard deviations are anatomy."""

SD_OF_TRIMMED = 0.98658
"""Standard deviation of a standard normal distribution without what lies beyond 3 on either side:
sqrt(1 - 6 norm.pdf(3) / (1 - 2 norm.sf(3)))."""

MAD_TO_SD = 1.482602218505602
"""Standard deviation of a normal distribution by its median absolute deviation: 1 / norm.ppf(0.75)."""


ROUNDING_HU = 1e-3
"""Less is the rounding of float32."""

MEASURED_SLICES = 32
"""Slices of a volume that are measured when it is reconstructed; 0.6 s of CPU for 320 x 320 pixels."""


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

    Smoothed in the plane with a Gaussian of ``FLATNESS_SMOOTHING_PIXELS``, these voxels and all within
    ``MARGIN_PIXELS`` lie in the range of soft tissue (in a volume without such places they themselves do), and they
    belong to the part of it where the in-plane gradient is smallest.

    The gradient at a place says nothing of the noise at that place (one is odd, the other even), so the choice does not
    favour places with little noise. The steepest gradient around it would: of noise after a kernel of 2 pixels it finds
    places with half as much.

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
    soft = np.zeros(raw_hu.shape, dtype=bool)
    gradient = np.zeros(raw_hu.shape, dtype=np.float32)
    for plane, is_soft, steepness in zip(raw_hu, soft, gradient, strict=True):
        smooth = ndimage.gaussian_filter(plane.astype(np.float32), FLATNESS_SMOOTHING_PIXELS, mode="nearest")
        np.logical_and(smooth >= lower, smooth <= upper, out=is_soft)
        # central differences; the outermost pixels take their neighbours'
        along_y, along_x = (np.gradient(smooth, axis=axis) if smooth.shape[axis] > 1 else 0.0 for axis in (0, 1))
        steepness[:] = np.hypot(along_y, along_x)
    edge = 2 * MARGIN_PIXELS + 1
    region = ndimage.minimum_filter(soft, (1, edge, edge), mode="nearest")
    if not region.any():
        region = soft
    values = gradient[region]
    if values.size:
        region[region] = values <= np.quantile(values, flattest_part)
    return region


def measured_region(axial_hu: np.ndarray, hu_window: tuple[float, float]) -> tuple[np.ndarray, Noise | None]:
    """Where the noise of a raw volume is measured, and that noise.

    Args:
        axial_hu: (z, y, x) in HU, any real dtype.
        hu_window: it is clipped to.

    Returns:
        ``homogeneous_region`` of its `measured_slices`, and the noise there; None without soft tissue.
    """
    slices_hu = np.clip(measured_slices(axial_hu).astype(np.float32), *hu_window)
    region = homogeneous_region(slices_hu)
    return region, measure_noise(slices_hu, region) if region.any() else None


@dataclass(frozen=True)
class Noise:
    """Standard deviations of noise in HU.

    Attributes:
        total_hu: of all noise.
        fine_hu: of what a high-pass of ``FINE_PIXELS`` leaves of it: 97 % of white noise, 73 % after a Gaussian kernel
            of 1 pixel, 41 % after one of 2 pixels.
        coarse_hu: of the rest: sqrt(total² - fine²).
    """

    total_hu: float
    fine_hu: float
    coarse_hu: float


def noise_figures(raw: Noise | None, view: Noise | None) -> dict[str, float | None]:
    """How records name the noise of raw volume and view; None where it was not measured."""
    return {
        f"noise_{part}{volume}_hu": getattr(noise, field) if noise else None
        for field, part in (("total_hu", ""), ("fine_hu", "fine_"), ("coarse_hu", "coarse_"))
        for volume, noise in (("raw", raw), ("view", view))
    }


def noise_sd_hu(volume_hu: np.ndarray, region: np.ndarray) -> float:
    """``measure_noise(volume_hu, region).total_hu``."""
    return measure_noise(volume_hu, region).total_hu


def measure_noise(volume_hu: np.ndarray, region: np.ndarray) -> Noise:
    """The noise in a region.

    Two in-plane high-passes of the volume: minus its Gaussian of ``FINE_PIXELS``, and minus its Gaussian of
    ``WIDE_PIXELS`` over what is near the region. Of each the root mean square in the region, without what lies more
    than ``TRIMMED_SDS`` standard deviations (1.4826 times the median of the absolute values) from zero, so that a few
    vessels do not count, divided by that of a normal distribution trimmed alike (0.987). Their ratio is that of white
    noise after a Gaussian kernel of some width; the wide one divided by the part that it sees of such noise is the
    total.

    So noise of s HU gives s, be it white or after a Gaussian kernel of up to ``COARSEST_KERNEL_PIXELS``: within 3 % for
    white noise and kernels of up to 2 pixels where there is no anatomy. Noise that is coarser is seen in part.

    Args:
        volume_hu: (z, y, x) in HU, any real dtype; y and x are the plane.
        region: bool, same shape, from ``homogeneous_region`` of the raw volume.

    Returns:
        NaN with an empty region, 0 where more than half of the region is exactly flat.

    Raises:
        UserError: not three axes, or another shape than the region.
    """
    _check(volume_hu)
    if region.shape != volume_hu.shape:
        raise UserError(f"the volume has shape {volume_hu.shape}, the region {region.shape}")
    fine, wide = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for plane, inside in zip(volume_hu, region, strict=True):
        if inside.any():
            hu = plane.astype(np.float32)
            fine.append((hu - ndimage.gaussian_filter(hu, FINE_PIXELS, mode="nearest"))[inside])
            near = ndimage.maximum_filter(inside, 2 * NEAR_PIXELS + 1, mode="constant").astype(np.float32)
            sums, weights = (ndimage.gaussian_filter(part, WIDE_PIXELS, mode="constant") for part in (near * hu, near))
            wide.append(hu[inside] - sums[inside] / weights[inside])
    fine_hu, wide_hu = (_trimmed_sd(np.concatenate(deviations)) for deviations in (fine, wide))
    if not wide_hu > 0:
        return Noise(wide_hu, wide_hu, wide_hu)
    kernels = np.linspace(0, COARSEST_KERNEL_PIXELS, 61)
    seen_fine, seen_wide = (_part_seen(pixels, kernels) for pixels in (FINE_PIXELS, WIDE_PIXELS))
    # the share falls with the width of the kernel
    part = np.interp(-fine_hu / wide_hu, -seen_fine / seen_wide, seen_wide)
    total_hu = max(float(wide_hu / part), fine_hu)
    return Noise(total_hu, fine_hu, math.sqrt(total_hu**2 - fine_hu**2))


def _trimmed_sd(deviations: np.ndarray) -> float:
    absolute = np.abs(deviations.astype(np.float64))
    if not absolute.size:
        return float("nan")
    kept = absolute[absolute <= TRIMMED_SDS * MAD_TO_SD * np.median(absolute)]
    sd = float(np.sqrt(np.square(kept).mean())) / SD_OF_TRIMMED
    return sd if sd > ROUNDING_HU else 0.0


def _part_seen(pixels: float, kernels: np.ndarray) -> np.ndarray:
    """Part of the standard deviation that a high-pass leaves of white noise after kernels; all Gaussians, in pixels."""
    frequencies = np.fft.fftfreq(128)

    def power(widths_squared: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(2 * np.pi * frequencies[:, None]) * widths_squared).mean(0) ** 2

    before = power(kernels**2)
    return np.sqrt((before - 2 * power(kernels**2 + pixels**2 / 2) + power(kernels**2 + pixels**2)) / before)


def _check(volume_hu: np.ndarray) -> None:
    if volume_hu.ndim != 3:
        raise UserError(f"a CT volume has three axes (z, y, x), got shape {volume_hu.shape}")
