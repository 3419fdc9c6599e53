"""The quickstart's own logic: what is held out, how plans shrink, which steps run; the whole chain is not run here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import case_picture
import pytest
import quickstart
import small_plans
from hold_out_cases import held_out, hold_out_cases
from phantoms import write_phantom_dataset
from quickstart import Runner, Step, plan_steps

from fvae_nnunet.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "Dataset007_Nodules"
    return write_phantom_dataset(folder, "lung", n_train=11, n_test=0, seed=0, shape=(12, 32, 32))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_fifth_case_in_sorted_order_is_held_out() -> None:
    cases = [f"case_{index:02d}" for index in reversed(range(1, 25))]
    assert held_out(cases) == ["case_05", "case_10", "case_15", "case_20"]
    assert held_out(cases, test_cases=2) == ["case_12", "case_24"]
    assert held_out(cases, test_cases=7) == [f"case_{index:02d}" for index in (3, 6, 9, 12, 15, 18, 21)]


@pytest.mark.parametrize(("n", "test_cases"), [(4, None), (5, None), (6, 2), (24, 0), (24, 30)])
def test_a_split_that_leaves_too_few_cases_is_refused(n: int, test_cases: int | None) -> None:
    with pytest.raises(UserError, match="at least 1 test case and 5 training cases"):
        held_out([f"case_{index}" for index in range(n)], test_cases=test_cases)


def test_held_out_cases_are_no_training_cases_and_the_source_is_untouched(dataset: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    target = tmp_path / "Dataset007_Nodules"
    assert hold_out_cases(dataset, target) == (9, ["phantom_004", "phantom_009"])
    assert names(target / "labelsTs") == ["phantom_004.nii.gz", "phantom_009.nii.gz"]
    assert names(target / "imagesTs") == ["phantom_004_0000.nii.gz", "phantom_009_0000.nii.gz"]
    assert len(names(target / "imagesTr")) == len(names(target / "labelsTr")) == 9
    assert "phantom_004.nii.gz" not in names(target / "labelsTr")
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 9
    linked = target / "imagesTs" / "phantom_004_0000.nii.gz"
    assert linked.read_bytes() == (dataset / "imagesTr" / "phantom_004_0000.nii.gz").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_a_dataset_with_test_cases_keeps_them(tmp_path: Path) -> None:
    source = write_phantom_dataset(
        tmp_path / "a" / "Dataset008_N", "lung", n_train=5, n_test=1, seed=0, shape=(12, 32, 32)
    )
    assert hold_out_cases(source, tmp_path / "b") == (5, ["phantom_005"])
    with pytest.raises(UserError, match="leave out --test-cases"):
        hold_out_cases(source, tmp_path / "c", test_cases=1)


def test_a_label_without_image_is_named_and_nothing_is_left(dataset: Path, tmp_path: Path) -> None:
    source = tmp_path / "Dataset009_N"
    hold_out_cases(dataset, source)
    (source / "imagesTr" / "phantom_003_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no image phantom_003_0000\.nii\.gz"):
        hold_out_cases(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def nnunet_plans() -> dict[str, Any]:
    network = {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
        "conv_op": "torch.nn.modules.conv.Conv3d",
    }
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "patch_size": [64, 160, 192],
        "batch_size": 4,
        "spacing": [3.3, 1.0, 1.0],
        "architecture": {"network_class_name": "a.PlainConvUNet", "arch_kwargs": network},
    }
    return {
        "plans_name": "nnUNetPlans",
        "dataset_name": "Dataset007_N",
        "configurations": {"3d_fullres": full, "2d": {}},
    }


def test_small_plans_keep_nnunets_data_and_first_stages() -> None:
    plans = nnunet_plans()
    small = small_plans.small_plans(plans, name="nnUNetPlansSmall", patch_voxels=100_000)
    assert plans == nnunet_plans(), "the original is not changed"
    assert small["plans_name"] == "nnUNetPlansSmall"
    assert small["dataset_name"] == "Dataset007_N"
    configuration = small["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configuration["spacing"] == [3.3, 1.0, 1.0]
    network = configuration["architecture"]["arch_kwargs"]
    assert network["kernel_sizes"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert network["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert len(network["n_conv_per_stage"]) == len(network["n_conv_per_stage_decoder"]) + 1 == network["n_stages"] == 4
    # (100000 / (64 * 160 * 192)) ** (1 / 3) = 0.3706: 23.7, 59.3, 71.2; multiples of 4, 8, 8
    assert configuration["patch_size"] == [24, 56, 72]


def test_a_patch_is_never_enlarged_nor_smaller_than_the_stride() -> None:
    assert small_plans.small_patch([40, 40, 40], [8, 8, 8], patch_voxels=10**6) == [40, 40, 40]
    assert small_plans.small_patch([16, 320, 320], [4, 16, 16], patch_voxels=64) == [4, 16, 16]


def test_plans_of_another_architecture_are_refused() -> None:
    plans = nnunet_plans()
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"]
    with pytest.raises(UserError, match="PlainConvUNet cannot be shrunk"):
        small_plans.small_plans(plans, name="Small")
    with pytest.raises(UserError, match="do not describe 3d_lowres; they have 3d_fullres, 2d"):
        small_plans.small_plans(plans, configuration="3d_lowres", name="Small")


APPEND = "import sys; print('ran', file=open(sys.argv[1], 'a')); print('shown'); print('hidden')"


def step(name: str, *, extra: str = "", code: str = APPEND) -> Step:
    return Step(name, ("python", "-c", code, f"{name}.txt", extra), Path(f"{name}.txt"), (), shows="shown")


def run_steps(work: Path, *steps: Step) -> Runner:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    runner = Runner(work, {**os.environ, "PATH": path})
    for one in steps:
        runner.run(one)
    return runner


def test_complete_steps_are_skipped_and_a_changed_command_runs_with_all_that_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = step("1-a"), step("2-b"), step("3-c")
    assert run_steps(tmp_path, first, second, third).skipped == set()
    printed = capsys.readouterr().out
    assert "[2-b] python -c" in printed
    assert "  shown" in printed
    assert "  hidden" not in printed
    assert "hidden" in (tmp_path / "steps" / "2-b.log").read_text()
    assert run_steps(tmp_path, first, second, third).skipped == {"1-a", "2-b", "3-c"}
    assert run_steps(tmp_path, first, step("2-b", extra="changed"), third).skipped == {"1-a"}
    # results are deleted before a step runs anew, so each holds the trace of one run
    assert (tmp_path / "3-c.txt").read_text() == "ran\n"


def test_a_step_without_its_result_runs_again(tmp_path: Path) -> None:
    run_steps(tmp_path, step("1-a"), step("2-b"))
    (tmp_path / "2-b.txt").unlink()
    assert run_steps(tmp_path, step("1-a"), step("2-b")).skipped == {"1-a"}


def test_a_failed_step_stops_the_run_shows_the_logs_end_and_runs_again(tmp_path: Path) -> None:
    failing = step("2-b", code="import sys; print('the reason'); sys.exit(3)")
    with pytest.raises(UserError, match=r"(?s)step 2-b ended with status 3.*the reason"):
        run_steps(tmp_path, step("1-a"), failing, step("3-c"))
    assert not (tmp_path / "3-c.txt").exists()
    assert run_steps(tmp_path, step("1-a"), step("2-b")).skipped == {"1-a"}


def test_success_without_result_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended without .*1-a\.txt"):
        run_steps(tmp_path, step("1-a", code="pass"))


def test_a_command_that_resumes_keeps_what_it_left_unless_it_changed(tmp_path: Path) -> None:
    def half(code: str, extra: str = "") -> Step:
        return Step("1-a", ("python", "-c", code, "1-a.txt", extra), Path("1-a.txt"), (), resumes=True)

    broken = APPEND + "; sys.exit(int(__import__('pathlib').Path('fail').exists()))"
    (tmp_path / "fail").touch()
    with pytest.raises(UserError, match="status 1"):
        run_steps(tmp_path, half(broken))
    (tmp_path / "fail").unlink()
    run_steps(tmp_path, half(broken))
    assert (tmp_path / "1-a.txt").read_text() == "ran\nran\n"
    run_steps(tmp_path, half(broken, "changed"))
    assert (tmp_path / "1-a.txt").read_text() == "ran\n"


def steps_for(*arguments: str) -> dict[str, tuple[str, ...]]:
    return {step.name: step.command for step in plan_steps(quickstart.parse(arguments), device="cpu")}


def test_steps_of_the_phantoms() -> None:
    steps = steps_for()
    assert list(steps) == [
        "1-dataset", "2-plan", "3-network", "4-view", "5-train",
        "6-reconstruct", "7-predict", "8-evaluate", "9-picture",
    ]  # fmt: skip
    assert " ".join(steps["5-train"]) == (
        "nnUNetv2_train 900 3d_fullres 0 -tr nnUNetTrainerFVAE_10epochs -p nnUNetPlansSmall -device cpu"
    )
    assert steps["8-evaluate"] == ("fvae-evaluate", "nnUNet_raw/Dataset900_PhantomPancreas/labelsTs", "predictions")
    assert "imagesTs_view" not in steps["7-predict"]


def test_options_change_the_steps(dataset: Path) -> None:
    assert "3-network" not in steps_for("--network", "default")
    assert "4-view" not in steps_for("--trainer", "nnUNetTrainer_5epochs")
    assert "imagesTs_view" in steps_for("--trainer", "nnUNetTrainerFVAEReconOnly_5epochs")["7-predict"]
    assert "-num_parts" not in steps_for("--trainer", "nnUNetTrainerFVAEReconOnly_5epochs")["6-reconstruct"]
    view = steps_for("--vae", "diffusers:a/b", "--weights", "w.pth")["4-view"]
    assert view[-8:] == ("--vae", "diffusers:a/b", "--weights", "w.pth", "-device", "cpu", "--view", "diffusers-a-b")
    real = steps_for("--dataset", str(dataset), "--test-cases", "3")
    assert real["1-dataset"][2:] == (str(dataset), "nnUNet_raw/Dataset007_Nodules", "--test-cases", "3")
    # 11 cases, three of them: every third
    assert "nnUNet_raw/Dataset007_Nodules/imagesTs/phantom_002_0000.nii.gz" in real["9-picture"]


def test_a_work_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert quickstart.main(["--work", str(tmp_path), "--fresh"]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert names(tmp_path) == ["thesis.tex"]


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["--dataset", str(tmp_path), "--work", str(tmp_path / "work")]) == 1
    assert "is not a folder DatasetNNN_Name" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_case_picture_reads_files_upright_and_puts_the_scores_into_the_title(tmp_path: Path) -> None:
    import numpy as np
    import SimpleITK as sitk

    hu = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((1.0, 2.0, 5.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # x to the right, y to the front: nibabel's RAS
    sitk.WriteImage(image, str(tmp_path / "case.nii.gz"))
    array, spacing_mm = case_picture.read_upright(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(array, hu[:, ::-1, ::-1])
    assert spacing_mm == (5.0, 2.0, 1.0)

    scored = {"1": {"Dice": 0.5, "NSD_2mm": 0.25}, "(1, 2)": {"Dice": 0.75}}
    summary = {"metric_per_case": [{"metrics": scored, "prediction_file": "predictions/case.nii.gz"}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    labels: dict[str, Any] = {"background": 0, "tumour": 1, "whole": [1, 2]}
    title = case_picture.title_of("case", labels, tmp_path / "summary.json")
    assert title.split("     ") == ["case", "tumour DSC 0.500, NSD 2 mm 0.250", "whole DSC 0.750"]
    with pytest.raises(UserError, match="no case other"):
        case_picture.title_of("other", labels, tmp_path / "summary.json")


def test_the_single_fold_holds_every_case_once_and_an_existing_split_is_kept(tmp_path, capsys):
    cases = ["case_2", "case_0", "case_1"]
    assert small_plans.one_validation_case(cases) == [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    (tmp_path / "nnUNetPlans.json").write_text("{}")
    (tmp_path / "splits_final.json").write_text("mine")
    assert small_plans.main([str(tmp_path), "--one-validation-case"]) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "splits_final.json").read_text() == "mine"
