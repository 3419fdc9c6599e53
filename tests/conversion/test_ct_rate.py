import pytest
from conversion_for_tests import place

from fvae_nnunet.conversion.ct_rate import (
    VolumeName,
    find_volumes,
    first_reconstructions,
    read_no_chest,
    read_selection,
)
from fvae_nnunet.errors import UserError


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def _names(*cases):
    return [VolumeName.parse(case) for case in cases]


def test_a_name_says_split_patient_scan_and_reconstruction():
    name = VolumeName.parse("valid_53_b_2.nii.gz")
    assert name == VolumeName("valid", 53, "b", 2) == VolumeName.parse("valid_53_b_2")
    assert (name.patient, name.scan, name.case) == ("valid_53", "valid_53_b", "valid_53_b_2")
    assert str(name.nested) == "valid_53/valid_53_b/valid_53_b_2.nii.gz"


@pytest.mark.parametrize(
    "text", ["test_1_a_1.nii.gz", "train_1_a.nii.gz", "train_01_a_1.nii.gz", "train_1_a_1.nii", ""]
)
def test_other_names_are_none(text):
    assert VolumeName.parse(text) is None


def test_patients_of_the_two_splits_with_one_number_are_two():
    train, valid = _names("train_1_a_1", "valid_1_a_1")
    assert train.patient != valid.patient


def test_volumes_sort_by_number_not_by_text():
    assert sorted(_names("train_10_a_1", "train_9_b_1", "train_9_a_2")) == _names(
        "train_9_a_2", "train_9_b_1", "train_10_a_1"
    )


def test_the_fixed_volume_counts_where_both_releases_are_there(tmp_path):
    for folder in ("train", "train_fixed"):
        _touch(place(tmp_path, folder, "train_1_a_1"))
    old = _touch(place(tmp_path, "train", "train_2_a_1"))
    test = _touch(place(tmp_path, "valid_fixed", "valid_1_a_1"))
    found = find_volumes(tmp_path, ["train", "valid"])
    assert [volume.case for volume in found] == ["train_1_a_1", "train_2_a_1", "valid_1_a_1"]
    assert list(found.values()) == [place(tmp_path, "train_fixed", "train_1_a_1"), old, test]
    assert list(find_volumes(tmp_path, ["valid"]).values()) == [test]
    assert find_volumes(tmp_path / "dataset", ["train", "valid"]) == found


def test_the_publishers_download_folder_and_a_flat_one_are_understood(tmp_path):
    path = _touch(place(tmp_path / "download" / "data_volumes", "train_fixed", "train_1_a_1"))
    assert list(find_volumes(tmp_path / "download", ["train"]).values()) == [path]
    flat = _touch(tmp_path / "flat" / "train_1_a_1.nii.gz")
    _touch(tmp_path / "flat" / "valid_1_a_1.nii.gz")
    assert list(find_volumes(tmp_path / "flat", ["train"]).values()) == [flat]


def test_the_structures_beside_the_volumes_are_no_volumes(tmp_path):
    _touch(place(tmp_path, "train_fixed", "train_1_a_1"))
    _touch(place(tmp_path, "ts_seg/ts_total/train_fixed", "train_7_a_1"))
    assert [volume.case for volume in find_volumes(tmp_path, ["train"])] == ["train_1_a_1"]


def test_what_cannot_be_understood_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        find_volumes(tmp_path / "none", ["train"])
    with pytest.raises(UserError, match="contains no volume of CT-RATE"):
        find_volumes(tmp_path, ["train"])
    _touch(tmp_path / "dataset" / "train_fixed" / "train_1_a_1_seg.nii.gz")
    with pytest.raises(UserError, match=r"train_1_a_1_seg\.nii\.gz is not named"):
        find_volumes(tmp_path, ["train"])


def test_one_volume_in_two_files_is_refused(tmp_path):
    _touch(place(tmp_path, "train_fixed", "train_1_a_1"))
    _touch(tmp_path / "dataset" / "train_fixed" / "train_1_a_1.nii.gz")
    with pytest.raises(UserError, match="are the same volume"):
        find_volumes(tmp_path, ["train"])


def test_the_first_reconstruction_is_the_lowest_number_that_is_there():
    volumes = _names("train_1_a_10", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_2_a_2")
    assert first_reconstructions(volumes) == _names("train_1_a_2", "train_1_b_1", "train_2_a_1")


def test_a_scan_that_was_converted_gets_no_other_reconstruction():
    volumes = _names("train_1_a_1", "train_1_a_2", "train_2_a_1", "train_2_b_1")
    assert first_reconstructions(volumes, _names("train_1_a_2", "train_2_b_2")) == _names("train_1_a_2", "train_2_a_1")


def test_lists_of_no_chest_hold_names_or_paths(tmp_path):
    path = tmp_path / "no_chest_train.txt"
    path.write_text("train_109_a_1.nii.gz\n\ntrain/train_3/train_3_a/train_3_a_2.nii.gz\n")
    assert read_no_chest([path]) == set(_names("train_109_a_1", "train_3_a_2"))
    path.write_text("train_109_a_1.nii.gz\nhead\n")
    with pytest.raises(UserError, match="line 2: 'head'"):
        read_no_chest([path])


def test_a_selection_names_volumes_scans_or_patients(tmp_path):
    volumes = _names("train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_2_b_1", "train_11_a_1")
    path = tmp_path / "cases.txt"
    path.write_text("train_1_a\ntrain_2_a_1.nii.gz\ntrain_11\n")
    assert read_selection(path, volumes) == set(_names("train_1_a_1", "train_1_a_2", "train_2_a_1", "train_11_a_1"))
    path.write_text("train_1\ntrain_3\n")
    with pytest.raises(UserError, match=r"1 of 2 lines .* train_3"):
        read_selection(path, volumes)
    with pytest.raises(UserError, match="is not a file"):
        read_selection(tmp_path / "none.txt", volumes)
    path.write_text(" \n")
    with pytest.raises(UserError, match="names nothing"):
        read_selection(path, volumes)


def test_lists_are_read_as_utf8_with_or_without_its_mark(tmp_path):
    path = tmp_path / "cases.txt"
    path.write_bytes("train_1_a\n".encode("utf-8-sig"))
    assert read_selection(path, _names("train_1_a_1")) == set(_names("train_1_a_1"))
    path.write_bytes("train_1_a ä".encode("latin-1"))
    for read in (lambda: read_selection(path, _names("train_1_a_1")), lambda: read_no_chest([path])):
        with pytest.raises(UserError, match=r"cases.txt is not in UTF-8: .* at byte 10; save it in UTF-8"):
            read()
