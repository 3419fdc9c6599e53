"""The texture of a lesion: what is left of its core when it is smoothed.

The standard deviation of a core is mostly the scan's noise: in a clean scan a lesion cannot have that of one in a noisy
scan. Smoothed by 2 mm, noise of 20 HU in voxels of 1 x 1 x 3 mm has 2 HU left, and of the project's 24 sarcomas, whose
cores have 10 to 44 HU, 3 to 26 HU are left (median 9).
"""

from __future__ import annotations

import numpy as np

from fvae_nnunet.synthesis.lesions.smoothing import fill_from

_GRAINS_MM = ((2.0, 0.5), (12.0, 0.5))
"""Standard deviation of the Gaussian that white noise is smoothed with, and its share of the variance. Behind
``core_texture`` in-plane autocorrelations are then 0.94, 0.82, 0.56 and 0.29 at 2, 4, 8 and 16 mm; of the 24 sarcomas
they have the medians 0.92, 0.79, 0.57 and 0.33."""

_FLAT = 1e-4
"""Less than this, of a field with a standard deviation of 1, is rounding."""

_GREATEST = 4.0
"""Standard deviations off the mean, beyond which a texture is cut off: around a core of two or three voxels it would
be much stronger than in it."""


def core_texture(volume_hu: np.ndarray, core: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The volume as its core alone says, smoothed by a Gaussian of 2 mm and carried on outwards, minus the core's mean.

    Args:
        volume_hu: (z, y, x).
        core: bool, same shape, not empty; see ``lesions.measures.lesion_core``.
        spacing_mm: (z, y, x).

    Returns:
        float32, same shape; its mean in the core is 0. Far from the core it is 0.
    """
    texture_hu = volume_hu.astype(np.float32)
    reached = fill_from(texture_hu, np.ones_like(core), core, spacing_mm)
    return np.where(reached, texture_hu - texture_hu[core].mean(dtype=np.float64), 0).astype(np.float32)


def drawn_texture(
    rng: np.random.Generator, core: np.ndarray, spacing_mm: tuple[float, float, float], sd_hu: float
) -> np.ndarray:
    """A random texture, as that of ``core_texture``, with this standard deviation in the core; 0 where the core is a
    single voxel or is otherwise too small to have one.

    Args:
        rng: decides everything random.
        core, spacing_mm: as of ``core_texture``.
        sd_hu: not negative.
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
