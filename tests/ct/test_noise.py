"""The noise level in flat soft tissue, against noise that was put in."""

from __future__ import annotations

import numpy as np
import pytest
from noise_for_tests import anatomy, white
from scipy import ndimage

from fvae_nnunet.ct.noise import homogeneous_region, measure_noise, measured_region
from fvae_nnunet.errors import UserError


def smoothed(noise_hu, kernel_pixels):
    return ndimage.gaussian_filter(noise_hu, (0, kernel_pixels, kernel_pixels), mode="wrap")


def soft_kernel(sd_hu, kernel_pixels, seed=0, shape=(8, 128, 128)):
    """Noise of a scanner's soft kernel, of exactly this standard deviation."""
    noise = smoothed(white(1, seed, shape), kernel_pixels)
    return noise * (sd_hu / noise.std())


@pytest.mark.parametrize("sd_hu", [2, 10, 40])
def test_white_noise_on_a_constant_comes_out_as_its_standard_deviation(sd_hu):
    volume_hu = 60 + white(sd_hu)
    region = homogeneous_region(volume_hu)
    assert measure_noise(volume_hu, region).total_hu == pytest.approx(sd_hu, rel=0.03)
    assert measure_noise(np.rint(volume_hu).astype(np.int16), region).total_hu == pytest.approx(sd_hu, rel=0.03)


@pytest.mark.parametrize("kernel_pixels", [0.5, 1, 1.5, 2])
def test_the_noise_of_a_soft_kernel_is_seen_in_full_also_after_a_denoiser(kernel_pixels):
    """A Gaussian view of k pixels leaves of noise after a kernel of s pixels about s / sqrt(s² + k²)."""
    noise_hu = soft_kernel(20, kernel_pixels)
    region = homogeneous_region(60 + noise_hu)
    raw_hu = measure_noise(60 + noise_hu, region).total_hu
    assert raw_hu == pytest.approx(20, rel=0.05)
    for strength in (0.5, 1, 1.2, 2):
        view_hu = smoothed(noise_hu, strength)
        ratio = measure_noise(60 + view_hu, region).total_hu / raw_hu
        assert ratio == pytest.approx(view_hu.std() / 20, rel=0.05)


def test_fine_and_coarse_noise_make_up_the_whole():
    """A high-pass h leaves of noise with kernel k the mean of (k h)² over the frequencies (here by FFT)."""
    squared_frequency = np.fft.fftfreq(128)[:, None] ** 2 + np.fft.fftfreq(128) ** 2
    high_pass = 1 - np.exp(-2 * np.pi**2 * squared_frequency * 2**2)
    for kernel_pixels in (0, 1, 2):
        power = np.exp(-4 * np.pi**2 * squared_frequency * kernel_pixels**2)
        fine = np.sqrt((power * high_pass**2).sum() / power.sum())
        volume_hu = 60 + soft_kernel(20, kernel_pixels)
        found = measure_noise(volume_hu, homogeneous_region(volume_hu))
        assert found.fine_hu == pytest.approx(20 * fine, rel=0.05)
        assert found.coarse_hu == pytest.approx(20 * np.sqrt(1 - fine**2), rel=0.08)
        assert np.hypot(found.fine_hu, found.coarse_hu) == pytest.approx(found.total_hu, rel=1e-6)


@pytest.mark.parametrize("kernel_pixels, error", [(0, 0.05), (1, 0.1), (2, 0.15)])
@pytest.mark.parametrize("sd_hu", [5, 10, 25])
def test_edges_and_vessels_hardly_change_it(sd_hu, kernel_pixels, error):
    raw_hu = np.concatenate([anatomy()] * 4) + soft_kernel(sd_hu, kernel_pixels, shape=(16, 128, 128))
    assert measure_noise(raw_hu, homogeneous_region(raw_hu)).total_hu == pytest.approx(sd_hu, rel=error)


def test_raw_volume_and_view_are_judged_in_the_raw_volumes_region():
    raw_hu = anatomy() + white(20)
    view_hu = anatomy() + white(5, seed=1)
    region = homogeneous_region(raw_hu)
    assert measure_noise(view_hu, region).total_hu / measure_noise(raw_hu, region).total_hu == pytest.approx(
        0.25, rel=0.1
    )


@pytest.mark.parametrize("kernel_pixels", [0, 1, 2])
def test_the_region_does_not_favour_places_with_little_noise(kernel_pixels):
    noise_hu = soft_kernel(20, kernel_pixels)
    assert noise_hu[homogeneous_region(60 + noise_hu)].std() == pytest.approx(20, rel=0.03)


def test_the_region_is_flat_soft_tissue():
    region = homogeneous_region(anatomy() + white(10))
    away_from_edges = ndimage.binary_erosion((anatomy()[0] > 40) & (anatomy()[0] < 120), iterations=3)
    assert region.dtype == bool
    assert region.sum() > 1500
    assert (region & ~away_from_edges).sum() < 0.02 * region.sum()


def test_the_flattest_part_is_a_part_of_the_soft_tissue():
    volume_hu = 60 + white(10)
    assert homogeneous_region(volume_hu).mean() == pytest.approx(0.2, abs=0.01)
    assert homogeneous_region(volume_hu, flattest_part=0.5).mean() == pytest.approx(0.5, abs=0.01)
    assert homogeneous_region(volume_hu, soft_tissue_hu=(-200, -50)).sum() == 0
    assert homogeneous_region(np.full((2, 1, 5), 60)).all()


def test_soft_tissue_that_is_narrow_everywhere_is_better_than_none():
    narrow_hu = np.where((np.arange(40) % 20 < 8), 60.0, -100.0) * np.ones((2, 40, 1))
    assert homogeneous_region(narrow_hu).any()
    beside_wide_hu = np.concatenate([narrow_hu, np.full((2, 40, 40), 60.0)], axis=2)
    assert not homogeneous_region(beside_wide_hu)[:, :, :40].any()


def test_without_soft_tissue_there_is_no_noise_level():
    air_hu = np.full((2, 16, 16), -1000, dtype=np.int16)
    assert not homogeneous_region(air_hu).any()
    assert np.isnan(measure_noise(air_hu, homogeneous_region(air_hu)).total_hu)


def test_what_is_exactly_flat_has_no_noise():
    for level_hu in (60, 1000):
        found = measure_noise(np.full((2, 40, 40), level_hu), np.ones((2, 40, 40), bool))
        assert (found.total_hu, found.fine_hu, found.coarse_hu) == (0, 0, 0)


def test_other_than_volumes_and_regions_of_their_shape_is_refused():
    with pytest.raises(UserError, match="three axes"):
        homogeneous_region(np.zeros((4, 4)))
    with pytest.raises(UserError, match="region"):
        measure_noise(np.zeros((2, 4, 4)), np.zeros((2, 4, 5), bool))


def body_in_air(*, outside_hu):
    """A body of 60 HU with noise of 10 HU, with this value around it."""
    volume_hu = np.full((4, 128, 128), float(outside_hu))
    volume_hu[:, 32:96, 32:96] = 60 + white(10, shape=(4, 64, 64))
    return volume_hu


@pytest.mark.parametrize("hu_window", [(-1000, 1000), (0, 120), (-150, 250)])
@pytest.mark.parametrize("outside_hu", [-1000, 0, -3024])
def test_air_and_padding_are_no_soft_tissue_in_any_window(outside_hu, hu_window):
    region, noise = measured_region(body_in_air(outside_hu=outside_hu), hu_window)
    assert region.any() and not region[:, :30].any()
    assert noise.total_hu == pytest.approx(10, rel=0.1)
