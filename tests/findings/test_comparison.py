"""The comparison of findings classifiers: files in, tables, JSON and picture out."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fvae_nnunet.cli import evaluate_classifier
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.statistics import holm
from fvae_nnunet.findings.predictions import read_predictions, write_predictions
from fvae_nnunet.nnunet.case_reports import CaseReport, CaseReports, write_case_reports

NAMES = ("Atelectasis", "Lung nodule", "Hiatal hernia")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """60 test cases of 30 patients and one training case; scores of two models, the second the better one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < [0.4, 0.3, 0.0]).astype(int)
    cases = {
        f"case_{number:02d}": CaseReport(
            f"p{number // 2}", "test", "x.nii.gz", findings=dict(zip(NAMES, map(int, row), strict=True))
        )
        for number, row in enumerate(labels)
    }
    cases["training"] = CaseReport("p99", "train", "x.nii.gz", findings=dict.fromkeys(NAMES, 0))
    write_case_reports(tmp_path / "reports.json", CaseReports(NAMES, cases))
    first = rng.normal(labels, 1.2)
    second = first + 0.8 * labels + rng.normal(0, 0.3, labels.shape)
    for name, scores in (("real", first), ("mixed", second)):
        write_predictions(tmp_path / f"{name}.csv", NAMES, dict(zip(sorted(cases), scores)))
    return labels, first, second


def evaluate(*options: str) -> dict:
    assert evaluate_classifier.main(["reports.json", *options]) == 0
    return json.loads(open("findings_comparison.json").read())  # noqa: PTH123


def test_aucs_differences_and_corrections(study, capsys):
    labels, first, second = study
    found = evaluate("real.csv", "mixed.csv", "--resamples", "500")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "*" not in out, "the mean is meant to have an interval of percentiles"
    shown = " ".join(out.split())
    for place, finding in enumerate(found["findings"][:2]):
        expected = [roc_auc_score(labels[:, place], scores[:, place]) for scores in (first, second)]
        assert [entry["auc"] for entry in finding["models"]] == pytest.approx(expected, abs=1e-6)
        (pair,) = finding["comparisons"]
        assert pair["difference"] == pytest.approx(expected[1] - expected[0], abs=1e-6)
        assert (pair["first"], pair["second"]) == ("real", "mixed")
        assert (finding["positive"], finding["negative"]) == (labels[:, place].sum(), 60 - labels[:, place].sum())
        assert f"{finding['name']}" in shown and f"{expected[0]:.3f}" in shown
    p = [finding["comparisons"][0]["p"] for finding in found["findings"]]
    corrected = [finding["comparisons"][0]["p_holm"] for finding in found["findings"]]
    assert corrected[:2] == pytest.approx(holm(p[:2])) and math.isnan(p[2]) and math.isnan(corrected[2])
    assert found["findings"][2]["reason"] == "no positive case among 60"
    mean = found["mean"]
    assert mean["findings"] == 2
    assert mean["models"][0]["auc"] == pytest.approx(np.mean([f["models"][0]["auc"] for f in found["findings"][:2]]))
    assert mean["comparisons"][0]["p"] == pytest.approx(2 / 501)  # no resample in which the second is not better
    assert "Hiatal hernia: no positive case among 60; no AUC, not in the mean" in shown
    assert "real 67.95, real + 500 synthetic 70.71 (+2.76)" in shown and "not comparable" in shown
    assert found["cases"] == 60 and found["patients"] == 30


def test_the_picture_has_a_row_for_each_finding(study, tmp_path):
    evaluate("real.csv", "--resamples", "50")
    one = tmp_path / "findings_comparison.png"
    sizes = [struct.unpack(">II", one.read_bytes()[16:24])]
    evaluate("real.csv", "mixed.csv", "--resamples", "50")
    sizes.append(struct.unpack(">II", one.read_bytes()[16:24]))
    assert sizes[0][0] < sizes[1][0] and sizes[0][1] < sizes[1][1]  # a second panel, a second model in each row


def test_the_order_of_rows_and_columns_does_not_matter(study, tmp_path):
    before = evaluate("real.csv", "mixed.csv", "--resamples", "50")
    head, *rows = [line.split(",") for line in (tmp_path / "mixed.csv").read_text().splitlines()]
    turned = [",".join(reversed(row)) for row in [head, *reversed(rows)]]
    (tmp_path / "mixed.csv").write_text("\n".join(turned) + "\n")
    after = evaluate("real.csv", "mixed.csv", "--resamples", "50")
    assert str(after["findings"]) == str(before["findings"]) and str(after["mean"]) == str(before["mean"])


