"""Which cases are trained on: nothing that knows a patient of validation or test."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from findings_for_tests import FINDINGS, write_findings_dataset, write_synthetic_folder

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.cases import label_array, split_cases
from fvae_nnunet.findings.synthetic_cases import gather_synthetic
from fvae_nnunet.nnunet.case_reports import CaseReports, write_case_reports

NAME = "Dataset040_TINY"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """raw and preprocessed folder of nnU-Net."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def reports(folders):
    return write_findings_dataset(folders / "nnUNet_raw" / NAME, train=10, test=2)


def patients(cases) -> set[str]:
    return {case.key[:4] for case in cases}


def test_each_patient_is_validated_in_one_fold_and_trained_on_in_the_others(reports):
    validated = []
    for fold in range(5):
        split = split_cases(NAME, reports, fold=fold)
        assert not patients(split.training) & patients(split.validation)
        assert patients(split.training) | patients(split.validation) == {f"p{number:03d}" for number in range(10)}
        assert split.held_out_patients == patients(split.validation) | {"p010", "p011"}
        validated += [case.key for case in split.validation]
    assert sorted(validated) == sorted(case for case, report in reports.cases.items() if report.split == "train")


def test_without_fold_all_training_cases_are_trained_on(reports, folders):
    split = split_cases(NAME, reports, fold=None)
    assert len(split.training) == 14 and not split.validation
    assert [case.key for case in split.test] == ["p010_0", "p011_0"]
    assert split.test[0].image == folders / "nnUNet_raw" / NAME / "imagesTs" / "p010_0_0000.nii.gz"


def write_splits(folders, splits) -> None:
    path = folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(splits))


def test_nnunets_split_counts_where_there_is_one(reports, folders):
    training = sorted(case for case, report in reports.cases.items() if report.split == "train")
    write_splits(folders, [{"train": training[2:], "val": training[:2]}])
    split = split_cases(NAME, reports, fold=0)
    assert [case.key for case in split.validation] == training[:2] == ["p000_0", "p000_1"]
    assert split.in_no_part == ()
    with pytest.raises(UserError, match=r"`fold=1`: .*splits_final.json has the folds 0 to 0"):
        split_cases(NAME, reports, fold=1)
    write_splits(folders, [{"train": training[3:], "val": training[:2]}])
    assert split_cases(NAME, reports, fold=0).in_no_part == (training[2],)


def test_too_few_patients_for_the_usual_folds_are_said_with_what_to_do(folders):
    few = write_findings_dataset(folders / "nnUNet_raw" / "Dataset041_FEW", train=3, test=1)
    with pytest.raises(
        UserError, match=r"no .*splits_final.json, and Dataset041_FEW has too few training patients for 5"
    ):
        split_cases("Dataset041_FEW", few, fold=0)


def test_a_fold_that_cannot_be_trained_is_refused_with_its_number_and_reason(reports, folders):
    training = sorted(case for case, report in reports.cases.items() if report.split == "train")
    clean = {"train": training[2:], "val": training[:2]}
    advice = "put all cases of a patient into one of them"
    # p000 has two scans
    write_splits(folders, [clean, {"train": training[1:], "val": training[:1]}])
    with pytest.raises(UserError, match=rf"validation of fold 1: 1 patient in both: p000 \(p000_0, .*{advice}"):
        split_cases(NAME, reports, fold=1)
    assert split_cases(NAME, reports, fold=0).validation
    for strange in ("elsewhere", "p010_0"):  # the second is a test case
        write_splits(folders, [clean, {"train": [*training[2:], strange], "val": training[:2]}])
        with pytest.raises(UserError, match=rf"fold 1 has 1 case not among the training cases .*: {strange}") as error:
            split_cases(NAME, reports, fold=1)
        assert advice not in str(error.value)


def test_a_patient_in_training_and_test_is_refused(reports):
    cases = dict(reports.cases)
    cases["p010_0"] = replace(cases["p010_0"], patient="p003")
    with pytest.raises(UserError, match="p003"):
        split_cases(NAME, CaseReports(reports.findings, cases), fold=None)


def test_cases_without_findings_are_left_out_and_missing_images_named(reports, folders):
    cases = {case: replace(report, findings=None) if case == "p001_0" else report for case, report in
             reports.cases.items()}  # fmt: skip
    split = split_cases(NAME, CaseReports(reports.findings, cases), fold=None)
    assert split.without_findings == ("p001_0",) and "p001" not in patients(split.training)
    (folders / "nnUNet_raw" / NAME / "imagesTr" / "p002_0_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 of 16 cases .*p002_0"):
        split_cases(NAME, reports, fold=None)


def test_labels_that_are_not_known_are_nan(reports):
    split = split_cases(NAME, reports, fold=None)
    case = replace(split.training[0], findings={FINDINGS[1]: 1})
    assert np.array_equal(label_array([case], FINDINGS), [[np.nan, 1, np.nan]], equal_nan=True)


CLEAN = {"source_case": "p001_0", "model": {"dataset": NAME, "training_cases": ["p001_0", "p002_0"]}}


