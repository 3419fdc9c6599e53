"""Fill missing voxels with smooth values computed from known voxels only."""

from __future__ import annotations

import numpy as np

REACHES_MM = (2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians; the narrowest one that reaches known voxels is used."""

_REACHED = 0.02
"""Share of a Gaussian that must be over known voxels."""


def fill_from(
    volume_hu: np.ndarray, missing: np.ndarray, known: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Fill missing voxels by normalised convolution of known ones (Knutsson and Westin 1993).

    Args:
        volume_hu: float32 (z, y, x), filled in place; only its known voxels are used.
        missing: bool, same shape: voxels to fill, which may include known ones.
        known: bool, same shape.
        spacing_mm: voxel size (z, y, x).

    Returns:
        bool: the filled voxels; the others have no known voxel within about twice the largest of ``REACHES_MM``.
    """
    from scipy import ndimage

    done = np.zeros_like(missing)
    weight = known.astype(np.float32)
    values = volume_hu * weight
    for reach_mm in REACHES_MM:
        left = missing & ~done
        if not left.any() or not known.any():
            break
        sigma = reach_mm / np.asarray(spacing_mm)
        sums, shares = (
            ndimage.gaussian_filter(array, sigma, truncate=3, mode="constant") for array in (values, weight)
        )
        reached = left & (shares > _REACHED)
        volume_hu[reached] = sums[reached] / shares[reached]
        done |= reached
    return done
