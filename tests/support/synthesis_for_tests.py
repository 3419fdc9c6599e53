"""Small raw datasets of phantoms in the tests' nnUNet_raw, for everything about synthesis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from datasets_for_tests import Dataset, new_dataset
from phantoms import write_phantom_dataset

SHAPE = (20, 32, 32)
SPACING_MM = (3.0, 2.0, 2.0)


def phantom_dataset(
    kind: str = "pancreas",
    *,
    cases: int = 3,
    shape: tuple[int, int, int] = SHAPE,
    seed: int = 0,
    file_ending: str = ".nii.gz",
) -> Dataset:
    """A raw dataset of its own, not planned: every test may change it."""
    dataset = new_dataset("Synthesis")
    sizes = {"shape": shape, "spacing_mm": SPACING_MM, "file_ending": file_ending}
    write_phantom_dataset(dataset.raw, kind, n_train=cases, n_test=0, seed=seed, **sizes)
    dataset.preprocessed.mkdir()
    return dataset


def image_file(dataset: Dataset, case: str, channel: int = 0) -> Path:
    return dataset.raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label_file(dataset: Dataset, case: str) -> Path:
    return dataset.raw / "labelsTr" / f"{case}.nii.gz"


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def rewrite(path: Path, array: np.ndarray) -> None:
    """Other voxels in a file of the same geometry."""
    old = sitk.ReadImage(str(path))
    image = sitk.GetImageFromArray(array)
    if array.shape == old.GetSize()[::-1]:
        image.CopyInformation(old)
    sitk.WriteImage(image, str(path))


def edit_dataset_json(dataset: Dataset, **entries: object) -> None:
    path = dataset.raw / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
