"""Measures of lesions against volumes whose figures are known, and against the nearest voxel outside."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fvae_nnunet.synthesis.lesions.measures import MEASURES, lesion_core, measure_lesion, surroundings_hu

SPACING_MM = (5.0, 1.0, 1.0)


def ball(diameter_mm, spacing_mm, shape=None):
    """Of voxels whose centres lie in it, around the middle of the volume."""
    shape = shape or [2 * int(np.ceil(diameter_mm / 2 / step)) + 5 for step in spacing_mm]
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm)]
    z, y, x = np.ix_(*axes)
    return z**2 + y**2 + x**2 <= (diameter_mm / 2) ** 2


@pytest.mark.parametrize(
    ("diameter_mm", "spacing_mm"), [(5.0, (1.0, 1.0, 1.0)), (14.0, (3.0, 1.5, 1.0)), (24.0, (2.5, 2.0, 2.0))]
)
def test_the_core_is_as_deep_as_its_nearest_voxel_outside_is_far(diameter_mm, spacing_mm):
    lesion = ball(diameter_mm, spacing_mm)
    inside, outside = np.argwhere(lesion) * spacing_mm, np.argwhere(~lesion) * spacing_mm
    depth_mm = cdist(inside, outside).min(axis=1)
    expected = np.zeros_like(lesion)
    expected[lesion] = depth_mm >= min(4.0, depth_mm.max() * 2 / 3)
    core = lesion_core(lesion, spacing_mm)
    assert np.array_equal(core, expected)
    assert 0 < core.sum() < lesion.sum()


def test_a_lesion_at_the_border_goes_on_beyond_it():
    whole = ball(20.0, (1.0, 1.0, 1.0))
    middle = len(whole) // 2
    # half of it, as if the volume ended there
    assert np.array_equal(lesion_core(whole[middle:], (1.0, 1.0, 1.0)), lesion_core(whole, (1.0, 1.0, 1.0))[middle:])
    everything = np.ones((2, 3, 4), bool)
    assert lesion_core(everything, SPACING_MM).all()
    measured = measure_lesion(everything.astype(np.int16), everything, ~everything, SPACING_MM)
    assert measured["depth_mm"] is None and measured["rim_hu"] is None and measured["core_mean_hu"] == 1


def test_every_lesion_has_a_core():
    voxel = np.zeros((3, 5, 5), bool)
    voxel[1, 2, 2] = True
    assert np.array_equal(lesion_core(voxel, SPACING_MM), voxel)
    line = np.zeros((3, 5, 9), bool)
    line[1, 2, 1:8] = True
    assert np.array_equal(lesion_core(line, SPACING_MM), line)
    measured = measure_lesion(np.full(line.shape, 7, np.int16), line, ~line, SPACING_MM)
    assert measured["rim_hu"] == 0 and measured["slice_change_hu"] is None and measured["depth_mm"] == 1
    assert measured["core_mean_hu"] == 7 and measured["core_sd_hu"] == 0 and measured["contrast_hu"] == 0


def a_lesion():
    """40 HU with a core of 20 and 60, in an organ of 100 that ends 4 mm to the left of it, where fat of -100 begins."""
    hu = np.full((7, 40, 40), -100, np.int16)
    organ = np.zeros(hu.shape, bool)
    organ[:, :, 10:] = True
    hu[organ] = 100
    lesion = np.zeros(hu.shape, bool)
    lesion[3, 12:28, 14:30] = True
    hu[lesion] = 40
    # one slice of 5 mm: a depth of 1 to 5 mm; from two thirds of that on, 4 and 5, it is core
    hu[3, 14:20, 16:28], hu[3, 20:26, 16:28] = 20, 60
    return hu, organ, lesion


def test_measures_of_a_lesion():
    hu, organ, lesion = a_lesion()
    assert measure_lesion(hu, lesion, organ, SPACING_MM) == {
        "depth_mm": 5.0, "mean_hu": 40.0, "core_mean_hu": 40.0, "core_sd_hu": 20.0, "texture_sd_hu": 14.58,
        "contrast_hu": -60.0, "rim_hu": 0.0, "slice_change_hu": None,
    }  # fmt: skip
    assert tuple(measure_lesion(hu, lesion, organ, SPACING_MM)) == MEASURES
    rim = hu.copy()
    rim[3, 12:14, 14:30] = rim[3, 26:28, 14:30] = rim[3, 12:28, 14:16] = rim[3, 12:28, 28:30] = 75
    measured = measure_lesion(rim, lesion, organ, SPACING_MM)
    # 256 voxels, of which 144 are deeper than 2 mm
    assert measured["rim_hu"] == 35.0 and measured["core_sd_hu"] == 20.0 and measured["contrast_hu"] == -60.0
    assert measured["mean_hu"] == pytest.approx(40 + 35 * 112 / 256, abs=0.005)


def test_texture_is_what_a_gaussian_of_2_mm_within_the_core_leaves():
    hu, organ, lesion = a_lesion()
    # of 10 rows of the core, 5 of 20 HU and 5 of 60; it reaches 6 mm
    distance_mm = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    weights = np.where(distance_mm <= 6, np.exp(-(distance_mm**2) / (2 * 2.0**2)), 0)
    smoothed = weights @ np.repeat([20.0, 60.0], 5) / weights.sum(axis=1)
    measured = measure_lesion(hu, lesion, organ, SPACING_MM)
    assert measured["texture_sd_hu"] == pytest.approx(smoothed.std(), abs=0.01)


def test_noise_is_little_of_the_texture():
    """White noise smoothed by a Gaussian of sigma voxels has (2 sqrt(pi) sigma)^(-1/2) of its SD left for each axis."""
    ball = np.sum((np.indices((41, 41, 41)).T - 20) ** 2, axis=-1).T <= 18**2
    noise = np.random.default_rng(0).normal(0, 30, ball.shape)
    measured = measure_lesion(noise, ball, ~ball, (1.0, 1.0, 1.0))
    assert measured["core_sd_hu"] == pytest.approx(30, rel=0.02)
    assert measured["texture_sd_hu"] == pytest.approx(30 / (2 * np.sqrt(np.pi) * 2) ** 1.5, rel=0.25)


def test_surroundings_reach_6_mm():
    hu, organ, lesion = a_lesion()
    assert surroundings_hu(hu, lesion, organ, SPACING_MM) == 100
    everything = surroundings_hu(hu, lesion, np.ones_like(organ), SPACING_MM)
    assert everything < 100, "fat within 6 mm counts where it may"
    far = hu.copy()
    far[0], far[6], far[:, :, 37:] = 3000, 3000, 3000  # 15 mm above and below, and from 8 mm on to the right
    assert surroundings_hu(far, lesion, organ, SPACING_MM) == 100
    assert surroundings_hu(hu, lesion, lesion, SPACING_MM) is None
    assert measure_lesion(hu, lesion, lesion, SPACING_MM)["contrast_hu"] is None


def test_change_from_slice_to_slice_is_that_of_the_cores_mean():
    spacing_mm = (1.0, 1.0, 1.0)
    lesion = np.zeros((12, 40, 40), bool)
    lesion[:, 4:36, 4:36] = True
    core = lesion_core(lesion, spacing_mm)
    assert core.sum() == 12 * 26 * 26, "it goes through the volume; 4 mm from the sides"

    def change(hu):
        return measure_lesion(hu, lesion, ~lesion, spacing_mm)["slice_change_hu"]

    flat = np.full(lesion.shape, 50.0)
    assert change(flat) == 0
    flicker = flat + np.where(np.arange(12) % 2, 3, -3)[:, None, None]
    assert change(flicker) == 6
    one_step = flat.copy()
    one_step[6:] += 11
    assert change(one_step) == pytest.approx(11 / np.sqrt(11), abs=0.01), "one of eleven changes"
    # of white noise of 20 HU the mean of 26 x 26 differences has a standard deviation of 20 sqrt(2) / 26 = 1.1
    noise = np.random.default_rng(0).normal(0, 20, flat.shape)
    assert change(flat + noise) < 1.1
    assert change(flicker + noise) == pytest.approx(6, abs=1.1)


def test_few_noisy_voxels_do_not_flicker():
    def changes(diameter_mm):
        lesion = ball(diameter_mm, (1.0, 1.0, 1.0))
        noise = [np.random.default_rng(seed).normal(0, 20, lesion.shape) for seed in range(100)]
        return [measure_lesion(hu, lesion, ~lesion, (1.0, 1.0, 1.0))["slice_change_hu"] for hu in noise]

    assert changes(11.0) == [None] * 100, "at most 13 voxels lie 4 mm deep in two slices"
    # at most 45: their mean difference has a standard deviation of 20 sqrt(2 / 45) = 4.2
    assert np.sqrt(np.mean(np.square(changes(15.0)))) < 3
