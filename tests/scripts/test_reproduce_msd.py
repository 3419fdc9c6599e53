"""From a task of the Decathlon to the table: one run to the end on phantoms, and everything that needs no training."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reproduce_msd
import SimpleITK as sitk
import table2
from crossval_splits import crossval_splits
from gather_folds import gather_folds
from msd_setting import LENGTHS
from phantoms import make_phantom

from fvae_nnunet.errors import UserError

SCRIPTS = Path(reproduce_msd.__file__).parent
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


SMALL = ("--vaes", "tiny", "--network", "small", "--epochs", "1", "--folds", "0", "1", "-device", "cpu", "-np", "1")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert reproduce_msd.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def commands(script: str) -> dict[str, str]:
    """The command lines of a dry run by the name of the step."""
    return dict(re.findall(r"^# ([^\s:]+)\n([^#\n]+)$", script, flags=re.MULTILINE))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert reproduce_msd.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


SHORT_TRAINING = """#!{python}
# nnUNetv2_train with 2 iterations an epoch; it fails before the validation of tiny where the file `fail` exists
def main():
    import os, pathlib, sys, torch
    from nnunetv2.run.run_training import run_training_entry
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as trainer

    initialize, train_step, validate = trainer.initialize, trainer.train_step, trainer.perform_actual_validation

    def short(self):
        torch.manual_seed(0)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1
        initialize(self)

    def counted(self, batch):
        print("one iteration", file=open("iterations", "a"))
        return train_step(self, batch)

    def failing(self, *arguments):
        if pathlib.Path("fail").exists() and "tiny" in os.environ["nnUNet_results"]:
            sys.exit("no validation today")
        return validate(self, *arguments)

    trainer.initialize, trainer.train_step, trainer.perform_actual_validation = short, counted, failing
    run_training_entry()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def short_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nnUNetv2_train"
    program.parent.mkdir()
    program.write_text(SHORT_TRAINING.format(python=sys.executable))
    program.chmod(0o755)
    whole = reproduce_msd.command_environment
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    # nnU-Net cannot plan with 0
    planning = tmp_path / "bin" / "nnUNetv2_plan_and_preprocess"
    planning.write_text(f'#!/bin/sh\nnnUNet_n_proc_DA=1 exec {Path(sys.executable).parent / planning.name} "$@"\n')
    planning.chmod(0o755)

    def environment(variables: dict[str, str]) -> dict[str, str]:
        found = whole(variables)
        return found | {"PATH": f"{program.parent}{os.pathsep}{found['PATH']}"}

    monkeypatch.setattr(reproduce_msd, "command_environment", environment)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def dice(reference: np.ndarray, predicted: np.ndarray) -> float:
    return 2 * np.count_nonzero(reference & predicted) / (np.count_nonzero(reference) + np.count_nonzero(predicted))


