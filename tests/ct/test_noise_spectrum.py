"""The noise power spectrum of noise whose spectrum is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.ct.noise_spectrum import MOST_REGIONS, REGION_PIXELS, flat_regions, noise_spectrum

SHAPE, PIXEL_MM = (12, 64, 80), (0.8, 0.8)


def test_white_noise_has_its_variance_times_the_pixels_area_at_every_frequency() -> None:
    noise_hu = np.random.default_rng(0).normal(40, 20, SHAPE)
    spectrum = noise_spectrum(noise_hu, flat_regions(np.ones(SHAPE, bool)), PIXEL_MM)
    assert spectrum.frequency_per_mm[-1] == pytest.approx(0.5 / 0.8, rel=0.05)
    assert np.all(np.diff(spectrum.frequency_per_mm) > 0)
    # the polynomial takes a part of the lowest
    np.testing.assert_allclose(spectrum.power_hu2_mm2[2:], 20**2 * 0.8 * 0.8, rtol=0.08)


def test_a_gaussian_filter_multiplies_it_with_the_square_of_its_own_transform() -> None:
    noise_hu = np.random.default_rng(1).normal(0, 20, (40, *SHAPE[1:]))
    regions = flat_regions(np.ones(noise_hu.shape, bool))
    before = noise_spectrum(noise_hu, regions, PIXEL_MM)
    after = noise_spectrum(ndimage.gaussian_filter(noise_hu, (0, 1, 1)), regions, PIXEL_MM)
    expected = np.exp(-((2 * np.pi * before.frequency_per_mm * 0.8) ** 2))
    left = after.power_hu2_mm2 / before.power_hu2_mm2
    # rings and the window's own width smear it by a bin
    np.testing.assert_allclose(left[1:], expected[1:], atol=0.035)
    assert left[-1] < 0.002


def test_slow_changes_of_brightness_are_no_noise() -> None:
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    spectrum = noise_spectrum(0.02 * y * x + 0.1 * x**2 + z, flat_regions(np.ones(SHAPE, bool)), PIXEL_MM)
    assert spectrum.power_hu2_mm2.max() < 1e-12


def test_regions_are_where_tissue_is_flat_the_flattest_first_and_not_too_many() -> None:
    region = np.zeros(SHAPE, bool)
    region[3, 16:32, 32:48] = True
    region[5, :12, :16] = True  # three quarters of it
    region[7, :8, :16] = True  # half
    assert flat_regions(region) == [(3, 16, 32), (5, 0, 0)]
    assert flat_regions(np.zeros(SHAPE, bool)) == []
    assert len(flat_regions(np.ones((40, 64, 80), bool))) == MOST_REGIONS
    assert REGION_PIXELS == 16
