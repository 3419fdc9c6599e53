"""The table of reconstruction figures."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from evaluate_vae import collect_images, compare, main, table

from fvae_nnunet.errors import UserError


def test_figures_of_a_constant_shift_follow_from_arithmetic():
    reference = np.full((2, 8, 8), 100, dtype=np.int16)
    reference[:, :, :4] = -3000  # clipped to -1000
    reconstruction = np.where(reference == 100, 120.0, -990.0)
    figures = compare(reference, reconstruction, (-1000.0, 1000.0))
    assert figures.psnr_db == pytest.approx(10 * np.log10(2000**2 / ((20**2 + 10**2) / 2)))
    assert (figures.mae_hu, figures.bias_hu, figures.air_mae_hu) == pytest.approx((15, 15, 10))


def test_ssim_is_the_mean_over_axial_slices():
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 200, (3, 16, 16))
    reconstruction = reference.copy()
    reconstruction[2] = reference[2].mean()
    first_two = compare(reference[:2], reconstruction[:2], (-1000.0, 1000.0))
    last = compare(reference[2:], reconstruction[2:], (-1000.0, 1000.0))
    assert first_two.ssim == 1
    assert last.ssim < 0.5
    both = compare(reference, reconstruction, (-1000.0, 1000.0))
    assert both.ssim == pytest.approx((2 + last.ssim) / 3)


def test_missing_figures_are_left_out_of_the_mean_only():
    dense = compare(np.zeros((1, 4, 4)), np.full((1, 4, 4), 10.0), (-1000.0, 1000.0))
    assert np.isnan(dense.ssim)
    assert np.isnan(dense.air_mae_hu)
    aired = compare(np.full((1, 8, 8), -1000.0), np.full((1, 8, 8), -990.0), (-1000.0, 1000.0))
    mean_row = table({"a": dense, "b": aired}).splitlines()[-1]
    assert mean_row.endswith("| 10.0 | +10.0 | 10.0 |")


def test_command_writes_one_row_per_volume_and_the_mean(tmp_path, capsys):
    volume = np.random.default_rng(0).integers(-1000, 400, (2, 24, 20)).astype(np.int16)
    for name in ("a.nii.gz", "b.mha"):
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / name))
    assert main(["--vae", "tiny", "-i", str(tmp_path), "-o", str(tmp_path / "table.md")]) == 0
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| a", "| b", "| **mean of 2**"]
    assert rows[2].split(" | ")[1:] == rows[3].split(" | ")[1:] == rows[4].split(" | ")[1:]
    assert rows[2] in capsys.readouterr().out


def test_bad_places_are_one_message(tmp_path, capsys):
    assert main(["--vae", "tiny", "-i", str(tmp_path / "absent")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "x.nrrd").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.mha").touch()
    with pytest.raises(UserError, match="same name x"):
        collect_images([tmp_path / "x.nrrd", tmp_path / "sub"])
