"""Geometry made right: whether a file's header says where its voxels lie, or the metadata must."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.conversion.tables import VolumeMetadata
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError

SPACING_TOLERANCE = 0.01
"""Relative; tables round to some digits, a wrong header is wrong by far more."""


def true_geometry(
    header: Geometry, shape: tuple[int, ...], metadata: VolumeMetadata | None, *, mode: str = "auto"
) -> tuple[Geometry, str]:
    """The geometry of a volume, and whether it is that of the ``header`` or of the ``metadata``.

    CT-RATE's first release has headers with a spacing of 1 mm on every axis, the default of the program that wrote
    them. Such a header is blank: spacing, origin and direction are those of the metadata. The order of the voxels is
    never changed.

    Args:
        header: as read from the file.
        shape: of the array (z, y, x).
        metadata: of the scanner; None where there is none.
        mode: ``auto``: the header's where it is not blank, and then its spacing must be that of the metadata, if there
            is any. ``header`` and ``metadata``: one of them, whatever the other says.

    Raises:
        UserError: neither is usable, both are and differ, or the metadata is that of an image of another size.
    """
    if mode == "header":
        return header, "header"
    blank = np.allclose(header.spacing_mm, 1.0, atol=1e-6)
    if metadata is None:
        if mode == "metadata" or blank:
            raise UserError(
                "there is no metadata of it"
                + ("" if mode == "metadata" else ", and its header is blank (spacing 1 1 1 mm)")
                + "; give `metadata`, or `geometry='header'` if the header is right"
            )
        return header, "header"
    rows_columns = metadata.in_plane_shape
    if rows_columns is not None and rows_columns != shape[1:]:
        raise UserError(f"it has slices of {shape[1:]} voxels, {metadata.place} says {rows_columns} (rows, columns)")
    spacing_mm = metadata.spacing_mm
    if mode == "auto" and not blank:
        if not np.allclose(header.spacing_mm, spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
            raise UserError(
                f"its header has a spacing of {_mm(header.spacing_mm)}, {metadata.place} says {_mm(spacing_mm)}; "
                "`geometry='header'` or `geometry='metadata'` decides"
            )
        return header, "header"
    return Geometry(spacing_mm, *metadata.placement), "metadata"


def _mm(spacing_mm: tuple[float, ...]) -> str:
    return " ".join(f"{step:g}" for step in spacing_mm) + " mm (x y z)"
