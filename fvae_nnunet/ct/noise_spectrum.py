"""Measure the noise power spectrum of a CT volume in flat soft tissue: the noise power at each spatial frequency.

As in ICRU Report 87 (J ICRU 12:1, 2012): the squared Fourier transform of square regions without anatomy, scaled so
that its integral over both frequencies is the variance of the noise, is averaged over rings of equal frequency. A
second-order polynomial is subtracted from each region first, to remove slow changes of brightness. A Hann window keeps
remaining low frequencies from leaking into high ones, where a smoothed image has a thousandth of their power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

REGION_PIXELS = 16
"""Edge length of a region."""

MOST_REGIONS = 200

FLAT_SHARE = 0.6
"""Minimum homogeneous share of a region; the polynomial removes remaining anatomy."""


@dataclass(frozen=True)
class NoiseSpectrum:
    """A radial spectrum.

    Attributes:
        frequency_per_mm: (n,), cycles per mm, rising to half a cycle per pixel.
        power_hu2_mm2: (n,), in HU² mm².
    """

    frequency_per_mm: np.ndarray
    power_hu2_mm2: np.ndarray


def flat_regions(region: np.ndarray) -> list[tuple[int, int, int]]:
    """Squares of ``REGION_PIXELS`` with little anatomy: slice, first row and first column of each.

    The squares are tiles of the slices; if there are more than ``MOST_REGIONS``, the most homogeneous ones are kept.

    Args:
        region: bool (z, y, x), output of ``ct.noise.homogeneous_region`` for the raw volume.
    """
    _, rows, columns = region.shape
    down, across = rows // REGION_PIXELS, columns // REGION_PIXELS
    tiles = region[:, : down * REGION_PIXELS, : across * REGION_PIXELS]
    share = tiles.reshape(len(region), down, REGION_PIXELS, across, REGION_PIXELS).mean(axis=(2, 4))
    places = np.argwhere(share >= FLAT_SHARE)
    best = np.argsort(-share[tuple(places.T)], kind="stable")[:MOST_REGIONS]
    return [(z, y * REGION_PIXELS, x * REGION_PIXELS) for z, y, x in places[best].tolist()]


def noise_spectrum(
    volume_hu: np.ndarray, regions: Sequence[tuple[int, int, int]], pixel_mm: Sequence[float]
) -> NoiseSpectrum:
    """Measure the mean radial spectrum of regions.

    Args:
        volume_hu: (z, y, x) in HU.
        regions: output of ``flat_regions`` for the raw volume, at least one; use the same for raw volume and view.
        pixel_mm: distance between rows, and between columns.
    """
    y_mm, x_mm = pixel_mm
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : REGION_PIXELS * 1j, -1 : 1 : REGION_PIXELS * 1j])
    slow, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    cut = [volume_hu[z, y : y + REGION_PIXELS, x : x + REGION_PIXELS] for z, y, x in regions]
    values = np.stack(cut).reshape(len(cut), -1).astype(np.float64)
    noise_hu = (values - (values @ slow) @ slow.T).reshape(-1, REGION_PIXELS, REGION_PIXELS)
    hann = np.outer(*2 * [np.hanning(REGION_PIXELS + 1)[:-1]])
    power = (np.abs(np.fft.fft2(noise_hu * hann)) ** 2).mean(axis=0) * y_mm * x_mm / np.square(hann).sum()
    frequency = np.hypot(np.fft.fftfreq(REGION_PIXELS, y_mm)[:, None], np.fft.fftfreq(REGION_PIXELS, x_mm)[None])
    rings = np.rint(frequency * REGION_PIXELS * max(pixel_mm)).astype(int)
    numbers = np.arange(1, REGION_PIXELS // 2 + 1)
    return NoiseSpectrum(ndimage.mean(frequency, rings, numbers), ndimage.mean(power, rings, numbers))
