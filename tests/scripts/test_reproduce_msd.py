"""The workflow of the paper's Table 2: its jobs, one killed run that ends complete, and all that needs no training."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import table2
import yaml
from arms import ConfigError
from crossval_splits import crossval_splits, every_nth_case
from gather_folds import gather_folds
from made_from import begin
from phantoms import make_phantom
from reproduce_msd.setting import LENGTHS, Setting, check_before_conversion, check_task, read_setting
from workflows_for_tests import (
    SCRIPTS,
    needs_snakemake,
    planned_jobs,
    shell_commands,
    short_training,
    snakemake,
    workflow_call,
)

from fvae_nnunet.errors import UserError

LABELS = {"lung": {"0": "background", "1": "cancer"}, "pancreas": {"0": "background", "1": "pancreas", "2": "cancer"}}


def write_task(folder: Path, kind: str, *, n_train: int = 5) -> Path:
    """A miniature task as the Decathlon's archives hold it, with the files that macOS leaves in them."""
    cases = [f"{kind}_{number:03d}" for number in range(1, n_train + 2)]
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for index, case in enumerate(cases):
        hu, label = make_phantom(kind, seed=index, shape=(24, 48, 48), spacing_mm=(3.0, 2.0, 2.0))
        parts = {"imagesTr": hu, "labelsTr": label} if index < n_train else {"imagesTs": hu}
        for part, array in parts.items():
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((2.0, 2.0, 3.0))
            sitk.WriteImage(image, str(folder / part / f"{case}.nii.gz"))
            (folder / part / f"._{case}.nii.gz").write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    description = {
        "name": kind,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": LABELS[kind],
        "numTraining": n_train,
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases[:n_train]
        ],
        "test": [f"./imagesTs/{case}.nii.gz" for case in cases[n_train:]],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def lung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("msd") / "Task06_Lung", "lung")


@pytest.fixture(scope="module")
def pancreas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("msd") / "Task07_Pancreas", "pancreas")


SMALL = {
    "views": ["--view tiny --vae tiny"], "network": "small", "epochs": 1, "folds": [0, 1], "device": "cpu",
    "processes": 1,
}  # fmt: skip


def setting_of(task: Path, /, **changes: Any) -> Setting:
    config = yaml.safe_load((SCRIPTS / "reproduce_msd" / "config.yaml").read_text())
    return read_setting(config | {"task": str(task)} | changes)


