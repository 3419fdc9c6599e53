"""The noise of a CT scan with few photons, by way of its sinogram.

Each slice is projected in parallel beams, photons are counted behind it (Poisson), and what the counts are off in the
line integrals is reconstructed by filtered back-projection. Only this error is reconstructed and added, so that the
image itself keeps its resolution. Its noise then has the ramp-like spectrum of a scanner's, is largest in the middle of
the body, and streaks along the paths with the least photons (shoulders, hips, metal).

Left out: the beam's spectrum, scatter, electronic noise, bow-tie filters, the correlation of slices, and all that lies
outside of the image, which counts as air: the dose is therefore best told by the noise that it makes
(``photons_for_noise``).
"""

from __future__ import annotations

import numpy as np
from skimage.transform import iradon, radon

from fvae_nnunet.ct.noise import evenly_spread, homogeneous_region
from fvae_nnunet.errors import UserError

WATER_PER_MM = 0.0193
"""Linear attenuation coefficient of water at 70 keV, about the mean of a beam of 120 kV (NIST XCOM: 0.193 / cm)."""

FILTER = "cosine"
"""Of the back-projection (``skimage.transform.iradon``): half the ramp's response at two thirds of the pixel's Nyquist
frequency, as a standard body kernel."""

TRIAL_PHOTONS = 1e6
TRIAL_SLICES = 4


def photon_noise_hu(
    axial_hu: np.ndarray, pixel_mm: float, *, photons: float, rng: np.random.Generator, views: int | None = None
) -> np.ndarray:
    """What a scan with so many photons would add to the image.

    Args:
        axial_hu: (z, y, x) in HU, any real dtype. Below -1000 HU there is no attenuation.
        pixel_mm: of rows and columns.
        photons: that reach each detector pixel in each view where nothing is in the way.
        rng: each slice draws its own.
        views: angles of projection over 180 degrees; by default as many as the larger of rows and columns.

    Returns:
        Float32 (z, y, x) in HU. Its variance falls as 1 / ``photons`` and as 1 / ``views``. Without slices, none.

    Raises:
        UserError: not three axes, or no photons.
    """
    if axial_hu.ndim != 3:
        raise UserError(f"a CT has three axes (z, y, x), got shape {axial_hu.shape}")
    if not 0 < photons < np.inf or not pixel_mm > 0:
        raise UserError(f"photons and pixels must be positive, got {photons:g} photons and {pixel_mm:g} mm")
    size = max(axial_hu.shape[1:])
    angles = np.linspace(0, 180, views or size, endpoint=False)
    noise_hu = np.empty(axial_hu.shape, np.float32)
    for noise, plane_hu in zip(noise_hu, axial_hu, strict=True):
        padded_hu = np.full((size, size), -1000, np.float32)
        padded_hu[: plane_hu.shape[0], : plane_hu.shape[1]] = plane_hu
        attenuation = WATER_PER_MM * pixel_mm * np.maximum(1 + padded_hu / 1000, 0)
        integrals = radon(attenuation, angles, circle=False, preserve_range=True)
        error = iradon(line_errors(integrals, photons, rng), angles, size, FILTER, circle=False)
        noise[:] = 1000 / (WATER_PER_MM * pixel_mm) * error[: plane_hu.shape[0], : plane_hu.shape[1]]
    return noise_hu


def line_errors(integrals: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """What counting photons adds to line integrals of attenuation: any shape, natural logarithm, float64.

    Where no photon arrives, one is taken to have (so that the logarithm exists), as scanners do.
    """
    counts = rng.poisson(photons * np.exp(-integrals))
    return np.asarray(np.log(photons / np.maximum(counts, 1)) - integrals)


def photons_for_noise(axial_hu: np.ndarray, pixel_mm: float, sd_hu: float) -> float:
    """With how many photons the noise in soft tissue has this standard deviation.

    Measured with ``TRIAL_PHOTONS`` photons in flat soft tissue of ``TRIAL_SLICES`` slices, and scaled: the variance
    falls as the inverse of the photons as long as enough of them arrive.

    Args:
        axial_hu: (z, y, x) in HU.
        pixel_mm: of rows and columns.
        sd_hu: the noise that is wanted, in HU.

    Raises:
        UserError: no soft tissue (``ct.noise.homogeneous_region``) in the image, or no noise is wanted.
    """
    if not 0 < sd_hu < np.inf:
        raise UserError(f"noise must be above 0 HU, got {sd_hu:g}")
    slices_hu = axial_hu[evenly_spread(len(axial_hu), TRIAL_SLICES)]
    region = homogeneous_region(slices_hu)
    if not region.any():
        raise UserError("no soft tissue in the image, by which the dose could be told")
    rng = np.random.default_rng(0)
    noise_hu = photon_noise_hu(slices_hu, pixel_mm, photons=TRIAL_PHOTONS, rng=rng)
    return float(TRIAL_PHOTONS * noise_hu[region].var() / sd_hu**2)


def low_dose_hu(
    axial_hu: np.ndarray, pixel_mm: float, dose: float, *, own_noise_hu: float, rng: np.random.Generator
) -> np.ndarray:
    """The image at a fraction of its dose.

    A scan of which a share d of the photons is counted has 1 / d of the variance; the image has its own part of it
    already, so what is added is the noise of d / (1 - d) times the photons (thinning of Poisson counts, in the limit
    of many).

    Args:
        axial_hu: (z, y, x) in HU.
        pixel_mm: of rows and columns.
        dose: above 0, at most 1; 1 gives the image itself.
        own_noise_hu: standard deviation of the image's noise in soft tissue, as ``ct.noise`` measures it.
        rng: decides the noise.

    Returns:
        Float32 (z, y, x) in HU, not rounded.

    Raises:
        UserError: another dose, or as ``photon_noise_hu`` and ``photons_for_noise``.
    """
    if not 0 < dose <= 1:
        raise UserError(f"a dose is a fraction above 0 and at most 1, got {dose:g}")
    image_hu = axial_hu.astype(np.float32)
    if dose == 1:
        return image_hu
    photons = photons_for_noise(axial_hu, pixel_mm, own_noise_hu) * dose / (1 - dose)
    return image_hu + photon_noise_hu(axial_hu, pixel_mm, photons=photons, rng=rng)
