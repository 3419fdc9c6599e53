"""Padding of images with zeros outside the scanned part."""

from __future__ import annotations

import numpy as np

AIR_HU = -1000


def zero_padding(volume: np.ndarray) -> np.ndarray | None:
    """Voxels of exactly 0 that are connected through faces to a corner of the volume.

    nnU-Net crops images to their nonzero part, and normalises some channels inside it.

    Args:
        volume: any real dtype, three axes.

    Returns:
        bool, same shape; None if no corner is 0.
    """
    from scipy import ndimage

    corners = np.ix_(*[(0, -1)] * 3)
    if volume[corners].all():
        return None
    numbered, n = ndimage.label(volume == 0)
    is_padding = np.zeros(n + 1, dtype=bool)
    is_padding[numbered[corners]] = True
    is_padding[0] = False
    return is_padding[numbered]


def padding_as_air(volume_hu: np.ndarray) -> np.ndarray:
    """The volume with ``AIR_HU`` in place of its `zero_padding`, which is not water; itself if it has none."""
    padding = zero_padding(volume_hu)
    if padding is None:
        return volume_hu
    filled = volume_hu.astype(np.result_type(volume_hu, np.int16))
    filled[padding] = AIR_HU
    return filled
