"""Small segmentations in files, shared by the tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fvae_nnunet.cli.evaluate import main
from fvae_nnunet.evaluation.segmentation.scoring import score_folders
from fvae_nnunet.evaluation.segmentation.summary import summarise

SHAPE = (14, 20, 24)


def ellipsoid(centre, radii, shape=SHAPE):
    grid = np.ogrid[tuple(slice(size) for size in shape)]
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) <= 1


PLAIN = {"labels": {"background": 0, "pancreas": 1, "tumour": 2}}
REGIONS = {
    "labels": {"background": 0, "organ": [1, 2], "tumour": 2, "cyst": [3]},
    "regions_class_order": [1, 2, 3],
}
IGNORE = {"labels": {"background": 0, "pancreas": 1, "tumour": 2, "ignore": 3}}
REGIONS_AND_IGNORE = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
    "regions_class_order": [1, 2],
}
OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def write(path: Path, array, *, spacing_mm=(3.0, 0.9, 0.7), origin_mm=(-30.0, 5.0, 100.0), direction=OBLIQUE):
    """An image of an array (z, y, x); spacing as (z, y, x) too."""
    image = sitk.GetImageFromArray(np.asarray(array))
    if image.GetDimension() == 3:
        image.SetSpacing(spacing_mm[::-1])
        image.SetOrigin(origin_mm)
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def label_maps(seed: int, values: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction with organ and tumour; in case 1 neither has a tumour, in case 2 only one."""
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[ellipsoid((6, 9, 11), (4, 6, 7))] = 1
    prediction[ellipsoid((7, 9 + seed, 12), (4, 6, 7))] = 1
    if seed != 1:
        prediction[ellipsoid((6, 10, 12), (2, 3, 3))] = 2
    if seed not in (1, 2):
        reference[ellipsoid((6, 9, 11), (2, 3, 3))] = 2
    if 3 in values:
        reference[ellipsoid((6, 14, 14), (3, 4, 5))] = 3
    return reference, prediction


class Folders:
    """Four cases in labelsTs and predictions, and dataset.json above labelsTs."""

    def __init__(self, root: Path, dataset: dict, ending: str = ".nii.gz") -> None:
        self.root, self.ending = root, ending
        self.references, self.predictions = root / "labelsTs", root / "predictions"
        self.references.mkdir()
        self.predictions.mkdir()
        self.write_dataset_json(dataset)
        values = tuple(np.concatenate([np.atleast_1d(value) for value in dataset["labels"].values()]))
        for seed in range(4):
            reference, prediction = label_maps(seed, values)
            spacing_mm = (3.0 + seed, 0.9, 0.7)
            write(self.references / f"case_{seed}{ending}", reference, spacing_mm=spacing_mm)
            write(self.predictions / f"case_{seed}{ending}", prediction, spacing_mm=spacing_mm)

    def write_dataset_json(self, dataset: dict) -> None:
        (self.root / "dataset.json").write_text(json.dumps({"file_ending": self.ending, **dataset}))

    def evaluate(self, **options):
        return summarise(score_folders(self.references, [self.predictions], **options))

    def command(self, *options: str) -> int:
        return main([str(self.references), str(self.predictions), "-np", "0", *options])
