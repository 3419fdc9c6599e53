"""Simulate the noise of a low-dose CT scan through its sinogram.

Each slice is projected with parallel beams, the photons behind it are counted (Poisson), and the resulting error of the
line integrals is reconstructed by filtered back-projection. Only this error is reconstructed and added, so the image
keeps its resolution. The noise has the ramp-like spectrum of scanner noise, is largest in the middle of the body, and
forms streaks along the paths with the fewest photons (shoulders, hips, metal).

Not modelled: the beam spectrum, scatter, electronic noise, bow-tie filters, the correlation of slices, and anything
outside the image, which counts as air. The dose is therefore best specified by the noise it causes
(``photons_for_noise``).
"""

from __future__ import annotations

import numpy as np
from skimage.transform import iradon, radon

from fvae_nnunet.ct.noise import evenly_spread, homogeneous_region
from fvae_nnunet.errors import UserError

WATER_PER_MM = 0.0193
"""Linear attenuation coefficient of water at 70 keV, about the mean energy at 120 kV (NIST XCOM: 0.193 / cm)."""

FILTER = "cosine"
"""Filter of the back-projection (``skimage.transform.iradon``): half the response of a ramp at two thirds of the
pixel's Nyquist frequency, like a standard body kernel."""

TRIAL_PHOTONS = 1e6
TRIAL_SLICES = 4


def photon_noise_hu(
    axial_hu: np.ndarray, pixel_mm: float, *, photons: float, rng: np.random.Generator, views: int | None = None
) -> np.ndarray:
    """The noise that a scan with a given number of photons would add to an image.

    Args:
        axial_hu: (z, y, x) in HU, any real dtype. Below -1000 HU there is no attenuation.
        pixel_mm: distance of rows and of columns.
        photons: number of photons that reach each detector pixel in each view without an object.
        rng: source of the noise, drawn independently for each slice.
        views: number of projection angles over 180 degrees; default: the larger of rows and columns.

    Returns:
        Float32 (z, y, x) in HU, empty without slices. The variance falls as 1 / ``photons`` and as 1 / ``views``.

    Raises:
        UserError: the image does not have three axes, or photons or pixel size are not positive.
    """
    if axial_hu.ndim != 3:
        raise UserError(f"a CT must have three axes (z, y, x), got shape {axial_hu.shape}")
    if not 0 < photons < np.inf or not pixel_mm > 0:
        raise UserError(f"photons and pixel size must be positive, got {photons:g} photons and {pixel_mm:g} mm")
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
    """The error that photon counting adds to line integrals of attenuation (natural logarithm): any shape, float64.

    Where no photon arrives, one is assumed, so that the logarithm exists, as scanners do.
    """
    counts = rng.poisson(photons * np.exp(-integrals))
    return np.asarray(np.log(photons / np.maximum(counts, 1)) - integrals)


def photons_for_noise(axial_hu: np.ndarray, pixel_mm: float, sd_hu: float) -> float:
    """The number of photons with which the noise in soft tissue has a given standard deviation.

    The noise is measured with ``TRIAL_PHOTONS`` photons in flat soft tissue of ``TRIAL_SLICES`` slices and scaled: the
    variance is inversely proportional to the number of photons as long as enough of them arrive.

    Args:
        axial_hu: (z, y, x) in HU.
        pixel_mm: distance of rows and of columns.
        sd_hu: standard deviation of the noise in HU, above 0.

    Raises:
        UserError: the image has no soft tissue (``ct.noise.homogeneous_region``), or ``sd_hu`` is not above 0.
    """
    if not 0 < sd_hu < np.inf:
        raise UserError(f"noise must be above 0 HU, got {sd_hu:g}")
    slices_hu = axial_hu[evenly_spread(len(axial_hu), TRIAL_SLICES)]
    region = homogeneous_region(slices_hu)
    if not region.any():
        raise UserError("the image has no soft tissue, so the dose cannot be determined from its noise")
    rng = np.random.default_rng(0)
    noise_hu = photon_noise_hu(slices_hu, pixel_mm, photons=TRIAL_PHOTONS, rng=rng)
    return float(TRIAL_PHOTONS * noise_hu[region].var() / sd_hu**2)


def low_dose_hu(
    axial_hu: np.ndarray, pixel_mm: float, dose: float, *, own_noise_hu: float, rng: np.random.Generator
) -> np.ndarray:
    """Simulate the image at a fraction of its dose.

    With a share d of the photons the variance of the noise is 1 / d times that of the image. Because the image already
    has its own noise, the noise of d / (1 - d) times the photons is added (thinning of Poisson counts, in the limit of
    many).

    Args:
        axial_hu: (z, y, x) in HU.
        pixel_mm: distance of rows and of columns.
        dose: fraction of the dose, above 0 and at most 1; 1 returns the image itself.
        own_noise_hu: standard deviation of the image's noise in soft tissue, as measured by ``ct.noise``.
        rng: source of the noise.

    Returns:
        Float32 (z, y, x) in HU, not rounded.

    Raises:
        UserError: the dose is out of range, or as for ``photon_noise_hu`` and ``photons_for_noise``.
    """
    if not 0 < dose <= 1:
        raise UserError(f"the dose must be a fraction above 0 and at most 1, got {dose:g}")
    image_hu = axial_hu.astype(np.float32)
    if dose == 1:
        return image_hu
    photons = photons_for_noise(axial_hu, pixel_mm, own_noise_hu) * dose / (1 - dose)
    return image_hu + photon_noise_hu(axial_hu, pixel_mm, photons=photons, rng=rng)
