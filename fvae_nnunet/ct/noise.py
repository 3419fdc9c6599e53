"""Measure the noise level of a CT volume: the standard deviation in flat soft tissue after removing the anatomy.

The region is chosen on the raw volume alone and used for both raw volume and view, so that a view cannot influence
where it is measured. Noise is measured in the plane, slice by slice: slice distances vary and slices are correlated.

Soft kernels and denoisers leave coarse noise, which a narrow high-pass mostly removes. Therefore two high-passes are
used: the ratio of the narrow to the wide one tells how coarse the noise is, and so what the wide one misses. Noise
levels can be compared by their totals and by their fine and coarse parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.ct.padding import padding_as_air
from fvae_nnunet.errors import UserError

SOFT_TISSUE_HU = (0.0, 150.0)
"""Smoothed HU of soft tissue for the noise region: muscle, organs and tumours, with or without contrast agent."""

REGION_HU = (-1000.0, 1000.0)
"""Range to which slices are clipped to find flat soft tissue, so that metal and values outside the scanner's field do
not count. It does not depend on the HU window of a view: if that began at 0 HU, all air would be soft tissue."""

FLATNESS_SMOOTHING_PIXELS = 3.0
"""Standard deviation of the in-plane Gaussian for the gradient that measures flatness. With it an edge of 150 HU, as
between muscle and fat, is visible up to 8 pixels away, and white noise of 20 HU causes 0.4 HU per pixel."""

MARGIN_PIXELS = 4
"""Distance, in rows and columns, within which the smoothed slice must also be soft tissue, away from fat, lung and
bone."""

FLATTEST_PART = 0.2
"""Share of this soft tissue that counts as homogeneous: the fifth with the smallest gradient. A share and not a
threshold, because a noisy image has larger gradients everywhere; a small share, because otherwise the texture of muscle
and bowel would count as noise."""

FINE_PIXELS = 2.0
"""Standard deviation of the in-plane Gaussian that is subtracted to measure fine noise."""

WIDE_PIXELS = 4.0
"""Standard deviation of the in-plane Gaussian that is subtracted to measure all noise. In seven real CTs (10 to 29 HU)
8 pixels find at most 2 % more."""

NEAR_PIXELS = 5
"""Distance from the region, in rows and columns, over which the wide Gaussian averages: edges farther away do not
count."""

COARSEST_KERNEL_PIXELS = 3.0
"""Coarsest noise considered: white noise after a Gaussian of this standard deviation. Coarser noise cannot be
distinguished from anatomy, so the correction for what the wide high-pass misses is limited to that of this noise,
45 %."""

SETTINGS = {
    "region_hu": list(REGION_HU),
    "soft_tissue_hu": list(SOFT_TISSUE_HU),
    "flatness_smoothing_pixels": FLATNESS_SMOOTHING_PIXELS,
    "margin_pixels": MARGIN_PIXELS,
    "flattest_part": FLATTEST_PART,
    "fine_pixels": FINE_PIXELS,
    "wide_pixels": WIDE_PIXELS,
    "near_pixels": NEAR_PIXELS,
    "coarsest_kernel_pixels": COARSEST_KERNEL_PIXELS,
}
"""Settings stored in the record of an evaluation."""

TRIMMED_SDS = 3.0
"""Deviations beyond this number of standard deviations count as anatomy."""

SD_OF_TRIMMED = 0.98658
"""Standard deviation of a standard normal distribution truncated at 3 on both sides:
sqrt(1 - 6 norm.pdf(3) / (1 - 2 norm.sf(3)))."""

MAD_TO_SD = 1.482602218505602
"""Ratio of standard deviation to median absolute deviation in a normal distribution: 1 / norm.ppf(0.75)."""


ROUNDING_HU = 1e-3
"""Smaller values are float32 rounding."""

MEASURED_SLICES = 32
"""Number of slices measured when a volume is reconstructed; takes 0.6 s of CPU for 320 x 320 pixels."""


def evenly_spread(count: int, at_most: int) -> list[int]:
    """The middles of ``at_most`` equal parts of ``range(count)``; all of ``range(count)`` if it is not longer."""
    parts = min(count, at_most)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
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
    """Find the flat soft tissue of a raw volume.

    Padding with zeros counts as air. After clipping to ``REGION_HU`` and in-plane smoothing with a Gaussian of
    ``FLATNESS_SMOOTHING_PIXELS``, a voxel and all within ``MARGIN_PIXELS`` of it must be in the range of soft tissue
    (if no voxel fulfils this, only the voxel itself), and it must belong to the part of this tissue with the smallest
    in-plane gradient.

    The gradient at a voxel is uncorrelated with the noise there (one is odd, the other even), so the choice does not
    favour places with little noise. The steepest gradient in a neighbourhood would: for noise after a kernel of 2
    pixels it selects places with half as much.

    Args:
        raw_hu: (z, y, x) in HU, not clipped to a window, any real dtype; y and x are the plane.
        soft_tissue_hu: lower and upper end, both included.
        flattest_part: share of the soft tissue to use, above 0 and at most 1.

    Returns:
        bool (z, y, x); all False without soft tissue.

    Raises:
        UserError: the volume does not have three axes.
    """
    _check(raw_hu)
    lower, upper = soft_tissue_hu
    raw_hu = padding_as_air(raw_hu)
    soft = np.zeros(raw_hu.shape, dtype=bool)
    gradient = np.zeros(raw_hu.shape, dtype=np.float32)
    for plane, is_soft, steepness in zip(raw_hu, soft, gradient, strict=True):
        clipped = np.clip(plane.astype(np.float32), *REGION_HU)
        smooth = ndimage.gaussian_filter(clipped, FLATNESS_SMOOTHING_PIXELS, mode="nearest")
        np.logical_and(smooth >= lower, smooth <= upper, out=is_soft)
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
    """The region for measuring the noise of a raw volume, and the noise there.

    Args:
        axial_hu: (z, y, x) in HU, any real dtype.
        hu_window: window to which the volume is clipped before its noise is measured.

    Returns:
        ``homogeneous_region`` of the volume's ``measured_slices``, and the noise there; None without soft tissue.
    """
    slices_hu = measured_slices(axial_hu).astype(np.float32)
    region = homogeneous_region(slices_hu)
    return region, measure_noise(np.clip(slices_hu, *hu_window), region) if region.any() else None


@dataclass(frozen=True)
class Noise:
    """Standard deviations of noise in HU.

    Attributes:
        total_hu: all noise.
        fine_hu: the part that passes a high-pass of ``FINE_PIXELS``: 97 % of white noise, 73 % after a Gaussian kernel
            of 1 pixel, 41 % after one of 2 pixels.
        coarse_hu: the rest: sqrt(total² - fine²).
    """

    total_hu: float
    fine_hu: float
    coarse_hu: float


def noise_figures(raw: Noise | None, view: Noise | None) -> dict[str, float | None]:
    """The noise of raw volume and view under the names used in records; None if it was not measured."""
    return {
        f"noise_{part}{volume}_hu": getattr(noise, field) if noise else None
        for field, part in (("total_hu", ""), ("fine_hu", "fine_"), ("coarse_hu", "coarse_"))
        for volume, noise in (("raw", raw), ("view", view))
    }


def measure_noise(volume_hu: np.ndarray, region: np.ndarray) -> Noise:
    """Measure the noise in a region.

    Two in-plane high-passes are applied to the volume: it minus its Gaussian of ``FINE_PIXELS``, and it minus its
    Gaussian of ``WIDE_PIXELS`` over the surroundings of the region. For each, the root mean square in the region is
    taken without values more than ``TRIMMED_SDS`` standard deviations (1.4826 times the median absolute value) from
    zero, so that a few vessels do not count, and divided by that of an equally trimmed normal distribution (0.987). The
    ratio of the two gives the width of a Gaussian kernel after which white noise has the same ratio. The total is the
    wide result divided by the fraction that the wide high-pass keeps of such noise.

    Noise of s HU therefore gives s, both white and after a Gaussian kernel of up to ``COARSEST_KERNEL_PIXELS``: within
    3 % for white noise and kernels of up to 2 pixels where there is no anatomy. Coarser noise is measured only in part.

    Args:
        volume_hu: (z, y, x) in HU, any real dtype; y and x are the plane.
        region: bool, same shape, output of ``homogeneous_region`` for the raw volume.

    Returns:
        The noise; NaN if the region is empty, 0 if more than half of it is exactly flat.

    Raises:
        UserError: the volume does not have three axes, or its shape differs from that of the region.
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
    # np.interp needs rising values, and the ratio falls with the width of the kernel
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
    """Fraction of the standard deviation of white noise after Gaussian kernels that passes a high-pass; in pixels."""
    frequencies = np.fft.fftfreq(128)

    def power(widths_squared: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(2 * np.pi * frequencies[:, None]) * widths_squared).mean(0) ** 2

    before = power(kernels**2)
    return np.sqrt((before - 2 * power(kernels**2 + pixels**2 / 2) + power(kernels**2 + pixels**2)) / before)


def _check(volume_hu: np.ndarray) -> None:
    if volume_hu.ndim != 3:
        raise UserError(f"a CT volume must have three axes (z, y, x), got shape {volume_hu.shape}")
