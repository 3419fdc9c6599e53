"""Masks of tissues by HU, and slopes to find edges and flat places in soft tissue."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

TISSUES_HU = {
    "air": (-math.inf, -950.0),
    "lung": (-950.0, -500.0),
    "fat": (-190.0, -30.0),
    "soft tissue": (-30.0, 150.0),
    "bone": (200.0, math.inf),
}
"""HU range of each tissue, lower end included, upper end not. Fat and soft tissue are the usual ranges of fat and
muscle in body composition (-190 to -30 and -29 to 150 HU); -950 HU, the threshold of emphysema scores, separates air
and lung; contrast agent above 200 HU counts as bone."""

SOFT_HU = (-150.0, 250.0)
"""Fat, muscle and organs, with or without contrast agent, ends included: searched for edges and flat places."""

EDGE_HU_PER_PIXEL, FLAT_HU_PER_PIXEL = 20.0, 6.0
"""In-plane slope after a Gaussian of one pixel: at least the first is an edge, at most the second is flat. Fat beside
muscle (150 HU) has 60."""


def soft_tissue(volume_hu: np.ndarray) -> np.ndarray:
    """bool mask of the voxels within ``SOFT_HU``."""
    return (volume_hu >= SOFT_HU[0]) & (volume_hu <= SOFT_HU[1])


def slopes(volume_hu: np.ndarray) -> np.ndarray:
    """In-plane slope in HU per pixel after a Gaussian of one pixel, same shape and dtype as the volume (z, y, x)."""
    steepness = np.empty_like(volume_hu)
    for plane, of_plane in zip(volume_hu, steepness, strict=True):
        ndimage.gaussian_gradient_magnitude(plane, 1.0, output=of_plane, mode="nearest")
    return steepness


def tissue_masks(volume_hu: np.ndarray) -> dict[str, np.ndarray]:
    """bool masks of ``TISSUES_HU``."""
    return {name: (volume_hu >= lower) & (volume_hu < upper) for name, (lower, upper) in TISSUES_HU.items()}
