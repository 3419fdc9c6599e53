"""CT images in files: HU array and geometry in, int16 HU with the same geometry out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.ct.nifti import load_nifti, read_nifti, write_nifti
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_name
from fvae_nnunet.files.recorded import atomic_write

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SINGLE_FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_OTHER_ENDINGS = (".hdr", ".img", ".img.gz", ".dcm", ".ima", ".gipl", ".gipl.gz", ".mnc", ".vtk")


def find_images(folder: Path) -> dict[str, Path]:
    """The images directly in a folder by case name (the file's name without its ending), sorted.

    What only looks like one (a folder, a link to nowhere, an ending in capitals) is there too, and reading it says
    what is wrong.

    Raises:
        UserError: no such folder, no image in it, two images of one name, a name that is no UTF-8, or a format that is
            not read here.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    images: dict[str, Path] = {}
    for path in _entries(folder):
        if image_ending(path) not in SINGLE_FILE_ENDINGS:
            raise UserError(
                f"{path}: images of this format, or with a separate data file, are not read here; convert it to "
                ".nii.gz, .nrrd or .mha, or move it away"
            )
        case = path.name[: -len(image_ending(path))]
        if case in images:
            raise UserError(f"{images[case].name} and {path.name} in {folder} are two images of one name")
        images[case] = path
    if not images:
        raise UserError(f"{folder} holds no image ({', '.join(SINGLE_FILE_ENDINGS)})")
    return images


def find_files(folder: Path, ending: str) -> dict[str, Path]:
    """The files of one ending directly in a folder by their names without it, sorted; hidden ones are left out.

    Raises:
        UserError: no such folder, a name that is no UTF-8, or other files that look like images and would be left out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    others = [path.name for path in _entries(folder) if not path.name.endswith(ending)]
    if others:
        raise UserError(
            f"{folder} holds images that do not end in {ending} and would be left out: {', '.join(others)}; rename or "
            "convert them, or move them away"
        )
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name.endswith(ending) and not name.startswith(".")]
    return {name.removesuffix(ending): folder / name for name in found}


def _entries(folder: Path) -> Iterator[Path]:
    """What is called as an image, sorted."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and _ending(path) is not None:
            check_name(path)
            yield path


def _ending(path: Path) -> str | None:
    endings = (*IMAGE_ENDINGS, *_OTHER_ENDINGS)
    return next((ending for ending in endings if path.name.lower().endswith(ending)), None)


def image_ending(path: Path) -> str:
    """The file ending of an image in small letters, such as ``.nii.gz``."""
    return _ending(path) or path.suffix


def read_image(path: Path, *, reader: str | None = None) -> Any:
    """A single grey volume as a ``SimpleITK.Image``, after the checks of ``stored_images.check_image_file``.

    Args:
        path: of the file.
        reader: which of nnU-Net's readers it is read with, see ``image_readers``: SimpleITK or nibabel, and turned to
            RAS where the reader does so. None: as nnU-Net chooses a reader: nibabel for ``.nii`` and for NIfTI that
            SimpleITK does not read (sheared, NIfTI-2).

    Raises:
        UserError: the file cannot be read, or holds no 3-dimensional grey image.
    """
    return _read(path, reader)[0]


def _read(path: Path, reader: str | None) -> tuple[Any, bytes | None]:
    """The image, and its header where it is NIfTI."""
    import SimpleITK as sitk

    header = check_image_file(path)
    try:
        if header is not None and _nibabel_first(path, reader):
            image = _through_nibabel(path)
        else:
            image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if header is None or reader is not None:
            raise _unread(path, error, header) from error
        image = _through_nibabel(path)
    voxels = image.GetPixelIDTypeAsString()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or "complex" in voxels:
        raise UserError(
            f"{path} is no single grey volume: {image.GetDimension()} dimensions, "
            f"{image.GetNumberOfComponentsPerPixel()} values per voxel, {voxels}; give each volume a file of its own"
        )
    return image, header


def _unread(path: Path, error: RuntimeError, header: bytes | None) -> UserError:
    """What SimpleITK said, in a sentence."""
    remedy = "" if header is None else (
        ". If it is sheared or NIfTI-2, nnU-Net's NibabelIO reads it: name it in dataset.json as "
        "overwrite_image_reader_writer and plan again, or resample the image"
    )  # fmt: skip
    return UserError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}{remedy}")


