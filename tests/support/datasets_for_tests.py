"""nnU-Net's folders of the tests, and the datasets in them."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(tempfile.mkdtemp(prefix="fvae_nnunet_tests_"))


@dataclass(frozen=True)
class Dataset:
    """A dataset in nnU-Net's folders."""

    name: str

    @property
    def id(self) -> str:
        return str(int(self.name[len("Dataset") : self.name.index("_")]))

    @property
    def raw(self) -> Path:
        return _ROOT / "nnUNet_raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return _ROOT / "nnUNet_preprocessed" / self.name

    @property
    def results(self) -> Path:
        return _ROOT / "nnUNet_results" / self.name

    @property
    def plans(self) -> dict:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    def write_plans(self, plans: dict) -> None:
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    def write_cascade_plans(self) -> None:
        """Plans in which 3d_fullres is also the second stage of a cascade after a 3d_lowres like it."""
        plans = self.plans
        configurations = plans["configurations"]
        configurations["3d_lowres"] = configurations["3d_fullres"] | {
            "data_identifier": "nnUNetPlans_3d_lowres",
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        self.write_plans(plans)

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.raw / "dataset.json").read_text())

    def write_dataset_json(self, content: dict) -> None:
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(content))

    def preprocess(self, configuration: str) -> None:
        """nnU-Net's own preprocessing of every case, in this process."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        manager = PlansManager(self.plans)
        configuration_manager = manager.get_configuration(configuration)
        folder = self.preprocessed / configuration_manager.data_identifier
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        preprocessor = configuration_manager.preprocessor_class(verbose=False)
        files = get_filenames_of_train_images_and_targets(str(self.raw), self.dataset_json)
        for case, paths in files.items():
            preprocessor.run_case_save(
                str(folder / case), paths["images"], paths["label"], manager, configuration_manager, self.dataset_json
            )


_ids = itertools.count(101)


def new_dataset(suffix: str) -> Dataset:
    """A name whose id no dataset of this run has; no folder is made."""
    return Dataset(f"Dataset{next(number for number in _ids if not any(_ROOT.glob(f'*/Dataset{number}_*')))}_{suffix}")


def clone_of(dataset: Dataset) -> Dataset:
    copy = new_dataset("Clone")
    shutil.copytree(dataset.raw, copy.raw)
    shutil.copytree(dataset.preprocessed, copy.preprocessed)
    copy.write_plans(dataset.plans | {"dataset_name": copy.name})
    return copy
