"""Miniature downloads of CT-RATE and ReXGroundingCT in the published layout, with a chest of three densities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from fvae_nnunet.conversion.tables import FINDINGS

SHAPE = (6, 20, 24)
"""(z, y, x), all different, so that swapped axes show."""

SPACING_MM = (0.7, 0.7, 1.5)
ORIGIN_MM = (-8.0, -7.5, -30.25)

METADATA_COLUMNS = (
    "VolumeName", "Manufacturer", "PatientSex", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns",
    "XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "NumberofSlices", "ZSpacing", "StudyDate",
)  # fmt: skip


def chest(seed: int = 0) -> np.ndarray:
    """int16 HU (z, y, x): air around a body with two lungs and a bright spine at the back, in upper slices a nodule."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    body = ((y - 9.5) / 9) ** 2 + ((x - 11.5) / 11) ** 2 <= 1
    lungs = (np.abs(y - 8) <= 4) & ((np.abs(x - 6) <= 3) | (np.abs(x - 17) <= 3))
    slice_hu = np.select([lungs, body], [-850, 40], -1000)
    slice_hu[16:18, 11:13] = 700
    volume = np.repeat(slice_hu[None], SHAPE[0], axis=0)
    volume[4:, 7, 5] = 30
    return (volume + np.random.default_rng(seed).integers(-8, 9, SHAPE)).astype(np.int16)


def write_fixed(path: Path, volume_hu: np.ndarray, *, spacing_mm=SPACING_MM) -> None:
    """As in ``train_fixed``: int16 HU with its geometry."""
    image = sitk.GetImageFromArray(volume_hu)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(ORIGIN_MM)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_first_release(path: Path, volume_hu: np.ndarray, *, slope: float = 1, intercept: float = -1024) -> None:
    """As in ``train``: stored values as float, written by nibabel with an identity affine."""
    stored = (volume_hu.astype(np.float64) - intercept) / slope
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored.T.astype(np.float32), np.eye(4)), path)


def metadata_row(name: str, **changes: str) -> dict[str, str]:
    """A row as in ``validation_metadata.csv``."""
    return {
        "VolumeName": name, "Manufacturer": "Philips", "PatientSex": "M",
        "ImagePositionPatient": str(list(ORIGIN_MM)), "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "Rows": str(SHAPE[1]), "Columns": str(SHAPE[2]), "XYSpacing": "[0.7, 0.7]", "RescaleIntercept": "-1024",
        "RescaleSlope": "1", "RescaleType": "", "NumberofSlices": str(SHAPE[0]), "ZSpacing": "1.5",
        "StudyDate": "20210427",
    } | changes  # fmt: skip


def report_row(name: str, findings: str = "Lungs are clear.", impressions: str = "Normal.") -> dict[str, str]:
    return {
        "VolumeName": name, "ClinicalInformation_EN": "Not given.", "Technique_EN": "Non-contrast",
        "Findings_EN": findings, "Impressions_EN": impressions,
    }  # fmt: skip


def label_row(name: str, *present: str) -> dict[str, str]:
    return {"VolumeName": name} | {finding: str(int(finding in present)) for finding in FINDINGS}


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def place(root: Path, folder: str, name: str) -> Path:
    """``dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz`` below the root."""
    case = name.removesuffix(".nii.gz")
    split, patient, scan, _ = case.split("_")
    return root / "dataset" / folder / f"{split}_{patient}" / f"{split}_{patient}_{scan}" / f"{case}.nii.gz"


def write_tables(root: Path, train: list[str], valid: list[str]) -> None:
    """All published tables with a row for each of these volumes."""
    data = root / "dataset"
    for names, metadata, reports, labels in (
        (train, "train_metadata", "train_reports", "train_predicted_labels"),
        (valid, "validation_metadata", "validation_reports", "valid_predicted_labels"),
    ):
        if names:
            write_csv(data / "metadata" / f"{metadata}.csv", [metadata_row(name) for name in names])
            write_csv(data / "radiology_text_reports" / f"{reports}.csv", [report_row(name) for name in names])
            write_csv(
                data / "multi_abnormality_labels" / f"{labels}.csv", [label_row(name, "Lung nodule") for name in names]
            )


def write_grounding(root: Path, name: str, masks: list[np.ndarray]) -> None:
    """Masks (z, y, x) of the findings as one file of shape (F, x, y, z), whose header is no use."""
    stored = np.stack([mask.T for mask in masks]).astype(np.uint8)
    path = root / "segmentations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), path)


def grounding_entry(name: str, findings: list[tuple[str, str, np.ndarray]]) -> dict:
    """An entry of ``dataset.json`` from (text, category, mask) of each finding."""
    return {
        "name": name,
        "findings": {str(index): text for index, (text, _, _) in enumerate(findings)},
        "entity_counts": {str(index): 1 for index in range(len(findings))},
        "shape": list(SHAPE[::-1]),
        "pixels": {str(index): int(np.count_nonzero(mask)) for index, (_, _, mask) in enumerate(findings)},
        "categories": {str(index): category for index, (_, category, _) in enumerate(findings)},
        "protocol": "protocol1",
    }


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
