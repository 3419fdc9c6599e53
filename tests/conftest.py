"""Datasets that nnU-Net itself has planned and preprocessed, shared by the tests.

nnU-Net 2.6 and 2.7 read their environment variables when they are imported, so the folders are set once, here, before
any import; tests that change a dataset work on a clone of it with an id of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets_for_tests import _ROOT, Dataset, clone_of

# `python -m pytest` puts the project's folder first; what is installed is to be tested
_PROJECT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _PROJECT]

for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (_ROOT / _variable).mkdir()
    os.environ[_variable] = str(_ROOT / _variable)
os.environ.update(nnUNet_compile="f", nnUNet_n_proc_DA="2", nnUNet_def_n_proc="2", OMP_NUM_THREADS="1")
for _variable in ("nnUNet_fvae_view", "nnUNet_fvae_vae", "nnUNet_fvae_weights", "nnUNet_fvae_code"):
    os.environ.pop(_variable, None)


def pytest_unconfigure():
    shutil.rmtree(_ROOT, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Tests whose dataset nnU-Net plans and preprocesses are marked ``nnunet``: that takes half a minute once."""
    for item in items:
        if "planned" in item.fixturenames:
            item.add_marker("nnunet")


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


@pytest.fixture
def clone(planned: Dataset) -> Dataset:
    """A copy of ``planned`` that the test may change."""
    return clone_of(planned)
