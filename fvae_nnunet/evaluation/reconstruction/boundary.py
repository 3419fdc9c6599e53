"""Position and sharpness of boundaries in a view: edges of raw volume and view along the normals of a label.

Along each normal of the label's surface, the edge is where the slope of the HU (the derivative along the normal) is
steepest: the edge model of Canny (IEEE TPAMI 8:679, 1986), in three dimensions and with sub-voxel positions. Raw volume
and view are first smoothed with the same Gaussian of ``SMOOTHING_VOXELS`` along each axis, because noise in the raw
volume would move its edges. The label only says where to look: an edge need not be on its surface. It also selects
between two edges: at each point of the surface, only edges of one direction count, rising or falling outwards, that of
the profile's slope smoothed around the surface. The far side of a thin structure and the near side of a neighbour have
the other direction.

If a structure is hardly thicker than its blur, the slopes of both sides add up: growth makes it brighter rather than
wider, and the shift is too small, with the right sign. Let s be the standard deviation of the total blur of an edge,
from the image and ``SMOOTHING_VOXELS``: 0.9 mm at pixels of 0.7 mm with a blur of 0.6 mm. From a thickness of 4.5 s
(4 mm; balls 6.5 s), the shift is right within a tenth of a voxel; at 3 s two thirds of it are left, at 2 s less than
half, at 1 s nothing. Across slices of 5 mm, s is above 5 mm: thin structures parallel to them give no information.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.ct.noise import MAD_TO_SD

SMOOTHING_VOXELS = 1.0
"""Standard deviation of the Gaussian applied before slopes are computed. An edge with a blur of s voxels then has a
slope of contrast / sqrt(2 pi (s^2 + SMOOTHING_VOXELS^2)) per voxel; sharpness ratios are ratios of these slopes."""

REACH_MM = 3.0
REACH_VOXELS = 2.0
"""Search distance of the raw volume's edge from the label's surface, and of the view's edge from that one: the larger
of the two. Manual contours are about 2 mm off; thick slices need a voxel on either side."""

SENSE_REACHES = 0.5
"""Standard deviation, in search distances, of the Gaussian around the label's surface that weights the slopes whose sum
determines the direction of its edges."""

STEP_VOXELS = 0.25
"""Maximum distance of samples along a normal; a parabola through three of them gives the position of the maximum."""

CLEAR_EDGE_SDS = 5.0
"""Minimum slope of a clear edge of the raw volume, in standard deviations of the slope in flat soft tissue."""

SLOPE_NOISE_PART = 0.5
"""Fraction of the soft tissue, the flattest, used for that standard deviation. More than for the noise level: the very
flattest places have less noise than others at the scale of these slopes."""

CLEAR_EDGE_HU_PER_MM = 1.0
"""Minimum slope of a clear edge in any case, also without flat soft tissue or noise."""

LOST_BELOW = 0.2
"""An edge is lost in the view if less than this fraction of its slope remains: its position is then meaningless."""

MAX_POINTS = 20_000
"""Maximum number of points measured on a surface."""

SETTINGS = {
    "smoothing_voxels": SMOOTHING_VOXELS,
    "reach_mm": REACH_MM,
    "reach_voxels": REACH_VOXELS,
    "sense_reaches": SENSE_REACHES,
    "slope_noise_part": SLOPE_NOISE_PART,
    "clear_edge_sds": CLEAR_EDGE_SDS,
    "clear_edge_hu_per_mm": CLEAR_EDGE_HU_PER_MM,
    "lost_below": LOST_BELOW,
    "max_points": MAX_POINTS,
}
"""Settings for the record of an evaluation."""


@dataclass(frozen=True)
class BoundaryShift:
    """Shift of the edges at a label's surface from raw volume to view; NaN if there is no edge.

    Attributes:
        surface_points: points of the surface that were examined, evenly spread over its area.
        edge_points: those of them with a clear edge in the raw volume.
        lost_points: those of the latter whose edge is lost in the view; they count only for ``sharpness_ratio``.
        shift_median_mm: median of the signed shift, positive if the view's edge is further outside the label.
        shift_abs_median_mm, shift_abs_p95_mm: median and 95th percentile of its absolute value.
        sharpness_ratio: median of the view's slope divided by the raw volume's; 0 for a lost edge without slope.
    """

    surface_points: int
    edge_points: int
    lost_points: int
    shift_median_mm: float
    shift_abs_median_mm: float
    shift_abs_p95_mm: float
    sharpness_ratio: float


NO_SURFACE = BoundaryShift(0, 0, 0, *[float("nan")] * 4)
"""The result for a mask without a surface."""


class EdgePair:
    """A raw volume and its view, prepared for ``shift_at`` any number of labels.

    Args:
        raw_hu, view_hu: volumes (z, y, x) in HU, any real dtype, of equal shape.
        spacing_mm: voxel size (z, y, x).
        region: bool (z, y, x), flat soft tissue of the raw volume (``noise.homogeneous_region`` with
            ``flattest_part=SLOPE_NOISE_PART``), used to measure the noise of its slopes.
    """

    def __init__(
        self, raw_hu: np.ndarray, view_hu: np.ndarray, *, spacing_mm: Sequence[float], region: np.ndarray
    ) -> None:
        self.spacing_mm = np.asarray(spacing_mm, dtype=np.float64)
        self.raw, self.view = (
            ndimage.gaussian_filter(volume.astype(np.float32), SMOOTHING_VOXELS, mode="nearest")
            for volume in (raw_hu, view_hu)
        )
        self.slope_noise = np.array([self._slope_noise(axis, region) for axis in range(3)])
        """Standard deviation of the raw volume's slope along z, y and x in HU per mm; 0 if there is no region."""

    def _slope_noise(self, axis: int, region: np.ndarray) -> float:
        if not region.any() or self.raw.shape[axis] < 2:
            return 0.0
        slopes = np.gradient(self.raw, axis=axis)[region]
        return float(MAD_TO_SD * np.median(np.abs(slopes)) / self.spacing_mm[axis])

    def shift_at(self, mask: np.ndarray) -> BoundaryShift:
        """Shift and sharpness of the edges at the surface of a label.

        Args:
            mask: bool, of the volumes' shape. It has no surface where it touches the border of the volume.
        """
        box = self._box(mask)
        points, normals = _surface(mask[box], self.spacing_mm) if box else (np.empty((0, 3)), np.empty((0, 3)))
        if not len(points):
            return NO_SURFACE
        voxel_mm = 1 / np.sqrt(np.square(normals / self.spacing_mm).sum(1))
        reach_mm = np.maximum(REACH_MM, REACH_VOXELS * voxel_mm)
        steps = int(np.ceil((reach_mm / voxel_mm).max() / STEP_VOXELS))
        # profiles are twice as long as the search for the raw edge; u is in search distances, outwards
        edges_u = np.arange(-2 * steps, 2 * steps + 1) / steps
        at_u = (edges_u[1:] + edges_u[:-1]) / 2
        raw_slopes, view_slopes = (
            _slopes(volume[box], points, normals, edges_u[None] * reach_mm[:, None], self.spacing_mm)
            for volume in (self.raw, self.view)
        )
        noise = np.sqrt(np.square(normals * self.slope_noise).sum(1))
        sense = np.sign(raw_slopes @ np.exp(-0.5 * np.square(at_u / SENSE_REACHES)))[:, None]
        raw_u, raw_slope = _steepest(sense * raw_slopes, np.abs(at_u)[None] <= 1, at_u)
        clear = raw_slope >= np.maximum(CLEAR_EDGE_SDS * noise, CLEAR_EDGE_HU_PER_MM)
        raw_u, raw_slope, reach_mm = raw_u[clear], raw_slope[clear], reach_mm[clear]
        near = np.abs(at_u[None] - raw_u[:, None]) <= 1
        view_u, view_slope = _steepest((sense * view_slopes)[clear], near, at_u)
        ratio = np.maximum(view_slope, 0) / raw_slope
        kept = ratio >= LOST_BELOW
        shift_mm = ((view_u - raw_u) * reach_mm)[kept]
        return BoundaryShift(
            surface_points=len(points),
            edge_points=int(clear.sum()),
            lost_points=int((~kept).sum()),
            shift_median_mm=_percentile(shift_mm, 50),
            shift_abs_median_mm=_percentile(np.abs(shift_mm), 50),
            shift_abs_p95_mm=_percentile(np.abs(shift_mm), 95),
            sharpness_ratio=_percentile(ratio, 50),
        )

    def _box(self, mask: np.ndarray) -> tuple[slice, slice, slice] | None:
        """The part of the volume that the profiles of a mask's surface can reach; None for an empty mask."""
        margin = np.ceil(2 * np.maximum(REACH_MM / self.spacing_mm, REACH_VOXELS)).astype(int) + 2
        box = []
        for axis in range(3):
            found = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
            if not found.size:
                return None
            box.append(slice(max(0, found[0] - margin[axis]), found[-1] + margin[axis] + 1))
        return box[0], box[1], box[2]


