"""Smooth values from those voxels alone that are known."""

from __future__ import annotations

import numpy as np

REACHES_MM = (2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians that are tried: the narrowest that reaches a voxel counts."""

_REACHED = 0.02
"""Share of a Gaussian that has to lie where the volume is known."""


def fill_from(
    volume_hu: np.ndarray, missing: np.ndarray, known: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Fill what is missing by normalised convolution of what is known (Knutsson and Westin 1993).

    Args:
        volume_hu: float32 (z, y, x), filled in place; only its known voxels play a part.
        missing: bool, same shape: to be filled, also where it is known.
        known: bool, same shape.
        spacing_mm: (z, y, x).

    Returns:
        bool: where it was filled; elsewhere nothing is known within about twice the greatest of `REACHES_MM`.
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
