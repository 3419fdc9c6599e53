"""Which side of the patient is where in a sample that augmentation has mirrored and turned.

The loader is given ramps in the place of the image, one along each of its axes, with the same random numbers: what
becomes of them says where the axes have gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.pictures.planes import Sides, sides_of

RAMP_FROM = 1000.0
"""Far above the 0 of padding, which is no part of a ramp."""


def ramp_along(axis: int, shape: Sequence[int]) -> np.ndarray:
    """Data (c, ...) of this shape that rises by 1 from voxel to voxel along an axis (from 0, behind the channels);
    float32, and read only, because it takes no memory."""
    values = RAMP_FROM + np.arange(shape[axis + 1], dtype=np.float32)
    return np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 2 - axis)), shape)


def sides_after(direction: np.ndarray | None, ramps: Sequence[np.ndarray]) -> Sides | None:
    """Of the axial slices of a sample.

    Args:
        direction: (3, 3), a column for each axis of the data: where it runs in the patient (x to the left, y to the
            back, z to the head); None: not known.
        ramps: what the sample's augmentation made of `ramp_along` each of these axes, (c, z, y, x). Intensities are
            augmented too, so steps are no longer 1, but they have kept their sign.

    Returns:
        As `pictures.planes.sides_of`; None without direction.
    """
    if direction is None:
        return None
    down, right = (direction @ [_usual_step(ramp[0], axis) for ramp in ramps] for axis in (1, 2))
    return sides_of(down, right)


def _usual_step(ramp: np.ndarray, axis: int) -> float:
    """From voxel to voxel, where there is no padding; a median, because blur smears the border of the padding."""
    inside = np.moveaxis(ramp > 0.5 * ramp.max(), axis, 0)
    steps = np.diff(np.moveaxis(ramp, axis, 0), axis=0)[inside[1:] & inside[:-1]]
    return float(np.median(steps)) if steps.size else 0.0
