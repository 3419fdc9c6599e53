"""The picture of a reconstruction: the line across a boundary, the matched filter, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.ct.noise import homogeneous_region, measure_noise
from fvae_nnunet.evaluation.reconstruction.matched_filter import matched_filter
from fvae_nnunet.evaluation.reconstruction.picture import reconstruction_picture
from fvae_nnunet.evaluation.reconstruction.profile import HALF_LENGTH_MM, line_across

PIXEL_MM = (0.8, 0.8)
WINDOW_HU = (-160.0, 240.0)


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    return np.hypot(y - 48, x - 64) <= radius


def test_the_line_lies_across_the_lesions_steepest_boundary_and_runs_outwards() -> None:
    lesion = disc(20)
    # 60 HU of contrast towards smaller columns, 20 elsewhere
    slice_hu = np.where(lesion, 60.0, np.where(np.arange(128) < 64, 0.0, 40.0))
    line = line_across(slice_hu, lesion, PIXEL_MM, WINDOW_HU)
    y, x = line.centre_mm / PIXEL_MM
    assert x < 62 and np.hypot(y - 48.5, x - 64.5) == pytest.approx(20, abs=1.5)
    assert line.direction @ (line.centre_mm - np.multiply((48.5, 64.5), PIXEL_MM)) > 0
    hu = line.values(slice_hu, PIXEL_MM)
    assert np.mean(hu[line.along_mm < -4]) == pytest.approx(60, abs=1)
    assert np.mean(hu[(line.along_mm > 4) & (line.along_mm < 8)]) == pytest.approx(0, abs=3)
    half = line.along_mm[np.flatnonzero(hu < 30)[0]]
    assert abs(half) < 1.5, "the edge lies at 0"
    assert np.linalg.norm(np.diff(line.ends_mm, axis=0)) == pytest.approx(2 * HALF_LENGTH_MM)


def test_air_and_metal_beside_a_lesion_are_left_out() -> None:
    lesion = disc(20)
    slice_hu = np.where(lesion, 60.0, np.where(np.arange(128) < 64, -1000.0, 30.0))
    assert line_across(slice_hu, lesion, PIXEL_MM, WINDOW_HU).centre_mm[1] / 0.8 > 66


def test_without_lesion_the_line_runs_up_the_slope_and_outside_the_slice_there_is_nothing() -> None:
    slice_hu = np.where(np.arange(128) < 10, -80.0, 50.0) * np.ones((96, 1))
    line = line_across(slice_hu, np.zeros((96, 128), bool), PIXEL_MM, WINDOW_HU)
    assert line.direction == pytest.approx([0, 1]) and line.centre_mm[1] / 0.8 == pytest.approx(10, abs=1)
    assert np.isnan(line.values(slice_hu, PIXEL_MM)[0])


@pytest.fixture
def noisy() -> np.ndarray:
    return np.random.default_rng(0).normal(60, 25, (17, 96, 128)).astype(np.float32).round()


def test_the_filter_leaves_as_much_noise_as_the_view_or_there_is_none(noisy: np.ndarray) -> None:
    view_hu = ndimage.median_filter(noisy, (1, 3, 3))
    filtered = matched_filter(noisy, view_hu)
    assert filtered is not None
    region = homogeneous_region(noisy)
    left = [measure_noise(hu, region).total_hu for hu in (view_hu, filtered)]
    assert left[1] == pytest.approx(left[0], rel=0.02)
    assert matched_filter(noisy, noisy) is None, "the view removes nothing"
    assert matched_filter(noisy, np.full_like(noisy, 60)) is None, "the view removes all"
    assert matched_filter(np.full_like(noisy, -1000), view_hu) is None, "no soft tissue"


@pytest.mark.slow
def test_the_sheet_shows_raw_beside_view_a_strip_profile_histogram_and_spectrum(
    noisy: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    reference = np.zeros(noisy.shape, np.uint8)
    reference[4:13] = disc(20)
    raw_hu = noisy - 60 * (reference == 0)
    arguments: dict[str, Any] = {"spacing_mm": (3.0, 0.8, 0.8), "title": "case", "path": tmp_path / "case.png"}
    view_hu = ndimage.gaussian_filter(raw_hu, (0, 0.7, 0.7))
    reconstruction_picture(raw_hu, view_hu, reference=reference, labels={"tumour": 1}, **arguments)
    panels = drawn[0].axes
    slices = [panel for panel in panels if panel.images and panel.get_xlabel() == ""]
    shown = [np.asarray(panel.images[0].get_array()) for panel in slices]
    np.testing.assert_array_equal(shown[1], raw_hu[4])
    np.testing.assert_array_equal(shown[2], view_hu[4])
    assert slices[1].get_xlim() == slices[2].get_xlim() != slices[0].get_xlim()
    titles = [panel.get_title() for panel in panels]
    assert [title for title in titles if title.startswith("slice")] == [f"slice {n}" for n in (5, 6, 8, 9, 10, 12, 13)]
    for panel in slices:
        assert len(panel.texts) == 5, "four letters and a bar"
    plots = panels[-3:]
    curves = [[line.get_label() for line in plot.lines if not line.get_label().startswith("_")] for plot in plots]
    assert curves[0] == curves[2] == ["raw", "view", "Gaussian, same noise left"]
    raw_power, view_power, _ = (line.get_ydata() for line in plots[2].lines)
    assert view_power[-1] < 0.2 * raw_power[-1]
    drawn.clear()
    reconstruction_picture(raw_hu, view_hu, reference=None, labels={}, **arguments)
    assert drawn[0].axes[-3].get_xlabel().endswith("up the slope")
