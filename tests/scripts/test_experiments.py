"""The experiment on real CT: its jobs, its results and tables, and a run to the end on phantoms."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import experiment_overview as overview
import experiment_table as table
import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from arms import ConfigError, on_a_free_gpu
from crossval_splits import every_nth_case
from experiments import results
from experiments.setting import TRAINERS, read_experiment
from phantoms import write_phantom_dataset
from scipy.stats import wilcoxon
from workflows_for_tests import PATH, SCRIPTS, needs_snakemake, planned_jobs, shell_commands, snakemake

from fvae_nnunet.errors import UserError

CASES = [f"case_{number:03d}" for number in range(12)]
BUDGETS = [path.stem for path in sorted((SCRIPTS / "experiments" / "budgets").glob("*.yaml"))]
FOLDS = [fold["val"] for fold in every_nth_case(CASES, 3)]


KEYS = ("Dice", "NSD_1mm", "NSD_2mm", "NSD_3mm", "HD95_mm")
MEASURES = table.measures_of({"runs": [{"cases": {"a": dict.fromkeys(reversed(KEYS), 0.0)}}]})


def values(level: float, number: int) -> dict[str, float]:
    """Measures of a case that differ from case to case."""
    of_case = {measure: level + 0.01 * number for measure in KEYS}
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


def setting_file(name):
    return yaml.safe_load((SCRIPTS / "experiments" / name).read_text())


def config_of(dataset, budget="cpu", /, **changes):
    config = setting_file("sarcoma.yaml") | setting_file(f"budgets/{budget}.yaml")
    return config | {"dataset": str(dataset), "tests": []} | changes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "Dataset511_Phantom"
    return write_phantom_dataset(
        folder, "lung", n_train=4, n_test=0, seed=0, shape=(12, 48, 48), spacing_mm=(3.0, 2.0, 2.0)
    )


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["dose", "sarcoma"])
def test_an_experiment_and_a_budget_are_complete_and_have_nothing_in_common(name, budget, dataset):
    experiment, its_budget = (setting_file(file) for file in (f"{name}.yaml", f"budgets/{budget}.yaml"))
    assert not experiment.keys() & its_budget.keys()
    assert read_experiment(experiment | its_budget | {"dataset": str(dataset)})
    assert its_budget["device"] == ("cpu" if budget == "cpu" else "cuda")


def test_the_budget_decides_the_network_that_is_trained(dataset):
    models = {budget: read_experiment(config_of(dataset, budget)).model("noise_seed1") for budget in BUDGETS}
    folder = "nnUNet_results/noise_seed1/Dataset511_Phantom/nnUNetTrainerNoiseSeeded__"
    assert models["gpu"] == f"{folder}nnUNetPlans__3d_fullres"
    assert models["cpu"] == models["gpu_10_minutes"] == f"{folder}nnUNetPlansSmall__2d"


TWO = [{"name": "mine", "trainer": "nnUNetTrainer"}, {"name": "raw", "trainer": "nnUNetTrainer"}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": None}, "dataset must be an absolute path"),
        ({"dataset": "/tmp"}, "not a folder DatasetNNN_Name"),
        ({"configuration": "4d"}, "configuration: 4d is not one of 2d"),
        ({"blurred": 1}, "unknown key blurred in the configuration"),
        ({"arms": [{"name": "a", "trainer": "mine"}]}, "arms: a: trainer mine is not one of nnUNetTrainer, "),
        ({"arms": [{"name": "a", "trainer": "nnUNetTrainerFVAE", "view": "wan2.1"}]}, "one of tiny, nlm"),
        (
            {"arms": [{"name": "a", "trainer": "nnUNetTrainer", "view": "tiny"}]},
            "nnUNetTrainer and nnUNetTrainerNoise take no view",
        ),
        (
            {"arms": [{"name": "a", "trainer": "nnUNetTrainerFVAE", "view": "tiny,wan"}]},
            "or several separated by commas",
        ),
        (
            {"arms": [{"name": "a", "trainer": "nnUNetTrainerFVAEReconOnly", "view": "tiny,nlm"}]},
            "takes only one view",
        ),
        ({"tests": [{"name": "validation"}]}, "'validation' cannot be the name of a test"),
        ({"tests": [{"name": "nnUNet_raw"}]}, "'nnUNet_raw' cannot be the name of a test"),
        ({"tests": [{"name": "a", "arms": ["rawest"]}]}, "tests: a: arms rawest are not all among raw, "),
        ({"tests": [{"name": "a"}, {"name": "a"}]}, "tests: two have the same name"),
        ({"arms": [{"name": "a", "trainer": "nnUNetTrainer"}]}, "a comparison needs two arms"),
        ({"tests": [{"name": "q", "arms": ["nlm-mix"]}]}, "tests: q: a comparison needs two arms"),
        ({"arms": [{"name": "a", "trainer": "nnUNetTrainer"}] * 2}, "arms: two have the same name"),
        ({"arms": TWO}, "arms: the first, with which the others are compared, must be named raw"),
        ({"tests": [{"name": "q", "arms": ["tiny-recon"]}]}, "tests: q is the same as validation; give it another"),
        ({"tests": [{"name": "q", "scan": "--dose 1", "arms": ["tiny-recon"]}]}, "tests: q: its arms must include raw"),
        ({"arms": [{"name": "a", "trainr": "nnUNetTrainer"}]}, "unknown key trainr in the configuration"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(changes, expected, dataset):
    with pytest.raises(ConfigError, match=expected):
        read_experiment(config_of(dataset, **changes))


def test_the_dose_experiment_can_be_planned(dataset):
    experiment = read_experiment(config_of(dataset) | setting_file("dose.yaml") | {"dataset": str(dataset)})
    assert len(experiment.runs) == 8 and len(experiment.tests) == 14
    assert experiment.prediction_options("quarter", "tiny-recon_seed0") == "--vae tiny --average 8"
    assert experiment.arms["several-mix"].views == list(experiment.views)


def test_a_model_of_views_alone_is_tested_on_its_view_and_others_as_the_test_says(dataset):
    arms = [
        {"name": "raw", "trainer": "nnUNetTrainer", "seeds": [0, 1]},
        {"name": "recon", "trainer": "nnUNetTrainerFVAEReconOnly", "view": "tiny"},
        {"name": "both", "trainer": "nnUNetTrainerFVAE", "view": "tiny:2,control-curvature-flow"},
    ]
    tests = [
        {"name": "quarter", "scan": "--dose 0.25"},
        {"name": "tta", "predict": "--tta raw,view --vae tiny", "arms": ["raw"]},
        {"name": "both", "scan": "--dose 0.25", "predict": "--tta raw,view --vae tiny", "arms": ["raw"]},
    ]
    views = ["--view tiny --vae tiny --average 8", "--view control-curvature-flow --vae control:curvature-flow"]
    experiment = read_experiment(config_of(dataset, arms=arms, tests=tests, views=views))
    assert experiment.prediction_options("quarter", "raw_seed0") == ""
    assert experiment.prediction_options("quarter", "recon_seed0") == "--vae tiny --average 8"
    assert experiment.prediction_options("tta", "raw_seed0") == "--tta raw,view --vae tiny"
    assert experiment.arms["both"].views == ["tiny", "control-curvature-flow"]
    assert (
        experiment.tested_runs("tta") == ["raw_seed0", "raw_seed1"] and len(experiment.tested_runs("validation")) == 4
    )
    assert experiment.images_of("quarter") == experiment.images_of("both") == "scans/quarter"
    assert experiment.tested_views("tta") == [] and experiment.tested_views("quarter") == list(experiment.views)
    assert experiment.images_of("tta") == experiment.images_of("validation") == f"{experiment.raw}/imagesTr"


def test_there_is_a_seeded_trainer_for_each(monkeypatch):
    from fvae_nnunet.nnunet.registration import has_external_trainers

    if not has_external_trainers():
        pytest.skip("nnU-Net before 2.8 looks for trainers in its own folder only")
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(SCRIPTS / "experiments" / "trainers"))
    for name in TRAINERS:
        found = recursive_find_trainer_class_by_name(f"{name}Seeded")
        assert [base.__name__ for base in found.__mro__[1:3]] == ["Seeded", name]


def test_the_progress_is_drawn_with_each_checkpoint_and_at_the_end():
    from experiments.trainers.seeded import Seeded

    class Training:
        logger, current_epoch, num_epochs, save_every = SimpleNamespace(), 0, 12, 5

        def on_epoch_end(self):
            self.logger.plot_progress_png("folder")
            self.current_epoch += 1

    class Short(Seeded, Training):
        pass

    training, drawn = Short(), []
    training.logger.plot_progress_png = lambda folder: drawn.append(training.current_epoch)
    for _ in range(training.num_epochs):
        training.on_epoch_end()
    assert drawn == [4, 9, 11]


def test_jobs_on_gpus_take_a_free_one_each(tmp_path):
    import subprocess

    assert on_a_free_gpu([]) == ""
    inner = on_a_free_gpu([3, 5]) + "echo $CUDA_VISIBLE_DEVICES"
    outer = on_a_free_gpu([3, 5]) + f"echo $CUDA_VISIBLE_DEVICES; bash -euo pipefail -c '{inner}' 9>&-"
    for _ in range(2):  # what has ended has given its GPU free
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", outer], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.split() == ["3", "5"]


def test_results_have_a_run_for_each_arm_seed_and_fold():
    folds = [["a", "c"], ["b"]]
    models = [("raw_seed0", (0.5, 0.6, None)), ("my_arm_seed12", (0.7, 0.8, 0.9123456789))]

    def measure(key, label, offset=0.0):
        values = [dict(zip("abc", (None if v is None else v + offset for v in given))) for _, given in models]
        return {
            "key": key, "label": label,
            "models": [{"model": name, "values": of_case} for (name, _), of_case in zip(models, values)],
        }  # fmt: skip

    measures = [measure("Dice", "1", 9), measure("Dice", "2"), measure("NSD_1mm", "2", 1), measure("n_pred", "2")]
    comparison = {"labels": [{"key": "1"}, {"key": "2"}], "measures": measures}
    runs = results.runs_of(comparison, folds)
    assert [(run["arm"], run["seed"], run["fold"]) for run in runs] == [
        ("raw", 0, 0), ("raw", 0, 1), ("my_arm", 12, 0), ("my_arm", 12, 1),
    ]  # fmt: skip
    assert runs[2]["cases"] == {"a": {"Dice": 0.7, "NSD_1mm": 1.7}, "c": {"Dice": 0.912346, "NSD_1mm": 1.912346}}
    assert math.isnan(runs[0]["cases"]["c"]["Dice"])


def test_differences_are_paired_by_case_and_tested_with_wilcoxon():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    gains = np.array([0.02, -0.01, 0.03, 0.05, -0.04, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12])
    view = {
        case: values(0.5, number) | {"Dice": raw[case]["Dice"] + gains[number]} for number, case in enumerate(CASES)
    }
    row = next(
        line for line in table.difference_table({"raw": raw, "view": view}, "raw", MEASURES) if "| DSC |" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["DSC", "view"]
    assert cells[2].startswith(f"{gains.mean():+.3f} (")
    assert cells[3] == f"{wilcoxon(gains).pvalue:.3f}"
    assert cells[3] == cells[4]  # one comparison: nothing to correct
    assert cells[5:] == ["10, 0, 2", "12"]


def test_less_distance_is_better():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    view = {case: values(0.5, number) | {"HD95_mm": 1.0} for number, case in enumerate(CASES)}
    row = next(line for line in table.difference_table({"raw": raw, "view": view}, "raw", MEASURES) if "HD95" in line)
    assert "| 12, 0, 0 |" in row


def test_a_case_without_a_distance_is_left_out_and_counted():
    raw = {case: values(0.5, number) for number, case in enumerate(CASES)}
    view = {case: dict(of_case) for case, of_case in raw.items()}
    view[CASES[0]]["HD95_mm"] = float("nan")
    assert "; 1 without" in table.arm_table({"raw": raw, "view": view}, MEASURES)[3]
    row = next(line for line in table.difference_table({"raw": raw, "view": view}, "raw", MEASURES) if "HD95" in line)
    assert row.endswith("| 11 |")


@pytest.mark.slow
def test_seeds_are_averaged_by_case_and_incomplete_arms_named():
    content = {
        "folds": FOLDS,
        "runs": [
            *runs_of("raw", 0, 0.5),
            *runs_of("raw", 1, 0.6),
            *runs_of("view", 0, 0.7),
            runs_of("half", 0, 0.7)[0],
        ],
    }
    runs = table.complete_runs(content)
    assert set(runs) == {("raw", 0), ("raw", 1), ("view", 0)}
    assert table.mean_of_seeds([runs["raw", 0], runs["raw", 1]])[CASES[0]]["Dice"] == pytest.approx(0.55)
    lines = "\n".join(table.report(content))
    assert "| DSC | view | +0.150" in lines  # 0.7 - (0.5 + 0.6) / 2
    assert "left out: half seed 0" in lines
    assert "seeds of raw" in lines
    assert "minus raw seed 0" in lines


def results_of(test: dict | None, **levels: float) -> dict:
    """Results of a test; arms by level of their measures, ``raw`` with a second seed of ``raw_again``."""
    again = levels.pop("raw_again", levels["raw"])
    runs = [run for arm, level in levels.items() for run in runs_of(arm, 0, level)] + runs_of("raw", 1, again)
    return {"test": test, "folds": FOLDS, "runs": runs}


def noisy(content: dict, arm: str, seed: int) -> dict:
    """The same with an arm that is better in most of the cases and worse in others."""
    rng = np.random.default_rng(seed)
    for run in content["runs"]:
        if run["arm"] == arm:
            for of_case in run["cases"].values():
                of_case["NSD_2mm"] += rng.normal(0.05, 0.02)
    return content


def test_the_overview_compares_arms_on_each_scan_and_options_with_the_same_models_without():
    half = {"name": "half", "scan": "--dose 0.5", "predict": ""}
    both = half | {"name": "both", "predict": "--tta raw,view"}
    as_it_is = noisy(results_of(None, raw=0.5, raw_again=0.52, view=0.5), "view", seed=0)
    contents = [results_of(both, raw=0.47), results_of(half, raw=0.4, view=0.42, raw_again=0.44), as_it_is]
    scans = overview.scans_of(contents, "NSD_2mm")
    assert list(scans) == ["as it is", "half"]
    view = scans["as it is"].trained["view"]
    of_raw = {case: 0.51 + 0.011 * number for number, case in enumerate(CASES)}
    of_view = {
        case: of["NSD_2mm"] for run in as_it_is["runs"] if run["arm"] == "view" for case, of in run["cases"].items()
    }
    gains = [of_view[case] - of_raw[case] for case in CASES]
    assert view.mean == pytest.approx(np.mean(gains)) and view.p_holm == pytest.approx(wilcoxon(gains).pvalue)
    assert view.interval.low > 0 and scans["as it is"].is_sure(view)
    assert scans["as it is"].chance[overview.CHANCE].mean == pytest.approx(0.02)
    assert scans["as it is"].raw == pytest.approx(0.51 + 0.0605)
    assert scans["half"].trained["view"].mean == pytest.approx(0.0)
    assert not scans["half"].is_sure(scans["half"].trained["view"])
    assert scans["half"].predicted["raw `--tta raw,view`"].mean == pytest.approx(0.05)
    header, _, raw, *rows = overview.overview(scans, MEASURES["NSD_2mm"])
    assert header == "| NSD 2 mm | as it is | half |" and raw == "| raw | 0.571 | 0.481 |"
    assert rows[0].startswith(f"| view | **+{view.mean:.3f}** (+") and rows[1].startswith("| raw `--tta raw,view` |  |")
    assert rows[2].startswith("| raw, another seed | +0.020")


def test_options_may_be_tested_without_the_raw_arm():
    both = {"name": "both", "scan": "", "predict": "--tta raw,view"}
    alone = {"test": both, "folds": FOLDS, "runs": runs_of("view", 0, 0.6) + runs_of("other", 0, 0.6)}
    (scan,) = overview.scans_of([results_of(None, raw=0.5, view=0.55), alone], "NSD_2mm").values()
    assert list(scan.predicted) == ["view `--tta raw,view`"]
    assert scan.predicted["view `--tta raw,view`"].mean == pytest.approx(0.05)


def test_differences_by_size_are_those_of_each_third():
    content = results_of(None, raw=0.5, view=0.6)
    for run in content["runs"]:
        for case in run["cases"].keys() & CASES[:4] if run["arm"] == "view" else ():
            run["cases"][case]["NSD_2mm"] += 0.1
    content["tumour_diameters_mm"] = {case: 10.0 + number for number, case in enumerate(CASES)}
    lines = table.report(content)
    (at,) = [number for number, line in enumerate(lines) if line.startswith("By diameter")]
    assert lines[at + 2] == "| NSD 2 mm | 10.0 to 13.0 mm (4) | 14.0 to 17.0 mm (4) | 18.0 to 21.0 mm (4) |"
    cells = lines[at + 5].split(" | ")
    assert cells[0] == "| view minus raw (2 seeds)"
    assert [cell.split(" ")[0] for cell in cells[1:]] == ["+0.200", "+0.100", "+0.100"]


def test_the_diameter_of_a_case_is_that_of_its_largest_lesion():
    lesions = {"a": {"diameters_mm": [8.04, 21.26]}, "b": {"diameters_mm": []}}
    comparison = {"labels": [{"key": "1"}, {"key": "2"}], "lesions": {"2": {"raw_seed0": lesions}}}
    assert results.diameters_of(comparison) == {"a": 21.3}
    assert results.diameters_of(comparison | {"lesions": {}}) == {}


def test_a_gain_within_chance_is_not_sure():
    content = noisy(results_of(None, raw=0.5, raw_again=0.7, view=0.6), "view", seed=0)
    scan = overview.scans_of([content], "NSD_2mm")["as it is"]
    view = scan.trained["view"]
    assert view.interval.low > 0 and view.p_holm < 0.05 and view.mean < 0.2
    assert not scan.is_sure(view)


def test_options_of_prediction_are_compared_with_the_same_models():
    """The option changes nothing, and only one of two seeds was predicted with it."""
    plain = results_of(None, raw=0.5, raw_again=0.6)
    with_option = {"name": "tta", "scan": "", "predict": "--tta raw,view"}
    again = results_of(with_option, raw=0.5)
    again["runs"] = [run for run in again["runs"] if run["seed"] == 0]
    (one,) = overview.scans_of([plain, again], "NSD_2mm")["as it is"].predicted.values()
    assert one.mean == 0


def test_the_overview_refuses_what_it_cannot_compare():
    half = {"name": "half", "scan": "--dose 0.5", "predict": ""}
    with pytest.raises(UserError, match="half and again are results of the same scan"):
        overview.scans_of([results_of(half | {"name": name}, raw=0.5) for name in ("half", "again")], "NSD_2mm")


def test_results_of_another_fold_are_refused():
    content = {"folds": FOLDS, "runs": [runs_of("raw", 0, 0.5)[0] | {"fold": 1}]}
    with pytest.raises(UserError, match="not those of fold 1"):
        table.complete_runs(content)


@needs_snakemake
@pytest.mark.slow
def test_an_experiment_on_phantoms_from_the_dataset_to_the_table(dataset, tmp_path):
    """Seeds decide a training, and the numbers in the results are those of the files."""
    arms = [
        {"name": "raw", "trainer": "nnUNetTrainer", "seeds": [7]},
        {"name": "same", "trainer": "nnUNetTrainer", "seeds": [7]},
        {"name": "tiny-mix", "trainer": "nnUNetTrainerFVAE", "view": "tiny"},
    ]
    file = tmp_path / "small.yaml"
    small = {"folds": 2, "epochs": 1, "iterations": 2, "features_per_stage": [4, 8], "patch_voxels": 1024}
    scan, predict = "--dose 0.25 --own-noise 15", "--tta raw,view --vae tiny"
    tests = [{"name": "quarter", "scan": scan, "predict": predict, "arms": ["raw", "tiny-mix"]}]
    changes = small | {"views": ["--view tiny --vae tiny"], "arms": arms, "tests": tests, "processes": 1}
    file.write_text(yaml.safe_dump(config_of(dataset, **changes)))
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    work = tmp_path / "work"
    work.mkdir()
    said = snakemake("experiments", work, "--configfile", file, "--dry-run")
    assert (planned_jobs(said)["train"], planned_jobs(said)["view"]) == (6, 1)
    assert any("EXPERIMENT_SEED=7 EXPERIMENT_EPOCHS=1 EXPERIMENT_ITERATIONS=2" in line for line in shell_commands(said))
    snakemake("experiments", work, "--configfile", file, path=PATH)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before

    written = json.loads((work / "validation" / "results.json").read_text())
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    assert written["folds"] == [cases[0::2], cases[1::2]]
    assert written["budget"]["epochs"] == 1 and written["views"]["tiny"]["cases"] == 4
    by_run = {(run["arm"], run["fold"]): run["cases"] for run in written["runs"]}
    assert len(by_run) == 6
    for (arm, fold), measured in by_run.items():
        seed = 0 if arm == "tiny-mix" else 7
        (model,) = (work / "nnUNet_results" / f"{arm}_seed{seed}" / dataset.name).iterdir()
        for case, values in measured.items():
            predicted, reference = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) == 1
                for folder in (model / f"fold_{fold}" / "validation", dataset / "labelsTr")
            )
            overlap = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
            assert values["Dice"] == pytest.approx(overlap, abs=1e-6)
    assert "minus raw" in (work / "validation" / "table.md").read_text()
    assert "| tiny-mix | " in (work / "overview.md").read_text()
    assert (work / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert (work / "validation" / "report.html").stat().st_size > 0
    quarter = json.loads((work / "quarter" / "results.json").read_text())
    assert quarter["test"]["scan"] == scan and written["test"] is None
    assert set(written["tumour_diameters_mm"]) == set(cases) and min(written["tumour_diameters_mm"].values()) > 1
    assert {run["arm"] for run in quarter["runs"]} == {"raw", "tiny-mix"} and len(quarter["runs"]) == 4
    scanned, image = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{cases[0]}_0000.nii.gz"))).astype(float)
        for folder in (work / "scans" / "quarter", dataset / "imagesTr")
    )
    assert (scanned - image)[image > -200].std() > 15
    (work / "quarter" / "comparison.json").unlink()
    said = snakemake("experiments", work, "--configfile", file, "--", "quarter/comparison.json", path=PATH)
    assert planned_jobs(said) == {"evaluate": 1}
    logs = [next((work / "logs").glob(f"train-{run}-*fold_0.log")).read_text() for run in ("raw_seed7", "same_seed7")]
    losses = [[line.split(": ", 1)[1] for line in log.splitlines() if " train_loss " in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 1
    shutil.rmtree(work)


def test_other_tolerances_are_tabulated_and_the_smallest_decides(tmp_path, capsys):
    content = results_of(None, raw=0.5, raw_again=0.52, view=0.6)
    for run in content["runs"]:
        run["cases"] = {case: {"NSD_5mm": of["Dice"], "NSD_4mm": of["Dice"] / 2} for case, of in run["cases"].items()}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert table.main([str(tmp_path / "results.json")]) == 0
    assert "| arm | NSD 4 mm | NSD 5 mm |" in capsys.readouterr().out
    assert overview.main([str(tmp_path / "results.json")]) == 0
    assert capsys.readouterr().out.startswith("| NSD 4 mm | as it is |")
    assert overview.main([str(tmp_path / "results.json"), "--measure", "Dice"]) == 1
    assert "--measure Dice: not measured; there are NSD_4mm, NSD_5mm" in capsys.readouterr().err


def test_without_a_raw_arm_the_first_is_compared_with():
    content = {"folds": FOLDS, "runs": runs_of("view", 0, 0.6) + runs_of("other", 0, 0.7)}
    lines = table.report(content)
    assert any("minus other" in line for line in lines) and "| DSC | view | −0.100" in "\n".join(lines)
