"""Boxes of voxels around masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, slice, slice]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that contains all voxels of a non-empty mask."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def grown(box: Sequence[slice], margins: Sequence[int] | np.ndarray, shape: Sequence[int]) -> Box:
    """A box extended by a margin, in voxels per axis, on both sides, cut to the volume."""
    z, y, x = (
        slice(max(0, side.start - int(margin)), min(int(n), side.stop + int(margin)))
        for side, margin, n in zip(box, margins, shape, strict=True)
    )
    return z, y, x


def box_around(mask: np.ndarray, margin_mm: float, spacing_mm: Sequence[float]) -> Box:
    """The bounding box of a non-empty mask, extended by a margin and cut to the volume."""
    return grown(bounding_box(mask), np.ceil(margin_mm / np.asarray(spacing_mm)).astype(int), mask.shape)
