"""Images that are noisier than wanted get the wanted noise; others stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from noise_for_tests import anatomy, white
from skimage.restoration import denoise_nl_means

from fvae_nnunet.ct.noise import homogeneous_region, measure_noise
from fvae_nnunet.jobs.pipeline import StageSeconds
from fvae_nnunet.reconstruction.noise_reduction import denoise_images, denoised_to


def noise_hu(axial_hu, raw_hu):
    """Noise in the region of the raw volume, in which a denoised one is measured too."""
    return measure_noise(axial_hu, homogeneous_region(raw_hu)).total_hu


def noisy(sd_hu, seed=0):
    return np.rint(np.clip(anatomy() + white(sd_hu, seed=seed), -1000, 1000)).astype(np.int16)


def write(path, volume_hu, permuted="xyz"):
    """Write a volume (z, y, x), with the axes of the file in this order."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(volume_hu)
    image.SetSpacing((0.7, 0.8, 3.0))
    sitk.WriteImage(sitk.PermuteAxes(image, ["xyz".index(axis) for axis in permuted]), str(path))
    return path


def run(images, output, wanted_hu, **options):
    outcomes = denoise_images(images, output, wanted_hu, workers=0, seconds=StageSeconds(), **options)
    return {outcome.case: outcome for outcome in outcomes}


def test_a_noisier_volume_becomes_the_mixture_with_its_non_local_means_that_has_the_wanted_noise():
    raw_hu = noisy(30)
    result = denoised_to(raw_hu, 10.0)
    assert result.noise_before_hu == noise_hu(raw_hu, raw_hu)
    assert result.noise_hu == pytest.approx(10, abs=0.05)
    assert noise_hu(result.volume_hu, raw_hu) == pytest.approx(result.noise_hu, abs=0.05)
    h_hu = 1.2 * result.noise_before_hu
    view_hu = np.stack(
        [denoise_nl_means(plane.astype(float), patch_size=5, patch_distance=6, h=h_hu) for plane in raw_hu]
    )
    removed_hu, removable_hu = raw_hu - result.volume_hu.astype(float), raw_hu - view_hu
    share = (removed_hu * removable_hu).sum() / (removable_hu**2).sum()
    assert 0.5 < share < 0.9
    assert np.abs(removed_hu - share * removable_hu).max() < 2


def test_noise_below_that_of_the_non_local_means_is_approached_as_far_as_they_go():
    raw_hu = noisy(30)
    result = denoised_to(raw_hu, 0.0)
    assert 0 < result.noise_hu < 3
    assert noise_hu(result.volume_hu, raw_hu) == pytest.approx(result.noise_hu)


@pytest.mark.parametrize("wanted_hu", [30.0, 4.5])
def test_a_volume_with_no_more_noise_is_left_as_it_is(wanted_hu):
    assert denoised_to(noisy(4), wanted_hu) is None


def test_a_volume_without_soft_tissue_is_left_as_it_is():
    assert denoised_to(np.full((2, 40, 40), -1000, np.int16), 10.0) is None


def test_values_beyond_the_window_of_the_denoiser_stay():
    raw_hu = noisy(30)
    raw_hu[:, 60:64, 60:64] = 2500
    raw_hu[:, :3] = -1024
    denoised_hu = denoised_to(raw_hu, 10.0).volume_hu
    assert (denoised_hu[:, 60:64, 60:64] == 2500).all() and (denoised_hu[:, :3] == -1024).all()
    raw_hu = raw_hu.astype(np.float32)
    raw_hu[0, 0, 0] = 40000
    assert denoised_to(raw_hu, 10.0).volume_hu[0, 0, 0] == 32767


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_fractions_of_hu_are_denoised_like_whole_numbers(dtype):
    raw_hu = (anatomy() + white(30)).astype(dtype)
    result = denoised_to(raw_hu, 10.0)
    assert result.noise_hu == pytest.approx(10, abs=0.05)
    assert noise_hu(result.volume_hu, raw_hu) == pytest.approx(result.noise_hu)


def test_only_noisier_images_are_written_in_their_own_geometry(tmp_path):
    images = {
        "noisy": write(tmp_path / "images" / "noisy_0000.nii.gz", noisy(30), permuted="zxy"),
        "clean": write(tmp_path / "images" / "clean_0000.nii.gz", noisy(4)),
    }
    outcomes = run(images, tmp_path / "out", {"noisy": 10.0, "clean": 10.0})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["noisy_0000.nii.gz"]
    assert outcomes["clean"].result is None and outcomes["clean"].error is None
    before_hu, after_hu = outcomes["noisy"].result
    assert (before_hu, after_hu) == (pytest.approx(30, rel=0.05), pytest.approx(10, abs=0.05))
    folders = tmp_path / "images", tmp_path / "out"
    raw, denoised = (sitk.ReadImage(str(folder / "noisy_0000.nii.gz")) for folder in folders)
    assert denoised.GetSpacing() == raw.GetSpacing() and denoised.GetDirection() == raw.GetDirection()
    in_file = sitk.GetArrayFromImage(denoised)
    expected = denoised_to(noisy(30), 10.0).volume_hu
    np.testing.assert_array_equal(np.sort(in_file, axis=None), np.sort(expected, axis=None))


def test_an_image_that_cannot_be_in_hu_fails_alone(tmp_path):
    images = {
        "grey": write(tmp_path / "images" / "grey_0000.nii.gz", np.clip(noisy(30), 0, 255).astype(np.uint8)),
        "noisy": write(tmp_path / "images" / "noisy_0000.nii.gz", noisy(30)),
    }
    outcomes = run(images, tmp_path / "out", dict.fromkeys(images, 10.0))
    assert "cannot be in HU" in str(outcomes["grey"].error)
    assert outcomes["noisy"].error is None and (tmp_path / "out" / "noisy_0000.nii.gz").is_file()
