"""Denoising against a known truth, and the front of filters and views."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from fvae_nnunet.cli import evaluate_reconstruction, reconstruct
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.front import (
    NOISY,
    Denoised,
    best_of,
    front_rows,
    measure_front,
    methods_count,
    write_front_picture,
)
from fvae_nnunet.evaluation.reconstruction.known_noise import PLACES, KnownNoise, errors_hu, places_of


def muscle_and_fat(shape=(3, 64, 64)):
    """Fat, and a square of muscle that lies in it with its edges at 15.5 and 47.5; HU."""
    volume = np.full(shape, -100.0, dtype=np.float32)
    volume[:, 16:48, 16:48] = 60
    return volume


def test_noise_has_its_standard_deviation_in_every_slice_and_its_kernels_spectrum():
    truth = np.zeros((2, 256, 256))
    white = KnownNoise(25, kernel_pixels=0).drawn(truth, 1, np.random.default_rng(0))
    soft = KnownNoise(25, kernel_pixels=1.0).drawn(truth, 1, np.random.default_rng(0))
    for noise in (white, soft):
        np.testing.assert_allclose(noise.std(axis=(1, 2)), 25, rtol=1e-5)
    assert not np.allclose(white[0], white[1])

    def neighbours(noise):
        return float(np.corrcoef(noise[0, :, 1:].ravel(), noise[0, :, :-1].ravel())[0, 1])

    assert abs(neighbours(white)) < 0.02
    # of white noise after a Gaussian of s pixels: exp(-1 / (4 s^2))
    assert neighbours(soft) == pytest.approx(math.exp(-1 / 4), abs=0.02)


def test_a_scanners_noise_has_its_standard_deviation_in_soft_tissue_and_less_at_the_border_of_the_body():
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(y, x)
    truth = np.broadcast_to(np.where(radius < 26, 50.0, -1000.0), (6, 64, 64))
    noise = KnownNoise(25, kernel_pixels=None).drawn(truth, 3.0, np.random.default_rng(0))
    middle, border = (noise[:, place].std() for place in (radius < 8, (radius > 20) & (radius < 25)))
    assert middle > 1.25 * border
    assert noise[:, radius < 16].std() == pytest.approx(25, rel=0.15)


def test_the_truth_is_clipped_and_softened_in_the_plane():
    volume = np.ones((3, 9, 9), dtype=np.int16)
    volume[1, 4, 4] = 3000
    assert np.array_equal(KnownNoise(1, softened_pixels=0).truth_of(volume), volume.clip(-1000, 1000))
    softened = KnownNoise(1, softened_pixels=0.8).truth_of(volume)
    point = np.ones((9, 9))
    point[4, 4] = 1000
    np.testing.assert_allclose(softened[1], ndimage.gaussian_filter(point, 0.8), atol=1e-3)
    np.testing.assert_allclose(softened[[0, 2]], 1, atol=1e-3)


def test_padding_with_zeros_is_air_in_the_truth():
    volume = np.full((2, 9, 9), 60, dtype=np.int16)
    volume[:, :3] = 0
    truth = KnownNoise(1, softened_pixels=0).truth_of(volume)
    assert (truth[:, :3] == -1000).all() and (truth[:, 3:] == 60).all()


def test_a_narrow_window_of_a_view_is_no_error():
    truth = ndimage.gaussian_filter(muscle_and_fat(), (0, 0.8, 0.8))
    noise = KnownNoise(5, kernel_pixels=0, softened_pixels=0)
    cases, views = [(truth, (3.0, 1, 1))], {"clipped": lambda noisy, spacing_mm: np.clip(truth, -20, 200)}
    found = {one.method: one for one in measure_front(cases, views, noise, hu_window=(-20, 200))}
    assert found["clipped"].mean("edges") == found["clipped"].mean("flat") == 0
    wide = {one.method: one for one in measure_front(cases, views, noise)}
    assert wide["clipped"].mean("flat") > 10


def test_edges_are_steep_flat_places_are_not_and_tissues_go_by_hu():
    truth = KnownNoise(1, softened_pixels=0.8).truth_of(muscle_and_fat())
    places = places_of(truth)
    assert tuple(places) == PLACES
    # 160 HU after Gaussians of 0.8 and 1 pixel: at the distance d from the edge the slope is 160 N(d; 1.28)
    sd = math.hypot(0.8, 1.0)
    reach = sd * math.sqrt(2 * math.log(160 / (20 * sd * math.sqrt(2 * math.pi))))
    columns = np.flatnonzero(places["edges"][1, 32])
    expected = [column for edge in (15.5, 47.5) for column in range(64) if abs(column - edge) < reach]
    assert columns.tolist() == expected
    assert not (places["edges"] & places["flat"]).any()
    assert places["flat"][:, 30, 30].all() and places["flat"][:, 5, 5].all()
    assert places["soft tissue"][:, 30, 30].all() and places["fat"][:, 5, 5].all() and not places["lung"].any()


def test_errors_are_root_mean_squares_by_place():
    truth = np.zeros((1, 2, 4), dtype=np.float32)
    view = truth + np.array([3, 4, 0, 0], dtype=np.float32)
    places = {
        "all": np.ones(truth.shape, bool),
        "left": np.zeros(truth.shape, bool),
        "none": np.zeros(truth.shape, bool),
    }
    places["left"][..., :2] = True
    found = errors_hu(view, truth, places)
    assert found["left"] == pytest.approx(math.sqrt(12.5)) and found["all"] == pytest.approx(2.5)
    assert math.isnan(found["none"])


@pytest.mark.parametrize("options", [{"sd_hu": 0}, {"sd_hu": 5, "kernel_pixels": -1}, {"sd_hu": math.nan}])
def test_noise_that_cannot_be_is_refused(options):
    with pytest.raises(UserError, match="standard deviation of the noise must be above 0 HU"):
        KnownNoise(**options)


@pytest.fixture(scope="module")
def front():
    noise = KnownNoise(25, kernel_pixels=0.6, softened_pixels=0)
    truth = ndimage.gaussian_filter(muscle_and_fat(), (0, 0.8, 0.8))
    steps = []
    views = {"truth": lambda noisy, spacing_mm: truth, "half": lambda noisy, spacing_mm: (noisy + truth) / 2}
    found = measure_front([(truth, (3.0, 1, 1))] * 2, views, noise, on_step=lambda: steps.append(1))
    assert len(steps) == 2 * methods_count(2) and len(found) == methods_count(2)
    return found


def test_the_front_measures_what_is_left(front):
    of = {one.method: one for one in front}
    assert of[NOISY].mean("flat") == pytest.approx(25, rel=0.05)
    assert of["truth"].mean("edges") == 0
    assert of["half"].errors["flat"] == pytest.approx([error / 2 for error in of[NOISY].errors["flat"]], rel=1e-5)
    assert of[NOISY].errors["flat"][0] != of[NOISY].errors["flat"][1], "every case has its own noise"
    assert all(math.isnan(error) for error in of[NOISY].errors["lung"])


def test_filters_remove_noise_and_more_strength_more_of_it_in_flat_tissue(front):
    for name in ("gaussian", "curvature-flow", "tv", "nlm"):
        flat = [one.mean("flat") for one in front if one.method == name]
        assert len(flat) >= 5 and flat[0] < 25 and flat == sorted(flat, reverse=True)
    gaussian = [one.mean("edges") for one in front if one.method == "gaussian"]
    assert gaussian[-1] > gaussian[1], "a wide Gaussian blurs edges"


def test_the_table_takes_the_best_strength_of_each_filter(front):
    best = best_of(front)
    assert [one.method for one in best] == [NOISY, "gaussian", "curvature-flow", "tv", "nlm", "truth", "half"]
    for one in best:
        rivals = [other for other in front if other.method == one.method]
        assert one.mean("edges") + one.mean("flat") == min(r.mean("edges") + r.mean("flat") for r in rivals)
    one = Denoised("one", 0.5, {place: [10.0, 14.0, math.nan] for place in PLACES} | {"lung": [math.nan] * 3})
    assert front_rows([one], ("edges", "lung")) == [
        ["", "strength", "edges", "lung"], ["one", "0.5", "12.0 (10.0 to 14.0)", "n/a"]
    ]  # fmt: skip


def test_the_picture_is_drawn(front, tmp_path):
    write_front_picture(front, tmp_path / "new" / "front.png", title="two phantoms")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "new" / "front.png"))).std() > 10


@pytest.mark.slow
def test_the_command_makes_the_view_of_noisy_images_as_the_folder_says(tmp_path, capsys):
    raw, view = tmp_path / "raw", tmp_path / "view"
    raw.mkdir()
    volume = np.pad(muscle_and_fat((6, 64, 64)), ((0, 0), (16, 16), (16, 16)), constant_values=-1000)
    sitk.WriteImage(sitk.GetImageFromArray(volume.round().astype(np.int16)), str(raw / "case_0000.nii.gz"))
    options = ["--vae", "tiny", "--windows", "soft"]
    assert reconstruct.main(["-i", str(raw), "-o", str(view), "-np", "0", *options]) == 0
    command = [str(raw), str(view), "--with-noise", "20", "--slices", "2"]
    assert evaluate_reconstruction.main(command) == 0
    out = capsys.readouterr().out
    results = json.loads((view / "denoising_front.json").read_text())
    assert results["noise"]["sd_hu"] == 20 and results["cases"] == ["case"]
    errors = {one["method"]: one["errors_hu"] for one in results["methods"]}
    assert errors["noisy"]["flat"][0] == pytest.approx(20, rel=0.1)
    assert 0 < errors["tiny"]["flat"][0] < 20 and errors["tiny"]["bone"] == [None]
    assert "--hu-window -200 300" in results["views"]["tiny"]
    line = next(line for line in out.splitlines() if line.startswith("tiny "))
    assert f"{errors['tiny']['edges'][0]:.1f}" in line
    assert (view / "denoising_front.png").is_file()
    assert evaluate_reconstruction.main([str(raw), str(raw), "--with-noise", "20"]) == 1
    assert "was not written by fvae-reconstruct" in capsys.readouterr().err
    for options, message in (
        (["--with-noise", "20", "--pictures", "1", "-np", "0"], "--pictures, -np: no effect with --with-noise"),
        (["--slices", "2", "--noise-kernel", "0"], "--noise-kernel, --slices: no effect without --with-noise"),
    ):
        assert evaluate_reconstruction.main([str(raw), str(view), *options]) == 1
        assert message in capsys.readouterr().err
