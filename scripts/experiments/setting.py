"""What the workflow of an experiment does with a configuration: arms, runs, folders, and whether it can be done.

Needs the standard library only, so that Snakemake may have an environment of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import ConfigError, View, check_choices, check_keys, existing_folder, parse_views
from dataset_folders import DatasetFolders

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerFVAE", "nnUNetTrainerFVAEReconOnly", "nnUNetTrainerFVAEBlend")
"""For which ``trainers/seeded.py`` has one of the same name with ``Seeded`` behind it."""

CHOICES = {"configuration": ("2d", "3d_fullres", "3d_lowres"), "device": ("cuda", "cpu")}
TRAINING = ("epochs", "iterations", "mirrored", "features_per_stage", "patch_voxels", "configuration")
KEYS = ("dataset", "views", "arms", "folds", "tolerances_mm", *TRAINING, "device", "threads", "processes", "gpus")


@dataclass(frozen=True)
class Arm:
    """One way to train: which trainer, on which view of the data, with which seeds."""

    name: str
    trainer: str
    view: str | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Experiment(DatasetFolders):
    """Names and folders of one configuration; folders are relative to the work folder.

    Attributes:
        source: the dataset in nnU-Net's raw format; only read.
        arms, views: by name.
        folds: how many.
        configuration, is_small: nnU-Net's, and whether its network is shrunk.
    """

    source: Path
    arms: Mapping[str, Arm]
    views: Mapping[str, View]
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
        """Names of all trainings of a fold: ``ARM_seedN``."""
        return [f"{arm.name}_seed{seed}" for arm in self.arms.values() for seed in arm.seeds]

    def model(self, run: str) -> str:
        trainer = self.arms[run.rpartition("_seed")[0]].trainer
        return self.model_folder(run, f"{trainer}Seeded")


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """What a configuration means.

    Raises:
        ConfigError: it cannot be done, or does not say enough.
    """
    missing = sorted(set(KEYS) - config.keys())
    if missing:
        raise ConfigError(f"the configuration has no {missing[0]}; name a whole one: --configfile sarcoma_cpu.yaml")
    check_keys(config, KEYS)
    source = existing_folder(config, "dataset")
    if not re.fullmatch(r"Dataset\d{3,}_\w+", source.name) or not (source / "dataset.json").is_file():
        raise ConfigError(
            f"dataset: {source} is no folder DatasetNNN_Name in nnU-Net's raw format (dataset.json, imagesTr, labelsTr)"
        )
    check_choices(config, CHOICES)
    views = parse_views(config["views"])
    arms = {arm.name: arm for arm in (_arm(given, views) for given in config["arms"])}
    if len(arms) < len(config["arms"]):
        raise ConfigError("arms: two have the same name")
    small = bool(config["features_per_stage"])
    experiment = Experiment(source, arms, views, config["folds"], config["configuration"], small)
    if len(experiment.runs) < 2:
        raise ConfigError("arms: a comparison needs two arms, or two seeds of one")
    return experiment


def _arm(given: Mapping[str, Any], views: Mapping[str, View]) -> Arm:
    check_keys(given, ("name", "trainer", "view", "seeds"))
    name, trainer, view = given.get("name", ""), given.get("trainer"), given.get("view")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"arms: {name!r} cannot be the name of an arm; take letters, digits and . + - _")
    if trainer not in TRAINERS:
        raise ConfigError(f"arms: {name}: trainer {trainer} is none of {', '.join(TRAINERS)}")
    if (view is None) != (trainer == "nnUNetTrainer") or view not in (None, *views):
        raise ConfigError(
            f"arms: {name}: {trainer} with view {view}: nnUNetTrainer takes no view, the others take one of "
            f"{', '.join(views)}"
        )
    return Arm(name, trainer, view, tuple(given.get("seeds", [0])))
