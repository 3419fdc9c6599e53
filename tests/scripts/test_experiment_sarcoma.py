"""The experiment on real CT: folds, resuming, tables, and one small run on phantoms."""

from __future__ import annotations

import argparse
import json
import shutil

import experiment_sarcoma as experiment
import experiment_table as table
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.stats import wilcoxon

from fvae_nnunet.errors import UserError

CASES = [f"case_{number:03d}" for number in range(12)]
FOLDS = experiment.folds_of(CASES)


def values(level: float, number: int) -> dict[str, float]:
    """Measures of a case that differ from case to case."""
    of_case = {measure: level + 0.01 * number for measure in table.MEASURES}
    return of_case | {"HD95_mm": 10 - 10 * level + number}


def runs_of(arm: str, seed: int, level: float) -> list[dict]:
    return [
        {
            "arm": arm,
            "seed": seed,
            "fold": fold,
            "cases": {case: values(level + 0.001 * CASES.index(case), CASES.index(case)) for case in cases},
        }
        for fold, cases in enumerate(FOLDS)
    ]


def test_every_case_is_validated_in_one_fold():
    assert sorted(case for fold in FOLDS for case in fold) == CASES
    assert [len(fold) for fold in FOLDS] == [4, 4, 4]
    assert experiment.folds_of(reversed(CASES)) == FOLDS


def test_differences_are_paired_by_case_and_tested_with_wilcoxon():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    gains = np.array([0.02, -0.01, 0.03, 0.05, -0.04, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12])
    view = {
        case: values(0.5, number) | {"Dice": raw[case]["Dice"] + gains[number]} for number, case in enumerate(CASES)
    }
    row = next(line for line in table.difference_table({"raw": raw, "view": view}, "raw") if "| DSC |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["DSC", "view"]
    assert cells[2].startswith(f"{gains.mean():+.3f} (")
    assert cells[3] == f"{wilcoxon(gains).pvalue:.3f}"
    assert cells[3] == cells[4]  # one comparison: nothing to correct
    assert cells[5:] == ["10, 0, 2", "12"]


def test_less_distance_is_better():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    view = {case: values(0.5, number) | {"HD95_mm": 1.0} for number, case in enumerate(CASES)}
    row = next(line for line in table.difference_table({"raw": raw, "view": view}, "raw") if "HD95" in line)
    assert "| 12, 0, 0 |" in row


def test_a_case_without_a_distance_is_left_out_and_counted():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    view = {case: dict(of_case) for case, of_case in raw.items()}
    view[CASES[0]]["HD95_mm"] = float("nan")
    assert "; 1 without" in table.arm_table({"raw": raw, "view": view})[3]
    row = next(line for line in table.difference_table({"raw": raw, "view": view}, "raw") if "HD95" in line)
    assert row.endswith("| 11 |")


def test_seeds_are_averaged_by_case_and_incomplete_arms_named():
    results = {
        "folds": FOLDS,
        "runs": [
            *runs_of("raw", 0, 0.5),
            *runs_of("raw", 1, 0.6),
            *runs_of("view", 0, 0.7),
            runs_of("half", 0, 0.7)[0],
        ],
    }
    runs = table.complete_runs(results)
    assert set(runs) == {("raw", 0), ("raw", 1), ("view", 0)}
    assert table.mean_of_seeds(runs, "raw", [0, 1])[CASES[0]]["Dice"] == pytest.approx(0.55)
    lines = "\n".join(table.report(results))
    assert "left out: half seed 0" in lines
    assert "two seeds of raw" in lines
    assert "minus raw seed 0" in lines


def test_results_of_another_fold_are_refused():
    results = {"folds": FOLDS, "runs": [runs_of("raw", 0, 0.5)[0] | {"fold": 1}]}
    with pytest.raises(UserError, match="not those of fold 1"):
        table.complete_runs(results)


def test_results_of_another_experiment_are_refused(tmp_path):
    description = {"schema": 1, "folds": FOLDS, "dataset": "Dataset511_Sarcoma"}
    path = tmp_path / "results.json"
    assert experiment.open_results(path, description)["runs"] == []
    path.write_text(json.dumps(description | {"runs": [1], "views": {}}))
    assert experiment.open_results(path, description)["runs"] == [1]
    with pytest.raises(UserError, match='dataset: "Dataset511_Sarcoma", now "Dataset007_Pancreas"'):
        experiment.open_results(path, description | {"dataset": "Dataset007_Pancreas"})


def test_bad_options_are_refused(tmp_path, capsys):
    dataset = tmp_path / "Dataset511_X"
    assert experiment.main([str(dataset), "--arms", "blurred"]) == 1
    assert "there is no arm blurred; there are raw, " in capsys.readouterr().err
    assert experiment.main([str(dataset), "--arms", "taef2-mix"]) == 1
    assert "--taef2" in capsys.readouterr().err
    assert experiment.main([str(dataset), "--arms", "raw", "--folds", "3"]) == 1
    assert "folds 0 to 2" in capsys.readouterr().err
    assert experiment.main([str(dataset), "--arms", "raw"]) == 1
    assert "no dataset.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_scores_what_nnunet_predicted_for_the_fold(clone):
    work = clone.preprocessed.parent.parent
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (clone.raw / "labelsTr").glob("*.nii.gz"))
    splits = [
        {"train": [case for case in cases if case not in fold], "val": fold} for fold in experiment.folds_of(cases)
    ]
    (clone.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    args = argparse.Namespace(work=work, dataset=clone.raw, device="cpu", budget="cpu")
    budget = experiment.Budget("test", "3d_fullres", (), 0, 0, epochs=1, iterations_per_epoch=2, mirrored=False)
    with experiment._references(args, cases):
        result = experiment.train_and_score(args, budget, experiment.arms("curvature-flow")["raw"], 0, 7)
    assert (result["arm"], result["fold"], result["seed"]) == ("raw", 0, 7)
    assert sorted(result["cases"]) == splits[0]["val"]
    folder = next(clone.results.glob("nnUNetTrainer_raw_seed7__*")) / "fold_0" / "validation"
    for case, measured in result["cases"].items():
        predicted = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"{case}.nii.gz")) == 2
        tumour = sitk.GetArrayFromImage(sitk.ReadImage(clone.raw / "labelsTr" / f"{case}.nii.gz")) == 2
        overlap = 2 * (predicted & tumour).sum() / (predicted.sum() + tumour.sum())
        assert measured["Dice"] == pytest.approx(overlap, abs=1e-6)
        assert (measured["n_pred"], measured["n_ref"]) == (predicted.sum(), tumour.sum())
    shutil.rmtree(clone.results)
