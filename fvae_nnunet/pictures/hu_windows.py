"""The HU window of pictures, chosen for all pictures by the tissue around the lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.ct.boxes import box_around
from fvae_nnunet.ct.hu_windows import HUWindow
from fvae_nnunet.ct.places import TISSUES_HU

SOFT_TISSUE_HU_WINDOW = (-160.0, 240.0)
LUNG_HU_WINDOW = (-1350.0, 150.0)
"""The windows in which radiologists read abdomen and lung."""

LUNG_SHARE = 0.25
"""Minimum fraction of lung for the lung window. Around a nodule at the pleura it is a quarter to a half; its margin to
the lung is not visible in the soft tissue window."""

AROUND_LESION_MM = 10.0
"""Extent of the surroundings of a lesion."""


def hu_window_around(raw_hu: np.ndarray, lesion: np.ndarray, spacing_mm: Sequence[float]) -> HUWindow:
    """`hu_window_of` the voxels within `AROUND_LESION_MM` of a lesion.

    Args:
        raw_hu: volume (z, y, x) in HU.
        lesion: mask, bool, same shape; if empty, the whole image is used.
        spacing_mm: voxel size (z, y, x).
    """
    from scipy import ndimage

    if not lesion.any():
        return hu_window_of(raw_hu)
    box = box_around(lesion, AROUND_LESION_MM, spacing_mm)
    distance_mm = ndimage.distance_transform_edt(~lesion[box], sampling=spacing_mm)
    return hu_window_of(raw_hu[box][(distance_mm > 0) & (distance_mm <= AROUND_LESION_MM)])


def hu_window_of(hu: np.ndarray) -> HUWindow:
    """`LUNG_HU_WINDOW` if at least `LUNG_SHARE` of these voxels is lung, else `SOFT_TISSUE_HU_WINDOW`.

    Lung is defined by `ct.places.TISSUES_HU`. Air is not counted, as it is most of the image around a limb.
    """
    lower, upper = TISSUES_HU["lung"]
    body = hu[hu >= lower]
    return LUNG_HU_WINDOW if body.size and (body < upper).mean() >= LUNG_SHARE else SOFT_TISSUE_HU_WINDOW
