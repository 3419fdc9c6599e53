"""A CT volume as one object: its voxels in HU and its geometry."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.ct.files import read_volume, write_volume
from fvae_nnunet.ct.geometry import Geometry, check_same_place
from fvae_nnunet.ct.hounsfield import check_volume_hu
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    import torch

_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class CT:
    """A CT volume.

    Attributes:
        hu: (z, y, x) in HU, in the axis order of the file; any real dtype.
        geometry: spacing, origin and direction of the image axes (x, y, z), in SimpleITK's convention.
    """

    hu: np.ndarray
    geometry: Geometry

    @classmethod
    def from_array(
        cls,
        hu: np.ndarray | torch.Tensor,
        spacing_mm: tuple[float, float, float],
        *,
        origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        direction: tuple[float, ...] = _UPRIGHT,
    ) -> CT:
        """Create a CT from an array.

        Args:
            hu: (z, y, x) in HU, array or tensor on any device.
            spacing_mm: voxel size (z, y, x).
            origin_mm, direction: in SimpleITK's convention, (x, y, z) and row by row; by default z points to the head,
                y to the back, x to the patient's left.

        Raises:
            UserError: the array does not have three axes or has no voxel, or a spacing is not positive.
        """
        array = as_array(hu)
        if array.ndim != 3 or 0 in array.shape:
            raise UserError(f"hu must have three axes (z, y, x) and at least one voxel, got shape {array.shape}")
        if len(spacing_mm) != 3 or not all(0 < float(edge) < np.inf for edge in spacing_mm):
            raise UserError(f"spacing_mm must be three positive numbers (z, y, x), got {tuple(spacing_mm)}")
        edges_mm = tuple(float(edge) for edge in spacing_mm)[::-1]
        return cls(array, Geometry(edges_mm, tuple(map(float, origin_mm)), tuple(map(float, direction))))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size in the order of the axes of ``hu``."""
        return self.geometry.spacing_mm[::-1]

    @property
    def origin_mm(self) -> tuple[float, ...]:
        """Position of the first voxel (x, y, z), in SimpleITK's convention."""
        return self.geometry.origin_mm

    @property
    def direction(self) -> tuple[float, ...]:
        """Direction cosines row by row, in SimpleITK's convention."""
        return self.geometry.direction

    def with_hu(self, hu: np.ndarray) -> CT:
        """A CT with other voxels and the same geometry."""
        return replace(self, hu=hu)

    def mask(self, mask: np.ndarray | torch.Tensor | CT | str | os.PathLike[str], name: str) -> np.ndarray:
        """A mask for this CT as bool (z, y, x), True where it is not 0.

        Args:
            mask: array or tensor of the same shape, or an image or image file with the same geometry.
            name: name of the parameter, for messages.

        Raises:
            UserError: the mask has another shape or geometry, or the file cannot be read.
        """
        if isinstance(mask, str | os.PathLike):
            name, mask = os.fspath(mask), CT(*read_volume(Path(mask)))
        if isinstance(mask, CT):
            check_same_place(("the CT", self.hu.shape, self.geometry), (name, mask.hu.shape, mask.geometry))
            mask = mask.hu
        array = as_array(mask)
        if array.shape != self.hu.shape:
            raise UserError(f"{name} has shape {array.shape}, the CT {self.hu.shape}")
        return array != 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the volume as int16 HU, rounded; the ending decides the format (.nii.gz, .nrrd, .mha).

        Raises:
            UserError: the values do not fit int16, or the file cannot be written.
        """
        write_volume(Path(path), self.hu, self.geometry)


def as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert an array, or a tensor on any device, to a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def read_ct(path: str | os.PathLike[str], *, hu_as_is: bool = False) -> CT:
    """Read a CT from an image file (NIfTI, NRRD, MetaImage).

    Args:
        path: image file.
        hu_as_is: accept values that cannot be in HU.

    Raises:
        UserError: the file cannot be read, is not a 3-dimensional grey image, or has values that cannot be in HU.
    """
    hu, geometry = read_volume(Path(path))
    if not hu_as_is:
        check_volume_hu(hu, path)
    return CT(hu, geometry)
