"""Where a lesion goes: inside the organ, away from existing lesions, or at a position that the user names.

All arrays are axial, (z, y, x), see ``orientation``; positions in the patient are in mm, as SimpleITK has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import Box, grown
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import number

CLEARANCE_MM = 5.0
"""Between lesions, unless the user asks for another."""


class NothingFits(UserError):
    """No place for a lesion was found; the message says what was in the way."""


@dataclass(frozen=True)
class Placement:
    """Where a shape lies.

    Attributes:
        box: of the volume; it has the size of the shape.
        inside_fraction: share of the lesion's voxels in the organ, 0 to 1.
    """

    box: Box
    inside_fraction: float


def place(
    rng: np.random.Generator,
    shape: np.ndarray,
    organ: np.ndarray,
    *,
    forbidden: np.ndarray,
    inside_fraction: float,
    at: Sequence[float] | np.ndarray | None = None,
    tries: int,
) -> Placement:
    """Find a place for a shape by trying voxels of the organ as its centre, or at one place only.

    Args:
        rng: draws the voxels.
        shape: bool, cropped to the lesion.
        organ: bool.
        forbidden: bool; no voxel of the lesion may lie in it. ``too_close`` makes it for a clearance in mm.
        inside_fraction: so many of the lesion's voxels must lie in the organ, 0 to 1.
        at: index of the centre, which need not be whole: only there.
        tries: so many places at most.

    Raises:
        NothingFits: none of them will do, or the organ is empty, or the lesion larger than the volume.
    """
    size = np.array(shape.shape)
    free = np.array(organ.shape) - size
    if (free < 0).any():
        raise NothingFits(
            f"a lesion of {_product(shape.shape)} voxels does not fit into a volume of {_product(organ.shape)}"
        )
    centre = np.argwhere(shape).mean(axis=0)
    centres = _random_voxels(rng, organ, tries) if at is None else np.asarray(at, dtype=float)[None]
    voxels = np.count_nonzero(shape)
    beyond, in_the_way, best = 0, 0, 0.0
    for start in np.rint(centres - centre).astype(int):
        if (start < 0).any() or (start > free).any():
            beyond += 1
            continue
        z, y, x = start
        box = (slice(z, z + size[0]), slice(y, y + size[1]), slice(x, x + size[2]))
        inside = np.count_nonzero(organ[box] & shape) / voxels
        best = max(best, inside)
        if inside < inside_fraction:
            continue
        if (forbidden[box] & shape).any():
            in_the_way += 1
            continue
        return Placement(box, inside)
    raise NothingFits(
        f"no place for a lesion of {voxels} voxels in {len(centres)} tries: at most {number(best, 'share')} of it lay "
        f"in the organ (needed: {inside_fraction:g}); {in_the_way} places with enough were too near to a lesion or in "
        f"a structure to avoid, {beyond} reached beyond the volume"
    )


def _random_voxels(rng: np.random.Generator, organ: np.ndarray, n: int) -> np.ndarray:
    """So many voxels of the organ (n, 3), any of them equally likely."""
    voxels = np.flatnonzero(organ)
    if voxels.size == 0:
        raise NothingFits("the organ is empty")
    return np.stack(np.unravel_index(voxels[rng.integers(voxels.size, size=n)], organ.shape), axis=1)


def too_close(lesions: np.ndarray, spacing_mm: Sequence[float], clearance_mm: float) -> np.ndarray:
    """The voxels of which a lesion's voxel is less than a clearance away, centre to centre, and the lesions: bool.

    Args:
        lesions: bool (z, y, x); may be empty.
        spacing_mm: (z, y, x).
        clearance_mm: 0: the lesions alone.
    """
    from scipy import ndimage

    near = lesions.copy()
    if clearance_mm <= 0:
        return near
    margins = np.ceil(clearance_mm / np.asarray(spacing_mm)).astype(int)
    numbered, _ = ndimage.label(lesions)
    for found in ndimage.find_objects(numbered):
        box = grown(found, margins, lesions.shape)
        near[box] |= ndimage.distance_transform_edt(~lesions[box], sampling=spacing_mm) < clearance_mm
    return near


def index_of(position_mm: Sequence[float], geometry: Geometry) -> np.ndarray:
    """Index (z, y, x) in the array of the file, not rounded, of a position (x, y, z) in the patient in mm."""
    direction = np.asarray(geometry.direction).reshape(3, 3)
    along = np.linalg.solve(direction, np.asarray(position_mm, dtype=float) - geometry.origin_mm)
    return (along / geometry.spacing_mm)[::-1]


def position_of(index: Sequence[float] | np.ndarray, geometry: Geometry) -> np.ndarray:
    """Position (x, y, z) in the patient in mm of an index (z, y, x) in the array of the file: undoes ``index_of``."""
    direction = np.asarray(geometry.direction).reshape(3, 3)
    return direction @ (np.asarray(index, dtype=float)[::-1] * geometry.spacing_mm) + geometry.origin_mm


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
