"""Read CT images from files as HU arrays with their geometry, and write int16 HU with the same geometry."""

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
    """The images directly in a folder by case name (the file name without its ending), sorted.

    Entries that only look like images (a folder, a broken link, an ending in capitals) are included; reading them
    raises an error that says what is wrong.

    Raises:
        UserError: the folder does not exist or has no image, two images have one name, a name is not UTF-8, or a format
            is not supported here.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    images: dict[str, Path] = {}
    for path in _entries(folder):
        if image_ending(path) not in SINGLE_FILE_ENDINGS:
            raise UserError(
                f"{path}: images in this format, or with a separate data file, are not supported here; convert it to "
                ".nii.gz, .nrrd or .mha, or move it elsewhere"
            )
        case = path.name[: -len(image_ending(path))]
        if case in images:
            raise UserError(f"{images[case].name} and {path.name} in {folder} are two images with one name")
        images[case] = path
    if not images:
        raise UserError(f"{folder} contains no image ({', '.join(SINGLE_FILE_ENDINGS)})")
    return images


def find_files(folder: Path, ending: str) -> dict[str, Path]:
    """The files with one ending directly in a folder, by name without the ending, sorted; hidden files are left out.

    Raises:
        UserError: the folder does not exist, a name is not UTF-8, or other files look like images and would be left
            out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    others = [path.name for path in _entries(folder) if not path.name.endswith(ending)]
    if others:
        raise UserError(
            f"{folder} contains images that do not end in {ending} and would be left out: {', '.join(others)}; rename "
            "or convert them, or move them elsewhere"
        )
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name.endswith(ending) and not name.startswith(".")]
    return {name.removesuffix(ending): folder / name for name in found}


def _entries(folder: Path) -> Iterator[Path]:
    """The entries of a folder that are named like images, sorted."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and _ending(path) is not None:
            check_name(path)
            yield path


def _ending(path: Path) -> str | None:
    endings = (*IMAGE_ENDINGS, *_OTHER_ENDINGS)
    return next((ending for ending in endings if path.name.lower().endswith(ending)), None)


def image_ending(path: Path) -> str:
    """The ending of an image file in lower case, such as ``.nii.gz``."""
    return _ending(path) or path.suffix


def read_image(path: Path, *, reader: str | None = None) -> Any:
    """Read a single grey volume as a ``SimpleITK.Image``, after the checks of ``stored_images.check_image_file``.

    Args:
        path: image file.
        reader: name of the nnU-Net reader to follow, see ``image_readers``: it decides between SimpleITK and nibabel.
            None: the choice that nnU-Net makes: nibabel for ``.nii`` and for NIfTI that SimpleITK does not read
            (sheared, NIfTI-2), otherwise SimpleITK.

    Raises:
        UserError: the file cannot be read or is not a 3-dimensional grey image.
    """
    return _read(path, reader)[0]


def _read(path: Path, reader: str | None) -> tuple[Any, bytes | None]:
    """The image, and its header if it is NIfTI."""
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
            f"{path} is not a single grey volume: {image.GetDimension()} dimensions, "
            f"{image.GetNumberOfComponentsPerPixel()} values per voxel, {voxels}; store each volume in its own file"
        )
    return image, header


def _unread(path: Path, error: RuntimeError, header: bytes | None) -> UserError:
    """SimpleITK's error in one sentence, with a remedy for NIfTI."""
    remedy = "" if header is None else (
        ". If it is sheared or NIfTI-2, nnU-Net's NibabelIO can read it: set it as overwrite_image_reader_writer in "
        "dataset.json and plan again, or resample the image"
    )  # fmt: skip
    return UserError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}{remedy}")


def _nibabel_first(path: Path, reader: str | None) -> bool:
    return path.name.endswith(".nii") if reader is None else reader.startswith("Nibabel")


def _through_nibabel(path: Path) -> Any:
    import SimpleITK as sitk

    volume, affine = read_nifti(path)
    return _placed(sitk.GetImageFromArray(volume), _geometry_of(affine))


def _geometry_of(affine: np.ndarray) -> Geometry:
    """The geometry given by a nibabel affine: (x, y, z) to mm, with axes to the right, the front and the head."""
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
    """Read the array (z, y, x) of a 3-dimensional grey image, in the dtype of the file, and its geometry.

    With a reader that reorients images (``...WithReorient``) both are those of the image in RAS, and ``write_volume``
    reverts the reorientation.

    Args:
        path, reader: as for ``read_image``.

    Raises:
        UserError: the file cannot be read or is not a 3-dimensional grey image.
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
    """The geometry of a ``SimpleITK.Image`` or ``ImageFileReader``."""
    return Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def read_header(path: Path, *, reader: str | None = None) -> tuple[tuple[int, ...], Geometry]:
    """Read the shape (z, y, x) and geometry of a volume as stored in the file, without its voxels.

    Args:
        path, reader: as for ``read_image``.

    Raises:
        UserError: the file cannot be read.
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
    """Read a volume (z, y, x) with z towards the head, y the back and x the patient's left, and its spacing in mm.

    Raises:
        UserError: the file cannot be read.
    """
    import SimpleITK as sitk

    image = sitk.DICOMOrient(read_image(path), "LPS")
    x_mm, y_mm, z_mm = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z_mm, y_mm, x_mm)


def write_volume(path: Path, volume_hu: np.ndarray, geometry: Geometry) -> None:
    """Write HU (z, y, x) as int16 with the given geometry, compressed, atomically.

    The file is read back before it replaces an older one, because SimpleITK does not report every failed write.

    Raises:
        UserError: the values do not fit int16, or the file cannot be written.
        OSError: the disk is full (ENOSPC).
    """
    _write(path, round_to_int16(volume_hu), geometry)


def write_label_map(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (z, y, x) as uint8, otherwise like ``write_volume``.

    Raises:
        ValueError: the labels have another dtype.
        UserError, OSError: as for ``write_volume``.
    """
    if labels.dtype != np.uint8:
        raise ValueError(f"labels must be uint8, got {labels.dtype}")
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
                raise RuntimeError("the written file reads back differently")
        except (RuntimeError, UserError) as error:
            if shutil.disk_usage(path.parent).free < array.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise UserError(f"{path} cannot be written: {str(error).strip().splitlines()[-1]}") from error
