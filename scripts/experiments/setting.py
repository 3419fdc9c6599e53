"""Reading and checking of the configuration of an experiment: arms, runs and folders.

Uses only the standard library, so that Snakemake may have an environment of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arms import ConfigError, View, check_choices, check_complete, check_keys, check_name, existing_folder, parse_views
from dataset_folders import DatasetFolders

REFERENCE = "raw"
"""Arm with which the tables compare the others."""
WITHOUT_VIEW = ("nnUNetTrainer", "nnUNetTrainerNoise")
VALIDATION = "validation"
"""Name of nnU-Net's own validation, beside those of the tests."""
RESERVED = (VALIDATION, "scans", "logs", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""Folders of the workflow, which no test can be named."""
ON_VIEW_ALONE = "nnUNetTrainerFVAEReconOnly"
TRAINERS = (*WITHOUT_VIEW, "nnUNetTrainerFVAE", ON_VIEW_ALONE, "nnUNetTrainerFVAEBlend")
"""Trainers for which ``trainers/seeded.py`` has one with the suffix ``Seeded``."""

CHOICES = {"configuration": ("2d", "3d_fullres", "3d_lowres"), "device": ("cuda", "cpu")}
TRAINING = ("epochs", "iterations", "mirrored", "features_per_stage", "patch_voxels", "configuration")
KEYS = (
    "dataset",
    "views",
    "arms",
    "tests",
    "folds",
    "tolerances_mm",
    *TRAINING,
    "device",
    "threads",
    "processes",
    "gpus",
)


@dataclass(frozen=True)
class Arm:
    """One way to train: trainer, view of the data, and seeds.

    Attributes:
        view: name of a view, or of several views as in ``nnUNet_fvae_view`` (``a:2,b``); None for raw images.
    """

    name: str
    trainer: str
    view: str | None
    seeds: tuple[int, ...]

    @property
    def views(self) -> list[str]:
        """Names of its views."""
        return [part.partition(":")[0] for part in self.view.split(",")] if self.view else []


@dataclass(frozen=True)
class Test:
    """An additional prediction of the validation cases.

    Attributes:
        scan: options of ``rescan_images.py`` for images of another dose or kernel; none to use the original images.
        predict: options of ``fvae-predict``.
        arms: names of the tested arms.
    """

    name: str
    scan: str
    predict: str
    arms: tuple[str, ...]


Named = TypeVar("Named", Arm, Test)


@dataclass(frozen=True)
class Experiment(DatasetFolders):
    """Names and folders of one configuration; folders are relative to the work folder.

    Attributes:
        source: dataset in nnU-Net's raw format; only read.
        arms, views, tests: by name.
        folds: number of folds.
        configuration, is_small: nnU-Net's configuration, and whether its network is shrunk.
    """

    source: Path
    arms: Mapping[str, Arm]
    views: Mapping[str, View]
    tests: Mapping[str, Test]
    folds: int
    configuration: str
    is_small: bool
    plans = "nnUNetPlans"
    logs = "logs"

    @property
    def dataset(self) -> str:
        return self.source.name

    @property
    def number(self) -> int:
        return int(self.source.name[7:].split("_")[0])

    @property
    def file_ending(self) -> str:
        return str(json.loads((self.source / "dataset.json").read_text())["file_ending"])

    @property
    def runs(self) -> list[str]:
        """Names of all trainings of a fold, ``ARM_seedN``."""
        return self.runs_of(self.arms)

    def tested_runs(self, test: str) -> list[str]:
        """Runs of a test, or of nnU-Net's own validation."""
        return self.runs if test == VALIDATION else self.runs_of(self.tests[test].arms)

    def tested_views(self, test: str) -> list[str]:
        """Views on which the runs of a test were trained."""
        used = {view for run in self.tested_runs(test) for view in self.arm(run).views}
        return [view for view in self.views if view in used]

    def runs_of(self, arms: Iterable[str]) -> list[str]:
        """Runs of some arms, given by name."""
        return [f"{name}_seed{seed}" for name in arms for seed in self.arms[name].seeds]

    def arm(self, run: str) -> Arm:
        return self.arms[run.rpartition("_seed")[0]]

    def model(self, run: str) -> str:
        return self.model_folder(run, f"{self.arm(run).trainer}Seeded")

    def images_of(self, test: str) -> str:
        """Folder with the images of a test; tests of the same scan share that of the first."""
        if test not in self.tests or not self.tests[test].scan:
            return f"{self.raw}/imagesTr"
        first = next(name for name, other in self.tests.items() if other.scan == self.tests[test].scan)
        return f"scans/{first}"

    def prediction_options(self, test: str, run: str) -> str:
        """Options of ``fvae-predict``: those of the test, and those of the VAE if a model has seen only its view."""
        arm = self.arm(run)
        of_test = self.tests[test].predict
        if arm.trainer != ON_VIEW_ALONE:
            return of_test
        return f"{of_test} {self.views[arm.views[0]].reconstruction}".strip()


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """Read an experiment from a configuration.

    Raises:
        ConfigError: the configuration is not valid or not complete.
    """
    check_complete(config, KEYS, "an experiment and a budget: --configfile sarcoma.yaml budgets/cpu.yaml")
    source = existing_folder(config, "dataset")
    if not re.fullmatch(r"Dataset\d{3,}_\w+", source.name) or not (source / "dataset.json").is_file():
        raise ConfigError(
            f"dataset: {source} is not a folder DatasetNNN_Name in nnU-Net's raw format (dataset.json, imagesTr, "
            "labelsTr)"
        )
    check_choices(config, CHOICES)
    views = parse_views(config["views"])
    arms = _by_name("arms", [_arm(given, views) for given in config["arms"]])
    tests = _by_name("tests", [_test(given, arms) for given in config["tests"]])
    small = bool(config["features_per_stage"])
    experiment = Experiment(source, arms, views, tests, config["folds"], config["configuration"], small)
    if len(experiment.runs) < 2:
        raise ConfigError("arms: a comparison needs two arms, or two seeds of one arm")
    for name in tests:
        if len(experiment.tested_runs(name)) < 2:
            raise ConfigError(f"tests: {name}: a comparison needs two arms, or one with two seeds")
    if next(iter(arms)) != REFERENCE:
        raise ConfigError(f"arms: the first, with which the others are compared, must be named {REFERENCE}")
    plain = {VALIDATION: ""} | {name: test.scan for name, test in tests.items() if not test.predict}
    for name, scan in plain.items():
        same = next(other for other, its_scan in plain.items() if its_scan == scan)
        if same != name:
            raise ConfigError(f"tests: {name} is the same as {same}; give it another scan or predict")
        if name in tests and REFERENCE not in tests[name].arms:
            raise ConfigError(f"tests: {name}: its arms must include {REFERENCE}, as it has no predict")
    return experiment


def _by_name(kind: str, made: Sequence[Named]) -> dict[str, Named]:
    by_name = {one.name: one for one in made}
    if len(by_name) < len(made):
        raise ConfigError(f"{kind}: two have the same name")
    return by_name


def _arm(given: Mapping[str, Any], views: Mapping[str, View]) -> Arm:
    check_keys(given, ("name", "trainer", "view", "seeds"))
    name, trainer, view = given.get("name", ""), given.get("trainer"), given.get("view")
    check_name("arm", name)
    if trainer not in TRAINERS:
        raise ConfigError(f"arms: {name}: trainer {trainer} is not one of {', '.join(TRAINERS)}")
    arm = Arm(name, trainer, view, tuple(given.get("seeds", [0])))
    if bool(arm.views) == (trainer in WITHOUT_VIEW) or not set(arm.views) <= views.keys():
        raise ConfigError(
            f"arms: {name}: {trainer} with view {view}: {' and '.join(WITHOUT_VIEW)} take no view, the others take one "
            f"of {', '.join(views)}, or several separated by commas"
        )
    if trainer == ON_VIEW_ALONE and len(arm.views) > 1:
        raise ConfigError(f"arms: {name}: {trainer} takes only one view")
    return arm


def _test(given: Mapping[str, Any], arms: Mapping[str, Arm]) -> Test:
    check_keys(given, ("name", "scan", "predict", "arms"))
    name, tested = given.get("name", ""), tuple(given.get("arms", arms))
    check_name("test", name, reserved=RESERVED)
    if not tested or not set(tested) <= arms.keys():
        raise ConfigError(f"tests: {name}: arms {', '.join(tested)} are not all among {', '.join(arms)}")
    return Test(name, given.get("scan", ""), given.get("predict", ""), tested)
