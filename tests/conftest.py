"""Datasets that nnU-Net itself has planned and preprocessed, shared by the tests.

nnU-Net 2.6 and 2.7 read their environment variables when they are imported, so the folders are set once, here, before
any import; tests that change a dataset work on a clone of it with an id of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

# `python -m pytest` puts the project's folder first, where the package is without preprocessing and trainers
_PROJECT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _PROJECT]

_ROOT = Path(tempfile.mkdtemp(prefix="fvae_nnunet_tests_"))
for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (_ROOT / _variable).mkdir()
    os.environ[_variable] = str(_ROOT / _variable)
os.environ.update(nnUNet_compile="f", nnUNet_n_proc_DA="2", nnUNet_def_n_proc="2", OMP_NUM_THREADS="1")
for _variable in ("nnUNet_fvae_view", "nnUNet_fvae_vae", "nnUNet_fvae_weights", "nnUNet_fvae_code"):
    os.environ.pop(_variable, None)


def pytest_unconfigure():
    shutil.rmtree(_ROOT, ignore_errors=True)


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


def _shrink_networks(plans: dict) -> None:
    for configuration in plans["configurations"].values():
        if "architecture" not in configuration:
            continue
        network = configuration["architecture"]["arch_kwargs"]
        for key in ("kernel_sizes", "strides"):
            network[key] = network[key][:3]
        network |= {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
        }


@pytest.fixture(scope="session")
def planned() -> Dataset:
    """Five phantoms of 24 x 48 x 48 voxels, planned and preprocessed for 2d and 3d_fullres. Not to be changed."""
    from phantoms import write_phantom_dataset

    dataset = Dataset("Dataset901_Phantom")
    write_phantom_dataset(
        dataset.raw, "pancreas", n_train=5, n_test=1, seed=0, shape=(24, 48, 48), spacing_mm=(3.0, 2.0, 2.0)
    )
    command = [
        Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"),
        "-d",
        dataset.id,
        "-c",
        "2d",
        "3d_fullres",
    ]
    done = subprocess.run([*command, "-npfp", "1", "-np", "1", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    plans = dataset.plans
    _shrink_networks(plans)
    dataset.write_plans(plans)
    return dataset


_ids = itertools.count(902)


@pytest.fixture
def clone(planned: Dataset) -> Dataset:
    """A copy of ``planned`` that the test may change."""
    return clone_of(planned)


def clone_of(dataset: Dataset) -> Dataset:
    copy = Dataset(f"Dataset{next(_ids)}_Clone")
    shutil.copytree(dataset.raw, copy.raw)
    shutil.copytree(dataset.preprocessed, copy.preprocessed)
    copy.write_plans(dataset.plans | {"dataset_name": copy.name})
    return copy
