"""Noise of few photons: its level and spectrum against the theory of filtered back-projection, and the dose."""

import numpy as np
import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.scanner.photons import WATER_PER_MM, line_errors, low_dose_hu, photon_noise_hu, photons_for_noise

PIXEL_MM = 0.8


def distance(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    return np.hypot(y, x)


def water(size: int, radius: float, slices: int, hu: float = 50) -> np.ndarray:
    """A cylinder of soft tissue in air."""
    return np.repeat(np.where(distance(size) < radius, hu, -1000.0)[None], slices, axis=0)


def noise_hu(volume: np.ndarray, photons: float, seed: int = 0, **given) -> np.ndarray:
    return photon_noise_hu(volume, PIXEL_MM, photons=photons, rng=np.random.default_rng(seed), **given)


def response(cycles_per_pixel: np.ndarray) -> np.ndarray:
    """Of the ramp with a cosine window, and of linear interpolation between detector pixels, in power."""
    windowed = cycles_per_pixel * np.cos(np.pi * cycles_per_pixel)
    return windowed**2 * (2 + np.cos(2 * np.pi * cycles_per_pixel)) / 3


@pytest.mark.parametrize("views", [64, 96])
def test_noise_in_air_is_what_theory_says(views):
    """Var = pi^2 / views * var of a ray * integral of the filter's power (Kak and Slaney, chapter 3)."""
    size, photons = 64, 1e4
    noise = noise_hu(np.full((24, size, size), -1000.0), photons, views=views)
    ring = (distance(size) > 6) & (distance(size) < 26)
    frequencies = np.linspace(-0.5, 0.5, 2001)
    variance = np.pi**2 / views / photons * response(frequencies).mean()
    expected_hu = 1000 / (WATER_PER_MM * PIXEL_MM) * variance**0.5
    assert noise[:, ring].std() == pytest.approx(expected_hu, rel=0.03)
    assert abs(noise[:, ring].mean()) < 0.02 * expected_hu


def test_its_spectrum_is_that_of_the_filter():
    """Power in two dimensions goes as filter^2 / frequency (Riederer, Pelc and Chesler, 1978)."""
    size = 64
    noise = noise_hu(np.full((20, size, size), -1000.0), 1e4, views=96)[:, 16:48, 16:48]
    window = np.hanning(32)[:, None] * np.hanning(32)
    power = (np.abs(np.fft.fft2(noise * window)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    bands = [(0.1, 0.15), (0.2, 0.25), (0.3, 0.35), (0.4, 0.45)]
    found, expected = [], []
    for low, high in bands:
        inside = (frequency >= low) & (frequency < high)
        found.append(power[inside].mean())
        expected.append((response(frequency[inside]) / frequency[inside]).mean())
    assert np.array(found) / sum(found) == pytest.approx(np.array(expected) / sum(expected), abs=0.03)


def test_noise_falls_with_photons_and_grows_with_the_way_through_the_body():
    volume = water(64, 20, 8)
    middle = distance(64) < 5
    many, few = noise_hu(volume, 4e5)[:, middle].std(), noise_hu(volume, 1e5)[:, middle].std()
    assert few / many == pytest.approx(2, rel=0.1)
    wider = noise_hu(water(64, 28, 8), 1e5)[:, middle].std()
    # 16 pixels more of 50 HU on every ray
    assert wider / few == pytest.approx(np.exp(WATER_PER_MM * 1.05 * PIXEL_MM * 16 / 2), rel=0.1)


def test_counts_give_the_errors_of_poisson_statistics():
    integrals = np.full(20000, 2.0)
    errors = line_errors(integrals, 1e4, np.random.default_rng(1))
    assert errors.std() == pytest.approx((np.exp(2) / 1e4) ** 0.5, rel=0.03)
    assert line_errors(np.array([50.0]), 10, np.random.default_rng(0)) == pytest.approx(np.log(10) - 50)


def test_a_dose_is_told_by_its_noise():
    volume = water(64, 24, 8)
    middle = distance(64) < 12
    photons = photons_for_noise(volume, PIXEL_MM, 20)
    assert noise_hu(volume, photons, seed=5)[:, middle].std() == pytest.approx(20, rel=0.12)


@pytest.mark.parametrize(("dose", "added_hu"), [(0.5, 10.0), (0.2, 20.0)])
def test_a_part_of_the_dose_adds_what_is_lacking(dose, added_hu):
    """10 HU at dose 1 are 10 / sqrt(dose) at dose; what is added is the root of the difference of squares."""
    volume = water(64, 24, 8)
    middle = distance(64) < 12
    low = low_dose_hu(volume, PIXEL_MM, dose, own_noise_hu=10, rng=np.random.default_rng(2))
    assert (low - volume)[:, middle].std() == pytest.approx(added_hu, rel=0.12)
    again = low_dose_hu(volume, PIXEL_MM, dose, own_noise_hu=10, rng=np.random.default_rng(2))
    assert np.array_equal(low, again) and low.dtype == np.float32


def test_the_whole_dose_is_the_image_itself_and_no_slice_has_no_noise():
    volume = water(32, 12, 2)
    assert np.array_equal(low_dose_hu(volume, PIXEL_MM, 1, own_noise_hu=10, rng=np.random.default_rng(0)), volume)
    assert noise_hu(volume[:0], 1e5).shape == (0, 32, 32)


def test_slices_need_not_be_square():
    volume = water(48, 16, 2)[:, 8:40]
    noise = noise_hu(volume, 1e5)
    assert noise.shape == volume.shape and np.isfinite(noise).all() and noise.std() > 1


def test_errors():
    with pytest.raises(UserError, match="three axes"):
        noise_hu(np.zeros((4, 4)), 1e5)
    with pytest.raises(UserError, match="must be positive, got 0 photons"):
        noise_hu(water(32, 12, 1), 0)
    with pytest.raises(UserError, match="no soft tissue"):
        photons_for_noise(np.full((2, 32, 32), -1000.0), PIXEL_MM, 10)
    with pytest.raises(UserError, match="above 0 HU"):
        photons_for_noise(water(32, 12, 2), PIXEL_MM, 0)
    with pytest.raises(UserError, match="fraction above 0 and at most 1, got 2"):
        low_dose_hu(water(32, 12, 2), PIXEL_MM, 2, own_noise_hu=10, rng=np.random.default_rng(0))
