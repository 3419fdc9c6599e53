"""NIfTI through nibabel: reading files that SimpleITK does not read (sheared, NIfTI-2), and writing an exact header."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.stored_images import GZIP_MAGIC
from fvae_nnunet.errors import UserError

_GZIP_LEVEL = 1
"""Nibabel's default."""

_AS_GZIP = 31
"""``wbits`` of zlib for a gzip member without name and time, so that equal voxels give equal bytes."""


def load_nifti(path: Path) -> Any:
    """Nibabel's image with its voxels unread; UserError if nibabel cannot read the file."""
    import nibabel

    try:
        return nibabel.load(path)  # type: ignore[attr-defined]
    except nibabel.filebasedimages.ImageFileError as error:
        with path.open("rb") as file:
            plain = path.name.endswith(".gz") and file.read(2) != GZIP_MAGIC
        remedy = (
            ". Its name ends in .gz, but it is not compressed; nibabel requires that it is: gzip it" if plain else ""
        )
        raise UserError(f"{path} cannot be read: {error}{remedy}") from error


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the scaled voxels (z, y, x) of a single grey volume, and nibabel's affine.

    Raises:
        UserError: the file cannot be read or is not a single grey volume.
    """
    loaded = load_nifti(path)
    array = np.asanyarray(loaded.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise UserError(f"{path} is not a single grey volume: shape {array.shape}, voxels of {array.dtype}")
    dtype = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array.T, dtype=dtype), loaded.affine


def write_nifti(path: Path, array: np.ndarray, header: bytes) -> None:
    """Write an array (z, y, x) with a given NIfTI-1 or NIfTI-2 header, so that the geometry is exactly the same.

    Nibabel does not write the file itself, because it keeps a file open after a failed write.

    Raises:
        OSError: the file cannot be written.
    """
    import nibabel

    kind = nibabel.Nifti1Image if len(header) == nibabel.Nifti1Header.sizeof_hdr else nibabel.Nifti2Image
    own = kind.header_class(header, check=False)
    own.set_data_dtype(array.dtype)
    for key, value in {"vox_offset": 0, "scl_slope": 1, "scl_inter": 0, "cal_min": 0, "cal_max": 0}.items():
        own[key] = value
    content = kind(array.T, None, own).to_bytes()
    if path.name.endswith(".gz"):
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _AS_GZIP)
        content = deflate.compress(content) + deflate.flush()
    path.write_bytes(content)