@pytest.fixture
def configured(tmp_path: Path, lung: Path) -> tuple[object, ...]:
    """Options of Snakemake for a small run."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"task": str(lung)}))
    return ("--configfile", file)


def dice(reference: np.ndarray, predicted: np.ndarray) -> float:
    return 2 * np.count_nonzero(reference & predicted) / (np.count_nonzero(reference) + np.count_nonzero(predicted))


def killed_while_it_hangs(work: Path, *options: object, path: str) -> None:
    """Start the workflow and kill it, with all that it has started, once a training has written ``hangs``."""
    call = workflow_call("reproduce_msd", work, *options, path=path)
    with subprocess.Popen(**call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        give_up = time.monotonic() + 600
        while not (work / "hangs").exists() and run.poll() is None and time.monotonic() < give_up:
            time.sleep(0.5)
        os.killpg(run.pid, signal.SIGKILL)
    assert (work / "hangs").exists()


@needs_snakemake
@pytest.mark.slow
def test_a_killed_workflow_goes_on_to_the_table(lung: Path, tmp_path: Path, configured: tuple[object, ...]) -> None:
    work, path = tmp_path / "work", short_training(tmp_path / "bin")
    work.mkdir()
    (work / "hang").write_text("tiny")
    killed_while_it_hangs(work, *configured, path=path)
    trained = (work / "iterations").read_text().splitlines()
    assert any("/tiny/" in line for line in trained)
    (work / "hang").unlink()
    snakemake("reproduce_msd", work, *configured, "--unlock", path=path)
    said = snakemake("reproduce_msd", work, *configured, path=path)
    assert planned_jobs(said)["train"] == 4 - (len(trained) // 2 - 1), "what was trained and validated is not repeated"
    # the training that was killed before its validation has gone on from its checkpoint
    assert len((work / "iterations").read_text().splitlines()) == 8
    assert len(set((work / "iterations").read_text().splitlines())) == 4

    # every case of the two folds is scored, with the numbers that numpy finds in the files of the download
    dataset = work / "nnUNet_preprocessed" / "Dataset006_Lung"
    splits = json.loads((dataset / "splits_final.json").read_text())
    cases = sorted(splits[0]["val"] + splits[1]["val"])
    assert len(cases) == 2
    (outcome,) = (work / "comparison" / "Dataset006_Lung").iterdir()
    comparison = json.loads((outcome / "comparison.json").read_text())
    assert comparison["reference"]["cases"] == cases
    assert comparison["settings"]["tolerances_mm"] == [2.0, 5.0]
    measure = next(entry for entry in comparison["measures"] if entry["key"] == "Dice")
    setting, scores = setting_of(lung, **SMALL), []
    for model in measure["models"]:
        for fold in (0, 1):
            (case,) = splits[fold]["val"]
            files = (lung / "labelsTr", work / setting.model(model["model"]) / f"fold_{fold}" / "validation")
            reference, predicted = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) == 1 for folder in files
            )
            scores.append(dice(reference, predicted))
            assert model["values"][case] == pytest.approx(scores[-1], abs=1e-12)
    assert any(0 < score < 1 for score in scores)
    with (outcome / "table2.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "DSC"]
    assert [float(row["mean"]) for row in rows] == pytest.approx([50 * sum(scores[:2]), 50 * sum(scores[2:])])
    assert rows[0]["paper_percent"] == "66.4"
    assert (outcome / "table2.md").read_text().startswith("# Table 2, Task06_Lung: recon-only, 3d_fullres, ")
    assert "Task06_Lung" in (outcome / "report.md").read_text()
    assert (outcome / "report.html").stat().st_size > 0

    # the view, not the raw image, was trained on
    log = next((work / "logs" / "Dataset006_Lung").glob("train-tiny-*-fold_0.log")).read_text()
    assert "with view 'tiny'" in log
    assert not list((work / "nnUNet_raw").rglob("._*"))

    # what changes no result runs nothing; a tolerance changes what is computed from the predictions, and no training
    same = ("--config", "device=cuda", "processes=3", "gpus=[0,1]")
    assert planned_jobs(snakemake("reproduce_msd", work, *configured, *same, "--dry-run")) == {}
    said = snakemake("reproduce_msd", work, *configured, "--config", "tolerances_mm=[1]", "--dry-run")
    assert planned_jobs(said) == {"evaluate": 1, "table": 1, "report": 1, "all": 1}
    said = snakemake("reproduce_msd", work, *configured, "--config", "folds=[0,1,2]", "--dry-run")
    assert planned_jobs(said)["train"] == 2
    assert "view" not in planned_jobs(said) and "convert" not in planned_jobs(said)


@needs_snakemake
def test_a_dry_run_plans_every_job_once_and_runs_nothing(
    lung: Path, tmp_path: Path, configured: tuple[object, ...]
) -> None:
    work = tmp_path / "a folder"
    work.mkdir()
    views = ["--view tiny --vae tiny", "--view median --vae control:median --strength 1.5",
             "--view gauss --vae control:gaussian --match tiny"]  # fmt: skip
    changes = ("--config", f"views={json.dumps(views)}", "folds=[0,2,4]", "protocol=mix", "device=cuda")
    said = snakemake("reproduce_msd", work, *configured, *changes, "--dry-run")
    assert [path.name for path in work.iterdir()] in ([], [".snakemake"])
    assert planned_jobs(said) == {
        "all": 1, "convert": 1, "fingerprint": 1, "plan": 1, "preprocess": 1, "splits": 1, "small_network": 1,
        "view": 3, "train": 12, "gather": 4, "gather_labels": 1, "evaluate": 1, "table": 1, "report": 1,
    }  # fmt: skip
    commands = shell_commands(said)
    made = [command for command in commands if "fvae-preprocess" in command]
    assert any("--view gauss --vae control:gaussian --match tiny -device cuda -np 1" in command for command in made)
    assert made.index(next(command for command in made if "--match" in command)) > made.index(
        next(command for command in made if "--view tiny" in command)
    )
    assert len({re.search(r"nnUNet_results/[\w-]+", command)[0] for command in commands if "2_train" in command}) == 4
    trained = next(command for command in commands if "nnUNet_fvae_view=median" in command)
    assert "nnUNetv2_train 6 3d_fullres" in trained
    assert "-tr nnUNetTrainerFVAE_1epoch -p nnUNetPlansSmall --c -device cuda" in trained
    assert f"/fold_{trained.split('3d_fullres ')[1][0]} " in trained


@needs_snakemake
def test_an_error_of_the_configuration_is_one_sentence(tmp_path: Path) -> None:
    said = snakemake("reproduce_msd", tmp_path, "--dry-run", status=1)
    assert "task must be an absolute path: --config task=/data/..." in said
    assert "Traceback" not in said


@needs_snakemake
@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_the_profiles_are_options_of_snakemake(profile: str) -> None:
    from workflows_for_tests import SNAKEMAKE

    known = subprocess.run([str(SNAKEMAKE), "--help"], capture_output=True, text=True, check=True).stdout
    content = yaml.safe_load((SCRIPTS / "reproduce_msd" / "profiles" / profile / "config.yaml").read_text())
    own = {option for option in content if not option.startswith("cluster-generic-")}
    assert sorted(option for option in own if f"--{option}" not in known) == []


def test_a_job_of_kubernetes_is_made_and_asked_for(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    create, get = f"cat > {tmp_path}/job.yaml; printf fvae-small-network-1", 'echo "$STATUS"'
    kubectl.write_text(f"#!/bin/sh\ncase $1 in create) {create};; get) {get};; esac\n")
    kubectl.chmod(0o755)
    profile = SCRIPTS / "reproduce_msd" / "profiles" / "kubernetes"
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def said(*words: str, **variables: str) -> str:
        call = ["sh", str(profile / "job.sh"), *words]
        return subprocess.run(call, env=environment | variables, capture_output=True, text=True, check=True).stdout

    assert said("submit", "small_network", "8", "32000", "1", "/data/work/job.sh") == "fvae-small-network-1"
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert job["metadata"]["generateName"] == "fvae-small-network-"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "/data/work/job.sh"]
    assert container["resources"] == {"requests": {"cpu": "8", "memory": "32000M"}, "limits": {"nvidia.com/gpu": "1"}}
    for status, expected in (("/", "running"), ("1/", "success"), ("1/1", "success"), ("/1", "failed")):
        assert said("status", "fvae-small-network-1", STATUS=status) == f"{expected}\n"


def test_names_and_folders_are_those_of_nnunet(lung: Path, pancreas: Path) -> None:
    setting = setting_of(pancreas)
    assert (setting.number, setting.dataset, setting.arms) == (7, "Dataset007_Pancreas", ["raw", "wan2.1", "wan2.2"])
    assert setting.model("wan2.1") == (
        "nnUNet_results/wan2.1/Dataset007_Pancreas/nnUNetTrainerFVAEReconOnly__nnUNetPlans__3d_fullres"
    )
    assert setting.model("raw").endswith("/raw/Dataset007_Pancreas/nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert setting.outcome == "comparison/Dataset007_Pancreas/nnUNetTrainerFVAEReconOnly__nnUNetPlans__3d_fullres"
    assert setting.title == "Task07_Pancreas: recon-only, 3d_fullres, nnUNetPlans, 1000 epochs, folds 0 1 2 3 4"
    setting = setting_of(lung, plans="nnUNetResEncUNetLPlans", protocol="blend", epochs=1, dataset_id=66, folds=[3, 1])
    assert setting.data_folder == "nnUNet_preprocessed/Dataset066_Lung/nnUNetPlans_3d_fullres"
    assert setting.trainer("wan2.1") == "nnUNetTrainerFVAEBlend_1epoch" and setting.trainer("raw").endswith("r_1epoch")
    assert setting.view_folder("a").endswith("/nnUNetPlans_3d_fullres__fvae_a")
    assert setting.title.endswith("nnUNetResEncUNetLPlans, 1 epoch, folds 1 3")
    lowres = setting_of(lung, plans="nnUNetResEncUNetLPlans", configuration="3d_lowres")
    assert lowres.data_folder.endswith("/nnUNetResEncUNetLPlans_3d_lowres")
    assert setting_of(lung, network="small").trained_plans == "nnUNetPlansSmall"


def test_there_is_a_trainer_for_every_length_and_names_are_the_packages() -> None:
    from command_environment import EXTERNAL_TRAINERS, TRAINERS
    from dataset_folders import VIEW_SEPARATOR

    from fvae_nnunet.nnunet import registration
    from fvae_nnunet.trainers import EPOCHS
    from fvae_nnunet.training.views import SEPARATOR

    assert sorted((*EPOCHS, 1000)) == list(LENGTHS)
    assert VIEW_SEPARATOR == SEPARATOR
    assert EXTERNAL_TRAINERS == registration.EXTERNAL_TRAINERS
    assert (TRAINERS / registration.STUB.name).read_bytes() == registration.STUB.read_bytes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 5}, "unknown key epoch in the configuration; known keys: configuration, dataset_id, device, epochs"),
        ({"task": "Task06_Lung"}, "task must be an absolute path"),
        ({"task": "/nowhere/Task06_Lung"}, "task: there is no folder /nowhere/Task06_Lung"),
        ({"protocol": "both"}, "protocol: both is not one of recon-only, mix, blend"),
        ({"epochs": 3}, "epochs: 3 is not one of 1, 5, 10"),
        ({"folds": [5]}, r"folds: nnU-Net has folds 0 to 4, got \[5\]"),
        ({"folds": []}, "folds: nnU-Net has folds 0 to 4"),
        ({"dataset_id": 0}, "nnU-Net's ids are whole numbers from 1, got 0"),
        ({"tolerances_mm": [-1]}, "tolerances_mm must not be negative"),
        ({"views": []}, "views: give at least one"),
        ({"views": ["--vae tiny"]}, "views: expected --view NAME --vae NAME .*; got: --vae tiny"),
        ({"views": ["--view a/b --vae tiny"]}, "'a/b' cannot be the name of a view"),
        ({"views": ["--view raw --vae tiny"]}, "'raw' cannot be the name of a view"),
        ({"views": ["--view a --vae tiny", "--view a --vae wan2.1"]}, "views: two are named a"),
        ({"views": ["--view a --vae control:median --match b"]}, "a is matched to b, which is not one of the other"),
        ({"views": ["--view a --vae leanvae --weights lean.ckpt"]}, "a: --weights must be an absolute path"),
        ({"views": ["--view a --vae leanvae --weights /no.ckpt"]}, "a: --weights: no such file or folder: /no.ckpt"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(changes: dict[str, Any], expected: str, lung: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        setting_of(lung, **changes)


def damaged(task: Path, tmp_path: Path, **changes: object) -> Path:
    copy = tmp_path / task.name
    shutil.copytree(task, copy)
    description = json.loads((copy / "dataset.json").read_text()) | changes
    (copy / "dataset.json").write_text(json.dumps(description))
    return copy


def test_a_folder_that_is_not_the_task_is_refused(lung: Path, tmp_path: Path) -> None:
    check_task(lung)
    with pytest.raises(ConfigError, match="must be a folder named Task06_Lung or Task07_Pancreas"):
        setting_of(lung.parent)
    other = damaged(lung, tmp_path / "a", labels={"0": "background", "1": "liver"})
    with pytest.raises(ConfigError, match="expected CT with a label 'cancer'"):
        check_task(other)
    other = damaged(lung, tmp_path / "b")
    (other / "labelsTr" / "lung_002.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"1 of 10 files .* are missing \(first: \./labelsTr/lung_002\.nii\.gz\)"):
        check_task(other)
    shutil.rmtree(other / "imagesTs")
    with pytest.raises(ConfigError, match="has no imagesTs"):
        check_task(other)
    (other / "imagesTs").mkdir()
    (other / "dataset.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not that of the Medical Segmentation Decathlon: KeyError"):
        check_task(other)


def test_other_peoples_data_is_left_alone(lung: Path, tmp_path: Path) -> None:
    setting = setting_of(lung)
    check_before_conversion(setting, tmp_path)
    other = tmp_path / "nnUNet_raw" / "Dataset006_Liver"
    other.mkdir(parents=True)
    with pytest.raises(ConfigError, match="Dataset006_Liver exists: id 6 is taken"):
        check_before_conversion(setting, tmp_path)
    for parent in ("nnUNet_preprocessed", "nnUNet_results/raw"):
        moved = tmp_path / parent / "Dataset006_Lung"
        moved.parent.mkdir(parents=True)
        other = other.rename(moved)
        with pytest.raises(ConfigError, match="Dataset006_Lung exists: id 6 is taken"):
            check_before_conversion(setting, tmp_path)
    check_before_conversion(setting_of(lung, dataset_id=66), tmp_path)
    log = tmp_path / "logs" / "Dataset006_Lung" / "convert.log"
    log.parent.mkdir(parents=True)
    log.touch()
    check_before_conversion(setting, tmp_path)  # it was converted here


def test_a_training_begins_anew_where_it_was_made_from_other_files(tmp_path: Path) -> None:
    plans, view, folder = tmp_path / "plans.json", tmp_path / "view.sha256", tmp_path / "fold_0"
    plans.write_text("plans")
    view.write_text("a view")
    folder.mkdir()
    (folder / "checkpoint_final.pth").touch()  # of whom?
    assert begin(folder, [plans, view]) == "starts"
    (folder / "checkpoint_latest.pth").touch()
    os.utime(plans, (1, 1))
    assert begin(folder, [plans, view]) == "resumes"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_latest.pth", "made_from.json"]
    view.write_text("another view")
    assert begin(folder, [plans, view]) == "was made from other files and starts again"
    assert [path.name for path in folder.iterdir()] == ["made_from.json"]
    (folder / "checkpoint_latest.pth").touch()
    assert begin(folder, [plans]) == "was made from other files and starts again"


def test_every_nth_case_is_validated_in_one_fold() -> None:
    cases = [f"case_{number:02d}" for number in (4, 2, 0, 1, 3)]
    folds = every_nth_case(cases, 2)
    assert [fold["val"] for fold in folds] == [["case_00", "case_02", "case_04"], ["case_01", "case_03"]]
    assert folds[1]["train"] == folds[0]["val"]
    for n in (1, 6):
        with pytest.raises(UserError, match=f"5 cases cannot be split into {n} folds"):
            every_nth_case(cases, n)


def test_splits_are_those_that_nnunet_would_make() -> None:
    from sklearn.model_selection import KFold

    cases = [f"case_{number:02d}" for number in range(13)]
    folds = crossval_splits(list(reversed(cases)))
    # nnUNetTrainer.do_split: sorted cases, five folds, shuffled with seed 12345
    for fold, (train, val) in zip(folds, KFold(5, shuffle=True, random_state=12345).split(cases)):
        assert fold == {"train": [cases[index] for index in train], "val": [cases[index] for index in val]}
    assert sorted(case for fold in folds for case in fold["val"]) == cases
    with pytest.raises(UserError, match="4 cases cannot be split into 5 folds"):
        crossval_splits(cases[:4])


def test_gathered_folds_hold_their_cases_and_nothing_else(tmp_path: Path) -> None:
    splits = [{"train": [], "val": ["a", "b"]}, {"train": [], "val": ["c"]}, {"train": [], "val": ["a"]}]
    for fold, cases in enumerate((("a", "b", "old"), ("c",), ())):
        folder = tmp_path / f"fold_{fold}" / "validation"
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
        for case in cases:
            (folder / f"{case}.nii.gz").write_text(f"{case} of {fold}")
    source, target = f"{tmp_path}/fold_{{fold}}/validation", tmp_path / "gathered"
    assert gather_folds(splits, [0, 1], source, target, ending=".nii.gz") == 3
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "a.nii.gz": "a of 0", "b.nii.gz": "b of 0", "c.nii.gz": "c of 1",
    }  # fmt: skip
    assert gather_folds(splits, [1], source, target, ending=".nii.gz") == 1
    assert [path.name for path in target.iterdir()] == ["c.nii.gz"]
    with pytest.raises(UserError, match=r"1 of 1 cases are missing \(first: .*fold_2/validation/a\.nii\.gz\)"):
        gather_folds(splits, [2], source, target, ending=".nii.gz")
    with pytest.raises(UserError, match="a is validated in more than one of the folds 0, 2"):
        gather_folds(splits, [0, 2], source, target, ending=".nii.gz")
    with pytest.raises(UserError, match="no fold 3; the split has folds 0 to 2"):
        gather_folds(splits, [3], source, target, ending=".nii.gz")
    for wrong, what in ((tmp_path / "fold_1", "validation"), (tmp_path / "fold_1" / "validation", "summary.json")):
        with pytest.raises(UserError, match=f"{wrong} holds {what}; choose another folder"):
            gather_folds(splits, [1], source, wrong, ending=".nii.gz")
    (tmp_path / "fold_1" / "validation" / "summary.json").unlink()
    with pytest.raises(UserError, match="holds the files themselves"):
        gather_folds(splits, [1], source, tmp_path / "fold_1" / "validation", ending=".nii.gz")
    assert (tmp_path / "fold_1" / "validation" / "c.nii.gz").read_text() == "c of 1"
    assert [path.name for path in target.iterdir()] == ["c.nii.gz"], "an error leaves what was there"


def comparison_of(measures: list[dict]) -> dict:
    return {
        "kind": "comparison",
        "models": [{"name": "raw"}, {"name": "wan"}, {"name": "control-median-1"}],
        "reference": {"cases": ["a", "b", "c"]},
        "settings": {"bootstrap": "BCa", "resamples": 99},
        "measures": measures,
    }


def measure_of(key: str, name: str, label: str, means: tuple[float, float, float]) -> dict:
    models = ("raw", "wan", "control-median-1")
    return {
        "label": "2", "label_name": label, "key": key, "name": name,
        "models": [
            {"model": model, "mean": mean, "interval": [mean - 0.1, mean + 0.05], "interval_method": "BCa", "n": 3}
            for model, mean in zip(models, means)
        ],
        "comparisons": [
            {
                "first": "raw", "second": model, "mean_difference": mean - means[0], "p": 0.25, "p_holm": 0.5,
                "interval": [mean - means[0] - 0.02, mean - means[0] + 0.01], "interval_method": "percentile",
            }
            for model, mean in zip(models[1:], means[1:])
        ],
    }  # fmt: skip


def test_the_table_has_percent_differences_and_the_papers_row_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = [
        measure_of("Dice", "DSC", "cancer", (0.4, 0.45, 0.3)),
        measure_of("NSD_2mm", "NSD 2 mm", "cancer", (0.5, 0.5, 0.5)),
        measure_of("HD95_mm", "HD95", "cancer", (9, 9, 9)),
        measure_of("Dice", "DSC", "pancreas", (0.8, 0.81, 0.79)),
    ]
    (tmp_path / "comparison.json").write_text(json.dumps(comparison_of(measures)))
    arguments = [str(tmp_path / "comparison.json"), "--paper", "pancreas", "-o", str(tmp_path / "table2.md")]
    assert table2.main([*arguments, "--vaes", "wan=wan2.1", "control-median-1=control:median", "--title", "T"]) == 0
    out = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[2:12]]
    # the paper's Table 2, pancreas tumour: real CT 42.8 / 39.8, Wan 2.1 45.2 / 41.9; pancreas 82.2 with both
    assert rows[1] == ["cancer", "DSC", "raw", "40.0", "30.0 to 45.0", "3", "42.8"]
    assert rows[2] == [
        "cancer", "DSC", "wan", "45.0", "35.0 to 50.0", "+5.0", "+3.0 to +6.0*", "0.250", "0.500", "3",
        "45.2", "+2.4",
    ]  # fmt: skip
    assert rows[3][-1] == "3", "the paper has no such control"
    assert rows[5][-2:] == ["41.9", "+2.1"]
    assert rows[8][-2:] == ["82.2", "0.0"]
    assert "HD95" not in out
    assert "BCa, 99 resamples; too narrow with n below 10;" in out
    assert "PAPER: Chen et al., ICML 2026, PMLR 306, Table 2" in out
    markdown = (tmp_path / "table2.md").read_text().splitlines()
    assert markdown[0] == "# T"
    assert markdown[5].split(" | ")[2:4] == ["wan", "45.0"]
    with (tmp_path / "table2.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 9
    assert float(written[1]["difference_low"]) == pytest.approx(3)
    assert written[2]["paper_percent"] == ""


def test_a_file_that_is_no_comparison_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text("{}")
    comparison = tmp_path / "comparison.json"
    comparison.write_text(json.dumps(comparison_of([measure_of("Dice", "DSC", "cancer", (0.4, 0.45, 0.3))])))
    for wrong in ("wan2.1", "wan=", "Wan=wan2.1"):
        options = [str(comparison), "--paper", "lung", "-o", str(tmp_path / "t.md"), "--vaes", wrong]
        assert table2.main(options) == 1
        assert (
            f"--vaes takes MODEL=VAE with a model of raw, wan, control-median-1; got {wrong}" in capsys.readouterr().err
        )
    assert table2.main([str(comparison), "--paper", "lung", "-o", str(tmp_path / "t.csv")]) == 1
    assert "-o must name the Markdown file" in capsys.readouterr().err and not (tmp_path / "t.csv").exists()
    arguments = [str(tmp_path / "summary.json"), "--paper", "lung", "-o", str(tmp_path / "table2.md")]
    assert table2.main(arguments) == 1
    assert "is not a comparison of two or more models" in capsys.readouterr().err
    assert not (tmp_path / "table2.md").exists()
