"""Reading and checking of the configuration for the paper's Table 2: names and folders.

Uses only the standard library, so that Snakemake may have an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import PLANNERS, RAW, ConfigError, View, check_choices, check_keys, existing_folder, parse_views
from dataset_folders import DatasetFolders

TASKS = {"Task06_Lung": "lung", "Task07_Pancreas": "pancreas"}
"""Folder of the download -> name of the dataset in the paper's tables."""

TRAINERS = {
    "recon-only": "nnUNetTrainerFVAEReconOnly",
    "mix": "nnUNetTrainerFVAE",
    "blend": "nnUNetTrainerFVAEBlend",
}
LENGTHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, 2000, 4000, 8000)
"""Numbers of epochs for which there are trainers; 1000 is nnU-Net's own."""

CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d")
FOLDS = 5
CHOICES = {
    "protocol": tuple(TRAINERS),
    "epochs": LENGTHS,
    "configuration": CONFIGURATIONS,
    "plans": tuple(PLANNERS),
    "network": ("default", "small"),
    "device": ("cuda", "cpu", "mps"),
}
KEYS = (*CHOICES, "task", "dataset_id", "views", "folds", "tolerances_mm", "processes", "gpus")


@dataclass(frozen=True)
class Setting(DatasetFolders):
    """Names and folders of one configuration; folders are relative to the work folder.

    Attributes:
        task: folder of the download; only read.
        number: id of the dataset in nnU-Net.
        views: views by name.
        folds, protocol, epochs, configuration, plans, network: see ``config.yaml``.
    """

    task: Path
    number: int
    views: Mapping[str, View]
    folds: tuple[int, ...]
    protocol: str
    epochs: int
    configuration: str
    plans: str
    network: str

    @property
    def arms(self) -> list[str]:
        """Training data of each model: the raw images, and each view."""
        return [RAW, *self.views]

    @property
    def dataset(self) -> str:
        """Name of the dataset, as given by nnU-Net's converter."""
        return f"Dataset{self.number:03d}_{self.task.name.split('_')[1]}"

    @property
    def logs(self) -> str:
        return f"logs/{self.dataset}"

    @property
    def is_small(self) -> bool:
        return self.network == "small"

    @property
    def _length(self) -> str:
        return f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"

    def trainer(self, arm: str) -> str:
        trainer = "nnUNetTrainer" if arm == RAW else TRAINERS[self.protocol]
        return trainer if self.epochs == 1000 else f"{trainer}_{self._length.replace(' ', '')}"

    def model(self, arm: str) -> str:
        return self.model_folder(arm, self.trainer(arm))

    @property
    def title(self) -> str:
        """Title of tables and reports."""
        return (
            f"{self.task.name}: {self.protocol}, {self.configuration}, {self.trained_plans}, {self._length}, "
            f"folds {' '.join(map(str, self.folds))}"
        )

    @property
    def outcome(self) -> str:
        """Folder of tables and reports."""
        return f"comparison/{self.dataset}/{Path(self.model(next(iter(self.views)))).name}"


def read_setting(config: Mapping[str, Any]) -> Setting:
    """Read the setting from a configuration.

    Raises:
        ConfigError: the configuration is not valid or not complete.
    """
    check_keys(config, KEYS)
    task = existing_folder(config, "task")
    if task.name not in TASKS:
        raise ConfigError(f"task: {task} must be a folder named {' or '.join(TASKS)}, as in the Decathlon's archive")
    check_choices(config, CHOICES)
    number = int(task.name[4:6]) if config["dataset_id"] is None else config["dataset_id"]
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"dataset_id: nnU-Net's ids are whole numbers from 1, got {number}")
    folds = tuple(sorted({int(fold) for fold in config["folds"]}))  # text if given by --config
    if not folds or not set(folds) <= set(range(FOLDS)):
        raise ConfigError(f"folds: nnU-Net has folds 0 to {FOLDS - 1}, got {config['folds']}")
    if not config["tolerances_mm"] or min(map(float, config["tolerances_mm"])) < 0:
        raise ConfigError(f"tolerances_mm must not be negative, got {config['tolerances_mm']}")
    views = parse_views(config["views"])
    if not views:
        raise ConfigError("views: give at least one view to compare with raw images")
    chosen = {key: config[key] for key in CHOICES if key != "device"}
    return Setting(task, number, views, folds, **chosen)


def check_before_conversion(setting: Setting, work: Path) -> None:
    """Raise ConfigError if the task is incomplete or its id is taken; passes if it was already converted here."""
    if (work / "logs" / setting.dataset / "convert.log").is_file():
        return
    for parent in (work / "nnUNet_raw", work / "nnUNet_preprocessed", *(work / "nnUNet_results").glob("*")):
        taken = sorted(parent.glob(f"Dataset{setting.number:03d}_*"))
        if taken:
            raise ConfigError(
                f"{taken[0]} exists: id {setting.number} is taken. Choose another id (--config dataset_id=...) or "
                "another --directory"
            )
    check_task(setting.task)


def check_task(folder: Path) -> None:
    """Check that a folder is a complete download of the task.

    Files of macOS in the archive (``._lung_001.nii.gz``) are ignored, as by nnU-Net's converter.

    Raises:
        ConfigError: files are missing or differ from the download.
    """
    for part in ("dataset.json", "imagesTr", "labelsTr", "imagesTs"):
        if not (folder / part).exists():
            raise ConfigError(
                f"{folder} has no {part}; it must be the extracted download of the Medical Segmentation Decathlon"
            )
    try:
        described = json.loads((folder / "dataset.json").read_text())
        modality, cases = described["modality"], [(case["image"], case["label"]) for case in described["training"]]
        labels = {str(name) for name in described["labels"].values()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'dataset.json'} is not that of the Medical Segmentation Decathlon: {error!r}"
        ) from error
    if modality != {"0": "CT"} or "cancer" not in labels:
        raise ConfigError(
            f"{folder}: expected CT with a label 'cancer', got {modality} with {', '.join(sorted(labels))}"
        )
    missing = [file for case in cases for file in case if not (folder / file).is_file()]
    if missing or not cases:
        raise ConfigError(
            f"{folder}: {len(missing)} of {2 * len(cases)} files of dataset.json are missing"
            f"{f' (first: {missing[0]})' if missing else ''}; extract the archive again"
        )
