"""The texture of a lesion: the variation that remains in its core after smoothing.

The standard deviation of a core is mostly scan noise, so it cannot be transferred from a noisy scan to a clean one.
After smoothing by 2 mm, noise of 20 HU in voxels of 1 x 1 x 3 mm is reduced to 2 HU; of the 10 to 44 HU in the cores of
the project's 24 sarcomas, 3 to 26 HU remain (median 9).
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.synthesis.lesions.smoothing import fill_from

_GRAINS_MM = ((2.0, 0.5), (12.0, 0.5))
"""Standard deviation of each Gaussian that smooths white noise, and its share of the variance. After ``core_texture``
the in-plane autocorrelations at 2, 4, 8 and 16 mm are 0.94, 0.82, 0.56 and 0.29; the medians of the 24 sarcomas are
0.92, 0.79, 0.57 and 0.33."""

_FLAT = 1e-4
"""Smaller standard deviations, relative to a field with 1, are rounding."""

_GREATEST = 4.0
"""Number of standard deviations at which a texture is clipped: around a core of two or three voxels it would be much
stronger than inside."""


def core_texture(volume_hu: np.ndarray, core: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The core of a volume smoothed by a Gaussian of 2 mm and extrapolated outwards, minus the mean of the core.

    Args:
        volume_hu: (z, y, x); only voxels of the core are used.
        core: bool, same shape, not empty; see ``lesions.measures.lesion_core``.
        spacing_mm: voxel size (z, y, x).

    Returns:
        float32, same shape, with a mean of 0 in the core; 0 far from the core.
    """
    texture_hu = volume_hu.astype(np.float32)
    reached = fill_from(texture_hu, np.ones_like(core), core, spacing_mm)
    return np.where(reached, texture_hu - texture_hu[core].mean(dtype=np.float64), 0).astype(np.float32)


def drawn_texture(
    rng: np.random.Generator, core: np.ndarray, spacing_mm: tuple[float, float, float], sd_hu: float
) -> np.ndarray:
    """Draw a random texture like that of ``core_texture``, with a given standard deviation in the core.

    It is 0 everywhere if the core is too small for a texture, such as a single voxel.

    Args:
        rng: source of all random draws.
        core, spacing_mm: as for ``core_texture``.
        sd_hu: standard deviation in the core, not negative.
    """
    from scipy import ndimage

    field = np.zeros(core.shape, np.float32)
    for sigma_mm, share in _GRAINS_MM:
        grain = ndimage.gaussian_filter(rng.standard_normal(core.shape, np.float32), sigma_mm / np.asarray(spacing_mm))
        field += np.sqrt(share) * grain / grain.std()
    texture = core_texture(field, core, spacing_mm)
    sd = texture[core].std()
    if sd < _FLAT:
        return np.zeros_like(texture)
    return (texture * np.float32(sd_hu / sd)).clip(-_GREATEST * sd_hu, _GREATEST * sd_hu)
