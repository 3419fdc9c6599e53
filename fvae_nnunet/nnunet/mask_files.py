"""Masks in files of their own that must lie on an image, voxel on voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import Geometry, read_volume
from fvae_nnunet.errors import UserError


def read_mask(path: Path, *, shape: Sequence[int], geometry: Geometry, image: str) -> np.ndarray:
    """The mask that belongs to an image, with axial axes, in the file's own dtype.

    Args:
        path: of the mask.
        shape: of the image (z, y, x), axial.
        geometry: of the image.
        image: what it is called in messages.

    Raises:
        UserError: it cannot be read, or has another shape or geometry than the image.
    """
    mask, its_geometry = read_volume(path)
    mask = mask.transpose(geometry.axial_order)
    if mask.shape != tuple(shape) or not geometry.lies_as(its_geometry):
        raise UserError(
            f"{path} does not lie as the image of {image}: {mask.shape} voxels, {its_geometry}; the image has "
            f"{tuple(shape)} voxels, {geometry}. Resample the mask to the image"
        )
    return mask
