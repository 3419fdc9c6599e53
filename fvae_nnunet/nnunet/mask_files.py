"""Mask files, one for each case, which must have the same voxel grid as the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import find_images, read_volume
from fvae_nnunet.ct.geometry import Geometry, check_same_place
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted


def find_masks(folder: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Mask files in a folder, by case.

    Raises:
        UserError: the folder does not exist, or a case has no mask.
    """
    files = find_images(folder)
    missing = sorted(set(cases) - files.keys())
    if missing:
        raise UserError(
            f"{folder} has no mask for {counted(len(missing), 'case')} (first: {missing[0]}); name masks like the "
            f"cases, such as {missing[0]}.nii.gz"
        )
    return files


def read_mask(path: Path, *, shape: Sequence[int], geometry: Geometry, image: str) -> np.ndarray:
    """Read the mask of an image, with axial axes, in the dtype of the file.

    Args:
        path: path of the mask.
        shape: shape of the image (z, y, x), axial.
        geometry: geometry of the image.
        image: name of the image in messages.

    Raises:
        UserError: the mask cannot be read, or has another shape or geometry than the image.
    """
    mask, its_geometry = read_volume(path)
    mask = mask.transpose(geometry.axial_order)
    of_image = (f"the image of {image}", shape, geometry)
    check_same_place(of_image, (str(path), mask.shape, its_geometry), ". Resample the mask to the image")
    return mask
