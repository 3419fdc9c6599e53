"""Insert a generated lesion into a real CT without changing the rest of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.ct.noise import MAD_TO_SD
from fvae_nnunet.ct.places import slopes
from fvae_nnunet.errors import UserError

TEXTURES = ("scanner", "vae")

NOISE_SDS = (2.5, 4.0)
"""Deviations, in standard deviations of the noise, from which residuals are reduced and removed; 1.2 % of noise exceeds
the first."""

NEAR_PIXELS = 9
"""Neighbourhood size along rows and columns: the error of a VAE at an edge extends about half a latent cell of 8 pixels
to either side."""


def margin_weight(lesion: np.ndarray, spacing_mm: Sequence[float], margin_mm: float) -> np.ndarray:
    """Weight of the generated image: 1 on the lesion, falling to exactly 0 at the margin and beyond.

    Args:
        lesion: bool (z, y, x), not empty.
        spacing_mm: voxel size (z, y, x).
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
    """Blend a generated lesion into the raw volume.

    ``scanner``: raw + w * (generated - reconstructed). Both come from the same decoder, so the errors of the VAE and
    the noise that it removes cancel: the lesion has the scan's own noise. Without it a segmenter could detect lesions
    by their smoothness. At edges that the lesion covers (bone, vessels, skin), however, the error of the VAE does not
    cancel: there the lesion gets only the noise in raw - reconstructed (``noise_of_residual``), and its margin w * w
    times this change.
    ``vae``: raw + w * (generated - raw), the lesion as the decoder returns it.

    Args:
        raw_hu: int16 (z, y, x).
        generated_hu, reconstructed_hu: decoded with and without the lesion, same shape.
        lesion: bool, same shape.
        spacing_mm: voxel size (z, y, x).
        margin_mm: see ``margin_weight``, which is w.
        texture: ``scanner`` or ``vae``.

    Returns:
        int16 (z, y, x), rounded to the nearest; the raw voxels where the weight is 0.

    Raises:
        UserError: HU do not fit int16, or the texture is unknown.
    """
    if texture not in TEXTURES:
        raise UserError(f"the texture must be {' or '.join(TEXTURES)}, got {texture!r}")
    weight = margin_weight(lesion, spacing_mm, margin_mm)
    changed = weight > 0
    raw = raw_hu[changed].astype(np.float64)
    without = reconstructed_hu[changed] if texture == "scanner" else raw
    share = weight[changed]
    new = raw + share * (generated_hu[changed] - without)
    if texture == "scanner":
        residual_hu = raw - without
        vanished = _vanished_edges(generated_hu, reconstructed_hu)
        noise_hu = noise_of_residual(residual_hu, vanished[changed], lesion[changed])
        new += share**2 * (noise_hu - residual_hu)
    blended = raw_hu.copy()
    blended[changed] = round_to_int16(new)
    return blended


def noise_of_residual(residual_hu: np.ndarray, vanished: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The noise that a VAE removed from an image, without its errors at edges that the lesion replaces.

    Args:
        residual_hu: raw minus reconstructed, any shape, float.
        vanished: bool, same shape: voxels near such edges.
        lesion: bool, same shape: median and spread (by the median absolute deviation) are computed in it.

    Returns:
        The residual; near vanished edges, deviations from the median above ``NOISE_SDS[0]`` standard deviations are
        reduced progressively, to none from ``NOISE_SDS[1]`` on (Hampel 1974).
    """
    middle = np.median(residual_hu[lesion])
    off = residual_hu - middle
    sd = MAD_TO_SD * np.median(np.abs(off[lesion]))
    if sd == 0:
        return residual_hu
    least, most = NOISE_SDS[0] * sd, NOISE_SDS[1] * sd
    return np.where(vanished, middle + off * np.clip((most - np.abs(off)) / (most - least), 0, 1), residual_hu)


def _vanished_edges(generated_hu: np.ndarray, reconstructed_hu: np.ndarray) -> np.ndarray:
    """bool: the steepest nearby slope is less than half of what it was. At an edge that remains, beside the lesion, the
    VAE has the same error as before."""
    from scipy import ndimage

    now, before = (
        ndimage.maximum_filter(slopes(volume_hu), size=(1, NEAR_PIXELS, NEAR_PIXELS))
        for volume_hu in (generated_hu, reconstructed_hu)
    )
    return np.asarray(now < before / 2)
