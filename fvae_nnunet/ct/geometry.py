"""The position of a volume in the patient, and checks that two volumes have the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fvae_nnunet.ct.orientation import AxisOrder, axial_order
from fvae_nnunet.errors import UserError

SPACING_TOLERANCE = 1e-3
"""Relative difference of spacings that counts as rounding: half a voxel over 512."""

ORIGIN_TOLERANCE_VOXELS = 0.05
"""Difference of origins that counts as rounding, as a fraction of the smallest voxel edge."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as rounding; NIfTI's float32 quaternions are off by up to 7e-4."""


@dataclass(frozen=True)
class Geometry:
    """The position of a volume in the patient, in SimpleITK's convention: axes (x, y, z), mm, direction row by row.

    Attributes:
        spacing_mm, origin_mm, direction: the columns of the direction have length 1; they are not perpendicular if a
            NIfTI file is sheared.
        nifti_header: header of the source file, so that files written from this geometry have exactly the same one.
        file_orientation: orientation restored when the volume is written; None if it was not reoriented.
    """

    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]
    nifti_header: bytes | None = field(default=None, compare=False, repr=False)
    file_orientation: str | None = field(default=None, compare=False, repr=False)

    @property
    def axial_order(self) -> AxisOrder:
        """Axis order of an array (z, y, x as SimpleITK reads it), see ``orientation.axial_order``."""
        return axial_order(np.asarray(self.direction))

    @property
    def axial_spacing_mm(self) -> tuple[float, float, float]:
        """Spacing of an array with its axes in axial order."""
        z, y, x = (self.spacing_mm[::-1][axis] for axis in self.axial_order)
        return z, y, x

    @property
    def axial_direction(self) -> np.ndarray:
        """Direction (3, 3) of an array with its axes in axial order.

        Each column is the direction of one array axis in the patient (x to the left, y to the back, z to the head).
        """
        return np.asarray(self.direction).reshape(3, 3)[:, ::-1][:, list(self.axial_order)]

    def as_in_file(self, axial: np.ndarray) -> np.ndarray:
        """Transpose an axial array to the axis order of the file."""
        return axial.transpose(tuple(np.argsort(self.axial_order)))

    def differing_parts(self, other: Geometry) -> list[str]:
        """Which of spacing, origin and direction differ by more than rounding; empty if none."""
        origin_tolerance_mm = ORIGIN_TOLERANCE_VOXELS * min(self.spacing_mm)
        agrees = {
            "spacing": np.allclose(other.spacing_mm, self.spacing_mm, rtol=SPACING_TOLERANCE, atol=0),
            "origin": np.allclose(other.origin_mm, self.origin_mm, rtol=0, atol=origin_tolerance_mm),
            "direction": np.allclose(other.direction, self.direction, rtol=0, atol=DIRECTION_TOLERANCE),
        }
        return [part for part, same in agrees.items() if not same]


Named = tuple[str, Sequence[int], Geometry]
"""Name of a volume in messages, shape (z, y, x) of its array, and its geometry."""


def geometry_differences(first: Named, second: Named) -> list[str]:
    """A sentence on which parts of two geometries differ by more than rounding, with both in full; empty if none."""
    (name, shape, expected), (other_name, other_shape, found) = first, second
    differing = ["shape"] * (tuple(shape) != tuple(other_shape)) + expected.differing_parts(found)
    if not differing:
        return []
    return [
        f"{name} and {other_name} differ in {' and '.join(differing)}; {name}: {_in_words(shape, expected)}; "
        f"{other_name}: {_in_words(other_shape, found)} (all as x, y, z)"
    ]


def check_same_place(first: Named, second: Named, remedy: str = "") -> None:
    """Raise UserError if two geometries differ by more than rounding; ``remedy`` is appended to the message."""
    for difference in geometry_differences(first, second):
        raise UserError(f"{difference}{remedy}")


def _in_words(shape: Sequence[int], geometry: Geometry) -> str:
    spacing, origin, direction = (
        "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
        for values in (geometry.spacing_mm, geometry.origin_mm, geometry.direction)
    )
    return f"shape {tuple(shape)[::-1]}, spacing {spacing} mm, origin {origin} mm, direction {direction}"
