"""Images that are noisier than those of the training get its noise; others stay as they are."""

from __future__ import annotations

import denoise_to_training
import numpy as np
import pytest
import SimpleITK as sitk
from noise_for_tests import anatomy, white

from fvae_nnunet.ct.noise import measured_region


def image(path, sd_hu, seed):
    volume_hu = np.rint(anatomy() + white(sd_hu, seed=seed)).astype(np.int16)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(volume_hu), str(path))
    return volume_hu


def noise_of(path):
    volume_hu = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return measured_region(volume_hu, (-1000, 1000))[1].total_hu


def test_noisy_images_get_the_noise_of_the_training_and_others_stay(tmp_path, capsys):
    for number in range(3):
        image(tmp_path / "train" / f"a{number}_0000.nii.gz", 10, number)
    image(tmp_path / "test" / "noisy_0000.nii.gz", 30, 8)
    image(tmp_path / "test" / "clean_0000.nii.gz", 4, 9)
    arguments = [str(tmp_path / name) for name in ("train", "test", "out")]
    assert denoise_to_training.main(arguments) == 0
    assert "1 of 2 images denoised to" in capsys.readouterr().out
    assert noise_of(tmp_path / "out" / "noisy_0000.nii.gz") == pytest.approx(10, rel=0.1)
    clean = "clean_0000.nii.gz"
    assert (tmp_path / "out" / clean).read_bytes() == (tmp_path / "test" / clean).read_bytes()
    assert denoise_to_training.main(arguments) == 1
    assert "exists; name a new folder" in capsys.readouterr().err
