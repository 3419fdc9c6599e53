"""Choose the correct geometry of a volume: that of the file header, or that of the metadata."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.conversion.tables import VolumeMetadata
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError

SPACING_TOLERANCE = 0.01
"""Relative difference of spacings that counts as rounding in the tables; a wrong header differs by far more."""


def true_geometry(
    header: Geometry, shape: tuple[int, ...], metadata: VolumeMetadata | None, *, mode: str = "auto"
) -> tuple[Geometry, str]:
    """The geometry of a volume, and its origin: ``header`` or ``metadata``.

    The headers of CT-RATE's first release have a spacing of 1 mm on every axis, the default of the program that wrote
    them. Such a header counts as blank: spacing, origin and direction are taken from the metadata. The order of the
    voxels is never changed.

    Args:
        header: geometry read from the file.
        shape: shape of the array (z, y, x).
        metadata: scanner metadata; None if there is none.
        mode: ``auto``: use the header unless it is blank; its spacing must agree with that of the metadata, if there is
            any. ``header`` or ``metadata``: always use that one.

    Raises:
        UserError: neither is usable, both are usable but differ, or the metadata is for an image of another size.
    """
    if mode == "header":
        return header, "header"
    blank = np.allclose(header.spacing_mm, 1.0, atol=1e-6)
    if metadata is None:
        if mode == "metadata" or blank:
            raise UserError(
                "it has no metadata"
                + ("" if mode == "metadata" else ", and its header is blank (spacing 1 1 1 mm)")
                + "; give `metadata`, or `geometry='header'` if the header is correct"
            )
        return header, "header"
    rows_columns = metadata.in_plane_shape
    if rows_columns is not None and rows_columns != shape[1:]:
        raise UserError(f"its slices have {shape[1:]} voxels, but {metadata.place} says {rows_columns} (rows, columns)")
    spacing_mm = metadata.spacing_mm
    if mode == "auto" and not blank:
        if not np.allclose(header.spacing_mm, spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
            raise UserError(
                f"its header has a spacing of {_mm(header.spacing_mm)}, but {metadata.place} says {_mm(spacing_mm)}; "
                "choose with `geometry='header'` or `geometry='metadata'`"
            )
        return header, "header"
    return Geometry(spacing_mm, *metadata.placement), "metadata"


def _mm(spacing_mm: tuple[float, ...]) -> str:
    return " ".join(f"{step:g}" for step in spacing_mm) + " mm (x y z)"
