"""Resample volumes to the grid of a model with its own spacing, and back. All arrays are axial, (z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fvae_nnunet.ct.boxes import Box
    from fvae_nnunet.synthesis.model.layout import Layout


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """The shape with the same extent at another spacing, at least one voxel along each axis."""
    return tuple(
        max(1, round(n * step / new_step)) for n, step, new_step in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )


def padded_behind(array: np.ndarray, shape: Sequence[int], inplane: int = 0) -> np.ndarray:
    """Pad an array at the end to a shape: the last slice is repeated, in-plane a constant is used."""
    beyond, *sides = (more - n for more, n in zip(shape, array.shape, strict=True))
    array = np.pad(array, ((0, beyond), (0, 0), (0, 0)), mode="edge")
    return np.pad(array, ((0, 0), (0, sides[0]), (0, sides[1])), constant_values=inplane)


@dataclass(frozen=True)
class ModelGrid:
    """The grid of a whole volume, the same in training and in synthesis.

    Attributes:
        volume_shape: shape of the volume (z, y, x).
        spacing_mm: voxel size of the volume (z, y, x).
        model_spacing_mm: voxel size of the model; None: volumes are not resampled, and all methods return their input.
    """

    volume_shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    model_spacing_mm: tuple[float, float, float] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the volume on the model's grid."""
        if self.model_spacing_mm is None:
            return self.volume_shape
        return resampled_shape(self.volume_shape, self.spacing_mm, self.model_spacing_mm)

    def volume(self, volume_hu: np.ndarray) -> np.ndarray:
        """Resample a volume of HU to the model's grid: linear, int16."""
        if self.shape == self.volume_shape and volume_hu.dtype == np.int16:
            return volume_hu
        return np.rint(resampled(volume_hu, self.shape, order=1)).astype(np.int16)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Resample a mask to the model's grid: nearest neighbour, same dtype."""
        return resampled(mask, self.shape, order=0)

    def layout(self, layout: Layout) -> Layout:
        """Resample a layout to the model's grid."""
        return replace(
            layout,
            class_map=self.mask(layout.class_map),
            lesion_numbers=self.mask(layout.lesion_numbers),
            spacing_mm=self.model_spacing_mm or layout.spacing_mm,
        )

    def region(self, box: Box) -> Box:
        """The voxels of the model's grid that are needed to interpolate a box of the volume."""
        sides = []
        for side, n, new in zip(box, self.volume_shape, self.shape, strict=True):
            first, last = ((index + 0.5) * new / n - 0.5 for index in (side.start, side.stop - 1))
            sides.append(slice(max(0, int(np.floor(first))), min(new, int(np.ceil(last)) + 1)))
        return sides[0], sides[1], sides[2]

    def back(self, values_hu: np.ndarray, of: Box, box: Box) -> np.ndarray:
        """Resample values from the model's grid to a box of the volume: linear, float32.

        They are smoothed before if the volume's voxels are larger, as in ``resampled``.

        Args:
            values_hu: float32 values in the box ``of`` of the model's grid.
            of: box of the model's grid, which must contain ``region(box)``.
            box: box of the volume.
        """
        from scipy import ndimage

        if self.shape == self.volume_shape:
            within = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, of, strict=True))
            return values_hu[within].astype(np.float32)
        ratios = np.asarray(self.shape) / np.asarray(self.volume_shape)
        return ndimage.affine_transform(
            _smoothed(values_hu, ratios),
            ratios,
            offset=[(s.start + 0.5) * ratio - 0.5 - o.start for s, o, ratio in zip(box, of, ratios, strict=True)],
            output_shape=tuple(side.stop - side.start for side in box),
            order=1,
            mode="nearest",
        )


def resampled(array: np.ndarray, shape: Sequence[int], *, order: int) -> np.ndarray:
    """Resample an array to another shape over the same extent; returns the same array if the shape does not change.

    With ``order`` above 0, axes that get fewer voxels are smoothed before, to avoid aliasing of noise.
    """
    from scipy import ndimage

    if tuple(shape) == array.shape:
        return array
    ratios = np.asarray(array.shape) / np.asarray(shape)
    if order > 0:
        array = _smoothed(array, ratios)
    # the centre of voxel i of the new grid is at (i + 1/2) * ratio - 1/2 on the old one
    return ndimage.affine_transform(
        array, ratios, offset=(ratios - 1) / 2, output_shape=tuple(shape), order=order, mode="nearest"
    )


def _smoothed(array: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Smooth with a Gaussian of (ratio - 1) / 2 voxels, as float32; axes that become finer are not smoothed."""
    from scipy import ndimage

    return ndimage.gaussian_filter(array.astype(np.float32), np.maximum(0, (ratios - 1) / 2), mode="nearest")