def test_a_missing_test_case_is_an_error_unless_allowed(study, tmp_path, capsys):
    lines = (tmp_path / "mixed.csv").read_text().splitlines(keepends=True)
    (tmp_path / "mixed.csv").write_text("".join(lines[:1] + lines[3:]))
    assert evaluate_classifier.main(["reports.json", "real.csv", "mixed.csv"]) == 1
    assert "mixed.csv: case_00, case_01" in capsys.readouterr().err
    # alone too: the test cases are known
    assert evaluate_classifier.main(["reports.json", "mixed.csv"]) == 1
    capsys.readouterr()
    found = evaluate("real.csv", "mixed.csv", "--allow-missing", "--resamples", "50")
    assert found["cases"] == 58 and found["models"][1]["missing"] == ["case_00", "case_01"]
    assert "mixed: 2 cases without prediction, left out for all models" in capsys.readouterr().out


def test_some_findings_and_all_pairs(study, tmp_path):
    (tmp_path / "third.csv").write_bytes((tmp_path / "real.csv").read_bytes())
    options = ["--findings", NAMES[1], "--all-pairs", "--resamples", "50"]
    found = evaluate("real.csv", "mixed.csv", "third.csv", *options)
    assert [finding["name"] for finding in found["findings"]] == [NAMES[1]]
    pairs = [(entry["first"], entry["second"]) for entry in found["mean"]["comparisons"]]
    assert pairs == [("real", "mixed"), ("real", "third"), ("mixed", "third")]
    same = found["findings"][0]["comparisons"][1]
    assert (same["difference"], same["p"], same["interval_method"]) == (0, 1, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["real.csv", "nowhere.csv"], "no such file: nowhere.csv; expected a CSV of predictions"),
        (["real.csv", "--findings", "Nodul"], "has no column Nodul"),
        (["real.csv", "--findings", NAMES[1], NAMES[1]], f"named twice: {NAMES[1]}"),
        (["real.csv", "--all-pairs"], "--all-pairs: only valid with two or more models, got one"),
        (["real.csv", "mixed.csv", "--names", "a", "a"], "must be unique"),
        (["real.csv", "--cases", "test"], "--cases applies to model folders"),
        (["real.csv", "-o", "out.txt"], "ends in .json"),
        (["."], "hold predictions of the same cases"),
        (["real.csv", "--resamples", "0"], "--resamples must be positive"),
    ],
)
def test_impossible_options_are_one_clear_error(study, capsys, options, message):
    assert evaluate_classifier.main(["reports.json", *options]) == 1
    assert message in capsys.readouterr().err


def test_cases_and_findings_that_the_reports_do_not_know_are_named(study, tmp_path, capsys):
    write_predictions(tmp_path / "other.csv", ("Nodul",), {"case_x": np.array([0.5])})
    assert evaluate_classifier.main(["reports.json", "other.csv"]) == 1
    error = capsys.readouterr().err
    assert "has findings that are not in the reports: Nodul" in error and "1 case not in the reports" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name the columns"),
        ("name,A\nx,1\n", "the first line must name the columns"),
        ("case\nx\n", "the first line must name the columns"),
        ("case,A,A\nx,1,1\n", "each finding once"),
        ("case,A\nx,high\n", "line 2, x: 'high' is not a score"),
        ("case,A\nx,0.5\n\ny,nan\n", "line 4, y: 'nan' is not a score"),
        ("case,A\nx,0.5,0.6\n", "line 2: 3 values for 2 columns"),
        ("case,A\nx,0.5\nx,0.6\n", "line 3: x occurs twice"),
    ],
)
def test_wrong_files_of_predictions_are_refused(tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "scores.csv")


def test_of_many_wrong_lines_the_number_is_told(tmp_path):
    (tmp_path / "scores.csv").write_text("case,A\n" + "".join(f"c{line},high\n" for line in range(25)))
    with pytest.raises(UserError, match="line 21, c19: 'high' is not a score\n  and 5 more"):
        read_predictions(tmp_path / "scores.csv")


def test_predictions_are_read_as_written(tmp_path):
    write_predictions(tmp_path / "p.csv", NAMES[:2], {"b": np.array([0.25, 1e-9]), "a": np.array([0.5, 1.0])})
    found = read_predictions(tmp_path / "p.csv")
    assert found.cases == ("a", "b") and found.findings == NAMES[:2]
    assert np.array_equal(found.scores, [[0.5, 1.0], [0.25, 1e-9]])
