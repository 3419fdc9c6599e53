"""The part of a volume that a model sees around a lesion, on the model's grid, and the way back.

A model was trained on windows of slices and squares of pixels of a certain size and, if it says so, a certain spacing.
All arrays are axial, (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.synthesis.placement import Box
from fvae_nnunet.windows import slice_windows

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.synthesis.model import LatentDiffusion


@dataclass(frozen=True)
class Crop:
    """A box of a volume, and the size of the grid on which the model sees it.

    Attributes:
        box: of the volume.
        model_shape: (z, y, x) of the model's grid; equal to the box's where the model has no spacing of its own.
    """

    box: Box
    model_shape: tuple[int, int, int]

    @classmethod
    def around(
        cls,
        region: Box,
        volume_shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        model_spacing_mm: Sequence[float] | None,
        window_slices: int,
        inplane_pixels: int,
    ) -> Crop:
        """As much as the model sees at once, with the region in its middle as far as the volume's borders allow.

        It is larger where the region is, and smaller where the volume is.
        """
        sides, model_shape = [], []
        steps = spacing_mm if model_spacing_mm is None else model_spacing_mm
        sizes = (window_slices, inplane_pixels, inplane_pixels)
        for side, n, own, step, size in zip(region, volume_shape, spacing_mm, steps, sizes, strict=True):
            length = min(n, max(side.stop - side.start, int(np.floor(size * step / own + 1e-6)), 1))
            start = min(max(0, (side.start + side.stop - length) // 2), n - length)
            sides.append(slice(start, start + length))
            model_shape.append(length if step == own else max(1, round(length * own / step)))
        return cls((sides[0], sides[1], sides[2]), (model_shape[0], model_shape[1], model_shape[2]))

    @classmethod
    def whole(
        cls, volume_shape: Sequence[int], spacing_mm: Sequence[float], model_spacing_mm: Sequence[float] | None
    ) -> Crop:
        """The whole volume."""
        z, y, x = volume_shape
        return cls.around(
            (slice(0, z), slice(0, y), slice(0, x)),
            volume_shape,
            spacing_mm,
            model_spacing_mm=model_spacing_mm,
            window_slices=1,
            inplane_pixels=1,
        )

    def to_model(self, array: np.ndarray, *, order: int) -> np.ndarray:
        """The box of a volume on the model's grid; order 1 for HU (linear), 0 for masks (nearest)."""
        return resampled(array[self.box], self.model_shape, order=order)

    def from_model(self, array: np.ndarray) -> np.ndarray:
        """HU on the model's grid on the grid of the box, linear."""
        return resampled(array, [side.stop - side.start for side in self.box], order=1)


def resampled(array: np.ndarray, shape: Sequence[int], *, order: int) -> np.ndarray:
    """An array on another number of voxels over the same extent; the same array where the number is the same.

    HU that get fewer are smoothed before (a Gaussian of half the ratio minus one, in voxels), or noise would be folded
    into them.
    """
    from scipy import ndimage

    if tuple(shape) == array.shape:
        return array
    ratios = np.asarray(array.shape) / np.asarray(shape)
    if order > 0:
        sigma = np.maximum(0, (ratios - 1) / 2)
        array = ndimage.gaussian_filter(array.astype(np.float32), sigma, mode="nearest")
    # voxel i of the new grid has its centre at (i + 1/2) * ratio - 1/2 on the old one
    return ndimage.affine_transform(
        array, ratios, offset=(ratios - 1) / 2, output_shape=tuple(shape), order=order, mode="nearest"
    )


def inpaint(
    model: LatentDiffusion,
    volume_hu: np.ndarray,
    class_map: np.ndarray,
    region: np.ndarray,
    *,
    generator: torch.Generator,
    **sampling: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """``model.inpaint`` for any number of slices.

    Where they are more than the model's window, windows that overlap by half go over them one after the other: each
    keeps the slices that the one before has generated, and goes on from them.

    Args:
        model: with its settings.
        volume_hu, class_map, region: of one shape, on the model's grid.
        generator: all noise comes from it.
        sampling: further arguments of ``model.inpaint``.

    Returns:
        generated and reconstructed HU, float32, as of ``model.inpaint``.
    """
    window = model.settings.window_slices
    working = volume_hu.astype(np.float32)
    generated, reconstructed = working.copy(), working.copy()
    done = 0
    for start, stop in slice_windows(len(working), window, 0 if len(working) <= window else window // 2):
        # the last one is moved back, so that it is as long as the others
        start = max(0, min(start, len(working) - window))
        fresh = region[start:stop].copy()
        fresh[: max(0, done - start)] = False
        if fresh.any():
            with_lesion, without = model.inpaint(
                working[start:stop], class_map[start:stop], fresh, generator=generator, **sampling
            )
            new = slice(max(0, done - start), None)
            target = slice(max(start, done), stop)
            generated[target], reconstructed[target] = with_lesion[new], without[new]
            working[target] += np.where(fresh[new], with_lesion[new] - without[new], 0)
        done = stop
    return generated, reconstructed