def _nibabel_first(path: Path, reader: str | None) -> bool:
    return path.name.endswith(".nii") if reader is None else reader.startswith("Nibabel")


def _through_nibabel(path: Path) -> Any:
    import SimpleITK as sitk

    volume, affine = read_nifti(path)
    return _placed(sitk.GetImageFromArray(volume), _geometry_of(affine))


def _geometry_of(affine: np.ndarray) -> Geometry:
    """Of an affine of nibabel: (x, y, z) to mm, axes to the right, the front and the head."""
    edges = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    spacing_mm = np.linalg.norm(edges, axis=0)
    origin_mm = affine[:3, 3] * [-1, -1, 1]
    direction = (edges / spacing_mm).ravel()
    return Geometry(tuple(spacing_mm.tolist()), tuple(origin_mm.tolist()), tuple(direction.tolist()))


def _placed(image: Any, geometry: Geometry) -> Any:
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return image


def read_volume(path: Path, *, reader: str | None = None) -> tuple[np.ndarray, Geometry]:
    """The HU array (z, y, x) of a 3-dimensional grey image, in the file's own dtype, and its geometry.

    With a reader that turns its images (``...WithReorient``) both are of the turned image, and ``write_volume`` turns
    back.

    Args:
        path, reader: as for ``read_image``.

    Raises:
        UserError: the file cannot be read, or holds no 3-dimensional grey image.
    """
    import SimpleITK as sitk

    image, header = _read(path, reader)
    orientation = None
    if reader is not None and reader.endswith("WithReorient"):
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        image = sitk.DICOMOrient(image, "RAS")
    geometry = replace(_geometry(image), nifti_header=header, file_orientation=orientation)
    return sitk.GetArrayFromImage(image), geometry


def _geometry(image: Any) -> Geometry:
    """Of a ``SimpleITK.Image`` or ``ImageFileReader``."""
    return Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def read_header(path: Path, *, reader: str | None = None) -> tuple[tuple[int, ...], Geometry]:
    """Shape (z, y, x) and geometry of a volume as it lies in the file, without its voxels.

    Args:
        path, reader: as for ``read_image``.

    Raises:
        UserError: it cannot be read.
    """
    import SimpleITK as sitk

    header = check_image_file(path, voxels_too=False)
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    try:
        if header is None or not _nibabel_first(path, reader):
            file.ReadImageInformation()
            return file.GetSize()[::-1], _geometry(file)
    except RuntimeError as error:
        if header is None or reader is not None:
            raise _unread(path, error, header) from error
    loaded = load_nifti(path)
    return loaded.shape[::-1], _geometry_of(loaded.affine)


def read_upright(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Volume (z, y, x) with z rising to the head, y to the back, x to the patient's left, and its spacing in mm.

    Raises:
        UserError: the file cannot be read.
    """
    import SimpleITK as sitk

    image = sitk.DICOMOrient(read_image(path), "LPS")
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

    check_name(path)
    image = _placed(sitk.GetImageFromArray(array), geometry)
    if geometry.file_orientation is not None:
        image = sitk.DICOMOrient(image, geometry.file_orientation)
        array = sitk.GetArrayFromImage(image)
    with atomic_write(path) as temporary:
        try:
            if geometry.nifti_header is not None and path.name.endswith((".nii", ".nii.gz")):
                write_nifti(temporary, array, geometry.nifti_header)
            else:
                sitk.WriteImage(image, str(temporary), useCompression=True)
            if not np.array_equal(read_volume(temporary)[0], array):
                raise RuntimeError("what was written reads back differently")
        except (RuntimeError, UserError) as error:
            if shutil.disk_usage(path.parent).free < array.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise UserError(f"{path} cannot be written: {str(error).strip().splitlines()[-1]}") from error
