"""How visible the borders of windows are in a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.errors import UserError


def seam_score(volume_hu: np.ndarray, reconstruction_hu: np.ndarray, borders: Sequence[int]) -> float:
    """How much more the error of a reconstruction changes over the borders of windows than between other slices.

    The error is reconstruction minus raw volume; its change from slice k - 1 to slice k is the mean absolute difference
    over the slice. The anatomy, which changes from slice to slice as well, cancels.

    Args:
        volume_hu, reconstruction_hu: (z, y, x) in HU, any real dtype.
        borders: slices k at which a window begins, each between 1 and z - 1.

    Returns:
        Mean change over the borders, divided by the mean change between all other neighbours. 1: the borders cannot be
        told from other slices; 10: the error jumps ten times as far there. NaN where nothing changes at all.

    Raises:
        UserError: unequal shapes, no border, a border outside the volume, or no slices but borders.
    """
    if volume_hu.shape != reconstruction_hu.shape:
        raise UserError(f"the volumes have the shapes {volume_hu.shape} and {reconstruction_hu.shape}")
    slices = len(volume_hu)
    is_border = np.zeros(slices, dtype=bool)
    if not borders or min(borders) < 1 or max(borders) >= slices:
        raise UserError(f"borders must lie between 1 and {slices - 1}, got {list(borders)}")
    is_border[list(borders)] = True
    if is_border[1:].all():
        raise UserError("every slice is a border; there is nothing to compare with")
    changes = np.zeros(slices)
    previous = reconstruction_hu[0].astype(np.float64) - volume_hu[0]
    for number in range(1, slices):
        error = reconstruction_hu[number].astype(np.float64) - volume_hu[number]
        changes[number] = np.abs(error - previous).mean()
        previous = error
    elsewhere = changes[1:][~is_border[1:]].mean()
    at_borders = changes[is_border].mean()
    return float(at_borders / elsewhere) if elsewhere > 0 else float("nan") if at_borders == 0 else float("inf")
