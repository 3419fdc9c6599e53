"""Slices of a volume to show, and the patient's sides in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box

Sides = tuple[str, str, str, str]
"""Letters for left, right, top and bottom of a slice as shown: R, L, A, P, S or I."""

Extent = tuple[float, float, float, float]
"""Left, right, bottom and top edge in mm; downwards is positive."""


@dataclass(frozen=True)
class Plane:
    """A slice of a volume (z, y, x): ``axis`` 0 is axial, 1 coronal, 2 sagittal; ``index`` counts voxels from 0."""

    axis: int
    index: int

    @property
    def name(self) -> str:
        return ("axial", "coronal", "sagittal")[self.axis]

    @property
    def sides(self) -> Sides:
        """Sides of an upright volume: z increases towards the head, y towards the back, x towards the left."""
        left, back, head = np.eye(3)
        down = back if self.axis == 0 else -head
        return sides_of(down, back if self.axis == 2 else left)

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as shown, first row at the top.

        Axial (y, x) with the front up, coronal (z, x) with the head up, sagittal (z, y) with the head up and the front
        on the left.
        """
        return volume[self.index] if self.axis == 0 else volume[::-1].take(self.index, axis=self.axis)

    def extent_mm(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> Extent:
        """Extent of the slice, from its upper left corner."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return 0.0, shape[columns] * spacing_mm[columns], shape[rows] * spacing_mm[rows], 0.0


def sides_of(down: np.ndarray, right: np.ndarray) -> Sides:
    """The letters of a slice with these directions of its columns and rows.

    Args:
        down, right: directions of the columns (down) and rows (right) in the patient (x to the left, y to the back, z
            to the head), as in the columns of SimpleITK's direction matrix; any length. An oblique direction gets the
            letter of its largest component.
    """

    def ends(direction: np.ndarray) -> tuple[str, str]:
        axis = int(np.abs(direction).argmax())
        begin, end = ("RL", "AP", "IS")[axis]
        return (begin, end) if direction[axis] > 0 else (end, begin)

    return (*ends(right), *ends(down))


def largest_cross_sections(
    shape: Sequence[int], segmentations: Sequence[np.ndarray], axes: Sequence[int] = (0, 1)
) -> tuple[Plane, ...]:
    """The plane across each axis with most voxels of the first mask that is not empty.

    The masks are (z, y, x). If all are empty or none is given, the middle planes are returned.
    """
    mask = next((mask for mask in segmentations if mask.any()), None)
    if mask is None:
        return tuple(Plane(axis, shape[axis] // 2) for axis in axes)
    others = {axis: tuple(other for other in range(3) if other != axis) for axis in axes}
    return tuple(Plane(axis, int(mask.sum(others[axis]).argmax())) for axis in axes)


def frame_around(mask: np.ndarray, extent_mm: Extent, margin_mm: float) -> Extent:
    """The smallest part of a slice with the slice's proportions that contains a mask (rows, columns) with a margin.

    It is inside the slice; for an empty mask it is the whole slice.
    """
    left, right, bottom, top = extent_mm
    if not mask.any():
        return extent_mm
    size_mm = np.array([bottom - top, right - left])
    step_mm = size_mm / mask.shape
    box = bounding_box(mask)
    low = np.array([side.start for side in box]) * step_mm - margin_mm
    high = np.array([side.stop for side in box]) * step_mm + margin_mm
    part = min(1.0, float(((high - low) / size_mm).max())) * size_mm
    corner = np.clip((low + high - part) / 2, 0, size_mm - part) + np.array([top, left])
    return float(corner[1]), float(corner[1] + part[1]), float(corner[0] + part[0]), float(corner[0])
