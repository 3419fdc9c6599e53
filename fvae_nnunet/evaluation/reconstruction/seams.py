"""Visibility of window borders in a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def seam_score(volume_hu: np.ndarray, reconstruction_hu: np.ndarray, borders: Sequence[int]) -> float:
    """Change of the error of a reconstruction across window borders, relative to that between other slices.

    The error is reconstruction minus raw volume; its change from slice k - 1 to slice k is the mean absolute difference
    over the slice. The change of anatomy between slices cancels.

    Args:
        volume_hu, reconstruction_hu: volumes (z, y, x) in HU, any real dtype, of equal shape.
        borders: slices k at which a window begins; values outside 1 to z - 1 are ignored.

    Returns:
        Mean change across borders, divided by the mean change between all other neighbours. 1: borders are
        indistinguishable from other slices; 10: the error jumps ten times as far there. Infinite if it changes only at
        borders. NaN if nothing changes, there is no border, or every slice is one.
    """
    slices = len(volume_hu)
    is_border = np.isin(np.arange(slices), borders)
    if not is_border[1:].any() or is_border[1:].all():
        return float("nan")
    changes = np.zeros(slices)
    previous = reconstruction_hu[0].astype(np.float64) - volume_hu[0]
    for number in range(1, slices):
        error = reconstruction_hu[number].astype(np.float64) - volume_hu[number]
        changes[number] = np.abs(error - previous).mean()
        previous = error
    elsewhere = changes[1:][~is_border[1:]].mean()
    at_borders = changes[1:][is_border[1:]].mean()
    return float(at_borders / elsewhere) if elsewhere > 0 else float("nan") if at_borders == 0 else float("inf")
