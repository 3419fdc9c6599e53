"""Images of another dose or kernel: their noise, their files, and what is refused."""

import importlib

import numpy as np
import pytest
import SimpleITK as sitk

PIXEL_MM = 2.0


@pytest.fixture
def rescan(monkeypatch):
    monkeypatch.syspath_prepend("scripts")
    return importlib.import_module("rescan_images").main


@pytest.fixture
def images(tmp_path):
    """Two coronal files of a cylinder of soft tissue along the body, with noise of 8 HU."""
    y, x = np.mgrid[:48, :48] - 23.5
    rng = np.random.default_rng(0)
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for case in ("a", "b"):
        volume = np.where(np.hypot(y, x) < 20, 60, -1000) + np.zeros((6, 1, 1))
        volume += np.where(volume > -500, rng.normal(0, 8, volume.shape), 0)
        image = sitk.GetImageFromArray(np.rint(volume).astype(np.int16))
        image.SetSpacing((PIXEL_MM, PIXEL_MM, 4.0))
        image.SetOrigin((5.0, -7.0, 11.0))
        sitk.WriteImage(sitk.DICOMOrient(image, "LIP"), str(folder / f"{case}_0000.nii.gz"))
    return folder


def axial(folder, case):
    image = sitk.DICOMOrient(sitk.ReadImage(str(folder / f"{case}_0000.nii.gz")), "LPS")
    return sitk.GetArrayFromImage(image).astype(float)


def noise_hu(volume):
    y, x = np.mgrid[:48, :48] - 23.5
    return float(volume[:, np.hypot(y, x) < 14].std())


def test_a_quarter_of_the_dose_has_twice_the_noise_in_the_axial_plane(rescan, images, tmp_path):
    output = tmp_path / "quarter"
    assert rescan([str(images), str(output), "--dose", "0.25", "--own-noise", "8", "-np", "0"]) == 0
    assert noise_hu(axial(images, "a")) == pytest.approx(8, rel=0.05)
    assert noise_hu(axial(output, "a")) == pytest.approx(16, rel=0.12)
    before, after = (sitk.ReadImage(str(folder / "a_0000.nii.gz")) for folder in (images, output))
    assert after.GetDirection() == before.GetDirection() and after.GetPixelID() == sitk.sitkInt16
    assert after.GetSpacing() == pytest.approx(before.GetSpacing()) and after.GetSize() == before.GetSize()
    assert after.GetOrigin() == pytest.approx(before.GetOrigin())
    assert not np.array_equal(axial(output, "a") - axial(images, "a"), axial(output, "b") - axial(images, "b"))


def test_a_soft_kernel_takes_noise_out_and_the_own_one_changes_nothing(rescan, images, tmp_path):
    assert rescan([str(images), str(tmp_path / "soft"), "--kernel", "soft", "-np", "0"]) == 0
    assert rescan([str(images), str(tmp_path / "own"), "-np", "0"]) == 0
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * (0.8 / PIXEL_MM) ** 2))  # along rows and along columns
    left = (kernel**2).sum() / kernel.sum() ** 2
    assert left == pytest.approx(0.848, abs=1e-3)
    assert noise_hu(axial(tmp_path / "soft", "a")) == pytest.approx(8 * left, rel=0.05)
    assert np.array_equal(axial(tmp_path / "own", "b"), axial(images, "b"))


def test_what_cannot_be_scanned_is_named_and_the_rest_is_done(rescan, images, tmp_path, capsys):
    image = sitk.GetImageFromArray(np.zeros((4, 32, 32), np.int16))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(images / "c_0000.nii.gz"))
    assert rescan([str(images), str(tmp_path / "out"), "--dose", "0.5", "--own-noise", "8", "-np", "0"]) == 1
    said = capsys.readouterr()
    assert "c_0000: pixels of 2 x 1 mm: a sinogram requires square pixels" in said.err and "2 of 3 images" in said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    stored = sitk.GetImageFromArray(
        np.where(np.arange(32) < 9, 0, 1064).astype(np.int16) * np.ones((4, 32, 1), np.int16)
    )
    sitk.WriteImage(stored, str(images / "c_0000.nii.gz"))
    assert rescan([str(images), str(tmp_path / "other"), "--dose", "0.5", "--own-noise", "8", "-np", "0"]) == 1
    assert "c_0000.nii.gz cannot be in HU" in capsys.readouterr().err
    assert rescan([str(images), str(images)]) == 1 and "overwritten" in capsys.readouterr().err
