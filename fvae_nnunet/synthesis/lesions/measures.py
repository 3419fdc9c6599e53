"""What a lesion looks like in numbers: how bright, how textured, how its rim and its neighbouring slices fit.

Real and synthetic lesions are measured alike. Most of a lesion's spread in HU comes from its rim, where it is blurred
into its surroundings; so texture is measured in the core.
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.ct.boxes import box_around
from fvae_nnunet.synthesis.lesions.texture import core_texture

CORE_DEPTH_MM = 4.0
"""So far from the outside, at most, the core of a lesion begins,"""

CORE_DEPTH = 2 / 3
"""or at this share of the depth of its deepest voxel. With half of it slices of 3 mm at either end of a lesion of 10 mm
were core, where a scanner blurs 60 HU of lung into them."""

RIM_MM = 2.0
"""How deep the rim of a lesion reaches, or one voxel where voxels are larger. It is as deep in small and large ones."""

RING_MM = 6.0
"""How far the surroundings of a lesion reach that it is compared with."""

SHARED_VOXELS = 30
"""So many voxels at least must be deep in both of two slices for a change between them to be more than noise: of noise
of 20 HU their mean difference has a standard deviation of 5 HU."""

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
        spacing_mm: (z, y, x).

    Returns:
        bool (z, y, x), never empty: the voxels whose distance to the nearest voxel outside, centre to centre, is at
        least `CORE_DEPTH_MM` or `CORE_DEPTH` of the greatest distance, whichever is less. A lesion that reaches the
        border of the volume counts as going on beyond it; one that fills the volume is all core.
    """
    box = box_around(lesion, max(spacing_mm), spacing_mm)
    core = np.zeros_like(lesion)
    core[box] = _core(_depth_mm(lesion[box], spacing_mm))
    return core


def _depth_mm(lesion: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distance to the nearest voxel outside; 0 there, infinite where there is none."""
    from scipy import ndimage

    if lesion.all():
        return np.full(lesion.shape, np.inf)
    return ndimage.distance_transform_edt(lesion, sampling=spacing_mm)


def _core(depth_mm: np.ndarray) -> np.ndarray:
    return depth_mm >= min(CORE_DEPTH_MM, CORE_DEPTH * depth_mm.max())


def surroundings_hu(
    volume_hu: np.ndarray, lesion: np.ndarray, surroundings: np.ndarray, spacing_mm: tuple[float, float, float]
) -> float | None:
    """Mean of what surrounds a lesion.

    Args:
        volume_hu: (z, y, x).
        lesion: bool, not empty.
        surroundings: bool, what it may be compared with: the organ without lesions.
        spacing_mm: (z, y, x).

    Returns:
        The mean over the surroundings within `RING_MM` of the lesion, centre to centre; None where there are none.
    """
    from scipy import ndimage

    box = box_around(lesion, RING_MM, spacing_mm)
    near = ndimage.distance_transform_edt(~lesion[box], sampling=spacing_mm) <= RING_MM
    ring = near & surroundings[box] & ~lesion[box]
    return float(volume_hu[box][ring].mean(dtype=np.float64)) if ring.any() else None


def measure_lesion(
    volume_hu: np.ndarray, lesion: np.ndarray, surroundings: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, float | None]:
    """`MEASURES` of one lesion, rounded to two places.

    Args:
        volume_hu: (z, y, x).
        lesion: bool, not empty.
        surroundings: as of ``surroundings_hu``.
        spacing_mm: (z, y, x).

    Returns:
        * ``depth_mm``: distance of the deepest voxel to the nearest voxel outside.
        * ``mean_hu``: mean over the whole lesion.
        * ``core_mean_hu``, ``core_sd_hu``: mean and standard deviation in ``lesion_core``.
        * ``texture_sd_hu``: standard deviation there of ``texture.core_texture``, in which noise plays little part.
        * ``contrast_hu``: the core's mean minus ``surroundings_hu``. Not the lesion's: its rim, blurred into the
          surroundings, makes up more of a small lesion than of a large one, so the same tissue would have another
          contrast.
        * ``rim_hu``: mean of what lies up to `RIM_MM` deep minus the core's.
        * ``slice_change_hu``: how much the lesion changes from a slice to the next, `CORE_DEPTH_MM` and more inside it:
          root mean square over all pairs of slices of the mean difference of the voxels that lie so deep in both
          (`SHARED_VOXELS` at least), weighted by their number, without what noise of this spread, independent in each
          voxel, adds to it. A lesion that flickers has much, a noisy one little. Nearer to the ends of a lesion slices
          change because it ends.

        None where there is nothing to measure: nothing outside, no surroundings, no two slices with so many voxels.
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
    # of each pair the squared mean difference, minus the variance of that mean
    n = voxels[pairs]
    difference = np.where(in_both, hu[1:] - hu[:-1], 0)[pairs]
    mean, square = difference.sum(axis=(1, 2)) / n, (difference**2).sum(axis=(1, 2)) / n
    change = np.average(mean**2 - (square - mean**2) / (n - 1), weights=n)
    return float(np.sqrt(max(0.0, change)))
