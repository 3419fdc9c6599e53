"""Shapes of lesions: deformed ellipsoids, and shapes of real lesions that are rotated, scaled and deformed.

A shape consists of the voxels with the lowest values of a smooth field, as many as the requested volume has. Its size
is therefore exact to a voxel for any spacing and deformation; the field itself is defined in physical space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.ct.lesions import largest_lesion
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted, number
from fvae_nnunet.synthesis.lesions.placement import NothingFits

Field = Callable[[np.ndarray], np.ndarray]
"""Function from points around the lesion's centre, (3, n) in equivalent diameters, to depths (n,): lower is deeper."""

MIN_VOXELS = 8
"""Minimum number of voxels of a lesion. A smaller one has no shape, and a voxel is more than a tenth of its volume."""

SIZE_TOLERANCE = 0.1
"""Relative tolerance of the equivalent diameter if a shape loses loose pieces."""

AXIS_RATIOS = (0.75, 1.25)
"""Range of the semi-axes of an ellipsoid before scaling to the volume: plus and minus 25 %, as in SyntheticTumors."""

DEFORMATION = 0.06
"""Standard deviation of the elastic displacement along each axis, as a share of the diameter."""

_LATTICE = 7
"""Points along each edge of the lattice of random displacements, which spans ``_REACH`` diameters in each direction, so
that they are a third of a diameter apart."""

_REACH = 1.0
"""Distance from the centre, in diameters, within which a shape is sought; farther for donors that are longer."""

_DEFORMED_REACH = 0.15
"""What deformation may add to it: two and a half times ``DEFORMATION``."""

_SHAPES_TRIED = 6
"""Number of attempts, each less deformed than the one before, the last one not deformed."""


@dataclass(frozen=True)
class RealLesion:
    """A connected real lesion, the donor of a shape.

    Attributes:
        case: case of the lesion, or file of a bank.
        mask: bool (z, y, x), axial, cropped to the lesion.
        spacing_mm: voxel size (z, y, x).
    """

    case: str
    mask: np.ndarray
    spacing_mm: tuple[float, float, float]


def equivalent_diameter_mm(voxels: float, spacing_mm: Sequence[float] | np.ndarray) -> float:
    """Diameter of the ball with the volume of a number of voxels; spacing (z, y, x) in mm."""
    return float(np.cbrt(6 / np.pi * voxels * np.prod(np.asarray(spacing_mm, dtype=float))))


def voxels_of_ball(diameter_mm: float, spacing_mm: Sequence[float]) -> float:
    """Volume of a ball in voxels: the inverse of ``equivalent_diameter_mm``."""
    return float(np.pi / 6 * diameter_mm**3 / np.prod(np.asarray(spacing_mm, dtype=float)))


def draw_lesion_shape(
    rng: np.random.Generator,
    diameter_mm: float,
    spacing_mm: Sequence[float],
    *,
    donor: RealLesion | None = None,
) -> np.ndarray:
    """Draw a random connected shape of a given size.

    Args:
        rng: source of all random draws.
        diameter_mm: equivalent diameter.
        spacing_mm: voxel size of the result (z, y, x).
        donor: use the shape of this lesion, rotated randomly (in mm, about any axis), possibly mirrored, scaled to the
            diameter and deformed; None: use an ellipsoid with random axes, rotated and deformed.

    Returns:
        bool (z, y, x), cropped to the shape, in one piece (voxels that share a face, an edge or a corner). Its
        equivalent diameter is exact to half a voxel's volume, or within ``SIZE_TOLERANCE`` if loose pieces of the
        deformed shape were dropped.

    Raises:
        NothingFits: the lesion would have fewer than ``MIN_VOXELS`` voxels, or is in pieces in every attempt.
    """
    voxels = round(voxels_of_ball(diameter_mm, spacing_mm))
    if voxels < MIN_VOXELS:
        raise NothingFits(
            f"a lesion of {number(diameter_mm, 'mm')} mm has {counted(voxels, 'voxel')} of "
            f"{' x '.join(f'{step:g}' for step in spacing_mm)} mm; at least {MIN_VOXELS} are needed"
        )
    for attempt in range(_SHAPES_TRIED):
        field, reach = (_ellipsoid(rng), _REACH) if donor is None else _borrowed(rng, donor)
        # an ellipsoid without deformation is always in one piece
        strength = DEFORMATION * (1 - attempt / (_SHAPES_TRIED - 1))
        displacement = strength * rng.standard_normal((3, _LATTICE, _LATTICE, _LATTICE), np.float32)
        offset = rng.uniform(-0.5, 0.5, 3)
        lowest = _lowest(field, reach, displacement, offset, voxels, diameter_mm, np.asarray(spacing_mm))
        shape = largest_lesion(lowest)
        reached = equivalent_diameter_mm(int(np.count_nonzero(shape)), spacing_mm)
        if abs(reached - diameter_mm) <= SIZE_TOLERANCE * diameter_mm:
            return shape[bounding_box(shape)]
    whose = "an ellipsoid" if donor is None else f"a lesion of {donor.case}"
    raise NothingFits(
        f"{whose} of {number(diameter_mm, 'mm')} mm falls into pieces on this grid in {_SHAPES_TRIED} attempts"
    )


