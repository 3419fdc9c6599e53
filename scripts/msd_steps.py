"""What ``reproduce_msd.py`` does with a task of the Medical Segmentation Decathlon, as steps that need each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossval_splits import FILE_NAME as SPLITS
from msd_setting import PLANNERS, RAW, SMALL_PLANS, TASKS, Arm, Setting
from steps import Step, script

from fvae_nnunet.training.views import VIEW_VARIABLE


@dataclass(frozen=True)
class Steps:
    """The steps by phase.

    Attributes:
        prepare: conversion, plans, preprocessing, split.
        views: by the name of the arm; a matched control comes after its arm.
        trainings: by name of the arm and fold, all arms of the first fold first.
        finish: predictions gathered, evaluation, table, reports.
    """

    prepare: list[Step]
    views: dict[str, Step]
    trainings: dict[tuple[str, int], Step]
    finish: list[Step]

    def all(self) -> list[Step]:
        return [*self.prepare, *self.views.values(), *self.trainings.values(), *self.finish]


def plan_steps(setting: Setting) -> Steps:
    """All steps of a setting. Paths in the commands are relative to the work folder, except those that are given."""
    number, configuration = str(setting.number), setting.configuration
    processes = str(setting.processes)
    splits = setting.preprocessed / SPLITS
    planned = f"plan-{setting.plans}-{configuration}"
    prepare = [
        Step(
            "convert",
            ("nnUNetv2_convert_MSD_dataset", "-overwrite_id", number),
            setting.raw / "dataset.json",
            # nnU-Net's converter refuses an id that has files anywhere
            (setting.raw, setting.preprocessed),
            options=("-i", str(setting.task), "-np", processes),
            after=(),
        ),
        Step(
            planned,
            ("nnUNetv2_plan_and_preprocess", "-d", number, "-pl", PLANNERS[setting.plans], "-c", configuration,
             "--verify_dataset_integrity", "--clean"),
            setting.data_folder,
            (),
            options=("-npfp", processes, "-np", processes),
            after=("convert",),
        ),
        Step(
            "splits",
            script("crossval_splits.py", setting.raw, setting.preprocessed),
            splits,
            (),
            after=("convert",),
            record=splits,
        ),
    ]  # fmt: skip
    if setting.network == "small":
        small = script("small_plans.py", setting.preprocessed, "-c", configuration, "-p", setting.plans)
        plans_file = setting.preprocessed / f"{SMALL_PLANS}.json"
        prepare.append(Step(f"network-{configuration}", small, plans_file, (), after=(planned,), record=plans_file))
        planned = f"network-{configuration}"
    views = {arm.name: _view(setting, arm, planned) for arm in setting.arms if arm.name != RAW}
    trainings = {
        (arm.name, fold): _training(setting, arm, fold, (planned, "splits"))
        for fold in setting.folds
        for arm in setting.arms
    }
    return Steps(prepare, views, trainings, _finish(setting, splits, trainings))


def _view(setting: Setting, arm: Arm, planned: str) -> Step:
    folder = setting.view_folder(arm)
    return Step(
        _view_step(setting, arm.name),
        ("fvae-preprocess", str(setting.number), "-c", setting.configuration, "-p", setting.trained_plans,
         *arm.options, *(["--match", arm.needs] if arm.needs else []), "--view", arm.name),
        folder,
        (),
        shows="cases done|matched to|^time:|does not find|^wrote",
        options=("-device", setting.device, "-np", str(setting.processes)),
        after=(planned, *([_view_step(setting, arm.needs)] if arm.needs else [])),
        record=folder / "manifest.json",
    )  # fmt: skip


def _view_step(setting: Setting, name: str) -> str:
    return f"view-{setting.trained_plans}-{setting.configuration}-{name}"


def _training(setting: Setting, arm: Arm, fold: int, needed: tuple[str, ...]) -> Step:
    results = Path("nnUNet_results") / arm.name
    folder = results / setting.dataset / setting.model(arm) / f"fold_{fold}"
    # models of one trainer on several views would have one folder
    variables = {"nnUNet_results": str(setting.work / results)}
    if arm.name != RAW:
        needed = (*needed, _view_step(setting, arm.name))
        variables[VIEW_VARIABLE] = arm.name
    return Step(
        f"train-{arm.name}-{setting.model(arm)}-fold_{fold}",
        # --c begins anew where there is no checkpoint, and only validates where training is finished
        ("nnUNetv2_train", str(setting.number), setting.configuration, str(fold),
         "-tr", setting.trainer(arm), "-p", setting.trained_plans, "--c"),
        folder / "validation" / "summary.json",
        (folder,),
        resumes=True,
        shows=r"fvae_nnunet \d|Epoch \d+ *$|Pseudo dice|Epoch time|Mean Validation Dice",
        options=("-device", setting.device),
        variables=variables,
        after=needed,
    )  # fmt: skip


def _finish(setting: Setting, splits: Path, trainings: dict[tuple[str, int], Step]) -> list[Step]:
    target, folds = setting.comparison, [str(fold) for fold in setting.folds]
    prefix, paper = target.name, TASKS[setting.task.name]
    names = [arm.name for arm in setting.arms]

    def gather(name: str, source: Path, after: tuple[str, ...]) -> Step:
        command = script("gather_folds.py", splits, *folds, "-i", source, "-o", target / name)
        return Step(f"gather-{prefix}-{name}", command, target / name, (), after=after)

    steps = [gather("labels", setting.raw / "labelsTr", ("splits",))]
    for arm in setting.arms:
        model = Path("nnUNet_results") / arm.name / setting.dataset / setting.model(arm)
        trained = tuple(trainings[arm.name, fold].name for fold in setting.folds)
        steps.append(gather(arm.name, model / "fold_{fold}" / "validation", ("splits", *trained)))
    comparison = target / "comparison.json"
    steps.append(
        Step(
            f"evaluate-{prefix}",
            ("fvae-evaluate", str(target / "labels"), *(str(target / name) for name in names), "--names", *names,
             "--tolerance", *(f"{tolerance_mm:g}" for tolerance_mm in setting.tolerances_mm),
             "-djfile", str(setting.raw / "dataset.json"), "-o", str(comparison)),
            comparison,
            (),
            options=("-np", str(setting.processes)),
            after=tuple(step.name for step in steps),
        )
    )  # fmt: skip
    evaluated = (f"evaluate-{prefix}",)
    arms = [arm for arm in setting.arms if arm.name != RAW]
    table, title = target / "table2.md", f"Table 2, {setting.title}"
    vaes = [f"{arm.name}={arm.options[1]}" for arm in arms if arm.options[1] == arm.spec]
    steps.append(
        Step(
            f"table-{prefix}",
            script("table2.py", comparison, "--paper", paper, "--vaes", *vaes, "--title", title, "-o", table),
            table,
            (),
            after=evaluated,
        )
    )
    for kind, ending in (("html", "html"), ("markdown", "md")):
        report = target / f"report.{ending}"
        steps.append(
            Step(
                f"report-{prefix}-{kind}",
                ("fvae-report", str(comparison), "-o", str(report), "--format", kind, "--paper", paper,
                 "--title", setting.title,
                 "--images", str(setting.raw / "imagesTr"),
                 "--views", *(f"{arm.name}={setting.view_folder(arm)}" for arm in arms)),
                report,
                (),
                options=("-np", str(setting.processes)),
                after=evaluated,
            )
        )  # fmt: skip
    return steps
