"""Measure the appearance of a lesion: brightness, texture, rim, and consistency of neighbouring slices.

Real and synthetic lesions are measured in the same way. Most of the spread of HU in a lesion comes from its rim, which
is blurred into the surroundings; therefore texture is measured in the core.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import box_around
from fvae_nnunet.synthesis.lesions.texture import core_texture

CORE_DEPTH_MM = 4.0
"""Largest distance from the outside at which the core of a lesion begins."""

CORE_DEPTH = 2 / 3
"""Relative depth at which the core begins in small lesions, as a share of the depth of the deepest voxel. With a half,
3 mm slices at either end of a 10 mm lesion would be core, although a scanner blurs 60 HU of lung into them."""

RIM_MM = 2.0
"""Depth of the rim of a lesion of any size; one voxel if voxels are larger."""

RING_MM = 6.0
"""Width of the surroundings with which a lesion is compared."""

SHARED_VOXELS = 30
"""Smallest number of voxels that must be deep in both of two slices, so that a change between them is more than noise:
with noise of 20 HU their mean difference has a standard deviation of 5 HU."""

MEASURES = (
    "depth_mm",
    "mean_hu",
    "core_mean_hu",
    "core_sd_hu",
    "texture_sd_hu",
    "contrast_hu",
    "rim_hu",
    "slice_change_hu",
)


def lesion_core(lesion: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The inside of a lesion, without the rim that is blurred into the surroundings.

    Args:
        lesion: bool (z, y, x), not empty.
        spacing_mm: voxel size (z, y, x).

    Returns:
        bool (z, y, x), never empty: the voxels whose distance to the nearest voxel outside, centre to centre, is at
        least ``CORE_DEPTH_MM`` or ``CORE_DEPTH`` times the largest distance, whichever is less. A lesion at the border
        of the volume counts as continuing beyond it; one that fills the volume is all core.
    """
    box = box_around(lesion, max(spacing_mm), spacing_mm)
    core = np.zeros_like(lesion)
    core[box] = _core(_depth_mm(lesion[box], spacing_mm))
    return core


def _depth_mm(lesion: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distance to the nearest voxel outside; 0 outside, infinite if there is no voxel outside."""
    from scipy import ndimage

    if lesion.all():
        return np.full(lesion.shape, np.inf)
    return ndimage.distance_transform_edt(lesion, sampling=spacing_mm)


def _core(depth_mm: np.ndarray) -> np.ndarray:
    return depth_mm >= min(CORE_DEPTH_MM, CORE_DEPTH * depth_mm.max())


def surroundings_hu(
    volume_hu: np.ndarray, lesion: np.ndarray, surroundings: np.ndarray, spacing_mm: tuple[float, float, float]
) -> float | None:
    """Mean HU of the surroundings of a lesion.

    Args:
        volume_hu: (z, y, x).
        lesion: bool, not empty.
        surroundings: bool, voxels to compare with: the organ without lesions.
        spacing_mm: voxel size (z, y, x).

    Returns:
        The mean over the surroundings within ``RING_MM`` of the lesion, centre to centre; None if there are none.
    """
    from scipy import ndimage

    box = box_around(lesion, RING_MM, spacing_mm)
    near = ndimage.distance_transform_edt(~lesion[box], sampling=spacing_mm) <= RING_MM
    ring = near & surroundings[box] & ~lesion[box]
    return float(volume_hu[box][ring].mean(dtype=np.float64)) if ring.any() else None


def measure_lesion(
    volume_hu: np.ndarray, lesion: np.ndarray, surroundings: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, float | None]:
    """Compute the ``MEASURES`` of one lesion, rounded to two decimals.

    Args:
        volume_hu: (z, y, x).
        lesion: bool, not empty.
        surroundings: as for ``surroundings_hu``.
        spacing_mm: voxel size (z, y, x).

    Returns:
        * ``depth_mm``: distance of the deepest voxel to the nearest voxel outside.
        * ``mean_hu``: mean over the whole lesion.
        * ``core_mean_hu``, ``core_sd_hu``: mean and standard deviation in ``lesion_core``.
        * ``texture_sd_hu``: standard deviation of ``texture.core_texture`` in the core, which noise hardly affects.
        * ``contrast_hu``: mean of the core minus ``surroundings_hu``. The whole lesion is not used because the blurred
          rim makes up more of a small lesion than of a large one, so the same tissue would have another contrast.
        * ``rim_hu``: mean of the voxels up to ``RIM_MM`` deep minus that of the core.
        * ``slice_change_hu``: change of the lesion from one slice to the next, at a depth of at least
          ``CORE_DEPTH_MM``: root mean square, over all pairs of slices, of the mean difference of the voxels that are
          this deep in both (at least ``SHARED_VOXELS``), weighted by their number, minus the contribution of noise of
          this spread that is independent in each voxel. It is large for a lesion that flickers and small for a noisy
          one. Closer to the ends of a lesion, slices change because it ends.

        A measure is None if it is not defined: no voxel outside, no surroundings, or no two slices with enough voxels.
    """
    box = box_around(lesion, max(spacing_mm), spacing_mm)
    depth_mm = _depth_mm(lesion[box], spacing_mm)
    core = _core(depth_mm)
    hu = volume_hu[box].astype(np.float64)
    inside = lesion[box]
    rim = inside & (depth_mm <= max(RIM_MM, min(spacing_mm)))
    core_mean = hu[core].mean()
    around = surroundings_hu(volume_hu, lesion, surroundings, spacing_mm)
    measured = {
        "depth_mm": depth_mm.max() if rim.any() else None,
        "mean_hu": hu[inside].mean(),
        "core_mean_hu": core_mean,
        "core_sd_hu": hu[core].std(),
        "texture_sd_hu": core_texture(hu, core, spacing_mm)[core].std(),
        "contrast_hu": None if around is None else core_mean - around,
        "rim_hu": hu[rim].mean() - core_mean if rim.any() else None,
        "slice_change_hu": _slice_change(hu, depth_mm >= CORE_DEPTH_MM),
    }
    return {name: None if value is None else round(float(value), 2) for name, value in measured.items()}


def _slice_change(hu: np.ndarray, deep: np.ndarray) -> float | None:
    in_both = deep[1:] & deep[:-1]
    voxels = in_both.sum(axis=(1, 2))
    pairs = voxels >= SHARED_VOXELS
    if not pairs.any():
        return None
    # for each pair: the squared mean difference minus the variance of that mean
    n = voxels[pairs]
    difference = np.where(in_both, hu[1:] - hu[:-1], 0)[pairs]
    mean, square = difference.sum(axis=(1, 2)) / n, (difference**2).sum(axis=(1, 2)) / n
    change = np.average(mean**2 - (square - mean**2) / (n - 1), weights=n)
    return float(np.sqrt(max(0.0, change)))
