from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conversion_for_tests import ORIGIN_MM, SHAPE, SPACING_MM

from fvae_nnunet.conversion.structures import VISTA3D_OTHERS, StructureMasks, structures
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
IMAGE = {"the image": Geometry(SPACING_MM, ORIGIN_MM, IDENTITY)}
NESTED = Path("train_1/train_1_a/train_1_a_1.nii.gz")
CASE = "train_1_a_1"
BY_NAME = {structure.name: structure for structure in structures()}


def _boxes(**values):
    """A label map (z, y, x) with a box of 6 x 3 x 2 voxels for each value, from the left."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for place, value in enumerate(values.values()):
        labels[:, 2:5, 3 * place + 1 : 3 * place + 3] = value
    return labels


def _write(path, labels, orientation=None, origin=ORIGIN_MM):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING_MM)
    image.SetOrigin(origin)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation) if orientation else image, str(path))
    return path


def _read(folder, program="totalsegmentator", geometries=IMAGE):
    masks = StructureMasks(folder, program)
    return masks.read(CASE, masks.files_of(CASE, NESTED), SHAPE, geometries)


def test_the_table_has_124_structures_with_every_id_once():
    table = structures()
    assert [structure.id for structure in table] == list(range(1, 125))
    assert len(BY_NAME) == 124
    total = [structure.totalsegmentator_id for structure in table if structure.totalsegmentator_id]
    assert sorted(total) == list(range(1, 118))
    vista = [structure.vista3d_id for structure in table]
    assert len(set(vista)) == 124
    # its 132 numbers: 124 here, 3 unions of others, 5 no longer supported
    assert sorted([*vista, *VISTA3D_OTHERS]) == list(range(1, 133))


@pytest.mark.parametrize(
    ("name", "totalsegmentator_id", "vista3d_id"),
    [
        # from TotalSegmentator's class_map["total"] and VISTA3D's label_dict.json
        ("spleen", 1, 3), ("kidney_right", 2, 5), ("kidney_left", 3, 14), ("liver", 5, 1),
        ("lung_upper_lobe_left", 10, 28), ("lung_middle_lobe_right", 13, 31), ("urinary_bladder", 21, 15),
        ("vertebrae_S1", 26, 127), ("vertebrae_L5", 27, 33), ("vertebrae_C1", 50, 56), ("heart", 51, 115),
        ("aorta", 52, 6), ("subclavian_artery_right", 55, 124), ("brachiocephalic_vein_left", 59, 110),
        ("portal_vein_and_splenic_vein", 64, 17), ("hip_right", 78, 96), ("skull", 91, 120), ("rib_left_1", 92, 63),
        ("rib_left_12", 103, 74), ("rib_right_12", 115, 86), ("costal_cartilages", 117, 114),
        ("airway", None, 132), ("lung_tumor", None, 23), ("hepatic_vessel", None, 25), ("bone_lesion", None, 128),
    ],
)  # fmt: skip
def test_ids_are_those_of_both_programs(name, totalsegmentator_id, vista3d_id):
    assert BY_NAME[name].totalsegmentator_id == totalsegmentator_id
    assert BY_NAME[name].vista3d_id == vista3d_id


def test_both_programs_give_one_map(tmp_path):
    _write(tmp_path / "ts" / f"{CASE}.nii.gz", _boxes(liver=5, heart=51, rib_right_1=104))
    _write(tmp_path / "vista" / f"{CASE}.nii.gz", _boxes(liver=1, heart=115, rib_right_1=75))
    one, other = _read(tmp_path / "ts"), _read(tmp_path / "vista", "vista3d")
    expected = _boxes(liver=5, heart=51, rib_right_1=104)
    for found in (one, other):
        assert found.labels.dtype == np.uint8
        np.testing.assert_array_equal(found.labels, expected)
        assert found.voxels == {"liver": 36, "heart": 36, "rib_right_1": 36}
        assert not found.left_out and not found.overlap_voxels


def test_unions_of_vista3d_become_background_and_are_named(tmp_path):
    _write(tmp_path / f"{CASE}.nii.gz", _boxes(lung=20, airway=132))
    found = _read(tmp_path, "vista3d")
    assert found.voxels == {"airway": 36}
    assert found.left_out == {"lung": 36}
    np.testing.assert_array_equal(np.unique(found.labels), [0, BY_NAME["airway"].id])


def test_a_class_that_the_program_has_not_is_refused(tmp_path):
    _write(tmp_path / f"{CASE}.nii.gz", _boxes(liver=5, airway=132))
    with pytest.raises(UserError, match="has the class 132, which totalsegmentator does not have"):
        _read(tmp_path)


@pytest.mark.parametrize("value", [2.5, -1, 300])
def test_what_is_no_map_of_classes_is_refused(tmp_path, value):
    _write(tmp_path / f"{CASE}.nii.gz", _boxes(liver=1).astype(np.float32) * value)
    with pytest.raises(UserError, match="is not a label map"):
        _read(tmp_path)


def test_a_file_for_each_structure_gives_the_same_map(tmp_path):
    for name in ("liver", "heart"):
        _write(tmp_path / CASE / f"{name}.nii.gz", (_boxes(liver=5, heart=51) == BY_NAME[name].id).astype(np.uint8))
    _write(tmp_path / CASE / "stomach.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    _write(tmp_path / CASE / "lung_vessels.nii.gz", _boxes(vessels=1))
    found = _read(tmp_path)
    np.testing.assert_array_equal(found.labels, _boxes(liver=5, heart=51))
    assert found.voxels == {"liver": 36, "heart": 36}
    assert found.left_out == {"lung_vessels": 36}


def test_one_file_in_the_folder_of_a_case_is_one_structure_not_a_label_map(tmp_path):
    _write(tmp_path / CASE / "liver.nii.gz", _boxes(liver=1))
    found = _read(tmp_path)
    assert found.voxels == {"liver": 36}
    assert set(np.unique(found.labels)) == {0, 5}


def test_where_files_overlap_the_lower_id_has_the_voxels(tmp_path):
    _write(tmp_path / CASE / "heart.nii.gz", _boxes(heart=1))
    spleen = np.zeros(SHAPE, dtype=np.uint8)
    spleen[:, 2:5, 2:4] = 1
    _write(tmp_path / CASE / "spleen.nii.gz", spleen)
    found = _read(tmp_path)
    assert found.voxels == {"spleen": 36, "heart": 18}
    assert found.overlap_voxels == 18


@pytest.mark.parametrize("place", [NESTED, "train_fixed" / NESTED, "train" / NESTED])
def test_the_published_folders_are_understood(tmp_path, place):
    path = _write(tmp_path / place, _boxes(liver=5))
    assert StructureMasks(tmp_path, "totalsegmentator").files_of(CASE, NESTED) == [path]
    assert _read(tmp_path).voxels == {"liver": 36}


def test_a_case_without_structures_is_named(tmp_path):
    (tmp_path / CASE).mkdir()
    with pytest.raises(UserError, match=rf"has no file {CASE}\.nii\.gz and no folder"):
        _read(tmp_path)
    _write(tmp_path / CASE / "body.nii.gz", _boxes(body=1))
    with pytest.raises(UserError, match="contains no structure"):
        _read(tmp_path)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "SPL"])
def test_a_mask_stored_in_another_orientation_is_turned(tmp_path, orientation):
    _write(tmp_path / f"{CASE}.nii.gz", _boxes(liver=5, heart=51), orientation)
    np.testing.assert_array_equal(_read(tmp_path).labels, _boxes(liver=5, heart=51))


def test_a_mask_of_another_place_is_refused(tmp_path):
    _write(tmp_path / f"{CASE}.nii.gz", _boxes(liver=5), origin=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="is not on the grid of the image"):
        _read(tmp_path)
    blank = {"its own header": Geometry(SPACING_MM, (0.0, 0.0, 0.0), IDENTITY)}
    assert _read(tmp_path, geometries=blank | IMAGE).voxels == {"liver": 36}


@pytest.mark.parametrize(("name", "accepted"), [("spleen", True), ("heart_myocardium", False)])
def test_the_names_in_a_label_map_of_totalsegmentator_are_checked(tmp_path, name, accepted):
    path = _write(tmp_path / f"{CASE}.nii.gz", _boxes(spleen=1))
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    # as TotalSegmentator's nifti_ext_header.py writes it
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> <VolumeInformation Index="0"> <LabelTable>'
        f'<Label Key="1" Red="1.0" Green="0.0" Blue="0.0" Alpha="1"><![CDATA[{name}]]></Label>\n'
        "</LabelTable> </VolumeInformation></CaretExtension>"
    )
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, xml.encode()))
    nibabel.save(image, path)
    with pytest.raises(UserError, match=rf"class 1 is {name}; in VISTA3D, it is liver"):
        _read(tmp_path, "vista3d")
    if accepted:
        assert _read(tmp_path).voxels == {"spleen": 36}
    else:
        with pytest.raises(UserError, match=r"class 1 is heart_myocardium; .* it is spleen"):
            _read(tmp_path)
