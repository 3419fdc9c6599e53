"""Which slices of a volume are shown, and with which HU as black and white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box, box_around

SOFT_TISSUE_HU_WINDOW = (-160.0, 240.0)
LUNG_HU_WINDOW = (-1350.0, 150.0)
"""HU shown as black and as white: the windows in which radiologists read abdomen and lung."""

LUNG_BELOW_HU = -400.0
"""A lesion lies in the lung if the median around it is below."""

AROUND_LESION_MM = 10.0
"""How far from a lesion its surroundings reach."""


@dataclass(frozen=True)
class Plane:
    """A slice of a volume (z, y, x): ``axis`` 0 is axial, 1 coronal, 2 sagittal; ``index`` counts voxels from 0."""

    axis: int
    index: int

    @property
    def name(self) -> str:
        return ("axial", "coronal", "sagittal")[self.axis]

    @property
    def sides(self) -> tuple[str, str]:
        """What lies on the left and on the right of the slice as shown: the patient's right, left, front or back."""
        return ("A", "P") if self.axis == 2 else ("R", "L")

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as shown, first row at the top.

        Axial (y, x) with the front up, coronal (z, x) with the head up, sagittal (z, y) with the head up and the front
        on the left.
        """
        return volume[self.index] if self.axis == 0 else volume[::-1].take(self.index, axis=self.axis)

    def extent_mm(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of the slice in mm, from its upper left corner, downwards positive."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return 0.0, shape[columns] * spacing_mm[columns], shape[rows] * spacing_mm[rows], 0.0


def largest_cross_sections(
    shape: Sequence[int], segmentations: Sequence[np.ndarray], axes: Sequence[int] = (0, 1)
) -> tuple[Plane, ...]:
    """The planes, one across each of the axes, where the first of the masks that is not empty has most voxels.

    The masks are (z, y, x). All empty or none given: the middle planes.
    """
    mask = next((mask for mask in segmentations if mask.any()), None)
    if mask is None:
        return tuple(Plane(axis, shape[axis] // 2) for axis in axes)
    others = {axis: tuple(other for other in range(3) if other != axis) for axis in axes}
    return tuple(Plane(axis, int(mask.sum(others[axis]).argmax())) for axis in axes)


def largest_lesion(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask (z, y, x), neighbours sharing a face, edge or corner; else the mask."""
    from scipy import ndimage

    if not mask.any():
        return mask
    box = bounding_box(mask)
    numbered, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3), dtype=bool))
    largest = np.zeros_like(mask)
    largest[box] = numbered == np.bincount(numbered[mask[box]]).argmax()
    return largest


def hu_window_around(raw_hu: np.ndarray, lesion: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """`LUNG_HU_WINDOW` for a lesion that lies in the lung, else `SOFT_TISSUE_HU_WINDOW`; arrays (z, y, x)."""
    if not lesion.any():
        return SOFT_TISSUE_HU_WINDOW
    box = box_around(lesion, AROUND_LESION_MM, spacing_mm)
    return hu_window_in(raw_hu[box][~lesion[box]])


def hu_window_in(surroundings_hu: np.ndarray) -> tuple[float, float]:
    """`LUNG_HU_WINDOW` where these voxels are mostly lung, else, or of none, `SOFT_TISSUE_HU_WINDOW`."""
    is_lung = surroundings_hu.size and np.median(surroundings_hu) < LUNG_BELOW_HU
    return LUNG_HU_WINDOW if is_lung else SOFT_TISSUE_HU_WINDOW
