"""Putting a generated lesion into a real CT so that the rest of it stays what it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import round_to_int16

TEXTURES = ("scanner", "vae")


def margin_weight(lesion: np.ndarray, spacing_mm: Sequence[float], margin_mm: float) -> np.ndarray:
    """How much of a voxel is generated: 1 on the lesion, down to exactly 0 at the margin and beyond.

    Args:
        lesion: bool (z, y, x), not empty.
        spacing_mm: (z, y, x).
        margin_mm: distance from the nearest lesion voxel, centre to centre, at which the weight is 0.

    Returns:
        float32 (z, y, x): a raised cosine of the distance.
    """
    from scipy import ndimage

    if margin_mm <= 0:
        return lesion.astype(np.float32)
    distance = ndimage.distance_transform_edt(~lesion, sampling=spacing_mm)
    weight = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / margin_mm, 1))
    return np.where(distance < margin_mm, weight, 0).astype(np.float32)


def blend_lesion(
    raw_hu: np.ndarray,
    generated_hu: np.ndarray,
    reconstructed_hu: np.ndarray,
    lesion: np.ndarray,
    spacing_mm: Sequence[float],
    margin_mm: float,
    *,
    texture: str = "scanner",
) -> np.ndarray:
    """Blend what a model generated into the raw volume.

    ``scanner``: raw + w * (generated - reconstructed). Both come from the same decoder, so what the VAE gets wrong and
    the noise that it removes cancel: the lesion carries the scan's own noise. Without it a segmenter could find
    lesions by their smoothness. ``vae``: raw + w * (generated - raw), the lesion as the decoder gives it.

    Args:
        raw_hu: int16 (z, y, x).
        generated_hu, reconstructed_hu: decoded with and without the lesion, same shape.
        lesion: bool, same shape.
        spacing_mm: (z, y, x).
        margin_mm: see ``margin_weight``, which is w.
        texture: ``scanner`` or ``vae``.

    Returns:
        int16 (z, y, x), rounded to the nearest; where the weight is 0, the raw voxels.

    Raises:
        UserError: HU that do not fit int16, or an unknown texture.
    """
    if texture not in TEXTURES:
        raise UserError(f"the texture is {' or '.join(TEXTURES)}, got {texture!r}")
    weight = margin_weight(lesion, spacing_mm, margin_mm)
    changed = weight > 0
    raw = raw_hu[changed].astype(np.float64)
    without = reconstructed_hu[changed] if texture == "scanner" else raw
    blended = raw_hu.copy()
    blended[changed] = round_to_int16(raw + weight[changed] * (generated_hu[changed] - without))
    return blended
