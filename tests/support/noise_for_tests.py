"""Anatomy and noise whose level is known."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

GRID_Y, GRID_X = np.mgrid[:128, :128] - 63.5


def anatomy():
    """Four slices: fat around a muscle disc that holds a bone, an organ and vessels; air outside. HU."""
    radius = np.hypot(GRID_Y, GRID_X)
    plane = np.select([radius < 40, radius < 55], [55.0, -100.0], -1000.0)
    plane[np.hypot(GRID_Y - 25, GRID_X) < 8] = 700
    plane[np.hypot(GRID_Y + 12, GRID_X + 15) < 14] = 110
    plane[(np.abs(GRID_X - 22) < 1.5) & (np.abs(GRID_Y) < 15)] = 150
    return np.repeat(ndimage.gaussian_filter(plane, 0.8)[None], 4, axis=0)


def white(sd_hu, seed=0, shape=(4, 128, 128)):
    return np.random.default_rng(seed).normal(0, sd_hu, shape)
