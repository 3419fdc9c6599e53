"""Comparison of models: means, differences and counts by hand, intervals and p against scipy, the command."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from segmentations_for_tests import PLAIN, REGIONS, ellipsoid, label_maps, write

from fvae_nnunet import numbers_as_text
from fvae_nnunet.cli.evaluate import main
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.results_files import write_results
from fvae_nnunet.evaluation.segmentation.comparison import compare, model_names
from fvae_nnunet.evaluation.segmentation.comparison_tables import comparison_rows
from fvae_nnunet.evaluation.segmentation.lesions import CaseLesions, LesionRule
from fvae_nnunet.evaluation.segmentation.results_text import format_comparison
from fvae_nnunet.evaluation.segmentation.scores import ScoredCase, ScoredFolder, Scores
from fvae_nnunet.nnunet.labels import LabelScheme

NAN = math.nan
RAW = [0.70, 0.50, 0.81, 0.33, 0.90, 0.62, 0.45, 0.77]
VIEW = [0.74, 0.49, 0.86, 0.47, 0.90, 0.80, 0.47, 0.78]
CONTROL = [0.60, 0.52, 0.70, 0.30, 0.85, 0.61, 0.40, 0.70]


def scores_of(root: Path, dice: dict, hd95: dict | None = None, lesions: dict | None = None) -> Scores:
    """Scores of a label "tumour" from values by case; None: no prediction. The files exist and hold their names."""

    def scored(model, number, value):
        path = root / model / f"case_{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{model} {number}")
        hd95_mm = hd95[model][number] if hd95 else 1.0
        # without a distance, but with a DSC: the prediction is empty
        n_pred = 0 if math.isnan(hd95_mm) or math.isnan(value) else 5
        metrics = {
            "Dice": value, "NSD_2mm": value / 2, "HD95_mm": hd95_mm, "n_ref": 0 if math.isnan(value) else 5,
            "n_pred": n_pred,
        }  # fmt: skip
        of_case = {1: lesions[model][number]} if lesions else {}
        return ScoredCase(f"case_{number}", root / "labelsTs" / path.name, path, {1: metrics}, of_case)

    (root / "labelsTs").mkdir(parents=True, exist_ok=True)
    for number in range(len(next(iter(dice.values())))):
        (root / "labelsTs" / f"case_{number}.nii.gz").write_text(str(number))
    folders = [
        ScoredFolder(
            root / model,
            [scored(model, number, value) for number, value in enumerate(values) if value is not None],
            [f"case_{number}" for number, value in enumerate(values) if value is None],
        )
        for model, values in dice.items()
    ]
    scheme = LabelScheme({1: "tumour"}, (0, 1), None, ".nii.gz")
    return Scores(root / "labelsTs", scheme, (2.0,), "nan", LesionRule((1,) if lesions else ()), folders)


def entries(comparison: dict, key: str) -> tuple[list[dict], list[dict]]:
    """The models and the comparisons of one measure."""
    (measure,) = [measure for measure in comparison["measures"] if measure["key"] == key]
    return measure["models"], measure["comparisons"]


def scipy_interval(values, seed=0) -> list[float]:
    """Of the mean; NaN where scipy has none."""
    return list(scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(seed)).confidence_interval)


def test_means_differences_and_p_are_those_of_scipy(tmp_path):
    comparison = compare(scores_of(tmp_path, {"raw": RAW, "view": VIEW}), seed=4)
    (raw, view), (pair,) = entries(comparison, "Dice")
    differences = np.array(VIEW) - np.array(RAW)
    assert (raw["mean"], view["mean"]) == pytest.approx((np.mean(RAW), np.mean(VIEW)))
    assert view["interval"] == pytest.approx(scipy_interval(VIEW, 4), abs=1e-9) and view["interval_method"] == "BCa"
    assert (pair["first"], pair["second"]) == ("raw", "view")
    assert (pair["first_mean"], pair["second_mean"]) == pytest.approx((np.mean(RAW), np.mean(VIEW)))
    assert pair["mean_difference"] == pytest.approx(differences.mean())
    assert pair["interval"] == pytest.approx(scipy_interval(differences, 4), abs=1e-9)
    # the paired interval is narrower than that of two unrelated samples
    assert np.diff(pair["interval"]) < 0.5 * np.diff(view["interval"])
    rounded = np.round(differences[differences != 0], 12)
    assert pair["p"] == pair["p_holm"] == pytest.approx(scipy.stats.wilcoxon(rounded).pvalue, abs=1e-12)
    assert (pair["wins"], pair["ties"], pair["losses"]) == (6, 1, 1)
    assert (pair["n"], pair["items"], pair["nan"], pair["missing"]) == (8, 8, 0, 0)
    assert pair["differences"] == pytest.approx({f"case_{n}": value for n, value in enumerate(differences)})
    assert entries(compare(scores_of(tmp_path, {"raw": RAW, "view": VIEW}), seed=5), "Dice")[1][0] != pair


def test_smaller_distances_win(tmp_path):
    dice = {"raw": RAW[:4], "view": VIEW[:4]}
    hd95 = {"raw": [5.0, 9.0, 3.0, 4.0], "view": [2.0, 9.0, 4.0, 1.0]}
    models, (pair,) = entries(compare(scores_of(tmp_path, dice, hd95)), "HD95_mm")
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 1, 1)
    assert pair["mean_difference"] == pytest.approx(-5 / 4)
    assert pair["most_improved_first"][:2] == ["case_0", "case_3"] and pair["most_improved_first"][-1] == "case_2"
    assert models[0]["best_first"] == ["case_2", "case_3", "case_0", "case_1"]
    _, (overlap,) = entries(compare(scores_of(tmp_path, dice, hd95)), "Dice")
    assert overlap["most_improved_first"] == ["case_3", "case_2", "case_0", "case_1"]


def test_cases_without_value_and_without_prediction_are_counted_and_left_out(tmp_path):
    dice = {"raw": [0.5, NAN, 0.7, None, 0.2, 0.6], "view": [0.6, NAN, None, 0.9, 0.0, 0.6]}
    hd95 = {"raw": [4.0, NAN, 2.0, NAN, 6.0, 3.0], "view": [3.0, NAN, NAN, 2.0, NAN, 5.0]}
    comparison = compare(scores_of(tmp_path, dice, hd95))
    (raw, view), (pair,) = entries(comparison, "Dice")
    assert [(entry["n"], entry["nan"], entry["missing"]) for entry in (raw, view, pair)] == [
        (4, 1, 1), (4, 1, 1), (3, 1, 2)
    ]  # fmt: skip
    assert (raw["mean"], view["mean"]) == pytest.approx((2.0 / 4, 2.1 / 4))
    assert (pair["first_mean"], pair["second_mean"]) == pytest.approx((1.3 / 3, 1.2 / 3))
    assert pair["mean_difference"] == pytest.approx(-0.1 / 3)
    assert (pair["wins"], pair["ties"], pair["losses"]) == (1, 1, 1)
    assert math.isnan(raw["values"]["case_1"]) and "case_3" not in raw["values"]
    (raw, view), (pair,) = entries(comparison, "HD95_mm")
    assert [(entry["n"], entry["nan"], entry["missing"]) for entry in (raw, view, pair)] == [
        (4, 1, 1), (3, 2, 1), (2, 2, 2)
    ]  # fmt: skip
    assert (raw["one_empty"], view["one_empty"]) == (0, 1)
    assert [model["missing"] for model in comparison["models"]] == [["case_3"], ["case_2"]]
    assert comparison["reference"]["cases"] == [f"case_{number}" for number in range(6)]
    text = format_comparison(comparison)
    text = " ".join(text.split())
    assert (
        "only the reference or only the prediction lacks it: raw 0, view 1" in text and "raw: 1 missing: case_3" in text
    )


def test_holm_counts_the_comparisons_of_one_label_and_measure(tmp_path):
    scores = scores_of(tmp_path, {"raw": RAW, "view": VIEW, "median": CONTROL})
    _, with_first = entries(compare(scores), "Dice")
    assert [(pair["first"], pair["second"]) for pair in with_first] == [("raw", "view"), ("raw", "median")]
    _, all_pairs = entries(compare(scores, all_pairs=True), "Dice")
    assert [(pair["first"], pair["second"]) for pair in all_pairs] == [
        ("raw", "view"), ("raw", "median"), ("view", "median")
    ]  # fmt: skip
    for pairs in (with_first, all_pairs):
        smallest, *others = sorted(pairs, key=lambda pair: pair["p"])
        assert smallest["p_holm"] == pytest.approx(len(pairs) * smallest["p"])
        largest = others[-1]
        assert largest["p_holm"] == max(largest["p"], *(pair["p_holm"] for pair in pairs[:-1]))
    assert with_first == [{**pair, "p_holm": few["p_holm"]} for pair, few in zip(all_pairs, with_first)], (
        "a comparison is the same whatever else is compared"
    )


def test_models_that_do_not_differ_give_a_clear_result_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare(scores_of(tmp_path, {"raw": RAW, "copy": RAW}))
        one_case = compare(scores_of(tmp_path / "one", {"raw": [0.5], "view": [0.7]}))
        without = compare(scores_of(tmp_path / "none", {"raw": [NAN, NAN], "view": [NAN, 0.3]}))
    _, (pair,) = entries(comparison, "Dice")
    assert pair["mean_difference"] == 0 and pair["p"] == pair["p_holm"] == 1 and pair["test_method"] == "none"
    assert np.isnan(pair["interval"]).all() and pair["interval_method"] == "none"
    assert (pair["wins"], pair["ties"], pair["losses"]) == (0, 8, 0)
    _, (pair,) = entries(one_case, "Dice")
    assert pair["mean_difference"] == pytest.approx(0.2) and pair["p"] == 1 and pair["interval_method"] == "none"
    (raw, _), (pair,) = entries(without, "Dice")
    assert math.isnan(raw["mean"]) and math.isnan(pair["mean_difference"]) and pair["p"] == 1
    assert (pair["n"], pair["nan"]) == (0, 2) and math.isnan(pair["bland_altman"]["bias"])
    assert "n/a" in format_comparison(without) and "nan" not in format_comparison(without)


def test_bland_altman_by_hand(tmp_path):
    _, (pair,) = entries(compare(scores_of(tmp_path, {"a": [0.2, 0.4, 0.6], "b": [0.3, 0.4, 0.9]})), "Dice")
    found = pair["bland_altman"]
    sd = math.sqrt(((0.1 - 0.4 / 3) ** 2 + (0.4 / 3) ** 2 + (0.3 - 0.4 / 3) ** 2) / 2)
    assert (found["bias"], found["sd"]) == pytest.approx((0.4 / 3, sd))
    assert found["limits"] == pytest.approx([0.4 / 3 - 1.96 * sd, 0.4 / 3 + 1.96 * sd])
    assert found["means"] == pytest.approx({"case_0": 0.25, "case_1": 0.4, "case_2": 0.75})


def lesions(diameters_mm, dice, false_mm=()) -> CaseLesions:
    """Detected is what has a DSC."""
    detected = tuple(not math.isnan(value) for value in dice)
    return CaseLesions(tuple(diameters_mm), tuple(map(float, detected)), detected, tuple(dice), tuple(false_mm))


def test_lesions_are_pooled_and_cases_are_what_is_resampled(tmp_path):
    sizes_mm = [(5.0, 8.0, 12.0), (9.0,), (30.0, 6.0), ()]
    of_raw = [(0.5, NAN, 0.8), (NAN,), (0.9, NAN), ()]
    of_view = [(0.7, 0.4, 0.7), (0.2,), (NAN, NAN), ()]
    false_mm = {"raw": [(3.0,), (), (4.0, 15.0), ()], "view": [(), (), (25.0,), (2.0, 3.0)]}
    given = {
        model: [lesions(*case) for case in zip(sizes_mm, dice, false_mm[model])]
        for model, dice in (("raw", of_raw), ("view", of_view))
    }
    comparison = compare(scores_of(tmp_path, {"raw": RAW[:4], "view": VIEW[:4]}, lesions=given), seed=2)

    (raw, view), (pair,) = entries(comparison, "detection_rate")
    assert (raw["mean"], view["mean"], pair["mean_difference"]) == pytest.approx((3 / 6, 4 / 6, 1 / 6))
    assert (pair["n"], pair["items"], pair["nan"]) == (3, 6, 1), "the case without lesions has no rate"
    assert pair["differences"] == pytest.approx({"case_0": 1 / 3, "case_1": 1, "case_2": -1 / 2})
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 0, 1)
    expected = scipy.stats.bootstrap(
        (np.array([1.0, 1, -1]), np.array([3.0, 1, 2])), lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        paired=True, vectorized=True, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert pair["interval"] == pytest.approx(list(expected), abs=1e-9)

    (raw, view), _ = entries(comparison, "detection_rate_below_10mm")
    assert (raw["mean"], view["mean"], raw["items"]) == pytest.approx((1 / 4, 3 / 4, 4))
    (raw, view), _ = entries(comparison, "detection_rate_above_20mm")
    assert (raw["mean"], view["mean"], raw["n"], raw["nan"]) == (1, 0, 1, 3)

    (raw, view), (pair,) = entries(comparison, "dice_of_detected")
    assert (raw["mean"], view["mean"]) == pytest.approx((2.2 / 3, 2.0 / 4))
    assert (pair["n"], pair["items"]) == (1, 2), "both have detected two lesions of case 0, and none else"
    assert (pair["first_mean"], pair["second_mean"]) == pytest.approx((1.3 / 2, 1.4 / 2))
    assert pair["mean_difference"] == pytest.approx(0.05)

    (raw, view), (pair,) = entries(comparison, "false_positives_per_case")
    assert (raw["mean"], view["mean"]) == (3 / 4, 3 / 4)
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 1, 1)
    (raw, view), _ = entries(comparison, "false_positives_per_case_above_20mm")
    assert (raw["mean"], view["mean"], view["n"]) == (0, 1 / 4, 4)
    assert comparison["lesions"]["1"]["view"]["case_3"]["false_positive_diameters_mm"] == (2.0, 3.0)


def test_the_same_scores_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        scores = scores_of(tmp_path / "scores", {"raw": RAW, "view": VIEW})
        path, results = tmp_path / name / "comparison.json", compare(scores)
        write_results(results, path, comparison_rows(results, path))
    assert (tmp_path / "first/comparison.json").read_bytes() == (tmp_path / "second/comparison.json").read_bytes()


def test_the_digest_follows_content_and_name_of_the_predictions(tmp_path):
    digests = []
    for change in (lambda path: None, lambda path: path.write_text("else")):
        scores = scores_of(tmp_path, {"raw": RAW, "view": VIEW})
        change(tmp_path / "view" / "case_3.nii.gz")
        comparison = compare(scores)
        digests.append([comparison["reference"]["sha256"], *(model["sha256"] for model in comparison["models"])])
    assert [before == after for before, after in zip(*digests)] == [True, True, False]


def test_names_of_models(tmp_path):
    assert model_names([Path("a/raw"), Path("a/view")], None) == ["raw", "view"]
    assert model_names([Path("a/fold_0"), Path("b/fold_0")], None) == ["a/fold_0", "b/fold_0"]
    assert model_names([Path("a"), Path("b")], ["one", "two"]) == ["one", "two"]
    with pytest.raises(UserError, match="each of the 2 folders, got 1"):
        model_names([Path("a"), Path("b")], ["one"])
    with pytest.raises(UserError, match="must be unique"):
        model_names([Path("a"), Path("b")], ["one", "one"])


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Six cases of organ and tumour: references, and predictions that lie 0, 1 and 3 voxels off."""
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", **PLAIN}))
    for folder in ("labelsTs", "good", "fair", "poor"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        reference = np.zeros((14, 24, 28), np.uint8)
        reference[ellipsoid((6, 11, 13), (5, 8, 9), reference.shape)] = 1
        reference[ellipsoid((6, 11, 12), (2, 3 + number % 2, 4), reference.shape)] = 2
        write(tmp_path / "labelsTs" / f"case_{number}.nii.gz", reference)
        for folder, voxels in (("good", 0), ("fair", 1), ("poor", 3)):
            moved = np.roll(reference, voxels if number else 1, axis=2)
            write(tmp_path / folder / f"case_{number}.nii.gz", moved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*options: str) -> int:
    return main(["labelsTs", "good", "fair", "poor", "-np", "0", "--resamples", "200", *options])


def test_command_compares_three_folders(project, capsys):
    assert command("--names", "A", "B", "C", "--tolerance", "0.5", "2", "--all-pairs", "-o", "out/c.json") == 0
    out = capsys.readouterr().out
    comparison = json.loads((project / "out/c.json").read_text())
    assert comparison["kind"] == "comparison" and comparison["settings"]["resamples"] == 200
    assert comparison["settings"]["seed"] == 0 and comparison["settings"]["tolerances_mm"] == [0.5, 2.0]
    assert [(model["name"], model["folder"]) for model in comparison["models"]] == [
        ("A", "good"), ("B", "fair"), ("C", "poor")
    ]  # fmt: skip
    keys = [measure["key"] for measure in comparison["measures"] if measure["label"] == "1"]
    assert keys == ["Dice", "NSD_0.5mm", "NSD_2mm", "HD95_mm"], "an organ is not counted lesion by lesion"
    of_tumour = [measure for measure in comparison["measures"] if measure["label"] == "2"]
    assert len(of_tumour) == 4 + 3 * 4
    hd95 = of_tumour[3]
    assert hd95["key"] == "HD95_mm" and hd95["label_name"] == "tumour"
    # 0.7 mm from voxel to voxel; in case 0 each is one voxel off
    moved_mm = [model["values"] for model in hd95["models"]]
    assert moved_mm[0]["case_1"] == 0 and moved_mm[0]["case_0"] == moved_mm[2]["case_0"] > 0
    assert moved_mm[2]["case_1"] == pytest.approx(3 * 0.7, rel=0.2)
    b_minus_a, c_minus_a, c_minus_b = hd95["comparisons"]
    assert (b_minus_a["wins"], b_minus_a["ties"], b_minus_a["losses"]) == (0, 1, 5)
    assert b_minus_a["p"] == pytest.approx(2 / 2**5) and b_minus_a["p_holm"] == pytest.approx(3 * 2 / 2**5)
    assert (c_minus_b["first"], c_minus_b["second"]) == ("B", "C")

    assert out.index("pancreas: ") < out.index("tumour: ")
    assert numbers_as_text.number(c_minus_a["mean_difference"], "mm", signed=True) in out
    out = " ".join(out.split())
    assert "corrected (Holm) for the 3 comparisons of each label and measure" in out and "200 resamples, seed 0" in out
    with (project / "out/c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 + 16) * 3
    row = rows[4 * 3 + 3 * 3]
    assert (row["label_name"], row["measure"], row["first"], row["second"]) == ("tumour", "HD95_mm", "A", "B")
    assert float(row["interval_high"]) == b_minus_a["interval"][1] and row["losses"] == "5"
    with (project / "out/c_models.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == (4 + 16) * 3
    with (project / "out/c_cases.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == (4 + 16) * 3 * 6
    assert not list((project / "out").glob(".*")) and not (project / "good" / "summary.json").exists()


def test_command_gives_each_folder_the_values_of_its_own_evaluation(project):
    assert command() == 0
    comparison = json.loads((project / "comparison.json").read_text())
    assert main(["labelsTs", "poor", "-np", "0"]) == 0
    alone = json.loads((project / "poor" / "summary.json").read_text())
    for measure in comparison["measures"][:3]:
        poor = measure["models"][2]
        assert poor["model"] == "poor" and poor["mean"] == pytest.approx(alone["mean"]["1"][measure["key"]])
        of_cases = [case["metrics"]["1"][measure["key"]] for case in alone["metric_per_case"]]
        assert list(poor["values"].values()) == of_cases
    assert comparison["lesions"]["2"]["poor"]["case_1"] == alone["fvae"]["lesions"]["cases"]["case_1"]["2"]


def test_everything_that_is_wrong_in_any_folder_is_named_at_once(project, capsys):
    (project / "good" / "case_2.nii.gz").unlink()
    write(project / "fair" / "case_1.nii.gz", label_maps(0, (0, 1, 2))[1])
    (project / "poor" / "case_3.nii.gz").rename(project / "poor" / "case_9.nii.gz")
    (project / "labelsTs" / "case_4.nii.gz").write_bytes(b"no image")
    assert command() == 1
    out, err = capsys.readouterr()
    assert "good lacks 1 of 6 predictions: case_2;" in err and "poor lacks 1 of 6 predictions: case_3;" in err
    assert "poor holds predictions without reference in labelsTs: case_9;" in err
    assert "case_1: reference and prediction in fair differ in shape;" in err
    assert err.count("case_4.nii.gz cannot be read") == 1
    assert out == "" and not (project / "comparison.json").exists()


def test_missing_predictions_can_be_allowed(project, capsys):
    (project / "good" / "case_2.nii.gz").unlink()
    (project / "poor" / "case_3.nii.gz").unlink()
    assert command("--allow-missing") == 0
    fair, poor = json.loads((project / "comparison.json").read_text())["measures"][0]["comparisons"]
    assert (fair["n"], fair["missing"]) == (5, 1) and (poor["n"], poor["missing"]) == (4, 2)
    assert "good: 1 missing: case_2" in capsys.readouterr().out


def test_folders_of_different_datasets_are_refused(project, capsys):
    (project / "fair" / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", **REGIONS}))
    assert command() == 1
    err = capsys.readouterr().err
    assert "fair/dataset.json has other labels" in err and "-djfile" in err
    assert command("-djfile", "dataset.json") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["good", "--names", "a", "--all-pairs"], "--names, --all-pairs: only valid with two or more folders"),
        (["good", "fair", "--names", "a"], "each of the 2 folders, got 1"),
        (["good", "fair", "--seed", "-1"], "must not be negative"),
        (["good", "fair", "--resamples", "0"], "--resamples must be positive"),
        (["good", "good"], "may be given only once"),
        (["good", "none", "nor"], "no such folder: none\n  no such folder: nor"),
        (["good", "fair", "-o", "table.csv"], "ends in .json"),
    ],
)
def test_impossible_options_are_refused(project, capsys, arguments, message):
    assert main(["labelsTs", *arguments, "-np", "0"]) == 1
    assert message in capsys.readouterr().err


def test_a_table_that_cannot_be_written_leaves_nothing(project, capsys, monkeypatch):
    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fvae_nnunet.evaluation.results_files.write_json", full_disk)
    assert command() == 1
    out, err = capsys.readouterr()
    assert "tumour" in out and "No space left on device" in err
    assert not list(project.glob("comparison*")) and not list(project.glob(".comp*"))
