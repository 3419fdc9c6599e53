"""The noise level in flat soft tissue, against noise that was put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.errors import UserError
from fvae_nnunet.noise import homogeneous_region, noise_sd_hu

GRID_Y, GRID_X = np.mgrid[:128, :128] - 63.5


def anatomy():
    """Four slices: fat around a muscle disc that holds a bone, an organ and vessels; air outside. HU."""
    radius = np.hypot(GRID_Y, GRID_X)
    plane = np.select([radius < 40, radius < 55], [55.0, -100.0], -1000.0)
    plane[np.hypot(GRID_Y - 25, GRID_X) < 8] = 700
    plane[np.hypot(GRID_Y + 12, GRID_X + 15) < 14] = 110
    plane[(np.abs(GRID_X - 22) < 1.5) & (np.abs(GRID_Y) < 15)] = 150
    return np.repeat(ndimage.gaussian_filter(plane, 0.8)[None], 4, axis=0)


def white(sd_hu, seed=0, shape=(4, 128, 128)):
    return np.random.default_rng(seed).normal(0, sd_hu, shape)


@pytest.mark.parametrize("sd_hu", [2, 10, 40])
def test_white_noise_on_a_constant_comes_out_as_its_standard_deviation(sd_hu):
    volume_hu = 60 + white(sd_hu)
    region = homogeneous_region(volume_hu)
    assert noise_sd_hu(volume_hu, region) == pytest.approx(sd_hu, rel=0.03)
    assert noise_sd_hu(np.rint(volume_hu).astype(np.int16), region) == pytest.approx(sd_hu, rel=0.03)


@pytest.mark.parametrize("sd_hu", [5, 10, 25])
def test_edges_and_vessels_hardly_change_it(sd_hu):
    raw_hu = anatomy() + white(sd_hu)
    assert noise_sd_hu(raw_hu, homogeneous_region(raw_hu)) == pytest.approx(sd_hu, rel=0.1)


def test_raw_volume_and_view_are_judged_in_the_raw_volumes_region():
    raw_hu = anatomy() + white(20)
    view_hu = anatomy() + white(5, seed=1)
    region = homogeneous_region(raw_hu)
    assert noise_sd_hu(view_hu, region) / noise_sd_hu(raw_hu, region) == pytest.approx(0.25, rel=0.1)


def test_smoothing_leaves_what_the_kernels_leave():
    """Noise filtered with a kernel k and high-pass h has the variance of the sum of squares of k * h (here by FFT).

    The flattest tenth of a volume of noise alone has less of the coarse noise that smoothing leaves.
    """
    raw_hu = 60 + white(20)
    view_hu = ndimage.gaussian_filter(raw_hu, (0, 1, 1))
    squared_frequency = np.fft.fftfreq(128)[:, None] ** 2 + np.fft.fftfreq(128) ** 2
    smoothing = np.exp(-2 * np.pi**2 * squared_frequency)
    high_pass = 1 - np.exp(-2 * np.pi**2 * squared_frequency * 2**2)
    expected = np.sqrt(((smoothing * high_pass) ** 2).mean() / (high_pass**2).mean())
    region = homogeneous_region(raw_hu)
    assert 0.88 * expected < noise_sd_hu(view_hu, region) / noise_sd_hu(raw_hu, region) < 1.02 * expected
    everywhere = np.ones_like(region)
    ratio = noise_sd_hu(view_hu, everywhere) / noise_sd_hu(raw_hu, everywhere)
    assert ratio == pytest.approx(expected, rel=0.02)


def test_the_region_is_flat_soft_tissue():
    region = homogeneous_region(anatomy() + white(10))
    away_from_edges = ndimage.binary_erosion((anatomy()[0] > 40) & (anatomy()[0] < 120), iterations=3)
    assert region.dtype == bool
    assert region.sum() > 1500
    assert (region & ~away_from_edges).sum() < 0.02 * region.sum()


def test_the_flattest_part_is_a_part_of_the_soft_tissue():
    volume_hu = 60 + white(10)
    assert homogeneous_region(volume_hu).mean() == pytest.approx(0.1, abs=0.01)
    assert homogeneous_region(volume_hu, flattest_part=0.5).mean() == pytest.approx(0.5, abs=0.01)
    assert homogeneous_region(volume_hu, soft_tissue_hu=(-200, -50)).sum() == 0
    assert homogeneous_region(np.full((2, 1, 5), 60)).all()


def test_without_soft_tissue_there_is_no_noise_level():
    air_hu = np.full((2, 16, 16), -1000, dtype=np.int16)
    assert not homogeneous_region(air_hu).any()
    assert np.isnan(noise_sd_hu(air_hu, homogeneous_region(air_hu)))


def test_other_than_volumes_and_regions_of_their_shape_is_refused():
    with pytest.raises(UserError, match="three axes"):
        homogeneous_region(np.zeros((4, 4)))
    with pytest.raises(UserError, match="region"):
        noise_sd_hu(np.zeros((2, 4, 4)), np.zeros((2, 4, 5), bool))
