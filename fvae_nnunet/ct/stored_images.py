"""Check the bytes of image files for faults that the reading libraries silently accept.

SimpleITK (tested with 2.5.7) pads a truncated NIfTI file with zeros, turns its NaN and infinite voxels into 0, replaces
a spacing of 0 or NaN, and follows a header to any other file; 2.2 and 2.3 also pad a truncated compressed ``.mha``.
nnU-Net reads images with it.
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
    """Position and format of the voxels in a file: ``skip`` bytes after its start, compressed as in ``packing``."""

    packing: str
    skip: int
    dtype: np.dtype
    count: int


def check_image_file(path: Path, *, voxels_too: bool = True) -> bytes | None:
    """Raise UserError if nnU-Net's readers would misread an image file.

    Refused are: files that ``check_file`` refuses; endings in capitals, which nnU-Net ignores; another format than the
    ending says; headers that point to other files; a spacing that is not positive, or an affine that is not finite;
    truncated or damaged files; voxels that are NaN or infinite. Bytes after the end are ignored. For formats other than
    NIfTI, NRRD and MetaImage only ``check_file`` is applied.

    Args:
        path: image file.
        voxels_too: also check the voxels; False: check the header only.

    Returns:
        The bytes of a NIfTI header; None for other formats.
    """
    check_file(path)
    ending = next((end for end in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd") if _ends(path, end)), "")
    if ending and not path.name.endswith(ending):
        raise UserError(f"{path} ends in capitals, and nnU-Net ignores such files; rename it to end in {ending}")
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
    """Raise UserError if voxels are missing or not finite."""
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
            f"{path} is truncated: it has {held} of the {promised} bytes of voxels stated in its header; copy it again"
        )
    if not_finite:
        raise UserError(
            f"{path}: {not_finite} of {voxels.count} voxels are not finite (NaN or infinite); replace them, for "
            "example by -1024 outside the scanned field of a CT and by 0 in a segmentation"
        )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _inflated(file: IO[bytes]) -> Iterator[bytes]:
    """The decompressed content of gzip (one or more members) or zlib data; trailing bytes are ignored, as zlib does."""
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
        raise EOFError("its compressed data is truncated")


def _after(blocks: Iterable[bytes], skip: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[skip:]
        skip = max(0, skip - len(block))


def _nifti(path: Path, file: IO[bytes]) -> tuple[bytes, _Voxels]:
    import nibabel

    compressed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if compressed and not path.name.endswith(".gz"):
        raise UserError(f"{path} is compressed, but its name does not say so; rename it to end in .nii.gz")
    head = b""
    for block in _inflated(file) if compressed else _blocks(file):
        head += block
        if len(head) >= nibabel.Nifti2Header.sizeof_hdr:
            break
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    kind = next((kind for kind in kinds if len(head) >= kind.sizeof_hdr and kind.may_contain_header(head)), None)
    if kind is None:
        raise UserError(f"{path} cannot be read: despite its name it is not a NIfTI file, or it is truncated")
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
            "its header, to 1 and 0 if the voxels are not scaled"
        )
    affine = header.get_sform() if header["sform_code"] > 0 else None
    if affine is not None and (not np.isfinite(affine).all() or np.linalg.det(affine) == 0):
        raise UserError(f"{path}: the affine in its header (sform) has NaN or a spacing of 0; correct the header")
    quaternion = [float(header[key]) for key in (f"quatern_{axis}" for axis in "bcd")]
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    if header["qform_code"] > 0 and not np.isfinite(quaternion + offset).all():
        raise UserError(f"{path}: the affine in its header (qform) is not finite; correct the header")
    return head[: kind.sizeof_hdr], _Voxels("whole file" if compressed else "", skip, dtype, math.prod(shape))


def _check_spacing(path: Path, spacing: Iterable[float]) -> None:
    values = [float(edge) for edge in spacing]
    if not all(math.isfinite(edge) and edge > 0 for edge in values):
        raise UserError(
            f"{path} has a spacing of {', '.join(f'{edge:g}' for edge in values)} mm; spacings must be positive: "
            "correct the header"
        )


def _check_place(path: Path, fields: Mapping[str, str], names: Iterable[str]) -> None:
    """Check that the numbers in header fields are valid and finite; the libraries would read others as 0."""
    for name in names:
        words = re.split(r"[\s(),]+", fields.get(name, ""))
        if not all(math.isfinite(float(word)) for word in words if word and word != "none"):
            raise UserError(f"{path}: its header says {name} = {fields[name]}; correct it")


def _nrrd(path: Path, file: IO[bytes]) -> _Voxels | None:
    """The voxels of an NRRD file; None if they are text, or compressed in a way that SimpleITK does not read."""
    if not file.readline(_LONGEST_HEADER).startswith(b"NRRD000"):
        raise UserError(f"{path} cannot be read: despite its name it is not an NRRD file")
    fields: dict[str, str] = {}
    while text := (line := file.readline(_LONGEST_HEADER)).decode("latin-1").rstrip("\r\n"):
        name, found, value = text.partition(": ")
        if not text.startswith("#") and found and ":=" not in name:
            fields[name.strip().lower()] = value.strip()
        elif text.lower().startswith(("data file:", "datafile:")):
            fields["datafile"] = text
    _refuse_header_alone(path, fields.get("data file", fields.get("datafile", "")))
    if not line:
        raise UserError(f"{path} is truncated: its header has no end")
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
    """The voxels of a MetaImage file; None if they are text or of an unsupported type."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and len(fields) < _MOST_FIELDS and (line := file.readline(_LONGEST_HEADER)):
        name, _, value = re.sub(r"[\s=:]+", "=", line.decode("latin-1").strip(), count=1).partition("=")
        fields[name] = value
    if not {"NDims", "ElementDataFile"} <= fields.keys():
        raise UserError(f"{path} cannot be read: despite its name it is not a MetaImage file, or it is truncated")
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
            f"{path} is a header whose voxels are in another file ({data_file}); convert it to a single file, such as "
            ".nii.gz, or .nrrd with attached data"
        )
