"""fvae-convert on miniature downloads, with the traps that are known of the real ones."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conversion_for_tests import (
    ORIGIN_MM,
    SHAPE,
    SPACING_MM,
    chest,
    grounding_entry,
    label_row,
    metadata_row,
    place,
    report_row,
    write_csv,
    write_first_release,
    write_fixed,
    write_grounding,
    write_json,
    write_tables,
)

from fvae_nnunet.cli.convert import main
from fvae_nnunet.conversion import cases
from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import read_case_reports
from fvae_nnunet.nnunet.patient_splits import check_leakage
from fvae_nnunet.numbers_as_text import counted

TRAIN = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_2", "train_3_a_1"]
VALID = ["valid_1_a_1"]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(download, the dataset's raw folder, its preprocessed folder); all empty."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "download").mkdir()
    dataset = "Dataset040_CTRATE"
    return tmp_path / "download", tmp_path / "nnUNet_raw" / dataset, tmp_path / "nnUNet_preprocessed" / dataset


def _write_download(root):
    """Both releases: train_1 and valid_1 as fixed, train_2 and train_3 as first released; two tables lack a row."""
    for name in TRAIN[:3]:
        write_fixed(place(root, "train_fixed", name), chest(TRAIN.index(name)))
    for name in TRAIN[3:]:
        write_first_release(place(root, "train", name), chest(TRAIN.index(name)))
    write_fixed(place(root, "valid_fixed", VALID[0]), chest(9))
    write_tables(root, TRAIN, VALID)
    data = root / "dataset"
    write_csv(data / "radiology_text_reports" / "train_reports.csv", [report_row(name) for name in TRAIN[:4]])
    write_csv(
        data / "multi_abnormality_labels" / "train_predicted_labels.csv",
        [label_row(f"{name}.nii.gz", "Emphysema") for name in TRAIN if name != "train_2_a_2"],
    )
    return root


def _convert(root, *options, source="ct-rate"):
    return main([source, str(root), "--dataset", "40_CTRATE", "-np", "0", "--folds", "2", *options])


def _image(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def test_ct_rate_becomes_a_dataset_with_hu_geometry_reports_and_folds(folders, capsys):
    root, raw, preprocessed = folders
    assert _convert(_write_download(root)) == 0
    said = capsys.readouterr().out
    assert "1 further reconstruction of the same scans left out" in said
    assert "1 of 5 cases without report (first: train_3_a_1)" in said
    assert "1 of 5 cases without labels (first: train_2_a_2)" in said
    assert sorted(path.name for path in raw.glob("images*/*")) == [
        "train_1_a_1_0000.nii.gz", "train_1_b_1_0000.nii.gz", "train_2_a_2_0000.nii.gz", "train_3_a_1_0000.nii.gz",
        "valid_1_a_1_0000.nii.gz",
    ]  # fmt: skip
    for case, seed in (("train_1_a_1", 0), ("train_1_b_1", 2), ("train_2_a_2", 3), ("train_3_a_1", 4)):
        volume, image = _image(raw / "imagesTr" / f"{case}_0000.nii.gz")
        assert volume.dtype == np.int16
        np.testing.assert_array_equal(volume, chest(seed))
        assert image.GetSpacing() == pytest.approx(SPACING_MM)
        assert image.GetOrigin() == pytest.approx(ORIGIN_MM)
        assert image.GetDirection() == pytest.approx(IDENTITY)

    reports = read_case_reports(raw / "reports.json")
    assert len(reports.findings) == 18
    one = reports.cases["train_1_a_1"]
    assert (one.patient, one.split, one.source) == ("train_1", "train", "train_1_a_1.nii.gz")
    assert one.report == "Lungs are clear. Normal."
    assert [name for name, value in one.findings.items() if value] == ["Emphysema"]
    assert one.disease_masks is None
    assert reports.cases["train_3_a_1"].report is None
    assert reports.cases["train_2_a_2"].findings is None
    assert reports.cases["valid_1_a_1"].split == "test"

    folds = json.loads((preprocessed / "splits_final.json").read_text())
    check_leakage(reports.cases, folds)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(
        case for case in reports.cases if case.startswith("train")
    )
    content = json.loads((raw / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert content["labels"] == {"background": 0}
    assert content["numTraining"] == 4 and content["file_ending"] == ".nii.gz"


def test_nnunet_takes_the_images_and_the_labels_as_they_are(folders):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    root, raw, _ = folders
    _write_rex(root)
    assert _convert(root, source="rexgroundingct") == 0
    pixels, properties = SimpleITKIO().read_images([str(raw / "imagesTr" / "train_1_a_1_0000.nii.gz")])
    labels, label_properties = SimpleITKIO().read_seg(str(raw / "labelsTr" / "train_1_a_1.nii.gz"))
    assert pixels.shape == labels.shape == (1, *SHAPE)
    assert properties["spacing"] == pytest.approx(SPACING_MM[::-1])
    assert label_properties["spacing"] == pytest.approx(SPACING_MM[::-1])
    assert properties["sitk_stuff"]["origin"] == pytest.approx(label_properties["sitk_stuff"]["origin"])


def test_a_second_run_does_nothing_and_a_changed_file_is_done_again(folders, capsys):
    root, raw, preprocessed = folders
    _write_download(root)
    _convert(root)
    images = {path: path.stat().st_mtime_ns for path in raw.glob("images*/*")}
    whole = {path: path.read_bytes() for path in (raw / "reports.json", preprocessed / "splits_final.json")}
    capsys.readouterr()
    assert _convert(root) == 0
    assert "0 cases converted, 5 already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in raw.glob("images*/*")} == images
    assert {path: path.read_bytes() for path in whole} == whole
    write_fixed(place(root, "valid_fixed", "valid_1_a_1"), chest(77))
    assert _convert(root) == 0
    assert "1 case converted, 4 already complete" in capsys.readouterr().out
    np.testing.assert_array_equal(_image(raw / "imagesTs" / "valid_1_a_1_0000.nii.gz")[0], chest(77))


def test_a_file_that_somebody_edited_is_not_replaced(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    _convert(root)
    path = raw / "imagesTs" / "valid_1_a_1_0000.nii.gz"
    whole = path.read_bytes()
    write_fixed(path, chest(123))
    edited = path.read_bytes()
    assert _convert(root) == 1
    assert f"{path} was modified since it was written, so it is neither removed nor replaced" in capsys.readouterr().err
    assert path.read_bytes() == edited
    path.rename(root / "mine.nii.gz")
    assert _convert(root) == 0
    assert path.read_bytes() == whole


def _damage(path):
    """Change a bit of a file; its bytes before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    return whole


