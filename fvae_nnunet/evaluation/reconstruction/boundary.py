"""Whether a view keeps boundaries in place and sharp: edges of raw volume and view along the normals of a label.

Along each normal of the label's surface the edge is where the slope of the HU, the derivative in the direction of the
normal, is steepest: the edge model of Canny (IEEE TPAMI 8:679, 1986), in three dimensions and with sub-voxel
positions. Raw volume and view are smoothed alike before, with a Gaussian of ``SMOOTHING_VOXELS`` along each axis, or
the noise of the raw volume would move its own edges. The label says only where to look: an edge need not lie on its
surface. It also says which of two edges is meant: at each point of the surface edges of one sense count, rising or
falling outwards, that of the profile's slope smoothed around the surface. The far side of a thin structure and the near
side of a neighbour have the other sense.

In a structure that is hardly thicker than its blur the slopes of both sides add up: growth makes it brighter rather
than wider, and the shift comes out too small, with the right sign. Let s be the standard deviation of all that blurs an
edge, the image's own blur and ``SMOOTHING_VOXELS``: 0.9 mm at pixels of 0.7 mm with a blur of 0.6 mm. From a thickness
of 4.5 s (4 mm; balls 6.5 s) the shift is right within a tenth of a voxel; at 3 s two thirds of it are left, at 2 s less
than half, at 1 s nothing. Across slices of 5 mm s is above 5 mm: what is thin and lies flat in them tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fvae_nnunet.ct.noise import MAD_TO_SD

SMOOTHING_VOXELS = 1.0
"""Standard deviation of the Gaussian before slopes are taken. An edge that is itself blurred by s voxels has after it a
slope of contrast / sqrt(2 pi (s^2 + SMOOTHING_VOXELS^2)) per voxel: sharpness ratios are those of these slopes."""

REACH_MM = 3.0
REACH_VOXELS = 2.0
"""How far from the label's surface the raw volume's edge is looked for, and how far from that the view's: the larger of
the two. Contours by hand are some 2 mm off; thick slices need a voxel to either side."""

SENSE_REACHES = 0.5
"""Standard deviation, in reaches, of the Gaussian around the label's surface that weighs the slopes whose sum decides
the sense of its edges."""

STEP_VOXELS = 0.25
"""Distance of samples along a normal, at most; a parabola through three of them gives the place of the maximum."""

CLEAR_EDGE_SDS = 5.0
"""A clear edge of the raw volume has a slope of so many standard deviations of the slope in flat soft tissue."""

SLOPE_NOISE_PART = 0.5
"""Part of the soft tissue, the flattest, from which that standard deviation is taken. More than for the noise level:
the very flattest places have less noise at the coarseness of these slopes than others."""

CLEAR_EDGE_HU_PER_MM = 1.0
"""And at least this slope, where there is no flat soft tissue or no noise."""

LOST_BELOW = 0.2
"""An edge is lost in the view where nothing of at least this part of its slope is left: its place means nothing."""

MAX_POINTS = 20_000
"""Points of a surface that are measured, at most."""

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
"""For the record of an evaluation."""


@dataclass(frozen=True)
class BoundaryShift:
    """How the edges at a label's surface moved from raw volume to view; NaN where there is no edge to say it.

    Attributes:
        surface_points: points of the surface that were looked at, spread evenly over its area.
        edge_points: those of them with a clear edge in the raw volume.
        lost_points: those of the latter whose edge is lost in the view; they enter ``sharpness_ratio`` alone.
        shift_median_mm: median of the signed shift, positive where the view's edge lies further outside the label.
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
    """A raw volume and its view, ready for ``shift_at`` any number of labels.

    Args:
        raw_hu, view_hu: (z, y, x) in HU, any real dtype, one shape.
        spacing_mm: voxel size (z, y, x).
        region: bool (z, y, x), flat soft tissue of the raw volume (``noise.homogeneous_region`` with
            ``flattest_part=SLOPE_NOISE_PART``), from which the noise of its slopes is taken.
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
        """Standard deviation of the raw volume's slope along z, y and x in HU per mm; 0 where there is no region."""

    def _slope_noise(self, axis: int, region: np.ndarray) -> float:
        if not region.any() or self.raw.shape[axis] < 2:
            return 0.0
        slopes = np.gradient(self.raw, axis=axis)[region]
        return float(MAD_TO_SD * np.median(np.abs(slopes)) / self.spacing_mm[axis])

    def shift_at(self, mask: np.ndarray) -> BoundaryShift:
        """Shift and sharpness of the edges at the surface of a label.

        Args:
            mask: bool, the volumes' shape. Where it meets the border of the volume it has no surface.
        """
        box = self._box(mask)
        points, normals = _surface(mask[box], self.spacing_mm) if box else (np.empty((0, 3)), np.empty((0, 3)))
        if not len(points):
            return NO_SURFACE
        voxel_mm = 1 / np.sqrt(np.square(normals / self.spacing_mm).sum(1))
        reach_mm = np.maximum(REACH_MM, REACH_VOXELS * voxel_mm)
        steps = int(np.ceil((reach_mm / voxel_mm).max() / STEP_VOXELS))
        # profiles reach twice as far as the raw volume's edge may lie; u counts reaches, outwards
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
    """Points spread evenly over a mask's surface, in mm from the first voxel's centre, and outward normals: (n, 3)."""
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
    # in the middle of a sheet of one voxel the two sides' normals cancel
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
    """Place and height of the highest local maximum in the allowed part of each row; NaN and -inf without one.

    Args:
        slopes: (n, samples), with peaks upwards.
        allowed: bool, broadcastable to it.
        at_u: evenly spaced places of the samples.
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
