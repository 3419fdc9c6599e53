"""A line across a boundary, chosen on the raw image only, and the HU along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SMOOTHING_PIXELS = 2.0
"""In-plane Gaussian applied before slopes are computed, so that noise does not determine the place."""

ACROSS_MM = 4.0
"""Distance on both sides of the boundary at which the raw image must be within the HU window."""

HALF_LENGTH_MM = 15.0
SAMPLES = 241

BAND_MM, BAND_LINES = 4.0, 9
"""Total width and number of the parallel lines over which HU are averaged: on a single line, noise hides the edge."""


@dataclass(frozen=True)
class Line:
    """A line in a slice.

    Attributes:
        centre_mm: centre (y, x) from the slice's upper left corner.
        direction: unit vector (y, x), out of the lesion, or up the slope of the HU.
    """

    centre_mm: np.ndarray
    direction: np.ndarray

    @property
    def along_mm(self) -> np.ndarray:
        """Positions of the samples, 0 at the boundary."""
        return np.linspace(-HALF_LENGTH_MM, HALF_LENGTH_MM, SAMPLES)

    @property
    def ends_mm(self) -> np.ndarray:
        """Both ends (2, 2), each (y, x)."""
        return self.centre_mm + np.outer([-HALF_LENGTH_MM, HALF_LENGTH_MM], self.direction)

    def values(self, slice_hu: np.ndarray, pixel_mm: Sequence[float]) -> np.ndarray:
        """HU at ``along_mm`` of a slice (y, x), mean over a band of `BAND_MM`, linear between pixels; NaN outside."""
        beside = np.linspace(-BAND_MM / 2, BAND_MM / 2, BAND_LINES)[:, None, None] * self.direction[::-1] * (1, -1)
        at = (self.centre_mm + np.outer(self.along_mm, self.direction) + beside) / pixel_mm - 0.5
        lines = ndimage.map_coordinates(slice_hu.astype(np.float64), np.moveaxis(at, -1, 0), order=1, cval=np.nan)
        return lines.mean(axis=0)


def line_across(
    raw_hu: np.ndarray, lesion: np.ndarray, pixel_mm: Sequence[float], hu_window: tuple[float, float]
) -> Line:
    """The line across a lesion's boundary where the raw image is steepest, perpendicular to the outline.

    Places with values outside the HU window on one side (air, metal) are used only if there are no others. Without a
    lesion, the line goes up the steepest slope of the slice, by the same rule.

    Args:
        raw_hu: slice (y, x) in HU.
        lesion: mask, bool, same shape.
        pixel_mm: distance of rows and of columns.
        hu_window: HU window in which the slice is shown.
    """
    smooth_hu = ndimage.gaussian_filter(raw_hu.astype(np.float64), SMOOTHING_PIXELS, mode="nearest")
    slope = np.stack(np.gradient(smooth_hu, *pixel_mm), axis=-1)
    if lesion.any():
        inside, outside = (ndimage.distance_transform_edt(part, sampling=pixel_mm) for part in (lesion, ~lesion))
        signed_mm = ndimage.gaussian_filter(outside - inside, SMOOTHING_PIXELS, mode="nearest")
        course = np.stack(np.gradient(signed_mm, *pixel_mm), axis=-1)
        places = np.argwhere(lesion & ~ndimage.binary_erosion(lesion))
    else:
        course, places = slope, np.argwhere(np.ones_like(lesion))
    directions = course[tuple(places.T)]
    directions = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    steepness = np.abs((slope[tuple(places.T)] * directions).sum(axis=1))
    for side in (-ACROSS_MM, ACROSS_MM):
        beside = ndimage.map_coordinates(smooth_hu, (places + side * directions / pixel_mm).T, order=1, cval=np.inf)
        # below all others, but in the same order
        steepness = np.where((beside >= hu_window[0]) & (beside <= hu_window[1]), steepness, steepness - 1e6)
    best = int(steepness.argmax())
    return Line((places[best] + 0.5) * np.asarray(pixel_mm), directions[best])
