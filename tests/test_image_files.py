import numpy as np
import pytest
import SimpleITK as sitk

from fvae_nnunet.errors import UserError
from fvae_nnunet.image_files import find_images, read_volume, write_volume

OBLIQUE = (0.9, -0.435889894354067, 0, 0.435889894354067, 0.9, 0, 0, 0, 1)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_an_oblique_anisotropic_volume_keeps_values_and_geometry(tmp_path, ending):
    volume_hu = np.random.default_rng(0).integers(-1024, 3072, size=(3, 4, 5)).astype(np.int16)
    image = sitk.GetImageFromArray(volume_hu)
    image.SetSpacing((0.7, 0.8, 5.0))
    image.SetOrigin((-120.5, 33.25, 900.0))
    image.SetDirection(OBLIQUE)
    sitk.WriteImage(image, str(tmp_path / f"in{ending}"))
    found, geometry = read_volume(tmp_path / f"in{ending}")
    assert np.array_equal(found, volume_hu)
    write_volume(tmp_path / f"out{ending}", found, geometry)
    before, after = (sitk.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("in", "out"))
    assert np.array_equal(sitk.GetArrayFromImage(after), volume_hu)
    assert after.GetPixelID() == sitk.sitkInt16
    for question in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, question)(), getattr(before, question)(), atol=1e-6)


def test_hu_that_int16_cannot_hold_leave_no_file(tmp_path):
    path = tmp_path / "ct.nii.gz"
    _, geometry = _written(tmp_path)
    with pytest.raises(UserError, match="do not fit int16"):
        write_volume(path, np.full((1, 2, 2), 40000.0), geometry)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_ct_volume_is_refused(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b not an image")
    with pytest.raises(UserError, match=r"broken\.nii\.gz cannot be read"):
        read_volume(tmp_path / "broken.nii.gz")
    sitk.WriteImage(sitk.Image([4, 4, 4, 2], sitk.sitkInt16), str(tmp_path / "series.nii.gz"))
    with pytest.raises(UserError, match="4 dimensions"):
        read_volume(tmp_path / "series.nii.gz")
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorInt16, 3), str(tmp_path / "colour.mha"))
    with pytest.raises(UserError, match="3 values per voxel"):
        read_volume(tmp_path / "colour.mha")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_file_cut_short_is_refused_not_filled_with_zeros(tmp_path, ending):
    path = tmp_path / f"ct{ending}"
    volume_hu = np.random.default_rng(0).integers(-900, 900, size=(8, 32, 32)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(volume_hu), str(path), useCompression=True)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"ct\..* (cannot be read|is cut short)"):
            read_volume(path)
    path.write_bytes(whole)
    assert np.array_equal(read_volume(path)[0], volume_hu)


def test_a_flipped_bit_in_a_compressed_nifti_is_noticed(tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(4096, dtype=np.int16).reshape(16, 16, 16)), str(path))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot be read"):
        read_volume(path)


def test_images_are_found_by_case_and_oddities_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no image"):
        find_images(tmp_path)
    for name in ("b_0000.nii.gz", "a.nrrd", "c.v2.mha", "notes.txt", ".hidden.nii.gz"):
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == ["a", "b_0000", "c.v2"]
    (tmp_path / "a.nii").touch()
    with pytest.raises(UserError, match="two images of one name"):
        find_images(tmp_path)
    (tmp_path / "a.nii").unlink()
    (tmp_path / "d.mhd").touch()
    with pytest.raises(UserError, match="separate data file"):
        find_images(tmp_path)


def _written(folder):
    path = folder / "source.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2), np.int16)), str(path))
    return read_volume(path)
