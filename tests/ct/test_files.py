import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from fvae_nnunet.ct.files import find_images, read_header, read_upright, read_volume, write_label_map, write_volume
from fvae_nnunet.ct.orientation import axial_order_of_nnunet
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.image_readers import READERS, reader_beside, reader_of

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
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkComplexFloat32), str(tmp_path / "complex.nii.gz"))
    with pytest.raises(UserError, match="complex"):
        read_volume(tmp_path / "complex.nii.gz")
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
        with pytest.raises(UserError, match=r"ct\..* (cannot be read|is truncated)"):
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
    with pytest.raises(UserError, match="is not a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no image"):
        find_images(tmp_path)
    for name in ("b_0000.nii.gz", "a.nrrd", "c.v2.mha", "notes.txt", ".hidden.nii.gz"):
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == ["a", "b_0000", "c.v2"]
    (tmp_path / "a.nii").touch()
    with pytest.raises(UserError, match="two images with one name"):
        find_images(tmp_path)
    (tmp_path / "a.nii").unlink()
    (tmp_path / "d.mhd").touch()
    with pytest.raises(UserError, match="separate data file"):
        find_images(tmp_path)


def _written(folder):
    path = folder / "source.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2), np.int16)), str(path))
    return read_volume(path)


def _sheared_affine():
    """A gantry tilt: slices of 3 mm, each 0.5 mm further to the front."""
    affine = np.diag([-0.8, -0.8, 3.0, 1.0])
    affine[:, 3] = 10, 20, -300, 1
    affine[1, 2] = 0.5
    return affine


def _sagittal_affine():
    return np.array([[0, 0, 3.0, -50], [-0.8, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_sheared_nifti_of_both_kinds_is_read_as_nibabel_does_and_keeps_its_header(tmp_path, kind, ending):
    volume_hu = np.random.default_rng(0).integers(-1024, 3072, size=(3, 4, 5)).astype(np.int16)
    image = kind(volume_hu.T, None)
    image.set_sform(_sheared_affine(), 1)
    image.header["pixdim"][1:4] = 0.8, 0.8, 3
    image.header["descrip"] = b"a tilted gantry"
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / f"in{ending}")
    found, geometry = read_volume(tmp_path / f"in{ending}")
    assert np.array_equal(found, np.asarray(nibabel.load(tmp_path / f"in{ending}").dataobj).T)
    assert geometry.spacing_mm == pytest.approx((0.8, 0.8, np.hypot(3, 0.5)))
    assert geometry.origin_mm == (-10, -20, -300)
    assert geometry.axial_order == (0, 1, 2)
    assert read_header(tmp_path / f"in{ending}") == ((3, 4, 5), geometry)

    write_volume(tmp_path / f"out{ending}", volume_hu, geometry)
    before, after = (nibabel.load(tmp_path / f"{name}{ending}") for name in ("in", "out"))
    assert type(after) is type(before) is kind
    assert np.array_equal(np.asarray(after.dataobj).T, volume_hu) and after.get_data_dtype() == np.int16
    for key in before.header:
        if key not in ("datatype", "bitpix", "scl_slope", "scl_inter"):
            assert before.header[key].tobytes() == after.header[key].tobytes(), key
    assert np.array_equal(read_upright(tmp_path / f"in{ending}")[0], found)


def test_codes_of_a_nifti_header_survive_a_simple_image_too(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([-1, -1, 3, 1]))
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 3)
    nibabel.save(image, tmp_path / "in.nii.gz")
    volume_hu, geometry = read_volume(tmp_path / "in.nii.gz")
    write_label_map(tmp_path / "out.nii.gz", volume_hu.astype(np.uint8), geometry)
    header = nibabel.load(tmp_path / "out.nii.gz").header
    assert (header["sform_code"], header["qform_code"], header.get_data_dtype()) == (4, 3, np.uint8)


@pytest.mark.parametrize("affine", [_sheared_affine(), _sagittal_affine(), np.diag([0.8, -0.8, 3.0, 1.0])])
@pytest.mark.parametrize("name", READERS)
def test_each_reader_sees_what_nnunets_reader_of_that_name_sees_and_writes_it_back(tmp_path, name, affine):
    sheared = affine[1, 2] == 0.5
    if name.startswith("SimpleITK") and sheared:
        pytest.skip("SimpleITK reads no sheared NIfTI")
    volume_hu = np.random.default_rng(0).integers(-1024, 3072, size=(5, 4, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume_hu, affine), tmp_path / "in.nii.gz")
    expected, properties = recursive_find_reader_writer_by_name(name)().read_images([str(tmp_path / "in.nii.gz")])
    found, geometry = read_volume(tmp_path / "in.nii.gz", reader=name)
    assert np.array_equal(found, expected[0])
    assert geometry.axial_order == axial_order_of_nnunet(properties)
    if not sheared:
        assert geometry.spacing_mm[::-1] == pytest.approx(properties["spacing"])

    write_volume(tmp_path / "out.nii.gz", found + 1, geometry)
    after = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), volume_hu + 1)
    np.testing.assert_allclose(after.affine, affine, atol=1e-6)


def test_a_named_reader_is_not_replaced_by_another(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), _sheared_affine()), tmp_path / "ct.nii.gz")
    with pytest.raises(UserError, match="orthonormal"):
        read_volume(tmp_path / "ct.nii.gz", reader="SimpleITKIO")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(UserError, match="is not a single grey volume"):
        read_volume(tmp_path / "ct.nii.gz", reader="NibabelIO")
    assert read_volume(_written_4d(tmp_path / "one.nii.gz"), reader="NibabelIO")[0].shape == (5, 4, 3)


def _written_4d(path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.int16), np.eye(4)), path)
    return path


def test_the_reader_is_that_of_the_plans_then_of_dataset_json(tmp_path):
    assert reader_of({}, {}) is None
    assert reader_of({}, {"overwrite_image_reader_writer": "None"}) is None
    assert reader_of({}, {"overwrite_image_reader_writer": "NibabelIO"}) == "NibabelIO"
    plans = {"image_reader_writer": "SimpleITKIO"}
    assert reader_of(plans, {"overwrite_image_reader_writer": "NibabelIO"}) == "SimpleITKIO"
    (tmp_path / "dataset.json").write_text(json.dumps({"overwrite_image_reader_writer": "NibabelIO"}))
    assert reader_beside(tmp_path / "dataset.json") == "NibabelIO"
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert reader_beside(tmp_path / "dataset.json") == "SimpleITKIO"
    (tmp_path / "plans.json").write_text(json.dumps({"image_reader_writer": "Tiff3DIO"}))
    assert reader_beside(tmp_path / "dataset.json") is None