def _surface(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over a mask's surface, in mm from the first voxel's centre, and outward normals (n, 3)."""
    from skimage.measure import marching_cubes

    if mask.all() or min(mask.shape) < 2:
        return np.empty((0, 3)), np.empty((0, 3))
    vertices, faces, _, _ = marching_cubes(mask.astype(np.float32), 0.5, spacing=tuple(spacing_mm))
    corners = vertices[faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).cumsum()
    count = min(MAX_POINTS, len(faces))
    chosen = np.searchsorted(areas, (np.arange(count) + 0.5) / count * areas[-1])
    points = corners[chosen].mean(1)
    outside, inside = (ndimage.distance_transform_edt(part, sampling=spacing_mm) for part in (~mask, mask))
    smooth = ndimage.gaussian_filter(outside - inside, SMOOTHING_VOXELS, mode="nearest")
    at = (points / spacing_mm).T
    normals = np.stack(
        [
            ndimage.map_coordinates(np.gradient(smooth, edge, axis=axis), at, order=1, mode="nearest")
            for axis, edge in enumerate(spacing_mm)
        ],
        axis=1,
    )
    length = np.linalg.norm(normals, axis=1)
    # in the middle of a sheet of one voxel the normals of both sides cancel
    usable = length > 0.1
    return points[usable], normals[usable] / length[usable, None]


def _slopes(
    smooth_hu: np.ndarray, points: np.ndarray, normals: np.ndarray, along_mm: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    """Derivative along the normals between neighbouring samples, HU per mm, (n, samples - 1); 0 outside the volume."""
    at = (points[:, None] + along_mm[..., None] * normals[:, None]) / spacing_mm
    within = ((at >= 0) & (at <= np.array(smooth_hu.shape) - 1)).all(-1)
    coefficients = ndimage.spline_filter(smooth_hu, order=3, output=np.float32, mode="mirror")
    profiles = ndimage.map_coordinates(coefficients, np.moveaxis(at, -1, 0), order=3, mode="mirror", prefilter=False)
    slopes = np.diff(profiles, axis=1) / np.diff(along_mm, axis=1)
    return np.where(within[:, 1:] & within[:, :-1], slopes, 0.0)


def _steepest(slopes: np.ndarray, allowed: np.ndarray, at_u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and height of the highest local maximum in the allowed part of each row; NaN and -inf without one.

    Args:
        slopes: (n, samples), with peaks upwards.
        allowed: bool, broadcastable to ``slopes``.
        at_u: evenly spaced positions of the samples.
    """
    before, here, after = slopes[:, :-2], slopes[:, 1:-1], slopes[:, 2:]
    is_peak = (here >= before) & (here > after) & allowed[:, 1:-1]
    best = np.where(is_peak, here, -np.inf).argmax(1)
    rows = np.arange(len(slopes))
    low, top, high = before[rows, best], here[rows, best], after[rows, best]
    found = is_peak[rows, best]
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = 0.5 * (low - high) / (low - 2 * top + high)
    place = at_u[1 + best] + offset * (at_u[1] - at_u[0])
    return np.where(found, place, np.nan), np.where(found, top - 0.25 * (low - high) * offset, -np.inf)


def _percentile(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if values.size else float("nan")
