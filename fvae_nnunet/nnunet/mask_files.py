"""Masks in files of their own: one for each case, which must lie on its image, voxel on voxel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import find_images, read_volume
from fvae_nnunet.ct.geometry import Geometry, check_same_place
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted


def find_masks(folder: Path, cases: Iterable[str]) -> dict[str, Path]:
    """The masks in a folder, by the case's name, without its ending.

    Raises:
        UserError: no such folder, or no mask of one of these cases.
    """
    files = find_images(folder)
    missing = sorted(set(cases) - files.keys())
    if missing:
        raise UserError(
            f"{folder} has no mask of {counted(len(missing), 'case')} (first: {missing[0]}); a mask has the case's "
            f"name, such as {missing[0]}.nii.gz"
        )
    return files


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
    of_image = (f"the image of {image}", shape, geometry)
    check_same_place(of_image, (str(path), mask.shape, its_geometry), ". Resample the mask to the image")
    return mask