def scaled_in_place(
    mask: np.ndarray, spacing_mm: Sequence[float], diameter_mm: float
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Scale a lesion to another diameter about its centre, by scaling its signed distance field.

    Args:
        mask: bool (z, y, x), cropped to the lesion.
        spacing_mm: voxel size (z, y, x).
        diameter_mm: new equivalent diameter; with its own diameter the lesion does not change.

    Returns:
        bool, cropped to the new shape, in one piece; and the index in ``mask`` at which it starts, negative if before
        the start of ``mask``.

    Raises:
        UserError: the lesion would have fewer than ``MIN_VOXELS`` voxels, or falls into pieces.
    """
    from scipy import ndimage

    voxels = round(voxels_of_ball(diameter_mm, spacing_mm))
    if voxels < MIN_VOXELS:
        raise UserError(f"it would have {counted(voxels, 'voxel')}; at least {MIN_VOXELS} are needed")
    factor = diameter_mm / equivalent_diameter_mm(int(np.count_nonzero(mask)), spacing_mm)
    distance = _signed_distance(np.pad(mask, 2), spacing_mm)
    centre = np.argwhere(mask).mean(axis=0)
    # one more voxel on each side than the scaled box
    ends = [(c + factor * (-0.5 - c), c + factor * (n - 0.5 - c)) for c, n in zip(centre, mask.shape, strict=True)]
    axes = [np.arange(np.floor(low), np.ceil(high) + 1) for low, high in ends]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    offsets = points - centre[:, None, None, None]
    at = centre[:, None, None, None] + offsets / factor + 2
    depth = ndimage.map_coordinates(distance, at, order=1, mode="nearest")
    # among voxels of equal depth, as in symmetric lesions, prefer those nearest to the centre
    far = np.square(offsets * np.asarray(spacing_mm)[:, None, None, None]).sum(axis=0)
    lowest = np.lexsort((far.ravel(), depth.ravel()))[:voxels]
    shape = np.zeros(depth.shape, dtype=bool)
    shape.ravel()[lowest] = True
    shape = largest_lesion(shape)
    reached = equivalent_diameter_mm(int(np.count_nonzero(shape)), spacing_mm)
    if abs(reached - diameter_mm) > SIZE_TOLERANCE * diameter_mm:
        raise UserError("it falls into pieces")
    box = bounding_box(shape)
    return shape[box], tuple(int(axis[side.start]) for axis, side in zip(axes, box, strict=True))


def _lowest(
    field: Field,
    reach: float,
    displacement: np.ndarray,
    offset: np.ndarray,
    voxels: int,
    diameter_mm: float,
    spacing_mm: np.ndarray,
) -> np.ndarray:
    """The given number of voxels with the lowest values of the deformed field; points and reach are in diameters."""
    steps = np.ceil(reach * diameter_mm / spacing_mm).astype(int) + 1
    axes = [
        ((np.arange(-n, n + 1) + shift) * step / diameter_mm).astype(np.float32)
        for n, shift, step in zip(steps, offset, spacing_mm, strict=True)
    ]
    shape = tuple(len(axis) for axis in axes)
    moved = np.stack(np.meshgrid(*axes, indexing="ij")) + _between_lattice_points(displacement, axes)
    depth = field(moved.reshape(3, -1)).reshape(shape)
    return depth <= np.partition(depth, voxels - 1, axis=None)[voxels - 1]


def _between_lattice_points(values: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """Cubic interpolation (3, z, y, x) of lattice values (3, n, n, n) at all points of a grid."""
    from scipy.interpolate import CubicSpline

    lattice = np.linspace(-_REACH, _REACH, _LATTICE)
    # interpolation is linear in the values and separable: one small matrix per axis
    for dimension, axis in enumerate(axes, start=1):
        weights = CubicSpline(lattice, np.eye(_LATTICE))(axis.clip(-_REACH, _REACH)).astype(np.float32)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, dimension)), 0, dimension)
    return values


def _ellipsoid(rng: np.random.Generator) -> Field:
    semi_axes = rng.uniform(*AXIS_RATIOS, 3)
    matrix = (_rotation(rng) / semi_axes[:, None]).astype(np.float32)
    return lambda points: np.square(matrix @ points).sum(axis=0)


def _borrowed(rng: np.random.Generator, real: RealLesion) -> tuple[Field, float]:
    """Signed distance to the surface of the real lesion, and its reach; both in units of its equivalent diameter."""
    from scipy import ndimage

    spacing_mm = np.asarray(real.spacing_mm)
    diameter_mm = equivalent_diameter_mm(int(np.count_nonzero(real.mask)), spacing_mm)
    margins = np.ceil(0.5 * diameter_mm / spacing_mm).astype(int) + 1
    mask = np.pad(ndimage.binary_fill_holes(real.mask), [(n, n) for n in margins])
    distance = _signed_distance(mask, spacing_mm)
    voxels = np.argwhere(mask)
    centre = voxels.mean(axis=0).astype(np.float32)
    farthest_mm = np.linalg.norm((voxels - centre) * spacing_mm, axis=1).max()
    turned = _rotation(rng) * rng.choice([-1.0, 1.0])
    matrix = (turned * (diameter_mm / spacing_mm)[:, None]).astype(np.float32)

    def field(points: np.ndarray) -> np.ndarray:
        # points beyond the padded mask get the largest distance, so they are chosen last
        outside = float(distance.max())
        return ndimage.map_coordinates(distance, matrix @ points + centre[:, None], order=1, cval=outside)

    return field, max(_REACH, float(farthest_mm / diameter_mm) + _DEFORMED_REACH)


def _signed_distance(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance in mm to the surface of a mask, negative inside; the mask must not touch the border of the array."""
    from scipy import ndimage

    outside, inside = (ndimage.distance_transform_edt(part, sampling=spacing_mm) for part in (~mask, mask))
    return outside - inside


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix (3, 3), uniform over all rotations."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(rng.standard_normal(4)).as_matrix()
