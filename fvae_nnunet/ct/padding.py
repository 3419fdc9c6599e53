"""Padding of images with zeros outside the scanned part."""

from __future__ import annotations

import numpy as np


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
