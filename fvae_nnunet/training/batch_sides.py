"""Sides of the patient in a sample that augmentation has mirrored and rotated.

The loader gets ramps instead of the image, one along each of its axes, with the same random numbers. The augmented
ramps show where the axes point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.pictures.planes import Sides, sides_of

RAMP_FROM = 1000.0
"""Lowest value of a ramp, far above the 0 of padding."""


def ramp_along(axis: int, shape: Sequence[int]) -> np.ndarray:
    """Data (c, ...) of this shape that increases by 1 per voxel along an axis (0 is the first axis after the channels);
    float32 and read-only, because it is a broadcast view."""
    values = RAMP_FROM + np.arange(shape[axis + 1], dtype=np.float32)
    return np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 2 - axis)), shape)


def sides_after(direction: np.ndarray | None, ramps: Sequence[np.ndarray]) -> Sides | None:
    """Sides of the axial slices of a sample after augmentation.

    Args:
        direction: (3, 3), a column for each axis of the data: its direction in the patient (x to the left, y to the
            back, z to the head); None if unknown.
        ramps: `ramp_along` each of these axes after the sample's augmentation, (c, z, y, x). Intensities are augmented
            too, so steps are no longer 1, but they keep their sign.

    Returns:
        As `pictures.planes.sides_of`; None without direction.
    """
    if direction is None:
        return None
    down, right = (direction @ [_usual_step(ramp[0], axis) for ramp in ramps] for axis in (1, 2))
    return sides_of(down, right)


def _usual_step(ramp: np.ndarray, axis: int) -> float:
    """Median step per voxel outside of padding; a median, because blurring affects the border of the padding."""
    inside = np.moveaxis(ramp > 0.5 * ramp.max(), axis, 0)
    steps = np.diff(np.moveaxis(ramp, axis, 0), axis=0)[inside[1:] & inside[:-1]]
    return float(np.median(steps)) if steps.size else 0.0