def test_verify_names_a_damaged_image_and_converts_it_again(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    _convert(root)
    path = sorted(raw.glob("images*/*.nii.gz"))[0]
    whole = _damage(path)
    assert _convert(root, "--verify") == 0
    captured = capsys.readouterr()
    case = path.name.removesuffix("_0000.nii.gz")
    assert f"DAMAGED, will be made again: {case}: " in captured.err and "has changed" in captured.err
    assert "1 case converted, 4 already complete" in captured.out
    assert path.read_bytes() == whole


def test_a_damaged_image_that_cannot_be_made_again_is_named_until_it_can(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    _convert(root)
    path = raw / "imagesTr" / "train_1_a_1_0000.nii.gz"
    whole = _damage(path)
    source = place(root, "train_fixed", "train_1_a_1")
    content = source.read_bytes()
    source.write_bytes(content[:-100])
    assert _convert(root, "--verify") == 1
    said = "1 case of an earlier conversion may be damaged, as a conversion of them did not end: train_1_a_1"
    assert said in capsys.readouterr().out
    assert main(["check", "40"]) == 1
    assert "1 case may be damaged, as a conversion of them did not end: train_1_a_1" in capsys.readouterr().err
    source.write_bytes(content)
    assert _convert(root) == 0 and main(["check", "40"]) == 0
    assert "may be damaged" not in capsys.readouterr().out and path.read_bytes() == whole


def test_cases_can_be_added_later_and_patients_keep_their_fold(folders, tmp_path):
    root, raw, preprocessed = folders
    _write_download(root)
    listed = tmp_path / "cases.txt"
    listed.write_text("train_1\ntrain_2\n")
    assert _convert(root, "--cases", str(listed)) == 0
    before = json.loads((preprocessed / "splits_final.json").read_text())
    assert set(read_case_reports(raw / "reports.json").cases) == {"train_1_a_1", "train_1_b_1", "train_2_a_2"}
    listed.write_text("train_3\nvalid_1\n")
    assert _convert(root, "--cases", str(listed)) == 0
    assert set(read_case_reports(raw / "reports.json").cases) == {
        "train_1_a_1", "train_1_b_1", "train_2_a_2", "train_3_a_1", "valid_1_a_1",
    }  # fmt: skip
    after = json.loads((preprocessed / "splits_final.json").read_text())
    assert all(set(fold["val"]) <= set(now["val"]) for fold, now in zip(before, after))


def test_every_reconstruction_if_wanted_and_volumes_of_other_body_parts_never(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text("train_1_b_1.nii.gz\n")
    assert _convert(root, "--scans", "all", "--split", "train") == 0
    assert "1 volume left out: listed by the publishers as not showing the chest" in capsys.readouterr().out
    cases = read_case_reports(raw / "reports.json").cases
    assert sorted(cases) == ["train_1_a_1", "train_1_a_2", "train_2_a_2", "train_3_a_1"]
    assert not (raw / "imagesTs").exists()


def test_cases_that_cannot_be_made_right_are_named_and_the_others_are_done(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    write_fixed(place(root, "train_fixed", "train_4_a_1"), chest(4) - 1024)  # applied twice
    write_first_release(place(root, "train", "train_5_a_1"), chest(5))  # intercept wrong in the table
    write_first_release(place(root, "train", "train_6_a_1"), chest(6))  # no row, blank header
    write_fixed(place(root, "train_fixed", "train_7_a_1"), chest(7), spacing_mm=(0.7, 0.7, 5.0))
    names = [*TRAIN, "train_4_a_1", "train_5_a_1", "train_7_a_1", "train_8_a_1", "train_9_a_1"]
    wrong = {"train_5_a_1": {"RescaleIntercept": "0"}, "train_9_a_1": {"RescaleSlope": "?"}}
    write_first_release(place(root, "train", "train_9_a_1"), chest(9))
    rows = [metadata_row(name, **wrong.get(name, {})) for name in names]
    write_csv(root / "dataset" / "metadata" / "train_metadata.csv", [*rows, metadata_row("nobody")])
    whole = place(root, "train_fixed", "train_8_a_1")
    write_fixed(whole, chest(8))
    whole.write_bytes(whole.read_bytes()[:-30])
    assert _convert(root) == 1
    said = capsys.readouterr()
    assert "BAD ROW: train_metadata.csv, line 12: 'nobody' is not the name of a volume" in said.err
    assert "train_4_a_1: FAILED: the values are not HU as they are" in said.err
    assert "train_5_a_1: FAILED: the values are not HU" in said.err
    assert "train_6_a_1: FAILED: it has no metadata, and its header is blank" in said.err
    assert "train_7_a_1: FAILED: its header has a spacing of 0.7 0.7 5 mm" in said.err
    assert "train_8_a_1: FAILED: " in said.err and "train_8_a_1.nii.gz" in said.err
    assert "train_9_a_1: FAILED: train_metadata.csv, line 11: RescaleSlope is not a finite number: '?'" in said.err
    assert "6 of 11 cases failed" in said.err
    assert "5 cases converted, 0 already complete, 6 failed" in said.out
    assert len(list(raw.glob("images*/*"))) == len(read_case_reports(raw / "reports.json").cases) == 5


def test_a_wrong_row_of_reports_or_labels_fails_its_case(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    rows = [label_row(name) | ({"Emphysema": "yes"} if name == "train_3_a_1" else {}) for name in TRAIN]
    write_csv(root / "dataset" / "multi_abnormality_labels" / "train_predicted_labels.csv", rows)
    assert _convert(root) == 1
    assert (
        "train_3_a_1: FAILED: train_predicted_labels.csv, line 6: Emphysema must be 0 or 1" in capsys.readouterr().err
    )
    assert "train_3_a_1" not in read_case_reports(raw / "reports.json").cases


def _cases_in(raw):
    """(train, test): the cases of the images, which must be those of reports.json and of numTraining."""
    train, test = (
        {path.name.removesuffix("_0000.nii.gz") for path in (raw / f"images{suffix}").glob("*")}
        for suffix in ("Tr", "Ts")
    )
    reports = read_case_reports(raw / "reports.json").cases
    assert {case for case, report in reports.items() if report.split == "train"} == train
    assert {case for case, report in reports.items() if report.split == "test"} == test
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == len(train)
    return train, test


def _files(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_a_row_that_becomes_wrong_stops_the_command_before_any_work(folders, capsys):
    root, raw, preprocessed = folders
    _write_download(root)
    assert _convert(root) == 0
    before = _files(raw, preprocessed)
    reports = root / "dataset" / "radiology_text_reports" / "train_reports.csv"
    rows = [report_row(name) for name in TRAIN[:4]] + [report_row("train_1_b_1", "Another text.")]
    write_csv(reports, rows)
    write_fixed(place(root, "valid_fixed", "valid_1_a_1"), chest(77))
    assert _convert(root) == 1
    said = capsys.readouterr().err
    assert "1 case converted before would now be invalid:\n  train_1_b_1: train_reports.csv, line 6: " in said
    assert "Repair them, or give --overwrite" in said
    assert _files(raw, preprocessed) == before
    assert _convert(root, "--overwrite") == 1
    assert "train_1_b_1: FAILED: train_reports.csv, line 6" in capsys.readouterr().err
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_2", "train_3_a_1"}, {"valid_1_a_1"})
    assert main(["check", "40"]) == 0
    write_csv(reports, rows[:4])
    assert _convert(root) == 0
    assert "train_1_b_1" in _cases_in(raw)[0]


def test_listed_volumes_that_are_not_there_are_counted_and_left_out(folders, capsys):
    root, _, _ = folders
    _write_download(root)
    place(root, "train_fixed", "train_1_b_1").unlink()
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text("train_9_a_1.nii.gz\n")
    write_csv(root / "dataset" / "metadata" / "train_metadata.csv", [metadata_row(n) for n in [*TRAIN, "train_9_a_1"]])
    assert _convert(root) == 0
    said = capsys.readouterr().out
    assert f"1 of 6 listed volumes left out: not found in {root} (first: train_1_b_1)" in said
    assert _convert(root, "--split", "valid") == 0
    assert "listed volumes" not in capsys.readouterr().out


def test_of_a_scan_that_was_converted_no_other_reconstruction_is_added_later(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    first = place(root, "train_fixed", "train_1_a_1")
    content = first.read_bytes()
    first.unlink()
    assert _convert(root) == 0
    assert "train_1_a_2" in _cases_in(raw)[0]
    first.write_bytes(content)
    capsys.readouterr()
    assert _convert(root) == 0
    said = capsys.readouterr().out
    assert "1 further reconstruction of the same scans left out" in said
    assert "0 cases converted, 5 already complete" in said
    # also where the volume is not kept after its conversion
    place(root, "train_fixed", "train_1_a_2").unlink()
    assert _convert(root) == 0
    assert _cases_in(raw)[0] == {"train_1_a_2", "train_1_b_1", "train_2_a_2", "train_3_a_1"}
    assert _convert(root, "--overwrite") == 0
    assert _cases_in(raw)[0] == {"train_1_a_1", "train_1_b_1", "train_2_a_2", "train_3_a_1"}


def test_a_case_that_is_listed_as_no_chest_later_is_removed(folders, capsys):
    root, raw, preprocessed = folders
    _write_download(root)
    assert _convert(root) == 0
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text("train_1_b_1.nii.gz\n")
    capsys.readouterr()
    assert _convert(root) == 0
    assert (
        "train_1_b_1: removed from the dataset: the publishers list it as not showing the chest"
        in capsys.readouterr().out
    )
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_2", "train_3_a_1"}, {"valid_1_a_1"})
    assert not [path for path in _files(raw, preprocessed) if "train_1_b_1" in path.name]
    assert main(["check", "40"]) == 0


def test_a_listed_case_without_chest_is_left_out_and_not_called_missing(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_download(root)
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text("train_1_b_1.nii.gz\n")
    listed = tmp_path / "cases.txt"
    listed.write_text("train_1_b_1\ntrain_2\ntrain_3\n")
    assert _convert(root, "--cases", str(listed)) == 0
    assert "1 volume left out: listed by the publishers as not showing the chest" in capsys.readouterr().out
    assert _cases_in(raw)[0] == {"train_2_a_2", "train_3_a_1"}


def test_cases_of_another_call_that_was_interrupted_are_not_forgotten(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_download(root)
    assert _convert(root, "--split", "train") == 0
    (raw / "reports.json").unlink()  # as if it had been killed before its end
    assert _convert(root, "--split", "valid") == 1
    said = capsys.readouterr().err
    assert "4 cases of an interrupted run (first: train_1_a_1)" in said and "--overwrite" in said
    assert _convert(root) == 0
    assert len(_cases_in(raw)[0]) == 4
    # what somebody removed by hand is no such case
    for path in (raw / "imagesTr").glob("train_3*"):
        path.unlink()
    assert _convert(root, "--split", "valid") == 0
    assert _cases_in(raw)[0] == {"train_1_a_1", "train_1_b_1", "train_2_a_2"}


def test_a_row_of_no_volume_alone_makes_the_exit_status_1(folders, capsys):
    root, _, _ = folders
    _write_download(root)
    rows = [report_row(name) for name in [*TRAIN, "somebody"]]
    write_csv(root / "dataset" / "radiology_text_reports" / "train_reports.csv", rows)
    assert _convert(root) == 1
    said = capsys.readouterr()
    assert "BAD ROW: train_reports.csv, line 7: 'somebody' is not the name of a volume" in said.err
    assert "5 cases converted, 0 already complete, in" in said.out


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(folders, tmp_path):
    root, raw, _ = folders
    _write_download(root)
    _convert(root)
    before = {path.name: path.read_bytes() for path in raw.glob("images*/*")}
    assert _convert(root, "--overwrite", "-np", "1") == 0
    assert {path.name: path.read_bytes() for path in raw.glob("images*/*")} == before


def test_other_settings_are_refused_and_overwrite_leaves_nothing_of_before(folders, tmp_path, capsys):
    root, raw, _ = folders
    _write_download(root)
    _convert(root)
    assert _convert(root, "--geometry", "metadata") == 1
    assert 'geometry: "auto", now "metadata"' in capsys.readouterr().err
    listed = tmp_path / "cases.txt"
    listed.write_text("train_1\ntrain_2\n")
    assert _convert(root, "--geometry", "metadata", "--overwrite", "--cases", str(listed)) == 0
    assert {path.name for path in raw.glob("images*/*")} == {
        "train_1_a_1_0000.nii.gz", "train_1_b_1_0000.nii.gz", "train_2_a_2_0000.nii.gz",
    }  # fmt: skip
    assert main(["check", "40"]) == 0


def test_a_folder_that_is_not_ours_is_never_written_to(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "imagesTr" / "lung_0000.nii.gz").touch()
    for options in ((), ("--overwrite",)):
        assert _convert(root, *options) == 1
        assert "contains lung_0000.nii.gz, which is not from a conversion" in capsys.readouterr().err
    assert [path.name for path in raw.glob("*/*")] == ["lung_0000.nii.gz"]


def test_names_and_numbers_of_datasets_are_checked(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    for name in ("CTRATE", "0_X", "X1_X", "40_a b"):
        assert main(["ct-rate", str(root), "--dataset", name]) == 1
        assert "such as 40_CTRATE" in capsys.readouterr().err
    (raw.parent / "Dataset040_Other").mkdir()
    assert _convert(root) == 1
    assert "contains Dataset040_Other, which has the same number" in capsys.readouterr().err


def test_too_few_patients_for_the_folds_are_said_before_the_work(folders, capsys):
    root, raw, _ = folders
    assert _convert(_write_download(root), "--folds", "5") == 1
    assert "3 training patients cannot fill 5 folds" in capsys.readouterr().err
    assert not raw.exists()


def test_structures_are_merged_beside_the_images(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    masks = root / "dataset" / "ts_seg" / "ts_total"
    liver = np.zeros(SHAPE, dtype=np.uint8)
    liver[1:3, 10:14, 5:9] = 5
    liver[4:, 16:18, 11:13] = 27
    for name in ("train_1_a_1", "train_1_b_1", "valid_1_a_1"):
        write_fixed(place(root, f"ts_seg/ts_total/{name.split('_')[0]}_fixed", name), liver)
    for name in ("train_2_a_2", "train_3_a_1"):
        # of the first release: the program wrote the image's own blank header
        path = masks / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(liver.T, np.eye(4)), path)
    assert _convert(root, "--structures") == 0
    for folder, case in (("structuresTr", "train_1_a_1"), ("structuresTr", "train_3_a_1"), ("structuresTs", VALID[0])):
        labels, image = _image(raw / folder / f"{case}.nii.gz")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, liver)
        assert image.GetSpacing() == pytest.approx(SPACING_MM)
        assert image.GetOrigin() == pytest.approx(ORIGIN_MM)
        assert json.loads((raw / folder / "structures.json").read_text()) == {"liver": 5, "vertebrae_L5": 27}
    assert "2 structures found" in capsys.readouterr().out


def test_the_published_masks_are_of_totalsegmentator(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    assert _convert(root, "--structures", "--structures-from", "vista3d") == 1
    assert "vista3d needs the folder of its masks (--structures FOLDER)" in capsys.readouterr().err
    assert _convert(root, "--structures-from", "vista3d") == 1
    assert "--structures-from has no effect without --structures" in capsys.readouterr().err
    assert not raw.exists()


def test_names_of_structures_do_not_stay_without_structures(folders, tmp_path):
    root, raw, _ = folders
    _write_download(root)
    for case in (*TRAIN[:1], *TRAIN[2:], *VALID):
        write_fixed(tmp_path / case / "liver.nii.gz", np.ones(SHAPE, np.uint8))
        (tmp_path / case / "._liver.nii.gz").write_bytes(b"of another file system")
    assert _convert(root, "--structures", str(tmp_path)) == 0
    assert len(list(raw.glob("structures*/structures.json"))) == 2
    assert _convert(root, "--overwrite") == 0
    assert not [path for path in raw.glob("structures*/*") if path.is_file()]


def test_a_structure_without_a_file_is_named(folders, capsys, tmp_path):
    root, _, _ = folders
    _write_download(root)
    for case in ("train_1_a_1", "train_1_b_1", "valid_1_a_1", "train_2_a_2", "train_3_a_1"):
        for name in ("liver", "spleen") if case == VALID[0] else ("liver",):
            write_fixed(tmp_path / case / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    assert _convert(root, "--structures", str(tmp_path)) == 0
    said = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines() if "no file of" in line}
    assert "no file of spleen, kidney_right" in said["train_1_a_1"] and "and 113 more" in said["train_1_a_1"]
    assert "no file of kidney_right" in said[VALID[0]]


def test_structures_cannot_be_added_later_and_the_message_says_what_to_do(folders, capsys):
    root, raw, _ = folders
    _write_download(root)
    assert _convert(root) == 0
    before = _files(raw)
    for name in (*TRAIN, *VALID):
        split = name.split("_")[0]
        write_fixed(place(root, f"ts_seg/ts_total/{split}_fixed", name), np.ones(SHAPE, dtype=np.uint8))
    assert _convert(root, "--structures") == 1
    said = capsys.readouterr().err
    assert 'structures: null, now "totalsegmentator"' in said and "--overwrite" in said
    assert _files(raw) == before


def test_a_case_without_structures_fails(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_download(root)
    assert _convert(root, "--structures") == 1
    assert "ts_total is not a folder" in capsys.readouterr().err
    (tmp_path / "masks").mkdir()
    for name in (*TRAIN, VALID[0]):
        if name != "train_1_b_1":
            write_fixed(tmp_path / "masks" / f"{name}.nii.gz", np.ones(SHAPE, dtype=np.uint8))
            if name.startswith(("train_2", "train_3")):
                nibabel.save(
                    nibabel.Nifti1Image(np.ones(SHAPE[::-1], dtype=np.uint8), np.eye(4)),
                    tmp_path / "masks" / f"{name}.nii.gz",
                )
    assert _convert(root, "--structures", str(tmp_path / "masks"), "--structures-from", "vista3d") == 1
    assert "train_1_b_1: FAILED: " in capsys.readouterr().err
    assert json.loads((raw / "structuresTr" / "structures.json").read_text()) == {"liver": 5}


def _box(z, y, x):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[z, y, x] = 1
    return mask


NODULE = _box(slice(1, 3), slice(4, 6), slice(5, 8))
OPACITY = _box(slice(0, 4), slice(2, 12), slice(3, 9))


def _write_rex(root, val="train_4_a_1", shared=False):
    """Three training cases, one of val, one of test without a mask; with ``shared`` val has another scan of train_1."""
    findings = [("Opacity in the right lung", "2c", OPACITY), ("A nodule.", "2d", NODULE)]
    names = ["train_1_a_1", "train_2_a_1", "train_3_a_2", *(["train_1_b_1"] if shared else []), val]
    for number, name in enumerate(names):
        write_fixed(place(root, "train_fixed", name), chest(number))
        write_grounding(root, f"{name}.nii.gz", [OPACITY, NODULE])
    entry = {name: grounding_entry(f"{name}.nii.gz", findings) for name in names}
    content = {
        "train": [entry[name] for name in names[:3]],
        "val": [entry[name] for name in names[3:]],
        "test": [{"name": "train_8_a_1.nii.gz", "findings": {"0": "x"}, "categories": {"0": "1a"}}],
    }
    return write_json(root / "dataset.json", content)


def test_rexgroundingct_becomes_a_dataset_with_disease_classes(folders, capsys):
    root, raw, preprocessed = folders
    _write_rex(root)
    assert _convert(root, source="rexgroundingct") == 0
    said = capsys.readouterr().out
    assert "1 case of the split test left out" in said
    assert "no table of reports" in said
    labels, image = _image(raw / "labelsTr" / "train_1_a_1.nii.gz")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.where(NODULE > 0, 10, np.where(OPACITY > 0, 9, 0)))
    assert image.GetSpacing() == pytest.approx(SPACING_MM) and image.GetOrigin() == pytest.approx(ORIGIN_MM)
    assert sorted(path.name for path in raw.glob("labels*/*")) == [
        "train_1_a_1.nii.gz", "train_2_a_1.nii.gz", "train_3_a_2.nii.gz", "train_4_a_1.nii.gz",
    ]  # fmt: skip
    content = json.loads((raw / "dataset.json").read_text())
    assert content["labels"]["background"] == 0 and content["labels"]["nodule_mass"] == 10
    assert len(content["labels"]) == 15 and content["numTraining"] == 3
    report = read_case_reports(raw / "reports.json").cases["train_1_a_1"]
    assert report.report == "Opacity in the right lung. A nodule."
    assert report.findings is None
    assert [(mask.label, mask.text, mask.voxels) for mask in report.disease_masks] == [
        (9, "Opacity in the right lung", 240),
        (10, "A nodule.", 12),
    ]
    assert read_case_reports(raw / "reports.json").cases["train_4_a_1"].split == "test"
    assert (preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize("lost", [None, "labelsTr", "structuresTr"])
def test_a_case_with_all_three_files_is_done_once_and_again_if_one_is_lost(folders, capsys, lost):
    root, raw, _ = folders
    _write_rex(root)
    for name in ("train_1_a_1", "train_2_a_1", "train_3_a_2", "train_4_a_1"):
        write_fixed(place(root, "ts_seg/ts_total/train_fixed", name), 5 * OPACITY)
    assert _convert(root, "--structures", source="rexgroundingct") == 0
    paths = [raw / folder / "train_1_a_1.nii.gz" for folder in ("labelsTr", "structuresTr")]
    before = [path.read_bytes() for path in paths]
    if lost:
        (raw / lost / "train_1_a_1.nii.gz").unlink()
    capsys.readouterr()
    assert _convert(root, "--structures", source="rexgroundingct") == 0
    done = 1 if lost else 0
    assert f"{counted(done, 'case')} converted, {4 - done} already complete" in capsys.readouterr().out
    assert [path.read_bytes() for path in paths] == before


def test_rexgroundingct_takes_texts_and_findings_of_ct_rate(folders, tmp_path):
    root, raw, _ = folders
    volumes = tmp_path / "ctrate"
    findings = [("A nodule.", "2d", NODULE)]
    for name in ("train_1_a_1", "train_2_a_1"):
        write_first_release(place(volumes, "train", name), chest())
        write_grounding(root, f"{name}.nii.gz", [NODULE])
    write_tables(volumes, ["train_1_a_1", "train_2_a_1"], [])
    entries = [grounding_entry(f"{name}.nii.gz", findings) for name in ("train_1_a_1", "train_2_a_1")]
    listed = write_json(tmp_path / "MICCAI_challenge_dataset.json", {"train": entries})
    assert _convert(root, "--volumes", str(volumes), "--json", str(listed), source="rexgroundingct") == 0
    report = read_case_reports(raw / "reports.json").cases["train_1_a_1"]
    assert report.report == "Lungs are clear. Normal."
    assert report.findings["Lung nodule"] == 1
    np.testing.assert_array_equal(_image(raw / "imagesTr" / "train_1_a_1_0000.nii.gz")[0], chest())
    # the label map lies where the image does, though neither file's header said so
    assert _image(raw / "labelsTr" / "train_1_a_1.nii.gz")[1].GetOrigin() == pytest.approx(ORIGIN_MM)


def test_patients_in_both_published_splits_are_refused_or_left_out_of_training(folders, capsys):
    root, raw, _ = folders
    _write_rex(root, shared=True)
    assert _convert(root, source="rexgroundingct") == 1
    assert "1 patient in both train and val: train_1 (train_1_a_1, train_1_b_1)" in (capsys.readouterr().err)
    assert not raw.exists()
    assert _convert(root, "--leave-out-shared", source="rexgroundingct") == 0
    assert "left out of training, as their patients are also in val: train_1_a_1" in capsys.readouterr().out
    cases = read_case_reports(raw / "reports.json").cases
    assert {case: report.split for case, report in cases.items()} == {
        "train_2_a_1": "train", "train_3_a_2": "train", "train_1_b_1": "test", "train_4_a_1": "test",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [False, True])
def test_shared_patients_are_left_out_whatever_split_is_taken(folders, capsys, tmp_path, wrong):
    root, raw, _ = folders
    path = _write_rex(root, shared=True)
    if wrong:
        content = json.loads(path.read_text())
        content["val"][0]["categories"]["0"] = "9z"
        path.write_text(json.dumps(content))
    assert _convert(root, "--split", "train", "--leave-out-shared", source="rexgroundingct") == 0
    assert "left out of training, as their patients are also in val: train_1_a_1" in capsys.readouterr().out
    assert _cases_in(raw) == ({"train_2_a_1", "train_3_a_2"}, set())
    (tmp_path / "cases.txt").write_text("train_1_a\ntrain_2\ntrain_3\n")
    options = ("--cases", str(tmp_path / "cases.txt"), "--leave-out-shared", "--overwrite")
    assert _convert(root, *options, source="rexgroundingct") == 0
    assert _cases_in(raw) == ({"train_2_a_1", "train_3_a_2"}, set())


def test_a_training_case_that_is_shared_is_named_also_where_val_is_not_converted(folders, capsys):
    root, raw, _ = folders
    _write_rex(root, shared=True)
    assert _convert(root, "--split", "train", source="rexgroundingct") == 0
    assert "training cases whose patients are also in val: train_1_a_1; leave them out with --leave-out-shared" in (
        capsys.readouterr().out
    )
    assert _convert(root, "--split", "val", source="rexgroundingct") == 1
    said = capsys.readouterr().err
    assert "1 patient in both training (Tr) and test (Ts): train_1 (train_1_a_1, train_1_b_1)" in said
    assert "--leave-out-shared removes their cases from training" in said
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, set())


@pytest.mark.parametrize("split", ["all", "val"])
def test_shared_patients_of_an_earlier_call_are_removed(folders, capsys, split):
    root, raw, preprocessed = folders
    _write_rex(root, shared=True)
    assert _convert(root, "--split", "train", source="rexgroundingct") == 0
    write_json(raw / "labelsTr" / "train_1_a_1.json", "of somebody else")
    (preprocessed / "nnUNetPlans_3d_fullres").mkdir()
    for case in ("train_1_a_1", "train_2_a_1"):
        (preprocessed / "nnUNetPlans_3d_fullres" / f"{case}.pkl").touch()
    capsys.readouterr()
    assert _convert(root, "--split", split, "--leave-out-shared", source="rexgroundingct") == 0
    said = capsys.readouterr().out
    assert "train_1_a_1: removed from the dataset: its patient is also in val" in said
    assert (
        "has 1 case no longer in the training set (first: train_1_a_1). Run nnUNetv2_plan_and_preprocess again" in said
    )
    assert _cases_in(raw) == ({"train_2_a_1", "train_3_a_2"}, {"train_1_b_1", "train_4_a_1"})
    assert [path.name for path in _files(raw) if path.name.startswith("train_1_a")] == ["train_1_a_1.json"]
    folds = json.loads((preprocessed / "splits_final.json").read_text())
    assert sorted(case for fold in folds for case in fold["val"]) == ["train_2_a_1", "train_3_a_2"]
    assert main(["check", "40"]) == 0


def test_a_file_that_somebody_changed_is_not_removed(folders, capsys):
    root, raw, preprocessed = folders
    _write_rex(root, shared=True)
    assert _convert(root, "--split", "train", source="rexgroundingct") == 0
    labels = raw / "labelsTr" / "train_1_a_1.nii.gz"
    write_fixed(labels, np.random.default_rng(0).integers(0, 15, SHAPE).astype(np.uint8))
    before = _files(raw, preprocessed)
    assert _convert(root, "--leave-out-shared", source="rexgroundingct") == 1
    assert (
        f"{labels} was modified since it was written, so it is neither removed nor replaced; move it elsewhere"
        in capsys.readouterr().err
    )
    assert _files(raw, preprocessed) == before
    labels.rename(root / "mine.nii.gz")
    assert _convert(root, "--leave-out-shared", source="rexgroundingct") == 0
    assert _cases_in(raw) == ({"train_2_a_1", "train_3_a_2"}, {"train_1_b_1", "train_4_a_1"})


def test_a_case_in_another_published_split_changes_its_folder(folders, capsys):
    root, raw, _ = folders
    path = _write_rex(root)
    assert _convert(root, source="rexgroundingct") == 0
    content = json.loads(path.read_text())
    content["val"].append(content["train"].pop(0))
    path.write_text(json.dumps(content))
    mask = root / "segmentations" / "train_1_a_1.nii.gz"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-20])
    assert _convert(root, source="rexgroundingct") == 1
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, {"train_4_a_1"})
    mask.write_bytes(whole)
    assert _convert(root, source="rexgroundingct") == 0
    assert _cases_in(raw) == ({"train_2_a_1", "train_3_a_2"}, {"train_1_a_1", "train_4_a_1"})
    assert [path.parent.name for path in raw.glob("labels*/train_1_a_1*")] == ["labelsTs"]
    assert main(["check", "40"]) == 0


def test_wrong_entries_keep_their_published_split(folders, capsys):
    root, raw, _ = folders
    path = _write_rex(root)
    content = json.loads(path.read_text())
    content["val"].append(content["val"][0] | {"name": "train_4_b_1.nii.gz", "categories": {"0": "9z"}})
    path.write_text(json.dumps(content))
    write_fixed(place(root, "train_fixed", "train_4_b_1"), chest())
    assert _convert(root, "--split", "train", source="rexgroundingct") == 0
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, set())
    assert _convert(root, "--overwrite", source="rexgroundingct") == 1
    assert "train_4_b_1: FAILED: dataset.json, val 1: train_4_b_1: " in capsys.readouterr().err
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, {"train_4_a_1"})


def test_cases_that_cannot_be_converted_do_not_count_for_the_splits(folders, capsys):
    root, raw, _ = folders
    path = _write_rex(root)
    content = json.loads(path.read_text())
    for entry in content["train"][:2]:
        entry["categories"] = {}
    path.write_text(json.dumps(content))
    assert _convert(root, source="rexgroundingct") == 1
    assert "1 training patient cannot fill 2 folds" in capsys.readouterr().err
    assert not raw.exists()


def test_entries_of_the_withheld_split_are_counted_and_not_read(folders, capsys):
    root, _, _ = folders
    path = _write_rex(root)
    content = json.loads(path.read_text())
    content["test"] = [{"name": f"train_{number}_a_1.nii.gz", "findings": {"0": "x"}} for number in (8, 9)]
    path.write_text(json.dumps(content))
    assert _convert(root, source="rexgroundingct") == 0
    assert "2 cases of the split test left out: their masks are withheld" in capsys.readouterr().out


def test_part_of_the_volumes_of_rexgroundingct_will_do(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_rex(root)
    place(root, "train_fixed", "train_4_a_1").unlink()
    assert _convert(root, source="rexgroundingct") == 0
    said = capsys.readouterr().out
    assert f"1 of 4 listed volumes left out: not found in {root} (first: train_4_a_1)" in said
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, set())
    (tmp_path / "cases.txt").write_text("train_1\ntrain_4\n")
    assert _convert(root, "--cases", str(tmp_path / "cases.txt"), source="rexgroundingct") == 1
    assert "1 of 2 lines match no available volume of --split (first: train_4)" in capsys.readouterr().err
    # those that come later are added, those that were converted may go
    write_fixed(place(root, "train_fixed", "train_4_a_1"), chest(3))
    place(root, "train_fixed", "train_1_a_1").unlink()
    assert _convert(root, source="rexgroundingct") == 0
    assert _cases_in(raw) == ({"train_1_a_1", "train_2_a_1", "train_3_a_2"}, {"train_4_a_1"})


def test_a_listed_case_of_another_split_of_rexgroundingct_is_named(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_rex(root)
    (tmp_path / "cases.txt").write_text("train_1\ntrain_4\n")
    options = ("--cases", str(tmp_path / "cases.txt"), "--split", "train")
    assert _convert(root, *options, source="rexgroundingct") == 1
    assert "1 of 2 lines match no available volume of --split (first: train_4)" in capsys.readouterr().err
    assert not raw.exists()


def test_volumes_of_which_none_is_listed_are_refused(folders, capsys, tmp_path):
    root, raw, _ = folders
    _write_rex(root)
    write_fixed(place(tmp_path / "other", "train_fixed", "train_77_a_1"), chest())
    assert _convert(root, "--volumes", str(tmp_path / "other"), source="rexgroundingct") == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'other'} has none of the 4 volumes listed in {root / 'dataset.json'}" in said
    assert "(first: train_1_a_1.nii.gz); give the download of CT-RATE with --volumes" in said
    assert not raw.exists()
    (tmp_path / "train.json").write_text(
        json.dumps({"train": json.loads((root / "dataset.json").read_text())["train"]})
    )
    options = ("--json", str(tmp_path / "train.json"), "--split", "val")
    assert _convert(root, *options, source="rexgroundingct") == 1
    assert "train.json lists no case of --split val" in capsys.readouterr().err


def test_of_a_case_that_fails_nothing_is_written(folders, capsys):
    root, raw, preprocessed = folders
    path = _write_rex(root)
    for name in ("train_1_a_1", "train_2_a_1", "train_3_a_2", "train_4_a_1"):
        write_fixed(place(root, "ts_seg/ts_total/train_fixed", name), 5 * OPACITY)
    assert _convert(root, "--structures", source="rexgroundingct") == 0
    before = _files(raw, preprocessed)
    content = json.loads(path.read_text())
    content["train"][0] = grounding_entry("train_1_a_1.nii.gz", [("A nodule.", "2d", NODULE)])
    path.write_text(json.dumps(content))
    write_grounding(root, "train_1_a_1.nii.gz", [NODULE])
    write_fixed(place(root, "ts_seg/ts_total/train_fixed", "train_1_a_1"), 200 * OPACITY)
    assert _convert(root, "--structures", source="rexgroundingct") == 1
    assert "train_1_a_1: FAILED: " in capsys.readouterr().err
    assert _files(raw, preprocessed) == before


def test_of_a_case_that_cannot_be_written_everything_stays(folders, capsys, monkeypatch):
    root, raw, preprocessed = folders
    path = _write_rex(root)
    assert _convert(root, source="rexgroundingct") == 0
    before = _files(raw, preprocessed)
    content = json.loads(path.read_text())
    content["train"][0] = grounding_entry("train_1_a_1.nii.gz", [("A nodule.", "2d", NODULE)])
    path.write_text(json.dumps(content))
    write_grounding(root, "train_1_a_1.nii.gz", [NODULE])

    def fails(target, volume_hu, geometry):
        raise UserError(f"{target} cannot be written")

    monkeypatch.setattr(cases, "write_volume", fails)
    assert _convert(root, source="rexgroundingct") == 1
    assert "train_1_a_1: FAILED: " in capsys.readouterr().err
    assert _files(raw, preprocessed) == before


def test_grounding_that_does_not_fit_is_named_and_the_others_are_done(folders, capsys):
    root, raw, _ = folders
    path = _write_rex(root)
    content = json.loads(path.read_text())
    content["train"][0]["categories"]["1"] = "12"
    content["train"].append(content["train"][1] | {"name": "train_9_a_1.nii.gz"})
    write_fixed(place(root, "train_fixed", "train_9_a_1"), chest())
    path.write_text(json.dumps(content))
    write_grounding(root, "train_4_a_1.nii.gz", [OPACITY.transpose(0, 2, 1), NODULE.transpose(0, 2, 1)])
    assert _convert(root, source="rexgroundingct") == 1
    said = capsys.readouterr().err
    assert "train_1_a_1: FAILED: dataset.json, train 0: train_1_a_1: finding 1 has the category '12'" in said
    assert "train_9_a_1: FAILED: " in said and "has no mask train_9_a_1.nii.gz" in said
    assert "train_4_a_1: FAILED: " in said and "so it must be (2, 24, 20, 6)" in said
    assert sorted(read_case_reports(raw / "reports.json").cases) == ["train_2_a_1", "train_3_a_2"]


def test_a_case_without_findings_has_an_empty_label_map(folders):
    root, raw, _ = folders
    path = _write_rex(root)
    content = json.loads(path.read_text())
    content["train"][0] |= {"findings": {}, "categories": {}, "pixels": {}}
    path.write_text(json.dumps(content))
    (root / "segmentations" / "train_1_a_1.nii.gz").unlink()
    assert _convert(root, source="rexgroundingct") == 0
    assert not read_volume(raw / "labelsTr" / "train_1_a_1.nii.gz")[0].any()
    assert read_case_reports(raw / "reports.json").cases["train_1_a_1"].disease_masks == ()


def test_check_finds_what_somebody_changed(folders, capsys):
    root, raw, preprocessed = folders
    _write_download(root)
    _convert(root)
    capsys.readouterr()
    assert main(["check", "40"]) == 0
    said = capsys.readouterr().out
    assert "5 cases; 3 patients in training, 1 in test, none in both" in said
    assert "2 folds with" in said and "no patient in training and validation" in said

    splits = preprocessed / "splits_final.json"
    folds = json.loads(splits.read_text())
    moved = next(fold for fold in folds if "train_1_a_1" in fold["val"])
    moved["val"].remove("train_1_a_1")
    moved["train"].append("train_1_a_1")
    splits.write_text(json.dumps(folds))
    assert main(["check", "Dataset040_CTRATE"]) == 1
    assert "train_1 (train_1_a_1, train_1_b_1)" in capsys.readouterr().err
    folds = [{"train": ["train_1_a_1", "train_1_b_1"], "val": ["train_2_a_2"]}]
    splits.write_text(json.dumps(folds))
    assert main(["check", "40"]) == 1
    assert "train_1_a_1 is in no fold's val" in capsys.readouterr().err
    splits.unlink()
    assert main(["check", "40"]) == 0
    assert "nnU-Net would make its folds by case" in capsys.readouterr().out

    content = json.loads((raw / "reports.json").read_text())
    content["cases"]["train_1_a_1"]["patient"] = "valid_1"
    (raw / "reports.json").write_text(json.dumps(content))
    assert main(["check", "40"]) == 1
    assert "valid_1 (train_1_a_1, valid_1_a_1)" in capsys.readouterr().err
    (raw / "imagesTr" / "train_1_a_1_0000.nii.gz").unlink()
    assert main(["check", "40"]) == 1
    assert "has no image of train_1_a_1" in capsys.readouterr().err


def test_a_killed_case_is_done_again(folders, monkeypatch):
    from fvae_nnunet.conversion import cases as conversion_cases

    root, raw, _ = folders
    _write_download(root)

    def killed(path, volume, geometry):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion_cases, "write_volume", killed)
    assert _convert(root) == 130
    assert not list(raw.glob("images*/*"))
    monkeypatch.undo()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(raw.parent.parent / name))
    assert _convert(root) == 0
    assert len(list(raw.glob("images*/*"))) == 5


def test_a_case_that_is_killed_while_it_is_made_again_is_not_taken_for_an_edited_one(folders, monkeypatch):
    from fvae_nnunet.conversion import cases as conversion_cases

    root, raw, _ = folders
    _write_download(root)
    assert _convert(root) == 0
    write_fixed(place(root, "valid_fixed", "valid_1_a_1"), chest(77))
    write = conversion_cases.write_volume

    def killed(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion_cases, "write_volume", killed)
    assert _convert(root) == 130
    monkeypatch.setattr(conversion_cases, "write_volume", write)
    assert _convert(root) == 0
    np.testing.assert_array_equal(_image(raw / "imagesTs" / "valid_1_a_1_0000.nii.gz")[0], chest(77))


def test_wrong_options_are_refused(folders, capsys):
    root, _, _ = folders
    _write_download(root)
    assert _convert(root, "-np", "-1") == 1
    assert "-np must not be negative" in capsys.readouterr().err
    assert _convert(root, "--reports", str(root / "none.csv")) == 1
    assert "none.csv is not a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ct-rate", str(root)])
