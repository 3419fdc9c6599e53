"""Find a place for a lesion: inside the organ, away from existing lesions, or at a given position.

All arrays are axial, (z, y, x), see ``orientation``; positions in the patient are in mm, in SimpleITK's convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import Box, grown
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted, number

CLEARANCE_MM = 5.0
"""Default distance between lesions."""


class NothingFits(UserError):
    """No shape or no place for a lesion was found; the message gives the reason."""


@dataclass(frozen=True)
class Placement:
    """The place of a shape.

    Attributes:
        box: part of the volume, of the size of the shape.
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
    """Find a place for a shape by trying random voxels of the organ as its centre, or at one given place.

    Args:
        rng: draws the voxels.
        shape: bool, cropped to the lesion.
        organ: bool.
        forbidden: bool, voxels that the lesion may not cover; see ``too_close`` for a clearance in mm.
        inside_fraction: minimum share of the lesion's voxels in the organ, 0 to 1.
        at: index of the centre, not necessarily integer; if given, only this place is tried.
        tries: maximum number of places.

    Raises:
        NothingFits: no place is suitable, the organ is empty, or the lesion is larger than the volume.
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
        f"no place for a lesion of {counted(int(voxels), 'voxel')} (places tried: {len(centres)}): at most "
        f"{number(best, 'share')} of it was in the organ (required: {inside_fraction:g}); {in_the_way} with enough in "
        f"the organ were too close to a lesion or in a structure to avoid, {beyond} extended beyond the volume"
    )


def _random_voxels(rng: np.random.Generator, organ: np.ndarray, n: int) -> np.ndarray:
    """``n`` voxels of the organ (n, 3), all equally likely."""
    voxels = np.flatnonzero(organ)
    if voxels.size == 0:
        raise NothingFits("the organ is empty")
    return np.stack(np.unravel_index(voxels[rng.integers(voxels.size, size=n)], organ.shape), axis=1)


def too_close(lesions: np.ndarray, spacing_mm: Sequence[float], clearance_mm: float) -> np.ndarray:
    """The lesions and all voxels less than a clearance away from them, centre to centre: bool.

    Args:
        lesions: bool (z, y, x); may be empty.
        spacing_mm: voxel size (z, y, x).
        clearance_mm: distance to keep; 0: the lesions only.
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
    """Convert a position (x, y, z) in the patient in mm to an index (z, y, x) in the array of the file, not rounded."""
    direction = np.asarray(geometry.direction).reshape(3, 3)
    along = np.linalg.solve(direction, np.asarray(position_mm, dtype=float) - geometry.origin_mm)
    return (along / geometry.spacing_mm)[::-1]


def position_of(index: Sequence[float] | np.ndarray, geometry: Geometry) -> np.ndarray:
    """Inverse of ``index_of``: convert an index (z, y, x) to a position (x, y, z) in the patient in mm."""
    direction = np.asarray(geometry.direction).reshape(3, 3)
    return direction @ (np.asarray(index, dtype=float)[::-1] * geometry.spacing_mm) + geometry.origin_mm


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
