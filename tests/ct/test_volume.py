"""CT as one value: what it says of a file, and arrays, tensors and masks beside it."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from painted_cases import CORONAL, write_image

from fvae_nnunet.ct.volume import CT, read_ct
from fvae_nnunet.errors import UserError

HU = (np.arange(2 * 3 * 4).reshape(2, 3, 4) - 10).astype(np.int16)


def test_a_file_and_back(tmp_path):
    write_image(tmp_path / "a.nrrd", HU, spacing_mm=(3, 2, 1.5), direction=CORONAL, origin_mm=(5.0, -7.0, 11.0))
    ct = read_ct(str(tmp_path / "a.nrrd"), hu_as_is=True)
    np.testing.assert_array_equal(ct.hu, HU)
    assert ct.spacing_mm == (3, 2, 1.5) and ct.origin_mm == (5, -7, 11) and ct.direction == CORONAL
    ct.with_hu(ct.hu + 0.6).save(tmp_path / "b.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), HU + 1)
    np.testing.assert_allclose(image.GetDirection(), CORONAL, atol=1e-6)
    assert image.GetSpacing() == pytest.approx((1.5, 2, 3)) and image.GetOrigin() == pytest.approx((5, -7, 11))


def test_what_cannot_be_hu_is_refused_and_can_be_taken_as_it_is(tmp_path):
    pet = np.linspace(0, 40000, 4 * 20 * 20).reshape(4, 20, 20).astype(np.float32)
    write_image(tmp_path / "pet.nii.gz", pet, spacing_mm=(3, 2, 2))
    with pytest.raises(UserError, match=r"pet\.nii\.gz cannot be in HU"):
        read_ct(tmp_path / "pet.nii.gz")
    assert read_ct(tmp_path / "pet.nii.gz", hu_as_is=True).hu.max() == 40000


def test_arrays_and_tensors():
    of_array, of_tensor = (CT.from_array(hu, (3, 2, 1)) for hu in (HU, torch.from_numpy(HU).requires_grad_(False)))
    np.testing.assert_array_equal(of_array.hu, of_tensor.hu)
    assert of_tensor.geometry == of_array.geometry and of_array.geometry.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize(
    ("hu", "spacing_mm", "message"),
    [
        (HU[0], (3, 2, 1), r"hu must have three axes .* got shape \(3, 4\)"),
        (HU[:0], (3, 2, 1), "at least one voxel"),
        (HU, (3, 2), "spacing_mm must be three positive numbers"),
        (HU, (3, 0, 1), "spacing_mm must be three positive numbers"),
    ],
)
def test_what_is_no_ct(hu, spacing_mm, message):
    with pytest.raises(UserError, match=message):
        CT.from_array(hu, spacing_mm)


def test_masks_of_every_kind(tmp_path):
    ct = CT.from_array(HU, (3, 2, 1))
    wanted = HU > 5
    write_image(tmp_path / "mask.nii.gz", 7 * wanted.astype(np.uint8), spacing_mm=(3, 2, 1))
    given = [wanted, torch.from_numpy(wanted.copy()), ct.with_hu(wanted), str(tmp_path / "mask.nii.gz")]
    for mask in given:
        np.testing.assert_array_equal(ct.mask(mask, "organ"), wanted)
    with pytest.raises(UserError, match=r"organ has shape \(2, 3, 3\)"):
        ct.mask(wanted[:, :, :3], "organ")
    write_image(tmp_path / "moved.nii.gz", wanted.astype(np.uint8), spacing_mm=(3, 2, 1), origin_mm=(0.0, 4.0, 0.0))
    with pytest.raises(UserError, match=r"the CT and .*moved\.nii\.gz differ in origin"):
        ct.mask(tmp_path / "moved.nii.gz", "organ")