@pytest.mark.slow
@pytest.mark.usefixtures("short_training")
def test_a_task_from_the_download_to_the_table(lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    options = (lung, *SMALL, "--work", work)
    work.mkdir()
    (work / "steps").mkdir()
    (work / "fail").touch()
    assert "no validation today" in error_of(capsys, *options)
    trained = (work / "iterations").read_text()
    assert len(trained.splitlines()) == 4, "raw and tiny, fold 0"

    # the training that was finished is not repeated, and finishing needs all of them
    (work / "fail").unlink()
    assert "trainings are not complete: 1 (tiny, fold 0); 2 (raw, fold 1); 3 (tiny, fold 1)" in error_of(
        capsys, *options, "--phase", "finish"
    )
    printed(capsys, *options, "--phase", "train", "--array-index", "1")
    assert (work / "iterations").read_text() == trained
    out = printed(capsys, *options)
    assert out.count("complete, skipped") == 7
    assert len((work / "iterations").read_text().splitlines()) == 8

    # every case of the two folds is scored, with the numbers that numpy finds in the files of the download
    dataset = work / "nnUNet_preprocessed" / "Dataset006_Lung"
    splits = json.loads((dataset / "splits_final.json").read_text())
    cases = sorted(splits[0]["val"] + splits[1]["val"])
    assert len(cases) == 2
    outcome = next((work / "comparison" / "Dataset006_Lung").iterdir())
    comparison = json.loads((outcome / "comparison.json").read_text())
    assert comparison["reference"]["cases"] == cases
    assert comparison["settings"]["tolerances_mm"] == [2.0, 5.0]
    measure = next(entry for entry in comparison["measures"] if entry["key"] == "Dice")
    scores = []
    for model in measure["models"]:
        trainer = "nnUNetTrainer_1epoch" if model["model"] == "raw" else "nnUNetTrainerFVAEReconOnly_1epoch"
        results = (
            work / "nnUNet_results" / model["model"] / "Dataset006_Lung" / f"{trainer}__nnUNetPlansSmall__3d_fullres"
        )
        for fold in (0, 1):
            (case,) = splits[fold]["val"]
            files = (lung / "labelsTr", results / f"fold_{fold}" / "validation")
            reference, predicted = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) == 1 for folder in files
            )
            scores.append(dice(reference, predicted))
            assert model["values"][case] == pytest.approx(scores[-1], abs=1e-12)
    assert any(0 < score < 1 for score in scores)
    with (outcome / "table2.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "DSC"]
    assert [float(row["mean"]) for row in rows] == pytest.approx([50 * sum(scores[:2]), 50 * sum(scores[2:])])
    assert float(rows[1]["difference"]) == pytest.approx(50 * (sum(scores[2:]) - sum(scores[:2])))
    assert rows[0]["paper_percent"] == "66.4"
    assert (outcome / "table2.md").read_text().splitlines()[0].removeprefix("# ") in out
    assert "Task06_Lung" in (outcome / "report.md").read_text()
    assert (outcome / "report.html").stat().st_size > 0

    # the view, not the raw image, was trained on
    log = next((work / "steps" / "Dataset006_Lung").glob("train-tiny-*-fold_0.log")).read_text()
    assert "with view 'tiny'" in log
    assert not list((work / "nnUNet_raw").rglob("._*"))

    before = snapshot(work)
    out = printed(capsys, *options)
    assert out.count("complete, skipped") == 16
    assert snapshot(work) == before
    assert commands(printed(capsys, *options, "--dry-run")) == {}


def test_a_dry_run_prints_commands_that_can_be_run_and_runs_nothing(
    pancreas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "a folder"
    script = printed(capsys, pancreas, *SMALL, "--work", work, "--dry-run")
    assert not work.exists()
    names = list(commands(script))
    assert names[:5] == [
        "convert", "plan-nnUNetPlans-3d_fullres", "splits", "network-3d_fullres",
        "view-nnUNetPlansSmall-3d_fullres-tiny",
    ]  # fmt: skip
    assert sum(name.startswith("train-") for name in names) == 4
    assert [name.split("-")[0] for name in names[9:]] == ["gather"] * 3 + ["evaluate", "table", "report", "report"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    for line in commands(script).values():
        words = [word for word in shlex.split(line) if not re.match(r"\w+=", word)]
        assert shutil.which(words[0], path=environment["PATH"]), words[0]

    # the conversion and the split, as printed
    wanted = ("convert", "splits")
    head = script[: script.index("# convert")]
    lines = [commands(script)[name] for name in wanted]
    subprocess.run(["sh", "-e"], input="\n".join([head, *lines]), text=True, check=True, env=environment, timeout=120)
    raw = work / "nnUNet_raw" / "Dataset007_Pancreas"
    description = json.loads((raw / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "pancreas": 1, "cancer": 2}
    assert sorted(path.name for path in (raw / "imagesTr").iterdir()) == [
        f"pancreas_{number:03d}_0000.nii.gz" for number in range(1, 6)
    ]
    splits = json.loads((work / "nnUNet_preprocessed" / "Dataset007_Pancreas" / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == [
        f"pancreas_{number:03d}" for number in range(1, 6)
    ]


def test_models_of_one_trainer_have_folders_of_their_own(
    pancreas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(
        capsys, pancreas, "--vaes", "wan2.1", "control:gaussian@wan2.1", "control:median@1.5", "--folds", "0",
        "--work", tmp_path, "-device", "cuda", "--dry-run",
    )  # fmt: skip
    lines = commands(script)
    trained = {name: shlex.split(line) for name, line in lines.items() if name.startswith("train-")}
    assert [words[0].rpartition("/")[2] for words in trained.values()] == [
        "raw", "wan2.1", "control-median-1.5", "control-gaussian-wan2.1",
    ]  # fmt: skip
    assert len({words[0] for words in trained.values()}) == 4
    raw, wan, *_ = trained.values()
    assert " ".join(raw[1:]) == "nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans --c -device cuda"
    assert " ".join(wan[1:]) == (
        "nnUNet_fvae_view=wan2.1 nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerFVAEReconOnly -p nnUNetPlans --c "
        "-device cuda"
    )
    views = [line for name, line in lines.items() if name.startswith("view-")]
    assert "--vae wan2.1 --scheme paper --view wan2.1 " in views[0]
    assert "--vae control:median --strength 1.5 --view control-median-1.5 " in views[1]
    assert "--vae control:gaussian --match wan2.1 --view control-gaussian-wan2.1 " in views[2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--protocol", "mix", "--epochs", "5"), "-tr nnUNetTrainerFVAE_5epochs -p nnUNetPlans "),
        (("--protocol", "blend", "--epochs", "1"), "-tr nnUNetTrainerFVAEBlend_1epoch -p nnUNetPlans "),
        (("-p", "nnUNetResEncUNetLPlans"), "-tr nnUNetTrainerFVAEReconOnly -p nnUNetResEncUNetLPlans "),
        (("--scheme", "windows"), "/nnUNet_results/wan2.1-windows nnUNet_fvae_view=wan2.1-windows "),
        (("-overwrite_id", "123"), "nnUNetv2_train 123 3d_fullres 0 "),
    ],
)
def test_options_reach_the_training(
    options: tuple[str, ...], expected: str, lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(
        capsys, lung, "--vaes", "wan2.1", *options, "--work", tmp_path, "--dry-run", "--phase", "train",
        "--vae", "wan2.1", "--fold", "0",
    )  # fmt: skip
    (line,) = commands(script).values()
    assert expected in line


def test_there_is_a_trainer_for_every_length() -> None:
    from fvae_nnunet.trainers import EPOCHS

    assert sorted((*EPOCHS, 1000)) == list(LENGTHS)


FAKE_SBATCH = """#!/bin/sh
echo "$@" >> "$SBATCH_LOG"
for argument; do printf '%s\\0' "$argument"; done > "$SBATCH_LOG.$(wc -l < "$SBATCH_LOG")"
echo "$(( 100 + $(wc -l < "$SBATCH_LOG") ));cluster"
"""


def test_the_jobs_of_a_cluster_do_every_step_once_and_wait_for_each_other(
    pancreas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        pancreas, "--vaes", "tiny", "control:gaussian@tiny", "control:median@1", "--folds", "0", "2", "4",
        "--work", tmp_path / "work", "-device", "cuda",
    )  # fmt: skip
    wanted = commands(printed(capsys, *options, "--dry-run"))
    submit = printed(capsys, *options, "--slurm")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(FAKE_SBATCH)
    sbatch.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}", "SBATCH_LOG": str(tmp_path / "jobs"),
    }  # fmt: skip
    done = subprocess.run(["sh"], input=submit, text=True, capture_output=True, check=True, env=environment)
    assert done.stdout.splitlines() == [
        "prepare: job 101;cluster", "view: job 102;cluster", "train: job 103;cluster", "finish: job 104;cluster",
    ]  # fmt: skip
    jobs = [(tmp_path / f"jobs.{number}").read_text().split("\0") for number in range(1, 5)]
    dependencies = [next((word for word in job if word.startswith("--dependency")), None) for job in jobs]
    assert dependencies == [None, *(f"--dependency=afterok:{number}" for number in (101, 102, 103))]

    found: list[str] = []
    for job in jobs:
        wrapped = next(word for word in job if word.startswith("--wrap=")).removeprefix("--wrap=")
        python, script, *arguments = shlex.split(wrapped)
        assert (python, script) == (sys.executable, str(SCRIPTS / "reproduce_msd.py"))
        array = next((word for word in job if word.startswith("--array=0-")), None)
        for index in range(int(array.removeprefix("--array=0-")) + 1) if array else [None]:
            if index is None:
                monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
            else:
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
            found.extend(commands(printed(capsys, *arguments, "--dry-run")).values())
        if array:
            assert "there are jobs 0 to" in error_of(capsys, *arguments, "--array-index", int(array[10:]) + 1)
    assert sorted(found) == sorted(wanted.values())
    assert len(wanted) == 3 + 3 + 4 * 3 + 5 + 4


def test_vae_and_fold_select_one_training(lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (lung, *SMALL, "--work", tmp_path, "--dry-run")
    (name,) = commands(printed(capsys, *options, "--phase", "train", "--vae", "raw", "--fold", "1"))
    assert name == "train-raw-nnUNetTrainer_1epoch__nnUNetPlansSmall__3d_fullres-fold_1"
    assert len(commands(printed(capsys, *options, "--phase", "train", "--fold", "1"))) == 2
    assert list(commands(printed(capsys, *options, "--phase", "view", "--vae", "tiny"))) == [
        "view-nnUNetPlansSmall-3d_fullres-tiny"
    ]
    assert "--vae wan2.1 is not among raw, tiny" in error_of(capsys, *options, "--phase", "train", "--vae", "wan2.1")
    assert "--fold 3 is not among --folds 0 1" in error_of(capsys, *options, "--phase", "train", "--fold", "3")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--vaes", "wan2.3"), "unknown VAE 'wan2.3'. Did you mean wan2.2"),
        (("--vaes", "tiny", "tiny"), "--vaes names one of them twice: tiny, tiny"),
        (("--vaes", "leanvae"), "leanvae needs --weights leanvae=PATH"),
        (("--vaes", "leanvae", "--weights", "leanvae=nowhere.ckpt"), "--weights: no such file or folder"),
        (("--vaes", "tiny", "--weights", "wan2.1=."), "wan2.1 is none of --vaes (tiny)"),
        (("--vaes", "tiny", "--weights", "wan2.1"), "--weights takes NAME=PATH"),
        (("--vaes", "tiny", "control:gaussian"), "write control:NAME@STRENGTH"),
        (("--vaes", "tiny", "control:gaussian@wan2.1"), "wan2.1 is neither a number nor one of --vaes"),
        (("--vaes", "control:blur@1"), "unknown control 'control:blur'"),
        (("--vaes", "tiny", "-overwrite_id", "0"), "nnU-Net's ids begin with 1"),
        (("--vaes", "tiny", "--tolerance", "-1"), "must not be negative"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    options: tuple[str, ...], expected: str, lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(capsys, lung, *options, "--work", tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--folds", "5"),
        ("--epochs", "3"),
        ("--vae", "tiny"),
        ("--phase", "view", "--fold", "0"),
        ("--phase", "train", "--fold", "0", "--array-index", "0"),
        ("--slurm", "--dry-run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: tuple[str, ...], lung: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        reproduce_msd.parse([str(lung), *options])


def damaged(task: Path, tmp_path: Path, **changes: object) -> Path:
    copy = tmp_path / task.name
    shutil.copytree(task, copy)
    description = json.loads((copy / "dataset.json").read_text()) | changes
    (copy / "dataset.json").write_text(json.dumps(description))
    return copy


def test_a_folder_that_is_not_the_task_is_refused(
    lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ("--vaes", "tiny", "--work", tmp_path / "work", "--dry-run")
    assert "must be a folder named Task06_Lung or Task07_Pancreas" in error_of(capsys, lung.parent, *work)
    other = damaged(lung, tmp_path / "a", labels={"0": "background", "1": "liver"})
    assert "expected CT with a label 'cancer'" in error_of(capsys, other, *work)
    other = damaged(lung, tmp_path / "b")
    (other / "labelsTr" / "lung_002.nii.gz").unlink()
    assert "1 of 10 files of dataset.json are missing (first: ./labelsTr/lung_002.nii.gz)" in error_of(
        capsys, other, *work
    )
    shutil.rmtree(other / "imagesTs")
    assert "has no imagesTs" in error_of(capsys, other, *work)
    (other / "imagesTs").mkdir()
    (other / "dataset.json").write_text("{}")
    assert "dataset.json is not that of the Medical Segmentation Decathlon: KeyError('modality')" in error_of(
        capsys, other, *work
    )


def test_other_peoples_data_is_left_alone(lung: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (lung, *SMALL, "--work", tmp_path)
    other = tmp_path / "nnUNet_raw" / "Dataset006_Liver"
    other.mkdir(parents=True)
    assert "holds other things than a reproduction" in error_of(capsys, *options)
    (tmp_path / "steps").mkdir()
    assert "Dataset006_Liver exists: id 6 is taken. Choose another with -overwrite_id" in error_of(capsys, *options)
    other.rename(other.with_name("Dataset006_Lung"))
    assert "Dataset006_Lung exists: id 6 is taken" in error_of(capsys, *options), "it was not converted here"
    assert commands(printed(capsys, *options, "-overwrite_id", "66", "--dry-run"))["convert"].startswith(
        "nnUNetv2_convert_MSD_dataset -overwrite_id 66 -i "
    )


def test_the_shell_script_finds_the_environment(lung: Path, tmp_path: Path) -> None:
    call = ["sh", str(SCRIPTS / "reproduce_msd.sh"), str(lung), *SMALL, "--work", str(tmp_path), "--dry-run"]
    system = "/usr/bin:/bin"
    done = subprocess.run(call, env={"PATH": system}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fvae-preprocess was not found; activate the environment" in done.stderr
    path = f"{Path(sys.executable).parent}:{system}"
    done = subprocess.run(call, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert "nnUNetv2_convert_MSD_dataset" in done.stdout


def test_a_job_that_is_cancelled_ends_as_if_interrupted(
    lung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(reproduce_msd, "run_steps", cancelled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        reproduce_msd.main([str(lung), *SMALL, "--work", str(tmp_path)])
    assert signal.getsignal(signal.SIGTERM) == before


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
        "cancer", "DSC", "wan", "45.0", "35.0 to 50.0", "+5.0", "+3.0 to +6.0*", "0.2500", "0.5000", "3",
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
    arguments = [str(tmp_path / "summary.json"), "--paper", "lung", "-o", str(tmp_path / "table2.md")]
    assert table2.main(arguments) == 1
    assert "is no comparison of two or more models" in capsys.readouterr().err
    assert not (tmp_path / "table2.md").exists()
