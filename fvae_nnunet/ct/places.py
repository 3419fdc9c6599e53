"""Places in a CT by what is there: tissues by HU, edges and flat places in soft tissue."""

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
"""HU of a tissue's voxels, lower end included, upper end not. Fat and soft tissue are the ranges usual for fat and
muscle in body composition (-190 to -30 and -29 to 150 HU), air and lung part at the -950 HU of emphysema scores;
contrast agent above 200 HU counts as bone."""

SOFT_HU = (-150.0, 250.0)
"""Fat, muscle and organs, with contrast agent or without, ends included: where edges and flat places are looked for."""

EDGE_HU_PER_PIXEL, FLAT_HU_PER_PIXEL = 20.0, 6.0
"""Steepest in-plane slope after a Gaussian of one pixel: at least so much is an edge, at most so much flat. Fat beside
muscle (150 HU) has 60."""


def soft_tissue(volume_hu: np.ndarray) -> np.ndarray:
    """bool, where `SOFT_HU` are."""
    return (volume_hu >= SOFT_HU[0]) & (volume_hu <= SOFT_HU[1])


def slopes(volume_hu: np.ndarray) -> np.ndarray:
    """In-plane slope in HU per pixel after a Gaussian of one pixel, same shape and dtype as the volume (z, y, x)."""
    steepness = np.empty_like(volume_hu)
    for plane, of_plane in zip(volume_hu, steepness, strict=True):
        ndimage.gaussian_gradient_magnitude(plane, 1.0, output=of_plane, mode="nearest")
    return steepness


def tissue_masks(volume_hu: np.ndarray) -> dict[str, np.ndarray]:
    """bool masks of `TISSUES_HU`."""
    return {name: (volume_hu >= lower) & (volume_hu < upper) for name, (lower, upper) in TISSUES_HU.items()}