def gathered(folder, reports, **options):
    options = {"held_out_patients": frozenset({"p000", "p010"}), "findings": FINDINGS[:2]} | options
    return gather_synthetic([folder], dataset=NAME, reports=reports, **options)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source_case": "p000_1"}, "made from a case of a patient who is held out"),
        ({"lesions": [{"borrowed_from": None}, {"borrowed_from": "p000_0"}]}, "made from a case of a patient who is"),
        (
            {"model": {"dataset": NAME, "training_cases": ["p001_0", "p000_0"]}},
            "diffusion model was trained on patients who are held",
        ),
        ({"model": {"dataset": NAME, "training_cases": None}}, "on whom its diffusion model was trained are unknown"),
        (
            {"model": {"dataset": NAME, "training_cases": ["p001_0", "other"]}},
            "on whom its diffusion model was trained are unknown",
        ),
        ({"model": {"training_cases": ["p001_0"]}}, "on whom its diffusion model was trained are unknown"),
        ({"source_case": None}, "the patient from whom it was made is unknown"),
        ({"dataset": "Dataset041_OTHER"}, "the patient from whom it was made is unknown"),
        ({"findings": None}, "its record names no finding"),
        ({"findings": {FINDINGS[2]: 1}}, "its record names no finding"),
    ],
)
def test_synthetic_cases_that_know_too_much_or_nothing_are_left_out(tmp_path, reports, changes, reason):
    write_synthetic_folder(tmp_path / "syn", NAME, {"clean": CLEAN, "doubtful": CLEAN | changes})
    found = gathered(tmp_path / "syn", reports)
    assert [case.key.rpartition("__")[2] for case in found.used] == ["clean"] and not found.seen
    ((said, number),) = found.left_out.items()
    assert reason in said and number == 1


def test_a_model_of_another_dataset_has_seen_the_patients_of_that_dataset(tmp_path, reports):
    other = tmp_path / "nnUNet_raw" / "Dataset041_OTHER"
    other.mkdir()
    of_another = replace(
        reports.cases["p001_0"], patient="p000"
    )  # a held-out patient under a name that is not theirs here
    write_case_reports(other / "reports.json", CaseReports(FINDINGS, {"p001_0": of_another}))
    of_other = {"model": {"dataset": other.name, "training_cases": ["p001_0"]}}
    write_synthetic_folder(tmp_path / "syn", NAME, {"clean": CLEAN, "of other": CLEAN | of_other})
    found = gathered(tmp_path / "syn", reports)
    assert [case.key.rpartition("__")[2] for case in found.used] == ["clean"]
    assert "diffusion model was trained on patients who are held out" in next(iter(found.left_out))


def test_allow_seen_takes_doubtful_cases_but_none_of_held_out_patients(tmp_path, reports):
    records = {
        "held_out": CLEAN | {"source_case": "p010_0"},
        "seen": CLEAN | {"model": {"dataset": NAME, "training_cases": ["p010_0"]}},
        "clean": CLEAN,
    }
    write_synthetic_folder(tmp_path / "syn", NAME, records)
    found = gathered(tmp_path / "syn", reports, allow_seen=True)
    assert [case.key.rpartition("__")[2] for case in found.used] == ["clean", "seen"]
    assert [key.rpartition("__")[2] for key in found.seen] == ["seen"]
    assert all(case.synthetic for case in found.used)


def test_patients_of_other_datasets_are_known_by_their_reports(tmp_path, reports, folders):
    """The same scans may be in two datasets; a patient stays the same person."""
    other = folders / "nnUNet_raw" / "Dataset041_OTHER"
    other.mkdir()
    cases = {"scan_0": replace(reports.cases["p000_0"]), "scan_1": replace(reports.cases["p001_0"])}
    write_case_reports(other / "reports.json", CaseReports(FINDINGS, cases))
    of_other = {"dataset": other.name, "model": {"dataset": other.name, "training_cases": ["scan_1"]}}
    records = {"bad": of_other | {"source_case": "scan_0"}, "good": of_other | {"source_case": "scan_1"}}
    write_synthetic_folder(tmp_path / "syn", NAME, records)
    found = gathered(tmp_path / "syn", reports)
    assert [case.key.rpartition("__")[2] for case in found.used] == ["good"]
    assert "held out" in next(iter(found.left_out))


def test_the_ct_channel_is_that_of_the_synthetic_folder(tmp_path, reports):
    folder = tmp_path / "syn"
    write_synthetic_folder(folder, NAME, {"clean": CLEAN})
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_names": {"0": "PET", "1": "CT"}}))
    (image,) = (folder / "imagesTr").iterdir()
    image.with_name(image.name.replace("_0000", "_0001")).write_bytes(image.read_bytes())
    (case,) = gathered(folder, reports).used
    assert case.image.name.endswith("_0001.nii.gz")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_names": {"0": "CT", "1": "CT"}}))
    with pytest.raises(UserError, match="syn has 2 CT channels"):
        gathered(folder, reports)


def test_no_case_left_a_folder_twice_and_unknown_findings_are_errors(tmp_path, reports):
    write_synthetic_folder(tmp_path / "syn", NAME, {"bad": CLEAN | {"source_case": "p000_0"}})
    with pytest.raises(UserError, match=r"no synthetic case(.|\n)*1 case: made from a case(.|\n)*`allow_seen=True`"):
        gathered(tmp_path / "syn", reports)
    with pytest.raises(UserError, match="a folder twice"):
        gather_synthetic(
            [tmp_path / "syn"] * 2, dataset=NAME, reports=reports, held_out_patients=frozenset(), findings=FINDINGS
        )
    write_synthetic_folder(tmp_path / "other", NAME, {"wrong": CLEAN | {"findings": {"Nodul": 1}}})
    with pytest.raises(UserError, match=r"wrong.json: findings must be 0 or 1 of .*; got Nodul: 1"):
        gathered(tmp_path / "other", reports)
