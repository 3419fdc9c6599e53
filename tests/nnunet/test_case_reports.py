import json
from dataclasses import replace

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import (
    CaseReport,
    CaseReports,
    DiseaseMask,
    find_case_reports,
    read_case_reports,
    write_case_reports,
)

FULL = CaseReport(
    patient="train_1",
    split="train",
    source="train_1_a_1.nii.gz",
    report="A nodule of 5 mm.",
    findings={"Lung nodule": 1, "Atelectasis": 0},
    disease_masks=(DiseaseMask(1, "nodule", "5 mm nodule", 12),),
)
BARE = CaseReport(patient="valid_1", split="test", source="valid_1_a_1.nii.gz")


def _entry(tmp_path, **changes):
    """A file with one case whose entry is changed; None takes a key out."""
    path = tmp_path / "reports.json"
    write_case_reports(path, CaseReports(("Lung nodule", "Atelectasis"), {"train_1_a_1": FULL}))
    content = json.loads(path.read_text())
    entry = content["cases"]["train_1_a_1"]
    for key, value in changes.items():
        entry[key] = value
        if value is None:
            del entry[key]
    path.write_text(json.dumps(content))
    return path


def test_what_was_written_is_read_and_what_is_unknown_is_left_out(tmp_path):
    path = tmp_path / "reports.json"
    reports = CaseReports(("Lung nodule", "Atelectasis"), {"train_1_a_1": FULL, "valid_1_a_1": BARE})
    write_case_reports(path, reports)
    assert read_case_reports(path) == reports
    content = json.loads(path.read_text())
    assert content["schema"] == 1 and content["kind"] == "reports"
    assert content["findings"] == ["Lung nodule", "Atelectasis"]
    assert content["cases"]["valid_1_a_1"] == {"patient": "valid_1", "split": "test", "source": "valid_1_a_1.nii.gz"}
    assert content["cases"]["train_1_a_1"]["disease_masks"] == [
        {"label": 1, "name": "nodule", "text": "5 mm nodule", "voxels": 12}
    ]


def test_a_case_that_was_looked_at_and_has_no_mask_stays_apart_from_one_without_labels(tmp_path):
    path = tmp_path / "reports.json"
    write_case_reports(path, CaseReports((), {"a": replace(BARE, disease_masks=()), "b": BARE}))
    cases = read_case_reports(path).cases
    assert cases["a"].disease_masks == () and cases["b"].disease_masks is None


def test_the_file_of_a_dataset_is_found_or_its_absence_said(tmp_path):
    with pytest.raises(UserError, match="fvae-convert"):
        find_case_reports(tmp_path)
    write_case_reports(tmp_path / "reports.json", CaseReports())
    assert find_case_reports(tmp_path) == tmp_path / "reports.json"
    assert read_case_reports(find_case_reports(tmp_path)) == CaseReports((), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient": None}, "train_1_a_1 lacks patient"),
        ({"patient": " "}, "train_1_a_1.patient must be a text that is not empty"),
        ({"split": "valid"}, 'split must be train or test, not "valid"'),
        ({"report": ""}, "report must be a text that is not empty"),
        ({"sex": "f"}, "sex must be absent"),
        ({"findings": {"Lung nodule": 1}}, "findings lacks Atelectasis"),
        ({"findings": {"Lung nodule": 1, "Atelectasis": 0, "Nodul": 0}}, "findings.Nodul must be absent"),
        ({"findings": {"Lung nodule": 2, "Atelectasis": 0}}, "Lung nodule must be 0 or 1, not 2"),
        ({"findings": {"Lung nodule": True, "Atelectasis": 0}}, "must be 0 or 1, not true"),
        ({"findings": {"Lung nodule": "1", "Atelectasis": 0}}, 'must be 0 or 1, not "1"'),
        ({"findings": [1, 0]}, "findings must be an object"),
        ({"disease_masks": {"label": 1}}, "disease_masks must be a list"),
        ({"disease_masks": [{"label": 1, "name": "nodule"}]}, r"disease_masks\[0\] lacks text"),
        (
            {"disease_masks": [{"label": 0, "name": "n", "text": "", "voxels": 1}]},
            "label must be a whole number from 1 to 255, not 0",
        ),
        ({"disease_masks": [{"label": 1, "name": "n", "text": 3, "voxels": 1}]}, "text must be text, not 3"),
    ],
)
def test_wrong_entries_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_case_reports(_entry(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "view", "schema": 1}, "is not a file of reports"),
        ([], "is not a file of reports"),
        ({"kind": "reports", "schema": 2, "findings": [], "cases": {}}, "has schema 2, not 1"),
        ({"kind": "reports", "schema": 1, "findings": {"a": 1}, "cases": {}}, "findings must be a list"),
        ({"kind": "reports", "schema": 1, "findings": ["a", "a"], "cases": {}}, "names a twice"),
        ({"kind": "reports", "schema": 1, "findings": [], "cases": []}, "cases must be an object"),
        ({"kind": "reports", "schema": 1, "findings": [], "cases": {"x": 1}}, "x must be an object"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    path = tmp_path / "reports.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_case_reports(path)


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_case_reports(tmp_path / "reports.json")
    (tmp_path / "reports.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_case_reports(tmp_path / "reports.json")


def test_wrong_entries_are_not_written(tmp_path):
    path = tmp_path / "reports.json"
    with pytest.raises(UserError, match="findings lacks Atelectasis"):
        write_case_reports(path, CaseReports(("Atelectasis",), {"a": replace(BARE, findings={})}))
    assert not path.exists()
