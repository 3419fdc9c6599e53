"""Image files looked at byte by byte, for what the libraries that read them pass over without a word.

SimpleITK (seen with 2.5.7) fills what a NIfTI file lacks with zeros, turns its NaN and infinite voxels into 0, takes a
spacing of 0 or NaN from elsewhere, and follows a header to any other file; 2.2 and 2.3 also fill up a compressed
``.mha`` that is cut short. nnU-Net reads with it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_file

_BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 1 << 20
_MOST_FIELDS = 1000

_META_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_NRRD_PACKINGS = {"raw": "", "gzip": "deflate", "gz": "deflate"}


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels of a file are: ``skip`` bytes after its start, unpacked as ``packing`` says."""

    packing: str
    skip: int
    dtype: np.dtype
    count: int


def check_image_file(path: Path, *, voxels_too: bool = True) -> bytes | None:
    """Raise UserError where an image file is not what nnU-Net's readers would make of it.

    Refused are: what ``check_file`` refuses; an ending in capitals, which nnU-Net passes over; a file of another kind
    than its ending says; headers that point to other files; a spacing that is no positive number, an affine that is
    not finite; files cut short or damaged; voxels that are NaN or infinite. Bytes after the end are left alone. Of
    formats other than NIfTI, NRRD and MetaImage only the first two points are checked.

    Args:
        path: of the file.
        voxels_too: False to look at the header only.

    Returns:
        The header of a NIfTI file as it stands there; None for other formats.
    """
    check_file(path)
    ending = next((end for end in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd") if _ends(path, end)), "")
    if ending and not path.name.endswith(ending):
        raise UserError(f"{path} ends in capitals, and nnU-Net passes such files over; rename it to end in {ending}")
    header: bytes | None = None
    voxels: _Voxels | None = None
    try:
        with path.open("rb") as file:
            if ending in (".nii.gz", ".nii"):
                header, voxels = _nifti(path, file)
            elif ending in (".nrrd", ".nhdr"):
                voxels = _nrrd(path, file)
            elif ending in (".mha", ".mhd"):
                voxels = _meta(path, file)
            if voxels is not None and voxels_too:
                file.seek(0)
                _check_voxels(path, file, voxels)
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}. It is damaged; copy it again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return header


def _ends(path: Path, ending: str) -> bool:
    return path.name.lower().endswith(ending)


def _check_voxels(path: Path, file: IO[bytes], voxels: _Voxels) -> None:
    """Count the bytes and the voxels that are not finite."""
    size = voxels.dtype.itemsize
    promised = voxels.count * size
    held = not_finite = 0
    rest = b""
    if voxels.packing == "":
        file.seek(voxels.skip)
        blocks: Iterable[bytes] = _blocks(file)
    elif voxels.packing == "whole file":
        blocks = _after(_inflated(file), voxels.skip)
    else:
        file.seek(voxels.skip)
        blocks = _inflated(file)
    for block in blocks:
        wanted = block[: promised - held]
        held += len(wanted)
        if voxels.dtype.kind in "fc" and wanted:
            rest += wanted
            whole = len(rest) - len(rest) % size
            values = np.frombuffer(rest[:whole], voxels.dtype)
            not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
            rest = rest[whole:]
        if voxels.packing == "" and held == promised:
            break
    if held < promised:
        raise UserError(
            f"{path} is cut short: {held} bytes of voxels of the {promised} that its header promises; copy it again"
        )
    if not_finite:
        raise UserError(
            f"{path}: {not_finite} of {voxels.count} voxels are not finite (NaN or infinite); give them values, "
            "-1024 outside the scanned field of a CT, 0 in a segmentation"
        )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _inflated(file: IO[bytes]) -> Iterator[bytes]:
    """What gzip or zlib has packed, of several members too; bytes after the last are left alone, as zlib does."""
    inflate, rest = zlib.decompressobj(47), b""
    while data := rest or file.read(_BLOCK_BYTES):
        if inflate.eof:
            data += file.read(1) if len(data) == 1 else b""
            if not data.startswith(GZIP_MAGIC):
                return
            inflate = zlib.decompressobj(47)
        yield inflate.decompress(data, _BLOCK_BYTES)
        rest = inflate.unconsumed_tail or inflate.unused_data
    yield inflate.flush()
    if not inflate.eof:
        raise EOFError("its compressed data are cut short")


def _after(blocks: Iterable[bytes], skip: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[skip:]
        skip = max(0, skip - len(block))


def _nifti(path: Path, file: IO[bytes]) -> tuple[bytes, _Voxels]:
    import nibabel

    compressed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if compressed and not path.name.endswith(".gz"):
        raise UserError(f"{path} is compressed, and its name does not say so; rename it to end in .nii.gz")
    head = b""
    for block in _inflated(file) if compressed else _blocks(file):
        head += block
        if len(head) >= nibabel.Nifti2Header.sizeof_hdr:
            break
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    kind = next((kind for kind in kinds if len(head) >= kind.sizeof_hdr and kind.may_contain_header(head)), None)
    if kind is None:
        raise UserError(f"{path} cannot be read: whatever its name says, it is no NIfTI file, or is cut short")
    header = kind(head[: kind.sizeof_hdr], check=False)
    _refuse_header_alone(path, "" if header["magic"].item().startswith(b"n+") else f"{path.name.split('.')[0]}.img")
    try:
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        skip = int(header["vox_offset"]) or header.single_vox_offset
    except (nibabel.spatialimages.HeaderDataError, ValueError, OverflowError) as error:
        raise UserError(f"{path} has a damaged header: {error}") from error
    if not shape or min(shape) < 1:
        raise UserError(f"{path} has a damaged header: its size is {' x '.join(map(str, shape))} voxels")
    _check_spacing(path, header["pixdim"][1 : 1 + min(3, len(shape))])
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 0 and not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UserError(
            f"{path} is scaled by a value that is not finite (scl_slope {slope:g}, scl_inter {intercept:g}); correct "
            "its header: 1 and 0 if the voxels are stored as they are"
        )
    affine = header.get_sform() if header["sform_code"] > 0 else None
    if affine is not None and (not np.isfinite(affine).all() or np.linalg.det(affine) == 0):
        raise UserError(f"{path}: the affine in its header (sform) holds NaN or a spacing of 0; correct the header")
    quaternion = [float(header[key]) for key in (f"quatern_{axis}" for axis in "bcd")]
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    if header["qform_code"] > 0 and not np.isfinite(quaternion + offset).all():
        raise UserError(f"{path}: the affine in its header (qform) is not finite; correct the header")
    return head[: kind.sizeof_hdr], _Voxels("whole file" if compressed else "", skip, dtype, math.prod(shape))


def _check_spacing(path: Path, spacing: Iterable[float]) -> None:
    values = [float(edge) for edge in spacing]
    if not all(math.isfinite(edge) and edge > 0 for edge in values):
        raise UserError(
            f"{path} has a spacing of {', '.join(f'{edge:g}' for edge in values)} mm; a spacing is a positive number: "
            "correct the header"
        )


def _check_place(path: Path, fields: Mapping[str, str], names: Iterable[str]) -> None:
    """The libraries read what is no number as 0."""
    for name in names:
        words = re.split(r"[\s(),]+", fields.get(name, ""))
        if not all(math.isfinite(float(word)) for word in words if word and word != "none"):
            raise UserError(f"{path}: its header says {name} = {fields[name]}; correct it")


def _nrrd(path: Path, file: IO[bytes]) -> _Voxels | None:
    """None where the voxels are written as text, or packed as SimpleITK does not read them."""
    if not file.readline(_LONGEST_HEADER).startswith(b"NRRD000"):
        raise UserError(f"{path} cannot be read: whatever its name says, it is no NRRD file")
    fields: dict[str, str] = {}
    while text := (line := file.readline(_LONGEST_HEADER)).decode("latin-1").rstrip("\r\n"):
        name, found, value = text.partition(": ")
        if not text.startswith("#") and found and ":=" not in name:
            fields[name.strip().lower()] = value.strip()
        elif text.lower().startswith(("data file:", "datafile:")):
            fields["datafile"] = text
    _refuse_header_alone(path, fields.get("data file", fields.get("datafile", "")))
    if not line:
        raise UserError(f"{path} is cut short: its header has no end")
    if fields.get("dimension") == "3":
        _check_spacing(path, map(float, fields.get("spacings", "").split()))
        _check_place(path, fields, ("space directions", "space origin"))
    packing = _NRRD_PACKINGS.get(fields.get("encoding", "").lower())
    kind = next((kind for kind, names in _NRRD_TYPES.items() if fields.get("type", "").lower() in names), None)
    if packing is None or kind is None or "sizes" not in fields or fields.get("line skip", "0") != "0":
        return None
    skip = int(fields.get("byte skip", "0"))
    dtype = np.dtype((">" if fields.get("endian", "").lower() == "big" else "<") + kind)
    count = math.prod(map(int, fields["sizes"].split()))
    if skip < 0:
        return None
    return _Voxels(packing, file.tell() + skip, dtype, count)


def _meta(path: Path, file: IO[bytes]) -> _Voxels | None:
    """None where the voxels are written as text."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and len(fields) < _MOST_FIELDS and (line := file.readline(_LONGEST_HEADER)):
        name, _, value = re.sub(r"[\s=:]+", "=", line.decode("latin-1").strip(), count=1).partition("=")
        fields[name] = value
    if not {"NDims", "ElementDataFile"} <= fields.keys():
        raise UserError(f"{path} cannot be read: whatever its name says, it is no MetaImage file, or is cut short")
    data_file = fields["ElementDataFile"]
    _refuse_header_alone(path, "" if data_file.upper() == "LOCAL" else data_file)
    _check_spacing(path, map(float, fields.get("ElementSpacing", fields.get("ElementSize", "")).split()))
    _check_place(path, fields, ("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"))
    kind = _META_TYPES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if kind is None or _is_true(fields, "BinaryData") is False or int(fields.get("HeaderSize", "0")) > 0:
        return None
    order = any(_is_true(fields, key) for key in ("ElementByteOrderMSB", "BinaryDataByteOrderMSB"))
    count = math.prod(map(int, fields.get("DimSize", "0").split())) * int(fields.get("ElementNumberOfChannels", "1"))
    packing = "deflate" if _is_true(fields, "CompressedData") else ""
    return _Voxels(packing, file.tell(), np.dtype((">" if order else "<") + kind), count)


def _is_true(fields: Mapping[str, str], key: str) -> bool | None:
    return fields[key][:1].upper() in ("T", "1") if key in fields else None


def _refuse_header_alone(path: Path, data_file: str) -> None:
    if data_file:
        raise UserError(
            f"{path} is a header whose voxels are in another file ({data_file}); convert it to one file, such as "
            ".nii.gz or .nrrd with its data inside"
        )
