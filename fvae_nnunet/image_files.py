"""CT images in files: HU array and geometry in, int16 HU with the same geometry out."""

from __future__ import annotations

import errno
import gzip
import math
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import round_to_int16
from fvae_nnunet.manifest import atomic_write
from fvae_nnunet.orientation import AxisOrder, axial_order

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SINGLE_FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_BLOCK_BYTES = 1 << 20


GEOMETRY_TOLERANCE = 1e-3
"""Masks were often written by programs that keep the header in float32: mm for origin and spacing, 1 for cosines."""


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in the patient, as SimpleITK states it: image axes (x, y, z), mm, direction row by row."""

    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def axial_order(self) -> AxisOrder:
        return axial_order(np.asarray(self.direction))

    def lies_as(self, other: Geometry) -> bool:
        """Whether two volumes of one shape lie in the same place, to within ``GEOMETRY_TOLERANCE``."""
        return all(
            np.allclose(getattr(self, what), getattr(other, what), atol=GEOMETRY_TOLERANCE)
            for what in ("spacing_mm", "origin_mm", "direction")
        )


def find_images(folder: Path) -> dict[str, Path]:
    """The images directly in a folder by case name (the file's name without its ending), sorted.

    Raises:
        UserError: no such folder, no image in it, two images of one name, or a format of two files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in IMAGE_ENDINGS if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith("."):
            continue
        if ending not in SINGLE_FILE_ENDINGS:
            raise UserError(
                f"{path}: a header with a separate data file cannot be written in one step; convert it to .nrrd or .mha"
            )
        case = path.name[: -len(ending)]
        if case in images:
            raise UserError(f"{images[case].name} and {path.name} in {folder} are two images of one name")
        images[case] = path
    if not images:
        raise UserError(f"{folder} holds no image ({', '.join(SINGLE_FILE_ENDINGS)})")
    return images


def image_ending(path: Path) -> str:
    """The file ending of an image, such as ``.nii.gz``."""
    return next(ending for ending in IMAGE_ENDINGS if path.name.endswith(ending))


def check_nifti_is_whole(path: Path) -> None:
    """Raise UserError where a NIfTI file is damaged or shorter than its header promises; other formats pass.

    SimpleITK reads such a file without complaint and fills what is missing with zeros (seen with 2.5.7); of the other
    formats it refuses what is cut short.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    import nibabel

    try:
        array = nibabel.load(path).dataobj  # type: ignore[attr-defined]
        promised = array.offset + math.prod(array.shape) * array.dtype.itemsize
        if path.name.endswith(".gz"):
            held = 0
            with gzip.open(path) as file:
                while block := file.read(_BLOCK_BYTES):
                    held += len(block)
        else:
            held = path.stat().st_size
    except (nibabel.filebasedimages.ImageFileError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if held < promised:
        raise UserError(f"{path} is cut short: {held} bytes of the {promised} that its header promises")


def read_volume(path: Path) -> tuple[np.ndarray, Geometry]:
    """The HU array (z, y, x) of a 3-dimensional grey image, in the file's own dtype, and its geometry.

    Raises:
        UserError: the file cannot be read, or holds no 3-dimensional grey image.
    """
    import SimpleITK as sitk

    check_nifti_is_whole(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} cannot be read: {reason}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{path} is no single grey volume: {image.GetDimension()} dimensions, "
            f"{image.GetNumberOfComponentsPerPixel()} values per voxel"
        )
    geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return sitk.GetArrayFromImage(image), geometry


def read_upright(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Volume (z, y, x) with z rising to the head, y to the back, x to the patient's left, and its spacing in mm.

    Raises:
        UserError: the file cannot be read.
    """
    import SimpleITK as sitk

    check_nifti_is_whole(path)
    try:
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    x_mm, y_mm, z_mm = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z_mm, y_mm, x_mm)


def write_volume(path: Path, volume_hu: np.ndarray, geometry: Geometry) -> None:
    """Write HU (z, y, x) as int16 with the given geometry, compressed, atomically.

    The file is read back before it takes its place, because SimpleITK does not report every failed write.

    Raises:
        UserError: the values do not fit int16, or the file cannot be written.
        OSError: the disk is full (ENOSPC).
    """
    _write(path, round_to_int16(volume_hu), geometry)


def write_label_map(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (z, y, x) as uint8, otherwise as ``write_volume``.

    Raises:
        ValueError: another dtype.
        UserError, OSError: as ``write_volume``.
    """
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are uint8, got {labels.dtype}")
    _write(path, labels, geometry)


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    with atomic_write(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if not np.array_equal(read_volume(temporary)[0], array):
                raise RuntimeError("what was written reads back differently")
        except (RuntimeError, UserError) as error:
            if shutil.disk_usage(path.parent).free < array.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise UserError(f"{path} cannot be written: {str(error).strip().splitlines()[-1]}") from error
