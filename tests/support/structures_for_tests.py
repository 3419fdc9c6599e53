"""A raw dataset of blocks with structure masks, two diseases and reports, as ``fvae-convert`` would make it."""

from __future__ import annotations

import json

import numpy as np
from datasets_for_tests import Dataset, new_dataset
from painted_cases import write_image

from fvae_nnunet.nnunet.case_reports import CaseReport, CaseReports, write_case_reports

SHAPE, SPACING_MM = (8, 24, 32), (3.0, 2.0, 2.0)
VALUES = {"heart": 51, "lung_left": 10, "lung_right": 13, "aorta": 52}
"""No voxel is aorta. Classes are in the order of the values."""

CLASSES = ("lung_left", "lung_right", "heart", "aorta", "nodule", "effusion")
FINDINGS = ("Lung nodule", "Pleural effusion")


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Structures and disease labels (z, y, x): two lungs, a heart, and in the left lung nodule (1) and effusion (2)."""
    structures, labels = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    structures[:, 4:20, 2:12], structures[:, 4:20, 20:30], structures[2:6, 8:16, 13:19] = 10, 13, 51
    labels[3:5, 8:12, 4:8], labels[:, 17:20, 2:12] = 1, 2
    return structures, labels


def write_structures_dataset(cases: int = 3, *, direction=None, labelled: bool = True) -> Dataset:
    """The dataset's name and folder; a nodule in all cases and an effusion in those of odd number."""
    dataset = new_dataset("Structures")
    reports = {}
    for number in range(cases):
        structures, labels = blocks()
        if number % 2 == 0:
            labels[labels == 2] = 0
        hu = np.random.default_rng(number).normal(0, 20, SHAPE) - 800 * (np.isin(structures, (10, 13)) & (labels == 0))
        how = {"spacing_mm": SPACING_MM, "direction": direction, "origin_mm": (-20.0, 5.0, 30.0)}
        write_image(dataset.raw / "imagesTr" / f"case_{number}_0000.nii.gz", np.rint(hu).astype(np.int16), **how)
        write_image(dataset.raw / "structuresTr" / f"case_{number}.nii.gz", structures, **how)
        if labelled:
            write_image(dataset.raw / "labelsTr" / f"case_{number}.nii.gz", labels, **how)
        findings = dict(zip(FINDINGS, (1, number % 2), strict=True))
        reports[f"case_{number}"] = CaseReport(f"patient_{number}", "train", "x.nii.gz", "a nodule", findings)
    (dataset.raw / "structuresTr" / "structures.json").write_text(json.dumps(VALUES))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "nodule": 1, "effusion": 2} if labelled else {"background": 0},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    write_case_reports(dataset.raw / "reports.json", CaseReports(FINDINGS, reports))
    return dataset
